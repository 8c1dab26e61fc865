"""Runs a program with the restrictions of a systemd unit, where no systemd runs: `unit_sandbox.py UNIT PROGRAM...`.

As root. Every setting of the unit's [Service] has to be known here; what a line of `_BY_THE_MANAGER` names is left out,
with the reason. What Python itself needs is bound into the directories that are hidden.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_USER = 61234  # as DynamicUser chooses one: nobody else's
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x40000000
_NEW_ANY = 0x7E020080
_BIND, _REC, _SLAVE = 0x1000, 0x4000, 0x80000
_NOSUID, _NODEV, _NOEXEC = 2, 4, 8
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x50001, 0x50026
_EQ, _MASKED_EQ = 4, 7
_HIDDEN = ("/home", "/root", "/run/user")
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

_BY_THE_MANAGER = {
    "Type": "how it is started",
    "ExecStart": "given on the command line",
    "KillMode": "how it is ended",
    "TimeoutStopSec": "how it is ended",
    "StandardInput": "where its messages go",
    "StandardOutput": "where its messages go",
    "StandardError": "where its messages go",
    "OOMPolicy": "what the manager does then",
    "DevicePolicy": "of the control group; PrivateDevices leaves no device",
    "IPAddressDeny": "of the control group; PrivateNetwork leaves no network",
}


class _Argument(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno() or -result
        raise OSError(code, f"{what}: {os.strerror(code)}")


def read_unit(path: str) -> dict[str, list[str]]:
    """Settings of [Service], each with all its values."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    done = _libc.mount(source.encode(), target.encode(), kind and kind.encode(), ctypes.c_ulong(flags), data.encode())
    _check(done, f"mount {target}")


def _hide(directories: tuple[str, ...], keep: list[str], mode: str) -> None:
    """An empty directory in place of each, with what is to be kept bound in."""
    kept = [(path, os.open(path, os.O_PATH)) for path in keep]
    for directory in directories:
        if not Path(directory).is_dir():
            continue
        _mount("tmpfs", directory, "tmpfs", _NOSUID | _NODEV, f"mode={mode}")
        for path, fd in kept:
            if path.startswith(directory + "/"):
                Path(path).mkdir(parents=True, exist_ok=True)
                _mount(f"/proc/self/fd/{fd}", path, None, _BIND | _REC)
    for _, fd in kept:
        os.close(fd)


def _devices() -> None:
    fds = {name: os.open(f"/dev/{name}", os.O_PATH) for name in _DEVICES}
    _mount("tmpfs", "/dev", "tmpfs", _NOSUID | _NOEXEC, "mode=755")
    for name, fd in fds.items():
        Path(f"/dev/{name}").touch()
        _mount(f"/proc/self/fd/{fd}", f"/dev/{name}", None, _BIND)
        os.close(fd)


def _read_only() -> None:
    attributes = (ctypes.c_uint64 * 4)(1, 0, 0, 0)  # MOUNT_ATTR_RDONLY
    _check(_libc.syscall(442, -100, b"/", 0x8000, attributes, 32), "mount_setattr")


def _places(unit: dict[str, list[str]], keep: list[str]) -> None:
    """Namespaces, and what there is to see in them."""
    wants: Callable[[str], bool] = lambda name: unit.get(name, [""])[-1] in ("yes", "strict", "invisible", "pid")  # noqa: E731
    flags = _NEWNS
    for name, flag in (("PrivateNetwork", _NEWNET), ("PrivateIPC", _NEWIPC), ("ProtectHostname", _NEWUTS)):
        flags |= flag if wants(name) else 0
    _check(_libc.unshare(flags), "unshare")
    _mount("", "/", None, _REC | _SLAVE)
    # also ProtectKernelTunables, ProtectKernelLogs, ProtectControlGroups: all of it is read-only, or not there
    if wants("ProtectSystem"):
        _read_only()
    if wants("ProtectHome"):
        _hide(_HIDDEN, keep, "755")
    if wants("PrivateTmp"):
        _hide(("/tmp", "/var/tmp"), keep, "1777")
    if wants("PrivateDevices"):
        _devices()
    if wants("ProtectProc") and wants("ProcSubset"):
        _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC, "hidepid=invisible,subset=pid")


def _sets(*names: str) -> set[str]:
    """System calls of groups, those in groups of groups too."""
    found: set[str] = set()
    for name in names:
        if not name.startswith("@"):
            found.add(name)
            continue
        done = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
        lines = (line.strip() for line in done.stdout.splitlines()[1:])
        found |= _sets(*(line for line in lines if line and not line.startswith("#")))
    return found


def allowed_calls(lines: list[str]) -> set[str]:
    """What SystemCallFilter= leaves."""
    allowed: set[str] = set()
    for line in lines:
        if line.startswith("~"):
            allowed -= _sets(*line[1:].split())
        else:
            allowed |= _sets(*line.split())
    return allowed


def _filter(unit: dict[str, list[str]], allowed: set[str]) -> Callable[[], None]:
    """Prepares the filter; to be loaded last."""
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(_EPERM))

    def rule(action: int, name: str, *conditions: tuple[int, int, int, int]) -> None:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return  # of another architecture
        arguments = (_Argument * max(1, len(conditions)))(*(_Argument(*condition) for condition in conditions))
        done = seccomp.seccomp_rule_add_array(context, action, number, len(conditions), arguments)
        _check(done, f"filter {name}")

    # each: the calls that are only allowed when an argument is so; several conditions are alternatives
    special: dict[str, list[tuple[int, int, int, int]]] = {}
    if "RestrictAddressFamilies" in unit:
        assert unit["RestrictAddressFamilies"] == ["AF_UNIX"]
        special["socket"] = special["socketpair"] = [(0, _EQ, 1, 0)]
    if "RestrictNamespaces" in unit:
        allowed -= {"unshare", "setns", "clone3"}
        special["clone"] = [(0, _MASKED_EQ, _NEW_ANY, 0)]
        rule(_ENOSYS, "clone3")
    if "MemoryDenyWriteExecute" in unit:
        special["mmap"] = [(2, _MASKED_EQ, 2, 0), (2, _MASKED_EQ, 4, 0)]
        special["mprotect"] = special["pkey_mprotect"] = [(2, _MASKED_EQ, 4, 0)]
        special["shmat"] = [(2, _MASKED_EQ, 0o100000, 0)]
    if "RestrictSUIDSGID" in unit:
        for name, number in (("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("mkdir", 1), ("mknod", 1)):
            special[name] = [(number, _MASKED_EQ, 0o6000, 0)]
    if "RestrictRealtime" in unit:
        special["sched_setscheduler"] = [(1, _EQ, policy, 0) for policy in (0, 3, 5)]
    if "LockPersonality" in unit:
        special["personality"] = [(0, _EQ, 0, 0)]
    for name in sorted(allowed):
        if name not in special:
            rule(_ALLOW, name)
        for condition in special.get(name, ()):
            rule(_ALLOW, name, condition)
    return lambda: _check(seccomp.seccomp_load(context), "seccomp_load")


_DONE_IN_PLACES = {
    *("PrivateNetwork", "PrivateTmp", "PrivateDevices", "PrivateIPC", "ProtectSystem", "ProtectHome", "ProtectProc"),
    *("ProcSubset", "ProtectKernelTunables", "ProtectKernelLogs", "ProtectControlGroups", "ProtectHostname"),
}
_DONE_IN_FILTER = {
    *("RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID", "LockPersonality"),
    *("MemoryDenyWriteExecute", "SystemCallArchitectures", "SystemCallFilter", "SystemCallErrorNumber"),
    *("ProtectKernelModules", "ProtectClock"),  # calls of @module and @clock, which are not allowed
}
_DONE_IN_MAIN = {
    *("OOMScoreAdjust", "UMask", "DynamicUser", "NoNewPrivileges", "CapabilityBoundingSet", "AmbientCapabilities"),
    "PrivateUsers",
}


def _become_nobody(unit: dict[str, list[str]]) -> None:
    """DynamicUser, PrivateUsers, no capabilities, no way to any."""
    os.setgroups([])
    os.setresgid(_USER, _USER, _USER)
    os.setresuid(_USER, _USER, _USER)
    _check(_libc.prctl(4, 1, 0, 0, 0), "prctl")  # its files in /proc are its own again
    if "PrivateUsers" in unit:
        _check(_libc.unshare(_NEWUSER), "unshare")
        for name, text in (("setgroups", "deny"), ("uid_map", f"{_USER} {_USER} 1"), ("gid_map", f"{_USER} {_USER} 1")):
            Path(f"/proc/self/{name}").write_text(text, encoding="ascii")
    for number in range(64):
        _libc.prctl(24, number, 0, 0, 0)  # PR_CAPBSET_DROP
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _check(_libc.capset(header, data), "capset")
    _check(_libc.prctl(38, 1, 0, 0, 0), "prctl")  # PR_SET_NO_NEW_PRIVS


def main(path: str, command: list[str]) -> None:
    """Never returns."""
    unit = read_unit(path)
    unknown = set(unit) - set(_BY_THE_MANAGER) - _DONE_IN_PLACES - _DONE_IN_FILTER - _DONE_IN_MAIN
    assert not unknown, f"settings of the unit that are not imitated: {unknown}"
    load = _filter(unit, allowed_calls(unit["SystemCallFilter"]))
    with contextlib.suppress(PermissionError):  # some machines forbid it to their root, and it restricts nothing
        Path("/proc/self/oom_score_adj").write_text(unit["OOMScoreAdjust"][0], encoding="ascii")
    keep = [str(Path(p).resolve()) for p in (sys.base_prefix, sys.prefix, *os.environ.get("PYTHONPATH", "").split(":"))]
    _places(unit, [path for path in keep if path != "/usr"])
    os.chdir("/")
    os.umask(int(unit["UMask"][0], 8) & 0o777)
    _become_nobody(unit)
    load()
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
