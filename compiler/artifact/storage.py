"""What the file system does for artifacts: its errors in our words, syncing, one-step renames."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ir import PenstockError
from ir.errors import ResourceError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FAILING = frozenset({errno.EIO, errno.EMFILE, errno.ENFILE, errno.EFBIG, errno.ESTALE, errno.EBUSY})
_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2
# what kernels and file systems without renameat2, or without one of its flags, answer
_NO_RENAMEAT2 = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})
_TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})


def storage_error(error: OSError, path: Path) -> PenstockError | None:
    """What a user should see for a fault of the disk at ``path``; None if it is no such fault."""
    where = Path(os.fsdecode(error.filename)) if error.filename is not None else None
    if error.errno in _FULL:
        free = _free_mib(where or path)
        return ResourceError(
            f"no space left while writing {where or path}{f' ({free} MiB free)' if free is not None else ''}",
            hint="free some space, or choose a folder on another disk; nothing half-written was left behind",
        )
    inside = where is None or where == path.parent or path.parent in where.parents
    if error.errno in _REFUSED and inside:
        return ResourceError(
            f"no permission for {where or path}: {error.strerror}",
            hint=f"get access to {path.parent}, or choose another folder",
        )
    if error.errno in _FAILING and inside:
        return ResourceError(
            f"cannot use {where or path}: {error.strerror}",
            hint="see `ulimit -n`, and the health of the disk",
        )
    return None


def is_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, is a full disk or quota."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in _FULL


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the disk's faults at ``path`` into ResourceErrors; leave all other errors alone."""
    try:
        yield
    except OSError as error:
        known = storage_error(error, path)
        if known is None:
            raise
        raise known from error


def _free_mib(path: Path) -> int | None:
    with suppress(OSError):
        stats = os.statvfs(path.parent)
        return stats.f_bavail * stats.f_frsize >> 20
    return None


def sync(path: Path) -> None:
    """Push a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync a directory
            raise
    finally:
        os.close(descriptor)


def beside(target: Path) -> Path:
    """A fresh hidden name next to ``target``; it says which process made it."""
    return target.with_name(f".{target.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")


def rename_new(source: Path, target: Path) -> None:
    """Move a directory to a name that nothing has yet.

    Raises:
        FileExistsError: something stands there.
    """
    try:
        if not _renameat2(source, target, _NOREPLACE):
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
            source.rename(target)  # never replaces an artifact: a directory that is not empty is refused
    except OSError as error:
        if error.errno in _TAKEN:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        raise


def swap(source: Path, target: Path) -> None:
    """Let two directories trade names, in one step where the system can.

    Elsewhere ``target`` is moved aside first, and for a moment there is nothing of that name.

    Raises:
        FileNotFoundError: ``target`` is gone.
        FileExistsError: somebody put another one there meanwhile.
    """
    if _renameat2(source, target, _EXCHANGE):
        return
    aside = beside(target)
    target.rename(aside)
    try:
        rename_new(source, target)
    except BaseException:
        with suppress(OSError):  # the name is taken by a whole artifact of somebody else: theirs stays
            rename_new(aside, target)
        raise
    aside.rename(source)


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Whether the system could do it at all."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_RENAMEAT2:
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))
