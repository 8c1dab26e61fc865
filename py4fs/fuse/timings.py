"""How long requests take, by their names (-o timing)."""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any


class Timings:
    """Count, sum and longest time (ns) of each kind of request, from taking it up to having its answer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times: dict[str, tuple[int, int, int]] = {}

    def add(self, name: str, ns: int) -> None:
        """One request of this name took so long."""
        with self._lock:
            count, total, most = self._times.get(name, (0, 0, 0))
            self._times[name] = count + 1, total + ns, max(most, ns)

    def report(self) -> list[str]:
        """A line for each name, what took longest in all first."""
        with self._lock:
            times = sorted(self._times.items(), key=lambda item: -item[1][1])
        return [
            f"timing: {name}: {count} requests, {total / 1e6:.3f} ms in all, "
            f"{total / count / 1e3:.1f} us each, {most / 1e3:.1f} us at most"
            for name, (count, total, most) in times
        ]

    def wrap_handlers(self, session: object, names: Callable[[str], bool]) -> None:
        """Measure the coroutine methods of a session whose names are ``names``."""
        for name, method in inspect.getmembers(session, inspect.iscoroutinefunction):
            if names(name):
                setattr(session, name, self._timed(name, method))

    def _timed(self, name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(method)
        async def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter_ns()
            try:
                return await method(*args, **kwargs)
            finally:
                self.add(name, time.perf_counter_ns() - started)

        return call
