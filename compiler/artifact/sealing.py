"""Seals a folder into an artifact, and opens artifacts, believing nothing about them.

Each file's SHA-256 stands in ``manifest.json``, whose own stands in ``manifest.sha256``: no byte can
change unnoticed. That is integrity against accidents and against tampering with some of the files. It is
not authenticity: whoever can rewrite every file can rewrite the digests as well. The artifact's id, the
digest of its manifest, was printed when it was compiled; keep it apart, give it to ``open_artifact`` as
``expect``, and the whole is what was compiled then.

A file is read to be hashed and, by an engine, read again: between the two somebody with write access
could swap it. ``Artifact.recheck`` after loading tells (inode, size, times); the IR texts are parsed from
the very bytes that were hashed. What is left: weights that an engine maps into memory can be overwritten
in place by the owner of the file for as long as the engine runs.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from compiler.artifact.manifest import MANIFEST, SEAL, STATES, FileFact, Manifest
from compiler.artifact.storage import storage_error, storage_errors
from compiler.artifact.strict import MAX_BYTES, check_file_name, read_manifest
from ir import Graph, PenstockError, parse
from ir.errors import ResourceError, UntrustedError, UsageError

_CHUNK = 1 << 20
_RACES = 16
_AGAIN = "compile the model again, or fetch an unchanged copy of the artifact"
_ID = re.compile(r"[0-9a-f]{64}")
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class ChangedError(UntrustedError):
    """An artifact changed between being checked and being used."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact whose every byte was checked.

    Attributes:
        manifest: what it says about itself.
        folder: where it lies.
        id: digest of the manifest, and through it of everything.
    """

    manifest: Manifest
    folder: Path
    id: str
    _seen: Mapping[str, tuple[int, ...]] = field(repr=False, compare=False)

    def read(self, name: str) -> bytes:
        """Content of a file, checked again on these very bytes."""
        fact = self.manifest.files.get(name)
        if fact is None:
            raise UsageError(f"{self.folder} holds no {name!r}")
        with storage_errors(self.folder / name):
            try:
                with open(self.folder / name, "rb", opener=_no_links) as file:
                    content = file.read(fact.bytes + 1)
            except FileNotFoundError as error:
                raise _fault(self.folder, name, "is missing") from error
        if len(content) != fact.bytes or hashlib.sha256(content).hexdigest() != fact.sha256:
            raise _fault(self.folder, name, "was changed after the artifact was opened")
        return content

    def graph(self, name: str) -> Graph:
        """The graph of ``before.ir`` or ``after.ir``, without weights."""
        return parse(self.read(name).decode("utf-8", "replace"))

    def initial_states(self) -> dict[str, torch.Tensor]:
        """First content of those states that the model came with."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        if STATES not in self.manifest.files:
            return {}
        try:
            return dict(load(self.read(STATES)))
        except SafetensorError as error:
            raise _fault(self.folder, STATES, f"is no safetensors file: {error}") from error

    def recheck(self) -> None:
        """Fail if any file was replaced or written since it was hashed.

        Raises:
            ChangedError: names the file.
        """
        for name, seen in self._seen.items():
            try:
                now = _fingerprint(os.lstat(self.folder / name))
            except OSError as error:
                raise ChangedError(f"{self.folder}: {name} vanished while it was loaded") from error
            if now != seen:
                raise ChangedError(f"{self.folder}: {name} was changed while it was loaded", hint=_AGAIN)


def seal(folder: Path, manifest: Manifest) -> str:
    """Write the manifest of all that lies in ``folder``, and its seal. Nothing may be added after that.

    Args:
        folder: holds the IR before and after, the weights, the payload and the report.
        manifest: its ``files`` are filled in here.

    Returns:
        The artifact's id: print it, so that the user can give it back as ``expect``.

    Raises:
        PenstockError: a file has an unfit name, or the manifest says what could not be read back.
    """
    files = {}
    opened = _open_folder(folder)
    try:
        for name in sorted(os.listdir(opened)):
            if not check_file_name(name):
                raise PenstockError(f"{name!r} is no name for a file in an artifact (lower case, no folders)")
            with _member(opened, folder, name) as (descriptor, status):
                files[name] = FileFact(_digest(descriptor, status.st_size, None), status.st_size)
    finally:
        os.close(opened)
    text = replace(manifest, files=files).text().encode()
    try:
        read_manifest(text)
    except UntrustedError as error:
        raise PenstockError(f"an artifact would not load again: {error.what}") from error
    (folder / MANIFEST).write_bytes(text)
    identity = hashlib.sha256(text).hexdigest()
    (folder / SEAL).write_bytes(_seal_line(identity))
    return identity


def open_artifact(path: str | os.PathLike[str], expect: str | None = None) -> Artifact:
    """Check every byte of an artifact, and that it may run here.

    Safe to call from many threads and processes at once, also while another one replaces the artifact.

    Args:
        path: the directory ``NAME.penstock``.
        expect: the id that was printed when it was compiled; then nobody can have replaced the whole.

    Raises:
        UsageError: there is no directory of that name.
        UntrustedError: something was changed, added, removed, linked, or is made for another version or
            machine; names the file.
    """
    return _check(Path(os.path.abspath(path)), expect, None)


def copy_artifact(path: str | os.PathLike[str], into: Path, expect: str | None = None) -> Artifact:
    """As ``open_artifact``, and copy each file into an empty folder: exactly the bytes that were checked.

    Copies, never hard links: a file of two names can change behind the back of either. What was copied
    before a fault was found stays in ``into``; a staging folder takes it away.
    """
    return _check(Path(os.path.abspath(path)), expect, into)


def _check(path: Path, expect: str | None, into: Path | None) -> Artifact:
    if expect is not None and not _ID.fullmatch(expect):
        raise UsageError(f"expect={expect[:80]!r} is no artifact id", hint="an id has 64 hexadecimal digits")
    try:
        for _ in range(_RACES):
            folder = _open_folder(path)
            try:
                return _check_folder(folder, path, expect, into)
            except UntrustedError:
                # replaced by a newer one meanwhile, and removed under our hands? then look at that one
                if into is not None or os.path.samestat(path.lstat(), os.fstat(folder)):
                    raise
            finally:
                os.close(folder)
        raise ResourceError(f"{path} is replaced faster than it can be read")
    except OSError as error:
        known = storage_error(error, into or path)
        raise known or ResourceError(f"cannot read {error.filename or path}: {error.strerror}") from error


def _check_folder(folder: int, path: Path, expect: str | None, into: Path | None) -> Artifact:
    present = set(os.listdir(folder))
    text = _small(folder, path, MANIFEST, MAX_BYTES)
    identity = hashlib.sha256(text).hexdigest()
    if _small(folder, path, SEAL, 1024) != _seal_line(identity):
        raise _fault(path, MANIFEST, f"does not have the digest that {SEAL} says: one of the two was changed")
    if expect is not None and identity != expect:
        raise UntrustedError(
            f"{path} is not the artifact that was expected: its id is {identity}, not {expect}", hint=_AGAIN
        )
    manifest = read_manifest(text)
    if extra := sorted(present - {MANIFEST, SEAL, *manifest.files}):
        raise UntrustedError(f"{path}: {extra[0]!r} does not belong to it", hint=f"remove it, or {_AGAIN}")
    if missing := sorted(set(manifest.files) - present):
        raise _fault(path, missing[0], "is missing")
    if reason := manifest.processor.lacks():
        raise UntrustedError(f"{path} cannot run here: {reason}", hint="compile the model on this machine")
    seen = {}
    for name, fact in manifest.files.items():
        seen[name] = _check_file(folder, path, name, fact, into)
    if into is not None:
        (into / MANIFEST).write_bytes(text)
        (into / SEAL).write_bytes(_seal_line(identity))
    return Artifact(manifest, path, identity, seen)


def _check_file(folder: int, path: Path, name: str, fact: FileFact, into: Path | None) -> tuple[int, ...]:
    with _member(folder, path, name) as (descriptor, status):
        if status.st_size != fact.bytes:
            raise _fault(path, name, f"has {status.st_size} bytes instead of {fact.bytes}")
        if _digest(descriptor, fact.bytes, into / name if into else None) != fact.sha256:
            raise _fault(path, name, "was changed: its digest is not what the manifest says")
        return _fingerprint(status)


def _open_folder(path: Path) -> int:
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"there is no artifact at {path}") from error
    if stat.S_ISLNK(status.st_mode):
        raise UntrustedError(f"{path} is a symbolic link", hint="load the directory that it points to")
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(f"{path} is not a directory", hint="an artifact is a directory NAME.penstock")
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


@contextmanager
def _member(folder: int, path: Path, name: str) -> Iterator[tuple[int, os.stat_result]]:
    """A plain file of one name, opened; what it is is asked before (devices) and after (races)."""
    try:
        _plain(os.stat(name, dir_fd=folder, follow_symlinks=False), path, name)
        descriptor = os.open(name, _FLAGS, dir_fd=folder)
    except FileNotFoundError as error:
        raise _fault(path, name, "is missing") from error
    try:
        status = os.fstat(descriptor)
        _plain(status, path, name)
        yield descriptor, status
    finally:
        os.close(descriptor)


def _plain(status: os.stat_result, path: Path, name: str) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise _fault(path, name, "is a symbolic link, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise _fault(path, name, "is not a plain file")
    if status.st_nlink != 1:
        raise UntrustedError(
            f"{path}: {name} has {status.st_nlink} hard links: it could be changed from elsewhere",
            hint=f"make a plain copy (cp -r), or {_AGAIN}",
        )


def _small(folder: int, path: Path, name: str, limit: int) -> bytes:
    with _member(folder, path, name) as (descriptor, status):
        if status.st_size > limit:
            raise _fault(path, name, f"has {status.st_size} bytes, more than {limit}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(limit)


def _digest(descriptor: int, size: int, copy_to: Path | None) -> str:
    """SHA-256 of up to ``size`` bytes and one more: a file that grows meanwhile has another digest."""
    sha = hashlib.sha256()
    with copy_to.open("wb") if copy_to else nullcontext() as copy:
        for chunk in _chunks(descriptor, size + 1):
            sha.update(chunk)
            if copy:
                copy.write(chunk)
    return sha.hexdigest()


def _chunks(descriptor: int, limit: int) -> Iterator[memoryview]:
    """Content of a file up to a limit, in pieces that are valid until the next one is asked for."""
    buffer = memoryview(bytearray(_CHUNK))
    with open(descriptor, "rb", buffering=0, closefd=False) as file:
        while limit > 0 and (count := file.readinto(buffer[:limit])):
            yield buffer[:count]
            limit -= count


def _no_links(path: str, flags: int) -> int:
    return os.open(path, flags | _FLAGS)


def _fingerprint(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _seal_line(identity: str) -> bytes:
    return f"{identity}  {MANIFEST}\n".encode()


def _fault(path: Path, name: str, what: str) -> UntrustedError:
    return UntrustedError(f"{path}: {name} {what}", hint=_AGAIN)
