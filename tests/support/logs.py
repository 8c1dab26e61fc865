"""Guard over the log: a warning that no test asked for is a failure."""

from __future__ import annotations

import logging
import re


class LogGuard(logging.Handler):
    """Collects WARNING and above of the `py4fs` loggers during one test."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._records: list[logging.LogRecord] = []
        self._expected: list[re.Pattern[str]] = []
        self._allowed: list[re.Pattern[str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)

    def expect(self, pattern: str) -> None:
        """Warnings that match this regular expression are part of the test; at least one has to come."""
        self._expected.append(re.compile(pattern))

    def allow(self, pattern: str) -> None:
        """Warnings that match may come, or not."""
        self._allowed.append(re.compile(pattern))

    def check(self) -> None:
        """Raise AssertionError for warnings nobody expected and for expected ones that did not come."""
        lines = [f"{r.levelname} {r.name}: {r.getMessage()}" for r in self._records]
        known = self._expected + self._allowed
        surplus = [line for line in lines if not any(p.search(line) for p in known)]
        assert not surplus, "unexpected warnings in the log:\n  " + "\n  ".join(surplus)
        absent = [p.pattern for p in self._expected if not any(p.search(line) for line in lines)]
        assert not absent, f"expected in the log but not there: {absent}"
