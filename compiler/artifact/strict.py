"""Reads ``manifest.json``, believing nothing: each fault is one UntrustedError that names the key."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

from backends.base import WEIGHTS_FILE
from compiler.artifact.generation import Generation, read_generation
from compiler.artifact.manifest import (
    AFTER,
    BEFORE,
    FORMAT,
    MANIFEST,
    SCHEMA,
    SEAL,
    STATES_OF_BUILD,
    DeviceNeed,
    EngineChoice,
    FileFact,
    Manifest,
    Port,
    penstock_version,
)
from compiler.artifact.processor import Processor
from ir import DimRange, ParseError, symbols_of
from ir.dims import parse_dim
from ir.errors import UntrustedError
from ir.types import DTYPES

MAX_BYTES = 16 << 20
"""Of ``manifest.json``."""
MAX_FILES = 2048
_MAX_FILE_BYTES = 1 << 46
_MAX_PORTS = 4096
_MAX_RANK = 64
_MAX_THREADS = 1 << 16
_MAX_LINE = 500
_MAX_TEXT = 1 << 20
_MAX_POWERS = 4  # in one dim: towers of powers take for ever to evaluate
# Lower case only: names that differ in case alone would be one file elsewhere. No slash, no leading dot.
_FILE_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,99}")
SHA256 = re.compile(r"[0-9a-f]{64}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_AGAIN = "compile the model again, or fetch an unchanged copy of the artifact"
_REQUIRED = (BEFORE, AFTER, WEIGHTS_FILE)

T = TypeVar("T")


def read_manifest(text: str | bytes) -> Manifest:
    """The manifest that a text describes.

    Raises:
        UntrustedError: it is not one, is of another version, or says what cannot be.
    """
    root = JsonObject(strict_json(text), "")
    if root.raw.get("format") != FORMAT:
        raise UntrustedError(f"{MANIFEST}: not the manifest of a Penstock artifact", hint=_AGAIN)
    check_version(root.raw)
    root.text("format")
    root.whole("schema", 0, SCHEMA)
    dims = root.mapping("dims", _bounds, _SYMBOL.fullmatch)
    manifest = Manifest(
        penstock=root.text("penstock"),
        name=root.text("name"),
        created=root.matching("created", TIME),
        target=root.text("target"),
        recipe=root.text("recipe", _MAX_TEXT, lines=True),
        engine=_engine(root.child("engine")),
        processor=_processor(root.child("processor")),
        device=_device(root.child("device")),
        requires=root.mapping("requires", _line),
        state=_state(root.text("state")),
        flow=tuple(root.each("flow", _record)),
        dims=dims,
        inputs=_ports(root, "inputs", ("input", "state"), dims),
        outputs=_ports(root, "outputs", ("output", "state", "trace"), None),
        passes=tuple(root.each("passes", _record)),
        measurements=root.take("measurements", dict),
        made_from=root.mapping("made_from", _line),
        generate=_generation(root),
        depth=root.take("depth", dict) if "depth" in root.raw else None,
        files=root.mapping("files", read_file_fact, check_file_name, MAX_FILES),
    )
    root.done()
    for name in _REQUIRED:
        if name not in manifest.files:
            raise fault("files", f"lists no {name}")
    return manifest


def _generation(root: JsonObject) -> Generation | None:
    if "generate" not in root.raw:
        return None
    entry = root.child("generate")
    found = read_generation(entry, lambda raw, at: _expect(raw, int, at))
    entry.done()
    if found.text not in ("", "bytes") or not all(0 <= end < found.vocabulary for end in found.ends):
        raise fault("generate", "its text is neither bytes nor empty, or an end is no token")
    return found


def check_file_name(name: str) -> bool:
    """Whether a file may have that name within an artifact."""
    return bool(_FILE_NAME.fullmatch(name)) and ".." not in name and name not in (MANIFEST, SEAL)


def fault(at: str, what: str) -> UntrustedError:
    """What is wrong at a key."""
    return UntrustedError(f"{MANIFEST}: {at or 'the whole'}: {what}", hint=_AGAIN)


def strict_json(text: str | bytes) -> object:
    """JSON without duplicate keys, constants that are no JSON, or numbers out of proportion."""
    if len(text) > MAX_BYTES:
        raise fault("", f"{len(text)} bytes are more than {MAX_BYTES}")
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        raw = json.loads(
            decoded,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_short,
        )
        json.dumps(raw, ensure_ascii=False).encode("utf-8")  # a lone surrogate could not be printed
    except (ValueError, RecursionError) as error:
        raise fault("", f"not valid JSON: {str(error)[:_MAX_LINE]}") from error
    return raw


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text} is too large")
    return number


def _short(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"the number {text[:20]}... is too long")
    return int(text)


def check_version(raw: dict[str, Any]) -> None:
    """Refuse another schema than this version's."""
    schema = raw.get("schema")
    if schema == SCHEMA and type(schema) is int:
        return
    writer = str(raw.get("penstock"))[:40]
    raise UntrustedError(
        f"{MANIFEST}: artifact schema {str(schema)[:40]} (written by Penstock {writer}); "
        f"this Penstock {penstock_version()} reads schema {SCHEMA}",
        hint=f"compile the model again with this Penstock, or load it with Penstock {writer}",
    )


class JsonObject:
    """A JSON object whose keys are taken one by one; what is left over is an error."""

    def __init__(self, raw: object, at: str) -> None:
        self.at = at
        self.raw: dict[str, Any] = _expect(raw, dict, at)
        self._left = dict(self.raw)

    def path(self, key: str) -> str:
        """The key as an error names it."""
        return f"{self.at}.{key}" if self.at else key

    def take(self, key: str, kind: type[T]) -> T:
        """The value of a key, which must be there and of exactly that type."""
        if key not in self._left:
            raise fault(self.path(key), "is missing")
        return _expect(self._left.pop(key), kind, self.path(key))

    def text(self, key: str, limit: int = _MAX_LINE, *, lines: bool = False) -> str:
        """A text without control characters."""
        return _line(self.take(key, str), self.path(key), limit, lines=lines)

    def matching(self, key: str, pattern: re.Pattern[str]) -> str:
        """A text of that form."""
        found = self.take(key, str)
        if not pattern.fullmatch(found):
            raise fault(self.path(key), f"{found[:80]!r} is not of the form {pattern.pattern}")
        return found

    def whole(self, key: str, low: int, high: int) -> int:
        """A whole number within bounds."""
        found = self.take(key, int)
        if not low <= found <= high:
            raise fault(self.path(key), f"{found} is not within [{low}, {high}]")
        return found

    def number(self, key: str, low: float, high: float) -> float:
        """A number within bounds."""
        found = self.take(key, float)
        if not low <= found <= high:
            raise fault(self.path(key), f"{found} is not within [{low:g}, {high:g}]")
        return found

    def child(self, key: str) -> JsonObject:
        """An object within."""
        return JsonObject(self.take(key, dict), self.path(key))

    def each(self, key: str, read: Callable[[object, str], T], limit: int = _MAX_PORTS) -> list[T]:
        """Each entry of a list."""
        items: list[object] = self.take(key, list)
        if len(items) > limit:
            raise fault(self.path(key), f"{len(items)} entries are more than {limit}")
        return [read(item, f"{self.path(key)}[{index}]") for index, item in enumerate(items)]

    def mapping(
        self,
        key: str,
        read: Callable[[object, str], T],
        named: Callable[[str], object] = str.isprintable,
        limit: int = _MAX_PORTS,
    ) -> dict[str, T]:
        """Each entry of an object whose keys are names."""
        items: dict[str, object] = self.take(key, dict)
        for name in items:
            if not named(name):
                raise fault(self.path(key), f"{name[:100]!r} is no name here")
        if len(items) > limit:
            raise fault(self.path(key), f"{len(items)} entries are more than {limit}")
        return {name: read(item, f"{self.path(key)}.{name[:100]}") for name, item in items.items()}

    def done(self) -> None:
        """Refuse keys that nobody took."""
        if self._left:
            raise fault(self.path(next(iter(self._left))[:100]), "is not a known key")


def _expect(raw: object, kind: type[T], at: str) -> T:
    if type(raw) is not kind:  # exactly: True is no number here
        names = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}
        raise fault(at, f"expected {names[kind]}, found {type(raw).__name__}")
    return raw


def _line(raw: object, at: str, limit: int = _MAX_LINE, *, lines: bool = False) -> str:
    text = _expect(raw, str, at)
    if len(text) > limit:
        raise fault(at, f"{len(text)} characters are more than {limit}")
    # control characters could forge what a terminal shows
    visible = text.replace("\n", "").replace("\t", "") if lines else text
    if not visible.isprintable():
        raise fault(at, "holds control characters")
    return text


def _record(raw: object, at: str) -> dict[str, Any]:
    return _expect(raw, dict, at)


def _bounds(raw: object, at: str) -> DimRange:
    pair = _expect(raw, list, at)
    if len(pair) != 2:
        raise fault(at, "expected [min, max]")
    low = _expect(pair[0], int, at)
    high = None if pair[1] is None else _expect(pair[1], int, at)
    if low < 0 or (high is not None and high < low):
        raise fault(at, f"no size is within [{low}, {high}]")
    return DimRange(low, high)


def _engine(raw: JsonObject) -> EngineChoice:
    name, version = raw.text("name"), raw.text("version")
    threads = None
    if raw.raw.get("threads", 1) is None:
        raw.take("threads", type(None))
    else:
        threads = raw.whole("threads", 1, _MAX_THREADS)
    raw.done()
    return EngineChoice(name, version, threads)


def _processor(raw: JsonObject) -> Processor:
    processor = Processor(raw.text("arch"), tuple(raw.each("flags", _line)))
    raw.done()
    return processor


def _device(raw: JsonObject) -> DeviceNeed:
    need = DeviceNeed(raw.text("kind"), raw.whole("capability", 0, 9999))
    raw.done()
    if need.kind not in ("cpu", "cuda"):
        raise fault("device.kind", f"{need.kind!r} is neither cpu nor cuda")
    return need


def _state(text: str) -> str:
    if text not in STATES_OF_BUILD:
        raise fault("state", f"{text!r} is not one of {', '.join(STATES_OF_BUILD)}")
    return text


def read_file_fact(raw: object, at: str) -> FileFact:
    """Digest and size of one file."""
    entry = JsonObject(raw, at)
    fact = FileFact(entry.matching("sha256", SHA256), entry.whole("bytes", 0, _MAX_FILE_BYTES))
    entry.done()
    return fact


def _ports(root: JsonObject, key: str, kinds: tuple[str, ...], dims: dict[str, DimRange] | None) -> tuple[Port, ...]:
    """Ports of one direction; of the inputs, every symbol must be declared in ``dims``."""

    def read(raw: object, at: str) -> Port:
        entry = JsonObject(raw, at)
        port = Port(
            entry.text("kind"),
            entry.text("name"),
            entry.text("dtype"),
            tuple(entry.each("shape", _line, _MAX_RANK)),
        )
        entry.done()
        if port.kind not in kinds:
            raise fault(f"{at}.kind", f"{port.kind!r} is neither {kinds[0]} nor {kinds[1]}")
        if port.dtype not in DTYPES and not (port.dtype == "none" and dims is None):
            raise fault(f"{at}.dtype", f"{port.dtype!r} is no element type")
        for text in port.shape:
            _check_dim(text, f"{at}.shape", dims)
        return port

    found = tuple(root.each(key, read))
    seen: set[str] = set()
    for port in found:
        label = f"{port.kind} {port.name}" if dims is None else port.name
        if label in seen:  # an output may share the name of a state, inputs go to the engine by name alone
            raise fault(key, f"two are named {port.name!r}")
        seen.add(label)
    return found


def _check_dim(text: str, at: str, dims: dict[str, DimRange] | None) -> None:
    if text.count("Pow(") > _MAX_POWERS:
        raise fault(at, f"too many powers in {text[:80]!r}")
    try:
        dim = parse_dim(text)
    except ParseError as error:
        raise fault(at, error.what[:_MAX_LINE]) from error
    if not symbols_of(dim) and not (isinstance(dim, int) and dim >= 0):
        raise fault(at, f"{text!r} is no size")
    unknown = sorted(symbols_of(dim) - set(dims)) if dims is not None else []
    if unknown:
        raise fault(at, f"{text!r} names {unknown[0]!r}, which dims does not declare")
