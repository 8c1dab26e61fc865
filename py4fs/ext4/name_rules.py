"""Which names a directory has, by its flags."""

from __future__ import annotations

from typing import Final

from py4fs.ext4.casefold import Encoding
from py4fs.ext4.layout.inode import EXT4_CASEFOLD_FL, EXT4_ENCRYPT_FL
from py4fs.ext4.names import FoldedNames, Names
from py4fs.ext4.nokey import NoKeyNames

_PLAIN: Final = Names()
_NO_KEY: Final = NoKeyNames(hash_in_entry=False)
_NO_KEY_FOLDED: Final = NoKeyNames(hash_in_entry=True)


class NameRules:
    """The rules of a volume."""

    def __init__(self, encoding: Encoding | None = None, *, encrypt: bool = False) -> None:
        """`encoding`: None without the casefold feature; `encrypt`: whether it has that feature."""
        self.folded = None if encoding is None else FoldedNames(encoding)
        self._encrypt = encrypt

    def of(self, flags: int) -> Names:
        """The names of a directory with these i_flags.

        The kernel makes no fast commits of encrypted names, so nobody needs those as they are stored.
        """
        folded = self.folded if flags & EXT4_CASEFOLD_FL else None
        if flags & EXT4_ENCRYPT_FL and self._encrypt:
            return _NO_KEY if folded is None else _NO_KEY_FOLDED
        return folded or _PLAIN
