"""What the host does between segments: a small program of steps over named tensors, and its text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, Union

SCHEMA = 1
MAX_BYTES = 4 << 20
MAX_SEGMENTS = 1024
MAX_CONSTANT = 64
"""Elements; a larger one is made by a segment."""
Literal_: TypeAlias = bool | int | float | None


@dataclass(frozen=True, slots=True)
class Run:
    """Run one segment: its ports are named as the values are."""

    segment: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    drop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Side:
    """Steps, and the values that they end with, some of which have no other reader."""

    steps: tuple[Step, ...]
    results: tuple[str, ...]
    drop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Branch:
    """Read a truth value, run one side, and call its results by common names."""

    test: str
    taken: Side
    otherwise: Side
    results: tuple[str, ...]
    drop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loop:
    """While the test gives true, run the body; ``carried`` begin as ``start`` and become the body's results."""

    carried: tuple[str, ...]
    start: tuple[str, ...]
    test: Side
    body: Side
    drop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rows:
    """Gather the live rows, run the side on them, put its results back; with no live row the side is not started.

    Attributes:
        padded: whether the side runs in the sizes of ``backends.buckets`` only, its rows padded up to the next.
        live: one truth value per row.
        given: values of that many rows; the first of them, one per result, are what the results replace rows of.
        inner: what the side calls their live rows.
        side: gives the new rows.
        results: names of the values with the new rows in place.
    """

    live: str
    given: tuple[str, ...]
    inner: tuple[str, ...]
    side: Side
    results: tuple[str, ...]
    padded: bool = False
    drop: tuple[str, ...] = ()


Step: TypeAlias = Union["Run", "Branch", "Loop", "Rows"]


@dataclass(frozen=True, slots=True)
class Constant:
    """A small tensor that is the same in every call: the zero a counter begins with."""

    dtype: str
    shape: tuple[int, ...]
    values: tuple[bool | int | float, ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """The whole program.

    Attributes:
        segments: how many engines there are.
        inputs: input of the model -> name of the value.
        outputs: output of the model -> name of the value, or a literal.
        weights: value -> weight that it is, for those the host itself hands on.
        constants: value -> what it always is.
        steps: in order.
    """

    segments: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str | Literal_]
    steps: tuple[Step, ...]
    weights: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Constant] = field(default_factory=dict)

    def text(self) -> str:
        """Content of ``STEM.schedule.json``."""
        plain = {
            "schema": SCHEMA,
            "segments": self.segments,
            "inputs": dict(self.inputs),
            "weights": dict(self.weights),
            "constants": {name: [c.dtype, c.shape, c.values] for name, c in self.constants.items()},
            "steps": [_plain(s) for s in self.steps],
            "outputs": [[k, {"value": v} if isinstance(v, str) else {"literal": v}] for k, v in self.outputs.items()],
        }
        return json.dumps(plain, separators=(",", ":"), allow_nan=False) + "\n"


def _plain(step: Step) -> dict[str, Any]:
    match step:
        case Run():
            made: dict[str, Any] = {"run": step.segment, "inputs": step.inputs, "outputs": step.outputs}
        case Branch():
            made = {"if": step.test, "then": _side(step.taken), "else": _side(step.otherwise), "results": step.results}
        case Loop():
            made = {"while": _side(step.test), "carried": step.carried, "start": step.start, "do": _side(step.body)}
        case Rows():
            made = {"rows": step.live, "given": step.given, "inner": step.inner, "do": _side(step.side)}
            made |= {"results": step.results, "padded": step.padded}
    return {**made, "drop": step.drop}


def _side(side: Side) -> dict[str, Any]:
    return {"steps": [_plain(s) for s in side.steps], "results": side.results, "drop": side.drop}
