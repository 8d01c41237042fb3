"""A bundle: one artifact per target in one directory, under one sealed manifest.

Each member is a whole artifact in a folder of its own, so it can be copied to its machine alone. The bundle's id
covers the ids of its members, and through them every byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compiler.artifact.manifest import MANIFEST, SCHEMA, SEAL, DeviceNeed, now, penstock_version
from compiler.artifact.storage import storage_errors
from compiler.artifact.strict import (
    MAX_BYTES,
    SHA256,
    TIME,
    JsonObject,
    check_version,
    fault,
    read_manifest,
    strict_json,
)
from ir import PenstockError
from ir.errors import UntrustedError, UsageError

BUNDLE_FORMAT = "penstock-bundle"
_MEMBER = re.compile(r"[a-z0-9_][a-z0-9_-]{0,99}")
_AGAIN = "compile the model again, or fetch an unchanged copy of the artifact"
_MAX_SIZE = 1 << 50


@dataclass(frozen=True, slots=True)
class Member:
    """One artifact of a bundle.

    Attributes:
        id: of the artifact.
        target, engine, variant: what it was compiled for, by what, in which precision.
        device: where it runs.
        state: ``built`` or ``kit``.
        bytes: of all its files.
    """

    id: str
    target: str
    engine: str
    variant: str
    device: DeviceNeed
    state: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose manifest was checked; its members are checked when they are opened.

    Attributes:
        name: of the model.
        members: by folder name, in the order in which the compiler prefers them.
        created: UTC.
        penstock: version that wrote it.
        folder: where it lies.
        id: digest of its manifest.
    """

    name: str
    members: Mapping[str, Member]
    created: str = field(default_factory=now)
    penstock: str = field(default_factory=penstock_version)
    folder: Path = Path()
    id: str = ""

    def text(self) -> str:
        """Content of the bundle's ``manifest.json``."""
        plain = {
            "format": BUNDLE_FORMAT,
            "schema": SCHEMA,
            "penstock": self.penstock,
            "name": self.name,
            "created": self.created,
            "members": {name: asdict(member) for name, member in self.members.items()},
        }
        return json.dumps(plain, indent=1, allow_nan=False) + "\n"


def member(folder: Path) -> Member:
    """The entry of an artifact that was just sealed in ``folder``."""
    text = (folder / MANIFEST).read_bytes()
    made = read_manifest(text)
    size = sum(file.stat().st_size for file in folder.iterdir())
    variant = str(made.measurements.get("variant", ""))
    identity = hashlib.sha256(text).hexdigest()
    return Member(identity, made.target, made.engine.name, variant, made.device, made.state, size)


def seal_bundle(folder: Path, name: str, members: Mapping[str, Member]) -> str:
    """Write the manifest of the sealed artifacts that lie in ``folder``, and its seal.

    Returns:
        The bundle's id.
    """
    present = set(os.listdir(folder))
    if present != set(members) or not all(_MEMBER.fullmatch(n) for n in members):
        raise PenstockError(f"a bundle of {sorted(members)} holds {sorted(present)}")
    text = Bundle(name, members).text().encode()
    (folder / MANIFEST).write_bytes(text)
    identity = hashlib.sha256(text).hexdigest()
    (folder / SEAL).write_text(f"{identity}  {MANIFEST}\n")
    return identity


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether a directory says that it is a bundle; whether it is a sound one, ``open_bundle`` says."""
    try:
        with (Path(path) / MANIFEST).open("rb") as file:
            raw = json.loads(file.read(MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(raw, dict) and raw.get("format") == BUNDLE_FORMAT


def open_bundle(path: str | os.PathLike[str], expect: str | None = None) -> Bundle:
    """Check a bundle's manifest against its seal, and that nothing else lies there.

    Raises:
        UsageError: there is no directory of that name.
        UntrustedError: something was changed, added or removed.
    """
    folder = Path(os.path.abspath(path))
    try:
        with storage_errors(folder):
            present = set(os.listdir(folder))
            text = (folder / MANIFEST).read_bytes()[: MAX_BYTES + 1]
            seal = (folder / SEAL).read_bytes()[:1024]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"there is no artifact at {folder}") from error
    identity = hashlib.sha256(text).hexdigest()
    if seal != f"{identity}  {MANIFEST}\n".encode():
        raise UntrustedError(f"{folder}: {MANIFEST} does not have the digest that {SEAL} says", hint=_AGAIN)
    if expect is not None and identity != expect:
        raise UntrustedError(f"{folder} is not the artifact that was expected: its id is {identity}", hint=_AGAIN)
    found = _read(text, folder, identity)
    if extra := sorted(present - {MANIFEST, SEAL, *found.members}):
        raise UntrustedError(f"{folder}: {extra[0]!r} does not belong to it", hint=f"remove it, or {_AGAIN}")
    if missing := sorted(set(found.members) - present):
        raise UntrustedError(f"{folder}: {missing[0]} is missing", hint=_AGAIN)
    return found


def _read(text: bytes, folder: Path, identity: str) -> Bundle:
    root = JsonObject(strict_json(text), "")
    if root.text("format") != BUNDLE_FORMAT:
        raise fault("format", "not the manifest of a bundle")
    check_version(root.raw)
    root.whole("schema", 0, SCHEMA)
    made = Bundle(
        penstock=root.text("penstock"),
        name=root.text("name"),
        created=root.matching("created", TIME),
        members=root.mapping("members", _member, _MEMBER.fullmatch, 1024),
        folder=folder,
        id=identity,
    )
    root.done()
    return made


def _member(raw: object, at: str) -> Member:
    entry = JsonObject(raw, at)
    device = entry.child("device")
    words: dict[str, Any] = {key: entry.text(key) for key in ("target", "engine", "variant", "state")}
    made = Member(
        id=entry.matching("id", SHA256),
        device=DeviceNeed(device.text("kind"), device.whole("capability", 0, 9999)),
        bytes=entry.whole("bytes", 0, _MAX_SIZE),
        **words,
    )
    device.done()
    entry.done()
    return made
