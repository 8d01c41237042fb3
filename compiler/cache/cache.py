"""Keeps compiled artifacts under the digest of all that went into them.

An entry is a whole artifact ``KEY.penstock``, published by one rename, checked to the last byte when it is
looked up. Its manifest holds the components of its key, so an entry under a wrong key is noticed, and a
miss can be explained. Whatever is wrong with an entry makes it a miss: it is put into quarantine, and the
model is compiled again.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from compiler.artifact import (
    MANIFEST,
    Artifact,
    Manifest,
    copy_artifact,
    open_artifact,
    read_manifest,
    reclaim,
    staging,
)
from compiler.artifact.storage import is_full
from compiler.cache.key import Components, key_of
from ir import PenstockError
from ir.errors import ResourceError, UntrustedError, UsageError

_LAYOUT = "v1"
_SUFFIX = ".penstock"
_DOOMED = ".bad-"
_QUARANTINE_SECONDS = 86400.0
"""A damaged entry is kept this long, for whoever wants to know how it was damaged."""
_RACES = 4
DEFAULT_LIMIT = 20 << 30
"""Bytes that a cache may hold before ``publish`` evicts what was not used for longest."""


@dataclass(frozen=True, slots=True)
class Miss:
    """Why nothing was found: what differs from the entry that comes nearest.

    Attributes:
        nearest: key of that entry; empty if the cache holds none.
        changed: component, what it was there, what it is now.
    """

    nearest: str
    changed: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        if not self.nearest:
            return "the cache is empty"
        if not self.changed:
            return f"entry {self.nearest[:12]} has the same components: it was evicted, or is damaged"
        parts = (f"{name} ({was[:24] or 'none'} -> {now[:24] or 'none'})" for name, was, now in self.changed)
        return f"changed since entry {self.nearest[:12]}: {', '.join(parts)}"


class Cache:
    """A folder of artifacts by key. Processes may share it; it is open to its owner alone."""

    def __init__(self, root: str | os.PathLike[str] | None = None, limit: int = DEFAULT_LIMIT) -> None:
        """Make the folder if need be.

        Args:
            root: ``PENSTOCK_CACHE``, else ``$XDG_CACHE_HOME/penstock``, else ``~/.cache/penstock``.
            limit: bytes that it may hold.

        Raises:
            UntrustedError: the folder belongs to somebody else, or others may write it.
            ResourceError: it cannot be made.
        """
        self.root = Path(os.path.abspath(root if root is not None else default_root())) / _LAYOUT
        self.limit = limit
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.root.lstat()
        except OSError as error:
            raise ResourceError(
                f"cannot make the cache {self.root}: {error.strerror}",
                hint="set PENSTOCK_CACHE to another folder",
            ) from error
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise UntrustedError(
                f"the cache {self.root} is not yours alone: others could put artifacts there",
                hint=f"chmod 700 {self.root}, or set PENSTOCK_CACHE to another folder",
            )

    def lookup(self, key: str) -> Artifact | None:
        """The checked entry of that key, in place; ``None`` is a miss.

        Another process may evict it at any time: to keep it, use ``fetch``.
        """
        return self._use(key, None)

    def fetch(self, key: str, into: Path) -> Artifact | None:
        """Copy the entry into an empty folder (of ``staging``, say), checking the bytes that are copied.

        After a miss the folder is empty again.

        Raises:
            ResourceError: the copy found no space.
        """
        return self._use(key, into)

    def publish(self, key: str, folder: Path) -> Artifact:
        """Keep a copy of a sealed artifact. Who comes second keeps what the first one published.

        Raises:
            PenstockError: the artifact's ``made_from`` does not make that key.
            ResourceError: no space, no permission.
        """
        target = self._entry(key)
        made = read_manifest((folder / MANIFEST).read_bytes()).made_from
        if key_of(made) != key:
            raise PenstockError(f"an artifact made from {dict(made)} does not belong under {key}")
        for _ in range(_RACES):
            with suppress(UsageError):  # taken: equal components, equal worth
                with staging(target) as staged:
                    copy_artifact(folder, staged)
                self.gc(keep=key)
            if (kept := self.lookup(key)) is not None:
                return kept
        raise ResourceError(f"the entry {target} is damaged as soon as it is written")

    def gc(self, limit: int | None = None, *, keep: str = "") -> list[str]:
        """Evict what was not used for longest until the rest fits; first what is in quarantine. Never fails.

        Returns:
            Names of the entries removed.
        """
        reclaim(self.root)
        removed = []
        limit = self.limit if limit is None else limit
        for path in self._folders(damaged=True):
            if limit == 0 or _age(path) > _QUARANTINE_SECONDS:
                _delete(path)
                removed.append(path.name)
        entries = sorted(self._folders(), key=_used)
        total = sum(map(_bytes, entries))
        for path in entries:
            if total <= limit:
                break
            if path.name != keep + _SUFFIX:
                total -= _bytes(path)
                self._remove(path)
                removed.append(path.name)
        return removed

    def entries(self) -> Iterator[tuple[str, Manifest]]:
        """Key and manifest of each entry, latest used first; unreadable ones are left out."""
        for path in sorted(self._folders(), key=_used, reverse=True):
            with suppress(PenstockError, OSError):
                yield path.name.removesuffix(_SUFFIX), read_manifest((path / MANIFEST).read_bytes())

    def why_miss(self, components: Components) -> Miss:
        """Which components differ from the entry that has most in common."""
        want = components.record
        best: Miss | None = None
        for key, manifest in self.entries():
            made = manifest.made_from
            names = [*want, *(name for name in made if name not in want)]
            pairs = ((name, made.get(name, ""), want.get(name, "")) for name in names)
            changed = tuple(pair for pair in pairs if pair[1] != pair[2])
            if best is None or len(changed) < len(best.changed):
                best = Miss(key, changed)
        return best or Miss("", ())

    def _use(self, key: str, into: Path | None) -> Artifact | None:
        entry = self._entry(key)
        try:
            seen = entry.lstat()
            artifact = open_artifact(entry) if into is None else copy_artifact(entry, into)
            if key_of(artifact.manifest.made_from) != key:
                raise UntrustedError(f"{entry} is an artifact of another key")
        except FileNotFoundError:
            return None
        except (PenstockError, OSError) as error:
            if into is not None:
                _empty(into)
                if is_full(error):
                    raise  # the copy failed, not the entry
            self._quarantine(entry, seen)
            return None
        with suppress(OSError):
            os.utime(entry)  # last use
        return artifact

    def _entry(self, key: str) -> Path:
        if len(key) != 64 or not set(key) <= set("0123456789abcdef"):
            raise UsageError(f"{key[:80]!r} is no cache key")
        return self.root / (key + _SUFFIX)

    def _quarantine(self, entry: Path, seen: os.stat_result) -> None:
        with suppress(OSError):  # gone, or moved by somebody else: as good
            if not os.path.samestat(entry.lstat(), seen):
                return  # published anew meanwhile: that one is not known to be damaged
            entry.rename(entry.with_name(f"{entry.name}{_DOOMED}{secrets.token_hex(4)}"))

    def _remove(self, entry: Path) -> None:
        """Out of sight by one rename, then away: nobody meets half an entry under its name."""
        with suppress(OSError):
            doomed = entry.with_name(f"{entry.name}{_DOOMED}{secrets.token_hex(4)}")
            entry.rename(doomed)
            _delete(doomed)

    def _folders(self, *, damaged: bool = False) -> list[Path]:
        """Entries, or those that were renamed because they are damaged or evicted."""
        with suppress(OSError):
            paths = [Path(entry.path) for entry in os.scandir(self.root) if not entry.name.startswith(".")]
            return [path for path in paths if (_DOOMED in path.name if damaged else path.name.endswith(_SUFFIX))]
        return []


def default_root() -> Path:
    """Where artifacts are kept when nobody says."""
    if told := os.environ.get("PENSTOCK_CACHE"):
        return Path(told)
    told = os.environ.get("XDG_CACHE_HOME", "")  # the standard says: ignore it unless it is absolute
    return (Path(told) if os.path.isabs(told) else Path.home() / ".cache") / "penstock"


def _used(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _age(path: Path) -> float:
    with suppress(OSError):
        return time.time() - path.stat().st_ctime
    return 0.0


def _bytes(path: Path) -> int:
    total = 0
    with suppress(OSError):
        for entry in os.scandir(path):
            total += entry.stat(follow_symlinks=False).st_size
    return total


def _delete(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)  # refuses a link, and what is no directory
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _empty(folder: Path) -> None:
    for entry in os.scandir(folder):
        os.unlink(entry.path)
