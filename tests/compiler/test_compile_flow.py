"""``penstock.compile`` of models with branches: what the engine got, what is proven, and that it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import penstock
from backends import Unsupported
from backends.onnxruntime_engine import OnnxRuntime
from compiler.artifact import open_artifact
from compiler.events import Event
from ir import Graph
from tests.compiler.branching import both_sides
from tests.compiler.models import gated

Compile = Callable[..., penstock.CompileResult]


@pytest.fixture
def compile(own_cache: Path, fast: None, tmp_path: Path) -> Compile:
    def run(spec: penstock.ModelSpec, **settings: Any) -> penstock.CompileResult:
        usual = {"engine": "onnxruntime", "recipe": "fp32", "output": tmp_path / "model.penstock", "threads": 1}
        return penstock.compile(spec, **{**usual, "seconds": 0.1, **settings})

    return run


def answers_as_the_original(spec: penstock.ModelSpec, path: Path | None, **options: Any) -> penstock.LoadedModel:
    assert path is not None
    loaded = penstock.load(path, **options)
    for inputs in spec.calibration:
        with torch.no_grad():
            want = spec.model(**inputs)
        (got,) = loaded(**inputs).values()
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    return loaded


def test_a_branch_that_skips_stays_within_the_engine(compile: Compile) -> None:
    spec = gated.model()
    said: list[Event] = []
    result = compile(spec, on_event=said.append)
    assert result.chosen is not None
    assert result.chosen.lowering == "native"
    (row,) = result.report["flow"]
    assert row["lazy"] and row["evidence"] == "measured" and row["lowering"] == "if"
    assert row["seconds"]["untaken"] < row["seconds"]["taken"]
    assert "gated.py" in row["node"]
    assert any("proven to skip" in str(event) for event in said)
    manifest = open_artifact(result.path).manifest  # type: ignore[arg-type]
    assert manifest.flow == (row,)
    assert json.loads((result.path / "report.json").read_text())["flow"] == [row]  # type: ignore[operator]
    answers_as_the_original(spec, result.path)


def test_a_lowering_of_both_sides_is_replaced(compile: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    real = OnnxRuntime.build
    monkeypatch.setattr(OnnxRuntime, "build", lambda self, graph, *rest: real(self, both_sides(graph), *rest))
    spec = gated.model()
    result = compile(spec)
    assert result.chosen is not None
    assert result.chosen.lowering == "segments"
    assert "computes both sides" in result.chosen.remarks[0]
    assert [row["lazy"] for row in result.report["flow"]] == [True]
    files = open_artifact(result.path).manifest.files  # type: ignore[arg-type]
    assert "engine.schedule.json" in files and "engine.onnx" not in files
    assert not [name for name in files if "proof" in name]
    loaded = answers_as_the_original(spec, result.path)
    assert int(loaded.facts()["segments"]) >= 2


def test_what_an_engine_cannot_branch_on_is_cut(compile: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    real = OnnxRuntime.unsupported

    def unsupported(self: OnnxRuntime, graph: Graph, *rest: Any) -> list[Unsupported]:
        refused = [Unsupported(n.op.name, str(n.origin), "not here") for n in graph.walk() if n.regions]
        return refused or real(self, graph, *rest)

    monkeypatch.setattr(OnnxRuntime, "unsupported", unsupported)
    spec = gated.model(4)
    result = compile(spec)
    assert result.chosen is not None
    assert "does not carry cond" in result.chosen.remarks[0]
    assert result.report["flow"][0]["lowering"] == "segments"
    answers_as_the_original(spec, result.path)
    answers_as_the_original(spec, result.path, engine_override="reference")


def test_another_engine_may_need_segments_where_the_first_did_not(
    compile: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = gated.model(2)
    path = compile(spec, engine="reference").path
    real = OnnxRuntime.unsupported

    def unsupported(self: OnnxRuntime, graph: Graph, *rest: Any) -> list[Unsupported]:
        refused = [Unsupported(n.op.name, "", "not here") for n in graph.walk() if n.regions]
        return refused or real(self, graph, *rest)

    monkeypatch.setattr(OnnxRuntime, "unsupported", unsupported)
    answers_as_the_original(spec, path, engine_override="onnxruntime")
