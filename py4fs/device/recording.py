"""A device that remembers what was written to it, and the images that a crash could have left of that.

What was written before a flush that has returned is on the medium. Of what was written since then anything may be
there: all of it, none, any part in any order, and of each write any of its sectors.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from py4fs.device.base import Device

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: bytes that reach the medium together
SECTOR = 512


class Write(NamedTuple):
    """Bytes that were written at an offset."""

    offset: int
    data: bytes

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


#: a `Write`, or None for a flush that has returned
Entry = Write | None


class RecordingDevice:
    """Wraps any device; `log` holds its writes and flushes in order. Calls that fail below are not in it."""

    def __init__(self, inner: Device) -> None:
        self.inner = inner
        self.name = inner.name
        self.size = inner.size
        self.readonly = inner.readonly
        self.log: list[Entry] = []

    def read(self, offset: int, length: int) -> bytes:
        return self.inner.read(offset, length)

    def write(self, offset: int, data: Buffer) -> None:
        copy = bytes(memoryview(data))
        self.inner.write(offset, copy)
        self.log.append(Write(offset, copy))

    def writev(self, offset: int, parts: Sequence[Buffer]) -> None:
        self.write(offset, b"".join(parts))

    def flush(self) -> None:
        self.inner.flush()
        self.log.append(None)

    def close(self) -> None:
        self.inner.close()


@dataclass(frozen=True, slots=True)
class Crash:
    """A moment at which everything stopped: `cut` entries of the log had been issued.

    Without a `seed` all of their writes arrived. With one, it chooses which of the writes since the last flush did,
    and which sectors of them; as text: ``120`` and ``120.7``.
    """

    cut: int
    seed: int | None = None

    def __str__(self) -> str:
        return str(self.cut) if self.seed is None else f"{self.cut}.{self.seed}"

    @classmethod
    def parse(cls, text: str) -> Crash:
        """The crash that `str` shows so. Raises ValueError."""
        cut, _, seed = text.partition(".")
        return cls(int(cut), int(seed) if seed else None)


def last_flush(log: Sequence[Entry], cut: int) -> int:
    """How many entries are durable when `cut` were issued: everything up to the last flush among them."""
    while cut and log[cut - 1] is not None:
        cut -= 1
    return cut


def arrived(log: Sequence[Entry], crash: Crash, *, atomic: Sequence[tuple[int, int]] = ()) -> list[Write]:
    """What of the writes since the last flush is on the medium, in order: later ones win.

    `atomic`: byte ranges (start, end) that are never torn, whatever else of a write is.
    """
    pending = [entry for entry in log[last_flush(log, crash.cut) : crash.cut] if entry is not None]
    if crash.seed is None:
        return pending
    rng = random.Random(f"{crash.seed} {crash.cut}")
    keep = rng.choice((0.1, 0.5, 0.5, 0.9))
    torn = rng.choice((0.0, 0.5, 1.0))
    found: list[Write] = []
    for write in pending:
        if rng.random() >= keep:
            continue
        if rng.random() >= torn:
            found.append(write)
        else:
            found += _tear(write, rng, atomic)
    return found


def _tear(write: Write, rng: random.Random, atomic: Sequence[tuple[int, int]]) -> Iterator[Write]:
    """Some of a write's sectors."""
    share = rng.choice((0.2, 0.5, 0.8))
    start = write.offset
    while start < write.end:
        stop = min(start - start % SECTOR + SECTOR, write.end)
        for low, high in atomic:
            if low < stop and start < high:
                stop = min(max(stop, high), write.end)
        if rng.random() < share:
            yield Write(start, write.data[start - write.offset : stop - write.offset])
        start = stop


class CrashImages:
    """Builds images from what the device held at first and its log; cheapest when asked for in order of the cuts."""

    def __init__(self, base: bytes, log: Sequence[Entry], *, atomic: Sequence[tuple[int, int]] = ()) -> None:
        self._base = base
        self._log = log
        self._atomic = atomic
        self._durable = bytearray(base)
        self._done = 0

    def image(self, crash: Crash) -> bytearray:
        """The bytes of the device after the crash; the caller may change them."""
        assert 0 <= crash.cut <= len(self._log), f"cut {crash.cut} of {len(self._log)}"
        durable = last_flush(self._log, crash.cut)
        if durable < self._done:
            self._durable[:] = self._base
            self._done = 0
        _apply(self._durable, self._log[self._done : durable])
        self._done = durable
        image = self._durable[:]
        _apply(image, arrived(self._log, crash, atomic=self._atomic))
        return image


def _apply(image: bytearray, entries: Sequence[Entry]) -> None:
    for entry in entries:
        if entry is not None:
            image[entry.offset : entry.end] = entry.data


def prefixes(log: Sequence[Entry]) -> Iterator[Crash]:
    """A crash before the first entry, and behind every write."""
    yield Crash(0)
    for index, entry in enumerate(log):
        if entry is not None:
            yield Crash(index + 1)


def sample(log: Sequence[Entry], count: int, seed: int) -> list[Crash]:
    """`count` different crashes spread over the log, most of them with parts missing; in order of their cuts."""
    rng = random.Random(seed)
    whole = list(prefixes(log))
    chosen = set(rng.sample(whole, min(max(count // 4, 1), len(whole))))
    # where nothing is pending there is nothing to choose from
    cuts = [crash.cut for crash in whole if crash.cut]
    while cuts and len(chosen) < count:
        chosen.add(Crash(rng.choice(cuts), rng.randrange(1_000_000)))
    return sorted(chosen, key=lambda crash: (crash.cut, -1 if crash.seed is None else crash.seed))
