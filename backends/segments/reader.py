"""Reads the text of a schedule, believing nothing.

It comes from a folder that anybody may have written: every name is checked to be defined before it is read, on every
way through branches and loops; nothing in it is code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from math import isfinite, prod
from typing import Any, TypeVar

from backends.segments.schedule import (
    MAX_BYTES,
    MAX_CONSTANT,
    MAX_SEGMENTS,
    SCHEMA,
    Branch,
    Constant,
    Literal_,
    Loop,
    Rows,
    Run,
    Schedule,
    Side,
    Step,
)
from ir.errors import UntrustedError
from ir.types import DTYPES

_MAX_DEPTH = 60
_NAME = re.compile(r"[A-Za-z0-9_]{1,300}")
T = TypeVar("T")


def read_schedule(text: str) -> Schedule:
    """The schedule that a text describes.

    Raises:
        UntrustedError: it is none; names the place.
    """
    if len(text) > MAX_BYTES:
        raise _fault("", f"{len(text)} bytes are more than {MAX_BYTES}")
    try:
        raw = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite, parse_int=_short
        )
    except (ValueError, RecursionError) as error:
        raise _fault("", f"not valid JSON: {str(error)[:200]}") from error
    root = _keys(raw, ("schema", "segments", "inputs", "weights", "constants", "steps", "outputs"), "schedule")
    if root["schema"] != SCHEMA or type(root["schema"]) is not int:
        raise _fault("schema", f"{str(root['schema'])[:40]} is not {SCHEMA}", "compile the model again")
    count = _whole(root["segments"], "segments", MAX_SEGMENTS)
    inputs = {_text(k, "inputs"): _name(v, "inputs") for k, v in _expect(root["inputs"], dict, "inputs").items()}
    weights = {_name(k, "weights"): _text(v, "weights") for k, v in _expect(root["weights"], dict, "weights").items()}
    constants = {
        _name(k, "constants"): _constant(v, k) for k, v in _expect(root["constants"], dict, "constants").items()
    }
    defined = {*inputs.values(), *weights, *constants}
    steps = _steps(root["steps"], "steps", count, defined, 0)
    outputs = _outputs(root["outputs"], defined)
    return Schedule(count, inputs, outputs, steps, weights, constants)


def _constant(raw: object, name: str) -> Constant:
    at = f"constants.{name[:100]}"
    parts = _expect(raw, list, at)
    if len(parts) != 3:
        raise _fault(at, "expected an element type, a shape and values")
    dtype, shape, values = _expect(parts[0], str, at), _expect(parts[1], list, at), _expect(parts[2], list, at)
    sizes = tuple(_whole(size, at, MAX_CONSTANT) for size in shape)
    if dtype not in DTYPES or len(sizes) > 8:
        raise _fault(at, f"{dtype[:40]!r} of rank {len(sizes)} is no type of a tensor")
    if (
        len(values) > MAX_CONSTANT
        or len(values) != prod(sizes)
        or any(type(v) not in (bool, int, float) for v in values)
    ):
        raise _fault(at, "its values do not fit its shape")
    return Constant(dtype, sizes, tuple(values))


def _outputs(raw: object, defined: set[str]) -> dict[str, str | Literal_]:
    found: dict[str, str | Literal_] = {}
    for index, entry in enumerate(_expect(raw, list, "outputs")):
        at = f"outputs[{index}]"
        pair = _expect(entry, list, at)
        if len(pair) != 2:
            raise _fault(at, "expected a name and what it is")
        name, what = _text(pair[0], at), _expect(pair[1], dict, at)
        if name in found:
            raise _fault(at, f"{name[:100]!r} stands twice")
        if list(what) == ["literal"]:
            literal = what["literal"]
            if not (literal is None or type(literal) in (bool, int, float)):
                raise _fault(at, "is no literal")
            found[name] = literal
        else:
            found[name] = _read(_keys(what, ("value",), at)["value"], at, defined)
    return found


def _steps(raw: object, at: str, count: int, defined: set[str], depth: int) -> tuple[Step, ...]:
    """Steps in order; ``defined`` grows by what they give and shrinks by what they drop."""
    if depth > _MAX_DEPTH:
        raise _fault(at, f"nests deeper than {_MAX_DEPTH}")
    found = []
    for index, entry in enumerate(_expect(raw, list, at)):
        here = f"{at}[{index}]"
        kind = next((k for k in _READERS if isinstance(entry, dict) and k in entry), "")
        if not kind:
            raise _fault(here, "is no step")
        step = _READERS[kind](entry, here, count, defined, depth)
        found.append(step)
        defined.difference_update(step.drop)
    return tuple(found)


def _run(raw: object, at: str, count: int, defined: set[str], depth: int) -> Run:
    entry = _keys(raw, ("run", "inputs", "outputs", "drop"), at)
    segment = _whole(entry["run"], f"{at}.run", count - 1)
    inputs = _reads(entry["inputs"], f"{at}.inputs", defined)
    outputs = _names(entry["outputs"], f"{at}.outputs")
    defined.update(outputs)
    return Run(segment, inputs, outputs, _names(entry["drop"], f"{at}.drop"))


def _branch(raw: object, at: str, count: int, defined: set[str], depth: int) -> Branch:
    entry = _keys(raw, ("if", "then", "else", "results", "drop"), at)
    test = _read(entry["if"], f"{at}.if", defined)
    after: list[set[str]] = []
    sides = []
    for key in ("then", "else"):
        inner = set(defined)
        sides.append(_read_side(entry[key], f"{at}.{key}", count, inner, depth))
        after.append(inner)
    results = _names(entry["results"], f"{at}.results")
    _same_length(at, results, sides[0].results, sides[1].results)
    defined.intersection_update(*after)
    defined.update(results)
    return Branch(test, sides[0], sides[1], results, _names(entry["drop"], f"{at}.drop"))


def _loop(raw: object, at: str, count: int, defined: set[str], depth: int) -> Loop:
    entry = _keys(raw, ("while", "carried", "start", "do", "drop"), at)
    start = _reads(entry["start"], f"{at}.start", defined)
    carried = _names(entry["carried"], f"{at}.carried")
    defined.update(carried)
    before = set(defined)
    test = _read_side(entry["while"], f"{at}.while", count, defined, depth)
    inner = set(defined)
    body = _read_side(entry["do"], f"{at}.do", count, inner, depth)
    _same_length(at, carried, start, body.results)
    if len(test.results) != 1:
        raise _fault(f"{at}.while", "a test gives one value")
    if lost := sorted(before - (inner | set(carried))):
        raise _fault(at, f"the second turn has no {lost[0]!r}")
    return Loop(carried, start, test, body, _names(entry["drop"], f"{at}.drop"))


def _rows(raw: object, at: str, count: int, defined: set[str], depth: int) -> Rows:
    entry = _keys(raw, ("rows", "given", "inner", "do", "results", "padded", "drop"), at)
    live, given = _read(entry["rows"], f"{at}.rows", defined), _reads(entry["given"], f"{at}.given", defined)
    inner = _names(entry["inner"], f"{at}.inner")
    within = defined | set(inner)
    side = _read_side(entry["do"], f"{at}.do", count, within, depth)
    results = _names(entry["results"], f"{at}.results")
    _same_length(at, given, inner)
    _same_length(at, results, side.results)
    if len(results) > len(given):
        raise _fault(at, "as many results are needed as values to put them into, or fewer")
    defined &= within  # what the side drops is there no longer, whether it ran or not
    defined.update(results)
    padded = _expect(entry["padded"], bool, f"{at}.padded")
    return Rows(live, given, inner, side, results, padded, _names(entry["drop"], f"{at}.drop"))


def _read_side(raw: object, at: str, count: int, defined: set[str], depth: int) -> Side:
    entry = _keys(raw, ("steps", "results", "drop"), at)
    steps = _steps(entry["steps"], f"{at}.steps", count, defined, depth + 1)
    results, drop = _reads(entry["results"], f"{at}.results", defined), _names(entry["drop"], f"{at}.drop")
    defined.difference_update(drop)
    return Side(steps, results, drop)


_READERS: Mapping[str, Callable[[object, str, int, set[str], int], Step]] = {
    "run": _run,
    "if": _branch,
    "while": _loop,
    "rows": _rows,
}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _short(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"the number {text[:20]}... is too long")
    return int(text)


def _fault(at: str, what: str, hint: str = "") -> UntrustedError:
    return UntrustedError(f"schedule of segments: {at or 'the whole'}: {what}", hint=hint)


def _expect(raw: object, kind: type[T], at: str) -> T:
    if type(raw) is not kind:
        raise _fault(at, f"expected {kind.__name__}, found {type(raw).__name__}")
    return raw


def _keys(raw: object, keys: Sequence[str], at: str) -> dict[str, Any]:
    found: dict[str, Any] = _expect(raw, dict, at)
    if sorted(found) != sorted(keys):
        raise _fault(at, f"expected the keys {', '.join(keys)}")
    return found


def _whole(raw: object, at: str, most: int) -> int:
    found = _expect(raw, int, at)
    if not 0 <= found <= most:
        raise _fault(at, f"{found} is not within [0, {most}]")
    return found


def _text(raw: object, at: str) -> str:
    found = _expect(raw, str, at)
    if len(found) > 500 or not found.isprintable():
        raise _fault(at, "is no name")
    return found


def _name(raw: object, at: str) -> str:
    found = _expect(raw, str, at)
    if not _NAME.fullmatch(found):
        raise _fault(at, f"{found[:80]!r} is no name of a value")
    return found


def _names(raw: object, at: str) -> tuple[str, ...]:
    return tuple(_name(item, at) for item in _expect(raw, list, at))


def _read(raw: object, at: str, defined: set[str]) -> str:
    name = _name(raw, at)
    if name not in defined:
        raise _fault(at, f"{name!r} is read before it is made")
    return name


def _reads(raw: object, at: str, defined: set[str]) -> tuple[str, ...]:
    return tuple(_read(item, at, defined) for item in _expect(raw, list, at))


def _same_length(at: str, *names: Sequence[str]) -> None:
    if len({len(n) for n in names}) != 1:
        raise _fault(at, "as many results are needed on each side")
