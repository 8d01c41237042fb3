"""Each operator on each engine against the interpreter, at two sizes of every dynamic dim."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backends import backend
from ir import interpret
from tests.backends.cases import SIZES, Built, Call, engine_of
from tests.backends.operators import FAMILIES, NOT_ON

ENGINES = ("onnxruntime", "openvino")
_TOGETHER = 32  # calls in one graph: building an engine costs more than running one
_GROUPS = {
    f"{family}-{start}": calls[start : start + _TOGETHER]
    for family, calls in FAMILIES.items()
    for start in range(0, len(calls), _TOGETHER)
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("group", _GROUPS)
def test_operators_equal_the_interpreter(group: str, engine: str, tmp_path: Path) -> None:
    calls = [c for c in _GROUPS[group] if not _excused(engine, c)]
    built = Built(calls)
    assert backend(engine).unsupported(built.graph) == []
    run = engine_of(engine, built.graph, tmp_path)
    faults = []
    for seed, sizes in enumerate(SIZES):
        inputs = built.inputs(sizes, seed)
        want, got = interpret(built.graph, inputs), run(inputs)
        assert list(got) == list(want)
        faults += [f"{name} at {sizes}: {why}" for name in want if (why := _difference(want[name], got[name]))]
    assert not faults, "\n".join(faults)


def test_excuses_name_real_calls() -> None:
    known = {word for calls in FAMILIES.values() for c in calls for word in (repr(c), c.name)}
    assert {call for _, call in NOT_ON} <= known


def _excused(engine: str, call: Call) -> bool:
    return (engine, repr(call)) in NOT_ON or (engine, call.name) in NOT_ON


def _difference(want: torch.Tensor, got: torch.Tensor) -> str:
    if (want.dtype, want.shape) != (got.dtype, got.shape):
        return f"{got.dtype} {list(got.shape)} instead of {want.dtype} {list(want.shape)}"
    half = want.dtype in (torch.float16, torch.bfloat16)
    rtol, atol = (2e-2, 2e-2) if half else (2e-5, 2e-6)
    try:
        torch.testing.assert_close(got, want, rtol=rtol, atol=atol, equal_nan=True)
    except AssertionError as error:
        return " ".join(str(error).split())[:200]
    return ""
