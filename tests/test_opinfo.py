"""Torch's own samples of every operator, through export, import, text and interpreter, compared bit for bit.

Each entry of torch's operator database is ``exact``, refused for a named reason, or a ``mismatch`` (a bug).
``opinfo_expected.json`` records the outcome; update it with ``python -m tests.test_opinfo`` (minutes).
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ir import Graph, PenstockError, interpret, parse, show, verify
from ir.errors import UnsupportedError
from ir.exported import import_program
from tests.compare import identical

RECORD = Path(__file__).with_name("opinfo_expected.json")
UPDATE = "run `python -m tests.test_opinfo` and read what changed"
ENTRIES, AT_LEAST_EXACT = 702, 550
CHUNK = 27
SAMPLES = 3
EXACT, MISMATCH = "exact", "mismatch"
PREFERRED = (torch.float32, torch.float64, torch.complex64, torch.int64, torch.int32, torch.bool)
SEED = 42  # the database's own wrapper around random operators sets this one


class Miss(Exception):
    """The entry cannot be judged, and why."""


class Call(torch.nn.Module):
    """One call of an operator, with its tensors as inputs and all else fixed."""

    def __init__(self, function: Callable[..., Any], leaves: list[Any], spec: pytree.TreeSpec) -> None:
        super().__init__()
        self.function, self.leaves, self.spec = function, leaves, spec

    def forward(self, *tensors: torch.Tensor) -> Any:
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return self.function(*args, **kwargs)


def entries() -> list[Any]:
    from torch.testing._internal.common_methods_invocations import op_db

    return list(op_db)


def name_of(entry: Any) -> str:
    return f"{entry.name}.{entry.variant_test_name}" if entry.variant_test_name else str(entry.name)


def judge(entry: Any) -> str:
    """``exact``, ``mismatch: ...``, or the reason why the entry cannot be carried."""
    try:
        for call in itertools.islice(_calls(entry), SAMPLES):
            _compare(call)
    except Miss as miss:
        return str(miss)
    return EXACT


def _calls(entry: Any) -> Iterator[Call]:
    supported = entry.supported_dtypes("cpu")
    dtypes = [d for d in PREFERRED if d in supported] or sorted(supported, key=str)
    if not dtypes:
        raise Miss("sample: no dtype on this machine")
    torch.manual_seed(0)  # samples are random
    for sample in entry.sample_inputs("cpu", dtypes[0], requires_grad=False):
        yield Call(entry.op, *pytree.tree_flatten(((sample.input, *sample.args), sample.kwargs)))


def _compare(call: Call) -> None:
    tensors = [leaf for leaf in call.leaves if isinstance(leaf, torch.Tensor)]
    want = _eager(call, tensors)
    program = _exported(call, tensors)
    graph = _imported(program)
    try:
        got = _interpreted(graph, tensors)
    except RuntimeError as error:
        raise Miss(_blame(program, tensors, error)) from error
    if any(re.match(r"aten\.(new_)?empty", n.op.name) and n.result.tensor.numel != 0 for n in graph.walk()):
        raise Miss("undefined: the content is uninitialised memory")
    if len(want) != len(got):
        raise Miss(f"{MISMATCH}: {len(want)} results became {len(got)}")
    if not all(map(_same, want, got)):
        raise Miss(f"{MISMATCH}: values differ")


def _eager(call: Call, tensors: list[torch.Tensor]) -> list[Any]:
    torch.manual_seed(SEED)
    try:
        with torch.no_grad():
            result = call(*_copies(tensors))
    except Exception as error:
        raise Miss(f"eager: {_kind(error)}") from error
    return [leaf for leaf in pytree.tree_leaves(result) if leaf is not None]


def _exported(call: Call, tensors: list[torch.Tensor]) -> ExportedProgram:
    try:
        with torch.no_grad():
            program = torch.export.export(call, tuple(_copies(tensors)), strict=False)
            schemas = [getattr(n.target, "_schema", None) for n in program.graph.nodes]
            functional = not any(schema is not None and schema.is_mutable for schema in schemas)
            return program if functional else program.run_decompositions({})
    except Exception as error:
        raise Miss(f"torch.export: {_kind(error)}") from error


def _imported(program: ExportedProgram) -> Graph:
    try:
        graph = import_program(program, "sample")
        verify(graph)
        text = show(graph)
        again = parse(text, graph.weights)
        verify(again)
    except PenstockError as error:
        raise Miss(f"import: {_kind(error)}") from error
    if show(again) != text:
        raise Miss(f"{MISMATCH}: the text is not an exact inverse")
    return again


def _blame(program: ExportedProgram, tensors: list[torch.Tensor], error: RuntimeError) -> str:
    """Whether torch runs a program on the inputs it was exported with, when the interpreter does not."""
    try:
        program.module()(*_copies(tensors))
    except RuntimeError as own:
        return f"torch.export: its own program refuses its own inputs: {_kind(own)}"
    return f"{MISMATCH}: only the interpreter fails: {_kind(error)}"


def _interpreted(graph: Graph, tensors: list[torch.Tensor]) -> list[Any]:
    names = [spec.name for spec in graph.inputs.values() if spec.kind != "param"]
    torch.manual_seed(SEED)
    results = interpret(graph, dict(zip(names, _copies(tensors), strict=True)))
    return [result for name, result in results.items() if not name.startswith("state:")]


def _copies(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [t.detach().clone() for t in tensors]


def _same(want: Any, got: Any) -> bool:
    if isinstance(want, torch.Tensor) and isinstance(got, torch.Tensor):
        return identical(want, got)
    return type(want) is type(got) and (want == got or want != want)


def _kind(error: Exception) -> str:
    """The first line of an error, short and without what changes from run to run."""
    lines = str(error).strip().splitlines()
    first = " ".join(lines[:2] if isinstance(error, UnsupportedError) else lines[:1])
    return f"{type(error).__name__}: {re.sub(r'0x[0-9a-f]+', '0x', first)[:120]}"


def judge_chunk(start: int) -> dict[str, str]:
    torch.set_num_threads(1)
    return {name_of(entry): judge(entry) for entry in entries()[start : start + CHUNK]}


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return dict(json.loads(RECORD.read_text()))


def test_record_meets_the_goal(record: dict[str, Any]) -> None:
    assert record["entries"] == ENTRIES
    assert record["exact"] == ENTRIES - len(record["misses"]) >= AT_LEAST_EXACT
    assert not [name for name, reason in record["misses"].items() if reason.startswith(MISMATCH)]
    assert sum(record["reasons"].values()) == len(record["misses"])


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(start, marks=pytest.mark.slow if number % 4 == 0 else pytest.mark.long)
        for number, start in enumerate(range(0, ENTRIES, CHUNK))
    ],
)
def test_samples(start: int, record: dict[str, Any]) -> None:
    found = judge_chunk(start)
    mismatches = {name: outcome for name, outcome in found.items() if outcome.startswith(MISMATCH)}
    assert not mismatches, "silent mismatches"
    kinds = {name: outcome.partition(":")[0] for name, outcome in found.items()}
    recorded = {name: record["misses"].get(name, EXACT).partition(":")[0] for name in found}
    assert kinds == recorded, UPDATE


@pytest.mark.slow
def test_number_of_entries() -> None:
    assert len(entries()) == ENTRIES, UPDATE


def make_record() -> dict[str, Any]:
    """Judge every entry, on all cores."""
    outcomes: dict[str, str] = {}
    with multiprocessing.get_context("spawn").Pool() as pool:
        for part in pool.imap_unordered(judge_chunk, range(0, ENTRIES, CHUNK)):
            outcomes |= part
    misses = {name: outcome for name, outcome in sorted(outcomes.items()) if outcome != EXACT}
    return {
        "torch": torch.__version__,
        "entries": len(outcomes),
        "exact": len(outcomes) - len(misses),
        "reasons": dict(Counter(reason.partition(":")[0] for reason in misses.values()).most_common()),
        "misses": misses,
    }


if __name__ == "__main__":
    made = make_record()
    RECORD.write_text(json.dumps(made, indent=1) + "\n")
    sys.stdout.write(f"{made['exact']} of {made['entries']} exact; {made['reasons']}\n")
