"""A contained service serves what somebody else has opened and mounts: what both say over their socket.

The mount program (root) connects to a SOCK_SEQPACKET socket, which a service manager turned into a process of its own,
and sends what to serve, with descriptors: the image, a fresh /dev/fuse, the journal if it is outside. The service opens
the file system and says so, or why it cannot; then the program mounts and says so; then the service serves. Each
message is a JSON object. Whoever closes the socket early has given up.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeVar

from py4fs.errors import Invalid

_FIRST_PASSED: Final = 3  # SD_LISTEN_FDS_START
_MESSAGE: Final = 1 << 16
_MOST_FDS: Final = 3


@dataclass(frozen=True)
class Request:
    """What to serve. With it come the descriptors of image, /dev/fuse and, if ``journal``, of the journal."""

    image: str  # for messages
    directory: str  # for messages, and s_last_mounted
    options: list[str]  # the -o words, as the mount program has checked them
    journal: bool = False


@dataclass(frozen=True)
class Opened:
    """The file system is open, or ``error`` says why not; ``code`` is mount(8)'s exit code then."""

    error: str = ""
    code: int = 0
    readonly: bool = False
    notices: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Mounted:
    """The connection is mounted."""

    mounted: bool = True


T = TypeVar("T", Request, Opened, Mounted)


def send(channel: socket.socket, message: Request | Opened | Mounted, fds: Sequence[int] = ()) -> None:
    """Raises OSError."""
    socket.send_fds(channel, [json.dumps(asdict(message)).encode()], fds)


def receive(channel: socket.socket, kind: type[T]) -> tuple[T, list[int]]:
    """A message of this kind, and its descriptors.

    Raises Invalid (another one, or the other side has gone), OSError.
    """
    data, fds, _, _ = socket.recv_fds(channel, _MESSAGE, _MOST_FDS)
    for fd in fds:
        os.set_inheritable(fd, False)
    try:
        found = kind(**_checked(json.loads(data), kind))
    except (ValueError, TypeError) as exc:
        for fd in fds:
            os.close(fd)
        raise Invalid("the other side has gone" if not data else f"message {data[:80]!r}: {exc}") from exc
    return found, fds


def _checked(values: Any, kind: type) -> dict[str, Any]:
    """Values of the types that the fields have. Raises TypeError."""
    if not isinstance(values, dict):
        raise TypeError("not an object")
    kinds = {"str": str, "int": int, "bool": bool, "list[str]": list}
    for name, value in values.items():
        wanted = kind.__annotations__.get(name)
        if wanted is None or not isinstance(value, kinds[wanted]):
            raise TypeError(f"field {name}")
        if isinstance(value, list) and not all(isinstance(item, str) for item in value):
            raise TypeError(f"field {name}")
    return values


def passed_socket() -> socket.socket:
    """The connection that the service manager hands over (sd_listen_fds(3), Accept=yes). Raises Invalid."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        raise Invalid("no socket was handed over (LISTEN_FDS): this is for a service manager to start")
    try:
        channel = socket.socket(fileno=_FIRST_PASSED)
        channel.set_inheritable(False)
    except OSError as exc:
        raise Invalid(f"descriptor {_FIRST_PASSED} is not a socket: {exc.strerror}") from exc
    return channel
