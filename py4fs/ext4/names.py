"""What a name given to a directory stands for among the names that are stored there."""

from __future__ import annotations

from typing import Final

from py4fs.errors import NotSupported
from py4fs.ext4.casefold import Encoding, fold
from py4fs.ext4.dirblock import DirBlock
from py4fs.ext4.dirhash import dirhash

HashSeed = tuple[int, int, int, int]

DOTS: Final = (b".", b"..")


class Names:
    """Plain names: bytes that are the same. Also the interface of the others."""

    #: whether what is stored can be any bytes, as what is encrypted is
    any_bytes = False
    #: whether entries have their hash behind their name
    hash_in_entry = False

    def check(self, name: bytes) -> None:
        """Raises what is wrong with looking for such a name."""

    def check_new(self, name: bytes) -> None:
        """Raises what is wrong with adding such a name."""
        self.check(name)

    def stored(self, block: DirBlock, name: bytes) -> bytes | None:
        """The name in a leaf that `name` stands for."""
        return name if name in block.names else None

    def hashable(self, name: bytes) -> bool:
        """Whether an index leads to `name`; else all leaves have to be looked at."""
        return True

    def hash(self, name: bytes, version: int, seed: HashSeed) -> int:
        """The hash by which an index orders `name`, which is given or stored. Raises Corrupt, NotSupported."""
        return dirhash(name, version, seed)[0]

    def shown(self, block: DirBlock, version: int | None, seed: HashSeed) -> dict[bytes, bytes] | None:
        """The names of a leaf's entries as users see them, by what is stored; None: as they are stored.

        `version` is the hash version of the directory's index; None for one that has and gets no index.
        """
        return None


class FoldedNames(Names):
    """Names that differ in case only are the same; they are stored as they were given."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding

    def check(self, name: bytes) -> None:
        self._encoding.check(name)

    def check_new(self, name: bytes) -> None:
        self._encoding.check_new(name)

    def stored(self, block: DirBlock, name: bytes) -> bytes | None:
        if name in block.names:
            return name
        wanted = fold(name)
        if wanted is None:
            return None
        return next((stored for stored in block.names if fold(stored) == wanted), None)

    def hashable(self, name: bytes) -> bool:
        return fold(name) is not None

    def hash(self, name: bytes, version: int, seed: HashSeed) -> int:
        folded = fold(name)
        if folded is None:
            raise NotSupported(f"the hash of {name!r}, which is not UTF-8, is not known in a casefold directory")
        return dirhash(folded, version, seed)[0]


PLAIN: Final = Names()
