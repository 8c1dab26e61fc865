"""Going to the background: fork before any thread exists, tell the waiting parent, let go of the terminal."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

_READY = b"R"

log = logging.getLogger(__name__)


def run_in_background(serve: Callable[[Callable[[], None]], int]) -> int:
    """Run `serve(ready)` in a child process and return what the caller should exit with.

    The child keeps the terminal's stderr until it calls `ready()`, so every earlier error is seen; then it
    lets go and the parent returns 0. A child that ends first hands its exit status to the parent. In the
    child this function does not return.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return _await_child(pid, reader)
    os.close(reader)
    code = 4
    try:
        os.setsid()
        _close_inherited()
        code = serve(lambda: _ready(writer))
    except BaseException:
        logging.getLogger("py4fs").critical("the server failed", exc_info=True)
        raise
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)  # the parent's cleanup handlers are not the child's to run


def _close_inherited() -> None:
    """Let go of descriptors that the calling program happened to have open (a lock, a pipe, ...). Python's own are
    never inheritable, so those that are came from outside."""
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:  # noqa: PTH208
        with contextlib.suppress(OSError):
            if fd > 2 and os.get_inheritable(fd):
                os.close(fd)


def _await_child(pid: int, reader: int) -> int:
    """What became of the child: 0 once it serves, else its exit status."""

    def forward(signum: int, _frame: object) -> None:
        os.kill(pid, signum)  # Ctrl-C while waiting means the mount, which has its own session

    previous = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            if pipe.read(1) == _READY:
                return 0
        _, status = os.waitpid(pid, 0)
    finally:
        for signum, action in previous.items():
            signal.signal(signum, action)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        print(f"py4fs: the server was ended by signal {number} before the mount was ready", file=sys.stderr)
        return 8 if number in (signal.SIGINT, signal.SIGTERM) else 2
    return os.WEXITSTATUS(status) or 2  # an end before "ready" is a failure whatever it says


def _ready(writer: int) -> None:
    """In the child: the mount answers. Tell the parent and let go of terminal and directory."""
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    os.write(writer, _READY)
    os.close(writer)


def setup_logging(*, debug: bool, foreground: bool, log_file: str | None) -> None:
    """py4fs's log: to the file when one is given, else to the terminal in the foreground, else to syslog."""
    handler: logging.Handler
    if log_file is not None:
        handler = logging.FileHandler(log_file)
        layout = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    elif foreground:
        handler = logging.StreamHandler()
        layout = "py4fs: %(levelname)s: %(message)s" if not debug else "%(asctime)s %(name)s: %(message)s"
    elif Path("/dev/log").exists():
        handler = logging.handlers.SysLogHandler("/dev/log", logging.handlers.SysLogHandler.LOG_DAEMON)
        layout = f"py4fs[{os.getpid()}]: %(levelname)s: %(message)s"
    else:
        handler = logging.StreamHandler()  # the terminal until the mount answers; then there is nobody to tell
        layout = "py4fs: %(levelname)s: %(message)s"
        handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter(layout))
    logger = logging.getLogger("py4fs")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if debug else logging.INFO if log_file or not foreground else logging.WARNING)
    logger.propagate = False
    logging.getLogger("pyfuse3").addHandler(handler)
