"""The error families: errno, builtin base, one-line messages."""

from __future__ import annotations

import errno
import pickle

import pytest

from py4fs import errors

POSIX = {
    errors.NotFound: (errno.ENOENT, FileNotFoundError),
    errors.Exists: (errno.EEXIST, FileExistsError),
    errors.IsADirectory: (errno.EISDIR, IsADirectoryError),
    errors.NotADirectory: (errno.ENOTDIR, NotADirectoryError),
    errors.AccessDenied: (errno.EACCES, PermissionError),
    errors.NotPermitted: (errno.EPERM, PermissionError),
    errors.NotEmpty: (errno.ENOTEMPTY, OSError),
    errors.NoSpace: (errno.ENOSPC, OSError),
    errors.NameTooLong: (errno.ENAMETOOLONG, OSError),
    errors.ReadOnly: (errno.EROFS, OSError),
    errors.TooManyLinks: (errno.EMLINK, OSError),
    errors.Invalid: (errno.EINVAL, OSError),
    errors.FileTooBig: (errno.EFBIG, OSError),
    errors.NoData: (errno.ENODATA, OSError),
    errors.OutOfRange: (errno.ERANGE, OSError),
    errors.NotSupported: (errno.EOPNOTSUPP, OSError),
    errors.NoSuchIoctl: (errno.ENOTTY, OSError),
    errors.Busy: (errno.EBUSY, OSError),
    errors.Frozen: (errno.EBUSY, OSError),
    errors.CrossDevice: (errno.EXDEV, OSError),
    errors.SymlinkLoop: (errno.ELOOP, OSError),
    errors.Stale: (errno.ESTALE, OSError),
    errors.BadHandle: (errno.EBADF, OSError),
    errors.DeviceError: (errno.EIO, OSError),
    errors.Overflow: (errno.EOVERFLOW, OSError),
    errors.TooBig: (errno.E2BIG, OSError),
}


@pytest.mark.parametrize("kind", POSIX)
def test_posix_family(kind: type[errors._PosixError]) -> None:
    code, builtin = POSIX[kind]
    error = kind("no such thing")
    assert (error.errno, str(error)) == (code, "no such thing")
    assert isinstance(error, errors.FsError) and isinstance(error, builtin)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.errno, str(again)) == (kind, code, "no such thing")


def test_corrupt_names_structure_place_found_and_expected() -> None:
    error = errors.Corrupt("eh_magic", "inode 12, block 77", "0x1234", "0xf30a")
    assert str(error) == "eh_magic (inode 12, block 77): found 0x1234, expected 0xf30a"
    assert (error.errno, error.kind, error.where) == (errno.EUCLEAN, "eh_magic", "inode 12, block 77")
    assert (error.got, error.want) == ("0x1234", "0xf30a")
    assert str(errors.Corrupt("x", "", 0, None)) == "x: found 0"
    assert str(errors.Corrupt("x", "inode 3")) == "x (inode 3): corrupt"
    bad = errors.BadChecksum("inode", "inode 3", 1, 2)
    assert isinstance(bad, errors.Corrupt) and bad.errno == errno.EBADMSG
    assert str(pickle.loads(pickle.dumps(bad))) == str(bad)


def test_unsupported_names_its_features() -> None:
    error = errors.UnsupportedFeature(["mmp", "encrypt"])
    assert (error.errno, error.features) == (errno.EOPNOTSUPP, ("mmp", "encrypt"))
    assert "mmp, encrypt" in str(error)
    assert errors.NeedsRecovery("replay").errno == errno.EUCLEAN


def test_a_path_can_be_added() -> None:
    error = errors.NotFound("no such file")
    error.filename = b"/a/b"
    assert str(error) == "/a/b: no such file"
