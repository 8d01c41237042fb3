"""Text form of a pass and its options: ``quantize{skip=["head", "pooler"], keep=2}`` and back."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from ir.errors import UsageError, nearest
from passes.base import Pass

_STEP = re.compile(r"\s*([A-Za-z][\w-]*)\s*(\{(?:[^{}\"]|\"(?:[^\"\\]|\\.)*\")*\})?\s*(,|$)")


def show_pass(pass_: Pass) -> str:
    """Name of a pass and those options that differ from their defaults.

    >>> from passes import FoldConstants
    >>> show_pass(FoldConstants(max_bytes=0))
    'fold-constants{max-bytes=0}'
    """
    changed = []
    for field in fields(pass_):  # type: ignore[arg-type]
        if not field.metadata.get("text", True):
            continue
        value = getattr(pass_, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if value != default:
            changed.append(f"{field.name.replace('_', '-')}={_show(value)}")
    return pass_.name + (f"{{{', '.join(changed)}}}" if changed else "")


def _show(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def parse_passes(text: str, known: Iterable[type[Pass]]) -> list[Pass]:
    """Read ``name{option=value, ...}, name, ...``.

    Raises:
        UsageError: unknown pass or option (with the nearest name), or a value of the wrong type.
    """
    table = {p.name: p for p in known}
    found: list[Pass] = []
    at = 0
    while at < len(text) and text[at:].strip():
        step = _STEP.match(text, at)
        if step is None:
            raise UsageError(
                f"cannot read the passes from {text[at:].strip()!r}", hint="write: name{option=value}, name"
            )
        name, options = step.group(1), step.group(2)
        if name not in table:
            raise UsageError(f"there is no pass {name!r}", hint=nearest(name, list(table)))
        found.append(make_pass(table[name], _options(name, options[1:-1] if options else "")))
        at = step.end()
    return found


def _options(name: str, text: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    decoder = json.JSONDecoder()
    rest = text.strip()
    while rest:
        key, equals, rest = rest.partition("=")
        if not equals:
            raise UsageError(
                f"option {key.strip()!r} of {name} has no value", hint=f"write {name}{{{key.strip()}=VALUE}}"
            )
        rest = rest.strip()
        try:
            value, end = decoder.raw_decode(rest)
            whole = rest[end:].lstrip()[:1] in ("", ",")
        except ValueError:
            whole = False
        if not whole:  # a bare word is a string: dtype=bf16, at=1:2
            word = re.match(r"[^,]*", rest)
            assert word is not None
            value, end = word.group().strip(), word.end()
        options[key.strip()] = value
        rest = rest[end:].strip()
        if rest and not rest.startswith(","):
            raise UsageError(f"unexpected {rest!r} in the options of {name}")
        rest = rest[1:].strip()
    return options


def make_pass(kind: type[Pass], options: Mapping[str, Any]) -> Pass:
    """A pass with the options given; kebab-case and snake_case are the same key."""
    hints = typing.get_type_hints(kind)
    told = [f.name for f in fields(kind) if f.metadata.get("text", True)]  # type: ignore[arg-type]
    names = {name.replace("_", "-"): name for name in told}
    values = {}
    for key, value in options.items():
        plain = key.replace("_", "-")
        if plain not in names:
            known = nearest(plain, list(names)) if names else "it has none"
            raise UsageError(f"pass {kind.name} has no option {key!r}", hint=known)
        values[names[plain]] = _typed(kind.name, plain, value, hints[names[plain]])
    try:
        return kind(**values)
    except ValueError as error:
        raise UsageError(f"{kind.name}: {error}") from error


def _typed(name: str, key: str, value: Any, want: Any) -> Any:
    arguments = typing.get_args(want)
    if typing.get_origin(want) is tuple:
        if isinstance(value, (list, tuple)) and all(isinstance(v, arguments[0]) for v in value):
            return tuple(value)
        if isinstance(value, str) and arguments[0] is str:
            return (value,)
        if (numbers := _numbers(value, arguments[0])) is not None:
            return numbers
    elif want is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(want, type) and isinstance(value, want) and not (want is int and isinstance(value, bool)):
        return value
    told = f"a list of {arguments[0].__name__}" if arguments else getattr(want, "__name__", str(want))
    raise UsageError(f"option {key} of {name} takes {told}, not {value!r}")


def _numbers(value: Any, kind: Any) -> tuple[Any, ...] | None:
    """``0:1:5`` or ``0.9:inf`` as a list of numbers, one number as a list of one; None when it is none."""
    if kind not in (int, float) or isinstance(value, bool):
        return None
    parts = value.split(":") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else (value,)
    if any(isinstance(p, bool) or (kind is int and isinstance(p, float)) for p in parts):
        return None
    try:
        return tuple(map(kind, parts))
    except (TypeError, ValueError):
        return None
