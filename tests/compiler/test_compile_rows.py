"""A model whose rows leave early, compiled: what the engine got is on record."""

from __future__ import annotations

from pathlib import Path

import torch

import penstock
from compiler.capture.capture import capture
from ir import interpret
from tests.zoo import ZOO


def test_the_engine_gathers_and_the_result_says_so(tmp_path: Path) -> None:
    spec, path = ZOO["compaction"](), tmp_path / "c.penstock"
    made = penstock.compile(spec, output=path, recipe="fp32", engine="onnxruntime", seconds=0.05, cache=False)
    assert made.chosen is not None and made.chosen.facts["rows_compacted"] == 1
    assert [p.lowering for p in made.chosen.flow if p.node.startswith("rows")] == ["compacted"]
    x = torch.randn(4, 7, 8)
    want = interpret(capture(spec), {"x": x})["output"]
    torch.testing.assert_close(penstock.load(path)(x=x)["output"], want, rtol=1e-4, atol=1e-5)
