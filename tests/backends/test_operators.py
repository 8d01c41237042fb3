"""Each operator on each engine against the interpreter, at two sizes of every dynamic dim."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backends import backend
from ir import interpret
from tests.backends.cases import SIZES, Built, Call, engine_of
from tests.backends.operators import CALLS, LOOSE, NOT_ON

ENGINES = ("onnxruntime", "openvino")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("call", CALLS, ids=repr)
def test_operator_equals_the_interpreter(call: Call, engine: str, tmp_path: Path) -> None:
    if (why := NOT_ON.get((engine, repr(call))) or NOT_ON.get((engine, call.name))) is not None:
        pytest.skip(why)
    built = Built(call)
    assert backend(engine).unsupported(built.graph) == []
    run = engine_of(engine, built.graph, tmp_path)
    for seed, sizes in enumerate(SIZES):
        inputs = built.inputs(sizes, seed)
        want, got = interpret(built.graph, inputs), run(inputs)
        assert list(got) == list(want)
        for name, expected in want.items():
            assert got[name].dtype == expected.dtype
            assert got[name].shape == expected.shape
            rtol, atol = LOOSE.get(call.name, (2e-5, 2e-6))
            if expected.dtype in (torch.float16, torch.bfloat16):
                rtol, atol = 2e-2, 2e-2
            torch.testing.assert_close(got[name], expected, rtol=rtol, atol=atol, equal_nan=True)
