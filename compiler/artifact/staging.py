"""Artifacts appear whole or not at all: written aside, then published by one rename.

A staging folder stands beside its target, so that both are on one file system, and is open to its owner
alone. While it lives, its process holds a lock on it, which the kernel drops when the process dies: that
is how the next compile tells a leftover of ``kill -9`` from the work of a neighbour.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from compiler.artifact.bundle import BUNDLE_FORMAT
from compiler.artifact.manifest import FORMAT, MANIFEST, SEAL
from compiler.artifact.storage import beside, rename_new, storage_error, storage_errors, swap, sync
from compiler.artifact.strict import MAX_BYTES
from ir import PenstockError
from ir.errors import ResourceError, UsageError

SUFFIX = ".penstock"
_LEFTOVER = re.compile(r"\..+\.penstock\.tmp-(\d+)-[0-9a-f]{8}")
_GRACE_SECONDS = 60.0
"""Between making a staging folder and locking it lie microseconds; no younger one is reclaimed."""
_RACES = 16


@contextmanager
def staging(path: str | os.PathLike[str], *, force: bool = False, grace: float = _GRACE_SECONDS) -> Iterator[Path]:
    """A folder to write and ``seal`` an artifact in; leaving the block publishes it as ``path``.

    If the block raises anything, Ctrl-C included, the folder is removed and ``path`` is what it was. Of
    several processes that publish the same path, one wins; the others fail (or with ``force`` replace the
    winner's): what stands there is at every moment the whole work of one of them. Enter it before the
    expensive work, so that a path that cannot be written is known at once.

    Args:
        path: ``NAME.penstock``; missing parent folders are made.
        force: replace an artifact that stands there. Nothing but an artifact is ever replaced.
        grace: seconds after which the leftovers of killed processes are removed.

    Raises:
        UsageError: ``path`` is taken, or is no fit name.
        ResourceError: no space, no permission.
    """
    target = _target(path)
    _check_free(target, force)
    reclaim(target.parent, grace)
    folder = beside(target)
    lock, own = -1, (-1, -1)
    try:
        _make(folder, target)
        with storage_errors(target):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            own = _identity(os.fstat(lock))
            with suppress(OSError):  # no locks here (some network disks): age and process id must do
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder
            _publish(folder, target, force)
    finally:
        _discard(folder, own)
        if lock >= 0:
            os.close(lock)


def reclaim(parent: Path, grace: float = _GRACE_SECONDS) -> list[Path]:
    """Remove staging folders that dead processes left in ``parent``; never fails.

    Returns:
        The folders removed.
    """
    removed = []
    with suppress(OSError):
        for entry in os.scandir(parent):
            match = _LEFTOVER.fullmatch(entry.name)
            if match and _abandoned(Path(entry.path), int(match[1]), grace):
                shutil.rmtree(entry.path, ignore_errors=True)
                removed.append(Path(entry.path))
    return removed


def why_not_artifact(path: Path) -> str:
    """Why a path is not an artifact that may be replaced; empty when it is one, be it damaged."""
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            return "it is not a directory"
        with (path / MANIFEST).open("rb") as file:
            raw = json.loads(file.read(MAX_BYTES + 1))
        parts = {FORMAT: "files", BUNDLE_FORMAT: "members"}.get(raw["format"])
        if parts is None:
            return f"its {MANIFEST} is not Penstock's"
        foreign = {entry.name for entry in os.scandir(path)} - {MANIFEST, SEAL, *raw[parts]}
    except FileNotFoundError:
        return f"it holds no {MANIFEST}"
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return f"its {MANIFEST} cannot be read"
    return f"it also holds {sorted(foreign)[0]!r}, which is not part of it" if foreign else ""


def _target(path: str | os.PathLike[str]) -> Path:
    target = Path(os.path.abspath(path))
    if not target.name.endswith(SUFFIX) or target.name == SUFFIX or target.name.startswith("."):
        raise UsageError(
            f"{os.fspath(path)!r} is no name for an artifact", hint=f"an artifact is a directory NAME{SUFFIX}"
        )
    if len(os.fsencode(target.name)) > 200:  # room for the marks of the staging folder
        raise UsageError(f"the name {target.name[:40]!r}... is longer than 200 bytes")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{target.parent} is not a directory", hint="choose another output path") from error
    except OSError as error:
        raise _cannot_make(target.parent, target, error) from error
    return target


def _make(folder: Path, target: Path) -> None:
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise _cannot_make(folder, target, error) from error


def _cannot_make(folder: Path, target: Path, error: OSError) -> PenstockError:
    return storage_error(error, target) or ResourceError(
        f"cannot make {folder}: {error.strerror}", hint="choose another folder"
    )


def _check_free(target: Path, force: bool) -> None:
    if not os.path.lexists(target):
        return
    if reason := why_not_artifact(target):
        raise UsageError(
            f"{target} exists and is not an artifact: {reason}",
            hint="it is never deleted: remove it yourself, or choose another output path",
        )
    if not force:
        raise UsageError(f"{target} exists", hint="replace it with --force, or choose another output path")


def _publish(folder: Path, target: Path, force: bool) -> None:
    if not (folder / SEAL).is_file():
        raise PenstockError(f"{target.name} was to be published without a seal")
    # readable to whom its files are: they were made under the user's umask, the folder was not
    readable = (folder / SEAL).stat().st_mode & 0o777
    for place in (*(Path(e.path) for e in os.scandir(folder) if e.is_dir(follow_symlinks=False)), folder):
        for entry in os.scandir(place):
            sync(Path(entry.path))
        place.chmod(readable | (readable & 0o444) >> 2 | 0o700)
        sync(place)
    for _ in range(_RACES):
        try:
            rename_new(folder, target)
            break
        except FileExistsError:
            _check_free(target, force)
        try:
            swap(folder, target)
        except (FileNotFoundError, FileExistsError):
            continue  # somebody else was quicker: look again at what stands there
        if why_not_artifact(folder):  # put there within this instant; not ours to delete
            swap(folder, target)
            continue
        break
    else:
        raise ResourceError(f"other processes keep replacing {target}", hint="let one of them finish")
    sync(target.parent)


def _discard(folder: Path, own: tuple[int, int]) -> None:
    """Remove our staging folder, or the old artifact that took its name; never fails."""
    with suppress(OSError):
        if _identity(folder.lstat()) == own or not why_not_artifact(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _abandoned(folder: Path, pid: int, grace: float) -> bool:
    try:
        status = folder.lstat()
        ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
        if not ours or time.time() - status.st_mtime < grace:
            return False
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here: believe the process id
        return not Path(f"/proc/{pid}").exists() and Path("/proc").exists()
    finally:
        os.close(lock)
    return True
