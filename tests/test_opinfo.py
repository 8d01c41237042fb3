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
from torch.utils import _pytree as pytree

from ir import Graph, PenstockError, interpret, parse, show, verify
from ir.exported import import_program

RECORD = Path(__file__).with_name("opinfo_expected.json")
ENTRIES = 702
CHUNK = 27
SAMPLES = 3
EXACT, MISMATCH = "exact", "mismatch"
PREFERRED = (torch.float32, torch.float64, torch.complex64, torch.int64, torch.int32, torch.bool)


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
    """``exact``, ``mismatch: ...`` or the reason why the entry cannot be carried."""
    try:
        calls = list(itertools.islice(_calls(entry), SAMPLES))
        for call in calls:
            _compare(call)
    except Miss as miss:
        return str(miss)
    return EXACT


def _calls(entry: Any) -> Iterator[Call]:
    supported = entry.supported_dtypes("cpu")
    dtypes = [d for d in PREFERRED if d in supported] or sorted(supported, key=str)
    if not dtypes:
        raise Miss("sample: no dtype on this machine")
    torch.manual_seed(0)
    found = False
    for sample in entry.sample_inputs("cpu", dtypes[0], requires_grad=False):
        leaves, spec = pytree.tree_flatten(((sample.input, *sample.args), sample.kwargs))
        if any(isinstance(leaf, torch.Tensor) for leaf in leaves):
            found = True
            yield Call(entry.op, leaves, spec)
    if not found:
        raise Miss("sample: no tensor input")


def _compare(call: Call) -> None:
    tensors = [leaf for leaf in call.leaves if isinstance(leaf, torch.Tensor)]
    want = _seeded(call, tensors)
    graph = _capture(call, tensors)
    names = [name for name, _ in graph.arguments("input")] + [name for name, _ in graph.arguments("state")]
    order = [s.name for s in graph.inputs.values() if s.kind != "param"]
    assert len(order) == len(names)
    got = list(_interpreted(graph, dict(zip(order, tensors, strict=True))))
    if _undefined(graph):
        raise Miss("undefined: the content is uninitialised memory")
    if len(want) != len(got):
        raise Miss(f"{MISMATCH}: {len(want)} outputs, got {len(got)}")
    if not all(map(same, want, got)):
        raise Miss(f"{MISMATCH}: values differ")


def _seeded(call: Call, tensors: list[torch.Tensor]) -> list[Any]:
    torch.manual_seed(1)
    try:
        with torch.no_grad():
            result = call(*_copies(tensors))
    except Exception as error:
        raise Miss(f"eager: {_kind(error)}") from error
    return [leaf for leaf in pytree.tree_leaves(result) if leaf is not None]


def _capture(call: Call, tensors: list[torch.Tensor]) -> Graph:
    try:
        with torch.no_grad():
            program = torch.export.export(call, tuple(_copies(tensors)), strict=False)
            mutable = (getattr(n.target, "_schema", None) for n in program.graph.nodes)
            if any(schema is not None and schema.is_mutable for schema in mutable):
                program = program.run_decompositions({})
    except Exception as error:
        raise Miss(f"torch.export: {_kind(error)}") from error
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


def _interpreted(graph: Graph, inputs: dict[str, torch.Tensor]) -> list[Any]:
    torch.manual_seed(1)
    results = interpret(graph, dict(zip(inputs, _copies(list(inputs.values())), strict=True)))
    return [r for name, r in results.items() if not name.startswith("state:")]


def _copies(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [t.detach().clone() for t in tensors]


def _undefined(graph: Graph) -> bool:
    return any(re.search(r"\baten\.(new_)?empty", node.op.name) for node in graph.walk())


def same(want: Any, got: Any) -> bool:
    """Equal bit for bit, up to the payload of NaN."""
    if not isinstance(want, torch.Tensor) or not isinstance(got, torch.Tensor):
        return type(want) is type(got) and want == got
    if want.dtype != got.dtype or want.shape != got.shape or want.layout != got.layout:
        return False
    if want.layout is not torch.strided:
        want, got = want.to_dense(), got.to_dense()
    if want.is_complex():
        want, got = torch.view_as_real(want.resolve_conj()), torch.view_as_real(got.resolve_conj())
    return bool(((want == got) | ((want != want) & (got != got))).all())  # noqa: PLR0124


def _kind(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else ''}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    lo, hi = int(sys.argv[1]), int(sys.argv[2])
    import time
    for e in entries()[lo:hi]:
        t = time.time()
        try:
            r = judge(e)
        except Exception as x:
            r = f"CRASH {_kind(x)}"
        print(f"{name_of(e)}\t{time.time()-t:.2f}\t{r}", flush=True)
