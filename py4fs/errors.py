"""Every failure that a user, a disk or an image can cause.

Three families, all of them `FsError` (an `OSError`, so `.errno` is always set):

* POSIX-like errors, which also are the builtin (`NotFound` is a `FileNotFoundError`);
* `UnsupportedFeature` and `NeedsRecovery`: the image is fine, py4fs cannot serve it as it is;
* `Corrupt` and `BadChecksum`: the image is damaged; they name structure, location, found and expected.

`str(exc)` is one clear line. Mistakes of the programmer are asserts and never become an `FsError`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import ClassVar


class FsError(OSError):
    """Base of everything that a user can cause; constructed with an errno and a message."""

    #: what the user can do about it, shown behind the message
    hint: str | None = None

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)

    @property
    def message(self) -> str:
        """The line without a path."""
        return str(self.strerror) if self.hint is None else f"{self.strerror}; {self.hint}"

    def __str__(self) -> str:
        if self.filename is None:
            return self.message
        name = self.filename.decode(errors="replace") if isinstance(self.filename, bytes) else self.filename
        return f"{name}: {self.message}"


class _PosixError(FsError):
    """A POSIX-like error: the class knows its errno, the caller gives the message."""

    code: ClassVar[int] = errno.EIO

    def __init__(self, message: str) -> None:
        super().__init__(self.code, message)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message,))


class NotFound(_PosixError, FileNotFoundError):
    """ENOENT: no such name or inode."""

    code = errno.ENOENT


class Exists(_PosixError, FileExistsError):
    """EEXIST: the name is taken."""

    code = errno.EEXIST


class IsADirectory(_PosixError, IsADirectoryError):
    """EISDIR: a directory where something else is needed."""

    code = errno.EISDIR


class NotADirectory(_PosixError, NotADirectoryError):
    """ENOTDIR: not a directory where one is needed."""

    code = errno.ENOTDIR


class AccessDenied(_PosixError, PermissionError):
    """EACCES: the mode, an ACL or a lock of the host does not allow it."""

    code = errno.EACCES


class NotPermitted(_PosixError, PermissionError):
    """EPERM: not even the owner may do this (immutable, append-only, privileged operation)."""

    code = errno.EPERM


class NotEmpty(_PosixError):
    """ENOTEMPTY: the directory has entries."""

    code = errno.ENOTEMPTY


class NoSpace(_PosixError):
    """ENOSPC: no free block, inode or room in a structure."""

    code = errno.ENOSPC


class QuotaExceeded(NoSpace):
    """EDQUOT: the owner, the group or the project has no more of its quota left."""

    code = errno.EDQUOT


class NameTooLong(_PosixError):
    """ENAMETOOLONG: a name above 255 bytes, or a symlink target above one block."""

    code = errno.ENAMETOOLONG


class ReadOnly(_PosixError):
    """EROFS: the file system or the device is read-only."""

    code = errno.EROFS


class TooManyLinks(_PosixError):
    """EMLINK: the link count is at its limit."""

    code = errno.EMLINK


class Invalid(_PosixError):
    """EINVAL: an argument makes no sense."""

    code = errno.EINVAL


class FileTooBig(_PosixError):
    """EFBIG: beyond the largest file that the format allows."""

    code = errno.EFBIG


class NoKey(_PosixError):
    """ENOKEY: encrypted, and the key is not here."""

    code = errno.ENOKEY


class NoData(_PosixError):
    """ENODATA: no such extended attribute."""

    code = errno.ENODATA


class OutOfRange(_PosixError):
    """ERANGE: the result does not fit the caller's buffer."""

    code = errno.ERANGE


class NotSupported(_PosixError):
    """EOPNOTSUPP: the operation is not available here."""

    code = errno.EOPNOTSUPP


class NoSuchIoctl(_PosixError):
    """ENOTTY: the file or file system has no such control."""

    code = errno.ENOTTY


class Busy(_PosixError):
    """EBUSY: in use by someone else."""

    code = errno.EBUSY


class Frozen(_PosixError):
    """EBUSY: the file system is frozen; nothing was changed, ask again when it is thawed."""

    code = errno.EBUSY


class CrossDevice(_PosixError):
    """EXDEV: both names must be on this file system."""

    code = errno.EXDEV


class SymlinkLoop(_PosixError):
    """ELOOP: too many symlinks, or a symlink where none may be."""

    code = errno.ELOOP


class Stale(_PosixError):
    """ESTALE: the inode number no longer names the file that it did."""

    code = errno.ESTALE


class NoSuchAddress(_PosixError):
    """ENXIO: no data, or no hole, behind that position."""

    code = errno.ENXIO


class CommitPending(_PosixError):
    """EAGAIN: a commit, or I/O, that is under way has to end first; nothing was changed, so simply ask again then."""

    code = errno.EAGAIN


class BadHandle(_PosixError):
    """EBADF: the handle is not open, or not open for this."""

    code = errno.EBADF


class DeviceError(_PosixError):
    """EIO: the device failed, or ended before the bytes asked for."""

    code = errno.EIO


class Overflow(_PosixError):
    """EOVERFLOW: a value does not fit the structure that must hold it."""

    code = errno.EOVERFLOW


class TooBig(_PosixError):
    """E2BIG: an argument (an attribute's value, say) is above its limit."""

    code = errno.E2BIG


class UnsupportedFeature(FsError):
    """The image uses features that py4fs does not know; `features` has their mke2fs names."""

    def __init__(self, features: Iterable[str], message: str | None = None) -> None:
        self.features = tuple(features)
        names = ", ".join(self.features)
        super().__init__(errno.EOPNOTSUPP, message or f"superblock: unsupported feature(s): {names}")

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.features, self.message))


class NeedsRecovery(FsError):
    """The journal holds transactions that must be replayed before anything is read."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EUCLEAN, message)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message,))


class Corrupt(FsError):
    """A structure on disk breaks its own rules.

    `kind` names the structure or field, `where` its location (inode, block, byte offset), `got` and `want`
    what was found and what the format demands (`None` when there is nothing to show).
    """

    code: ClassVar[int] = errno.EUCLEAN

    def __init__(self, kind: str, where: str, got: object = None, want: object = None) -> None:
        self.kind = kind
        self.where = where
        self.got = got
        self.want = want
        parts = [f"{kind} ({where})" if where else kind]
        if got is not None:
            parts.append(f"found {got}")
        if want is not None:
            parts.append(f"expected {want}")
        super().__init__(self.code, parts[0] + (": " + ", ".join(parts[1:]) if parts[1:] else ": corrupt"))

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.kind, self.where, self.got, self.want))


class BadChecksum(Corrupt):
    """A structure's checksum does not match its bytes (EBADMSG, as the kernel answers)."""

    code = errno.EBADMSG


class BadIndex(Corrupt):
    """The hash index of a directory is damaged (or of a kind nobody knows), the entries may still be fine."""
