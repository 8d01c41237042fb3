"""``penstock.compile``: what the result carries, for models with dims, a metric, or a state."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import penstock
from backends import BuildOptions, Built
from compiler.artifact import AFTER, BEFORE, cpu_flags, open_artifact
from compiler.events import Event
from compiler.pipeline import recipe as recipe_module
from compiler.select import race as select
from ir import Graph, show
from ir.errors import GoalError, UnsupportedError, UsageError, VerificationError
from ir.ops import op
from passes import PASSES, Pass, Remark, Samples, remark
from tests.compiler.command import clock
from tests.compiler.models import mlp, stateful, transformer

Compile = Callable[..., penstock.CompileResult]


@pytest.fixture
def compile(own_cache: Path, fast: None, tmp_path: Path) -> Compile:
    """Compile into a new place each time; one engine and one recipe unless the test asks for more."""

    def run(model: Any, **settings: Any) -> penstock.CompileResult:
        usual = {"engine": "onnxruntime", "recipe": "fp32", "output": tmp_path / "model.penstock", "force": True}
        return penstock.compile(model, **{**usual, **settings})

    return run


def close(got: torch.Tensor, want: torch.Tensor) -> bool:
    return bool(torch.allclose(got, want, rtol=1e-4, atol=1e-5))


# --- the result ----------------------------------------------------------------------------------------


def test_what_the_result_carries(compile: Compile, tmp_path: Path) -> None:
    result = compile(mlp.model())
    assert result.path == tmp_path / "model.penstock"
    assert result.id == open_artifact(result.path).id
    assert show(result.graph) == (result.path / AFTER).read_text()
    assert [r.name for r in result.records["fp32"]] == recipe_module.PRESETS["fp32"].split(", ")
    (candidate,) = result.candidates
    assert result.chosen == candidate
    assert (candidate.name, candidate.why, candidate.speedup) == ("fp32 on onnxruntime", "", 2.0)
    assert candidate.loss is not None
    assert candidate.loss.loss < 1e-6
    assert result.speedup == 2.0
    assert result.goal == ""
    result.raise_for_goal()
    assert json.loads((result.path / "report.json").read_text())["verdict"] == result.report["verdict"]


def test_the_artifact_answers_as_the_model_does(compile: Compile) -> None:
    spec = mlp.model()
    with penstock.load(compile(spec).path) as engine:  # type: ignore[arg-type]
        for batch in (1, 5, 64):
            x = torch.linspace(-2, 2, batch * 16).reshape(batch, 16)
            assert close(engine(input=x)["output"], spec.model(x).detach())


def test_a_plain_module_with_its_inputs(compile: Compile) -> None:
    model = torch.nn.Linear(3, 2)
    model.train()
    result = compile(
        model,
        example_inputs={"input": torch.ones(4, 3)},
        dynamic_shapes={"input": {0: penstock.Dim("rows", 1, 9)}},
        name="my model/1",
    )
    assert model.training
    assert result.path is not None
    assert str(result.graph.dims) == str({"rows": result.graph.dims["rows"]})
    assert open_artifact(result.path).manifest.name == "my-model-1"
    assert close(penstock.load(result.path)(torch.ones(1, 3))["output"], model(torch.ones(1, 3)).detach())


def test_what_is_given_replaces_what_the_spec_says(compile: Compile) -> None:
    result = compile(mlp.model(), name="other", example_inputs={"input": torch.ones(7, 16)})
    assert result.report["name"] == "other"
    assert result.report["sizes"] == {"batch": 7}


def test_events_name_every_phase_in_order(compile: Compile) -> None:
    heard: list[Event] = []
    compile(mlp.model(), on_event=heard.append)
    ended = [e.phase for e in heard if e.kind == "end"]
    assert ended == ["capture", "reference", "optimise", "engines", "publish"]
    assert [e.phase for e in heard if e.kind == "begin"] == ended
    assert all(e.text for e in heard)


def test_dry_run(compile: Compile, tmp_path: Path) -> None:
    result = compile(mlp.model(), dry_run=True, recipe="auto", engine="auto")
    assert (result.path, result.id, result.candidates, result.chosen, result.speedup) == (None, "", (), None, 0.0)
    assert {"fp32", "int8"} <= result.records.keys()
    assert not (tmp_path / "model.penstock").exists()


# --- models --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "reference"])
def test_two_dims_on_every_engine(compile: Compile, engine: str) -> None:
    spec = transformer.model()
    result = compile(spec, engine=engine)
    assert {name: str(bounds) for name, bounds in result.graph.dims.items()} == {"batch": "[1, 8]", "seq": "[2, 32]"}
    loaded = penstock.load(result.path)  # type: ignore[arg-type]
    for shape in ((1, 2), (8, 32), (3, 7)):
        tokens = torch.arange(math.prod(shape)).reshape(shape) % 50
        assert close(loaded(tokens=tokens)["hidden"], spec.model(tokens)["hidden"].detach())
    with pytest.raises(penstock.InputError, match="seq"):
        loaded(tokens=torch.zeros(1, 33, dtype=torch.int64))


def test_every_variant_on_every_engine_is_judged(compile: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    def interleave(calls: dict[str, object], seconds: float) -> dict[str, Any]:
        return {n: clock(1.0 if n == "fp32 on openvino" else 1.5)({n: print})[n] for n in calls}

    monkeypatch.setattr(select, "interleave", interleave)
    result = compile(transformer.model(), recipe="auto", engine="auto", max_loss=0.05)
    variants = {c.variant for c in result.candidates}
    assert {"fp32", "int8"} <= variants
    assert {(c.variant, c.backend) for c in result.candidates} == {
        (v, b) for v in variants for b in ("openvino", "onnxruntime")
    }
    assert result.chosen is not None
    assert result.chosen.name == "fp32 on openvino"
    assert all(c.why for c in result.candidates if c is not result.chosen)
    assert result.path is not None
    assert open_artifact(result.path).manifest.engine.name == "openvino"
    for c in result.candidates:
        assert c.loss is None or c.loss.cosine > 0.9


def test_a_metric_decides(compile: Compile) -> None:
    transformer.BEST.clear()
    spec = transformer.with_metric()
    result = compile(spec)
    assert result.chosen is not None
    assert result.chosen.loss is not None
    assert result.chosen.loss.base == 1.0
    assert result.chosen.loss.metric == transformer.BEST[-1] < 1.0
    assert result.report["verdict"]["metric_before"] == 1.0
    with pytest.raises(VerificationError, match="no engine stays within a loss of 0:"):
        compile(spec, max_loss=0, output="never.penstock")
    assert not Path("never.penstock").exists()


def test_a_metric_that_gives_nan_is_a_loss(compile: Compile) -> None:
    calls: list[int] = []

    def metric(run: object) -> float:
        calls.append(1)
        return 1.0 if len(calls) == 1 else float("nan")

    with pytest.raises(VerificationError):
        compile(mlp.model(), metric=metric)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "reference"])
def test_a_model_with_state(compile: Compile, engine: str) -> None:
    spec = stateful.model()
    model = stateful.model().model
    result = compile(spec, engine=engine)
    assert torch.equal(spec.model.total, torch.zeros(8))
    loaded = penstock.load(result.path)  # type: ignore[arg-type]
    states = loaded.initial_state()
    for batch in (1, 4, 6):
        x = torch.full((batch, 8), float(batch))
        found = loaded(x=x, **states)
        states = {name.removeprefix("state:"): t for name, t in found.items() if name.startswith("state:")}
        assert close(found["output"], model(x).detach())
    assert close(states["total"], model.total)


def test_nothing_of_the_user_is_changed(compile: Compile) -> None:
    spec = transformer.model()
    before = {name: t.clone() for name, t in spec.model.state_dict().items()}
    tokens = spec.example_inputs["tokens"].clone()
    compile(spec, recipe="int8", max_loss=0.5)
    assert all(torch.equal(t, before[name]) for name, t in spec.model.state_dict().items())
    assert torch.equal(spec.example_inputs["tokens"], tokens)


# --- recipes and settings ------------------------------------------------------------------------------


def test_passes_as_text(compile: Compile) -> None:
    result = compile(mlp.model(), recipe="fold-constants{max-bytes=0}, drop-dead-nodes")
    assert [r.name for r in result.records["custom"]] == ["fold-constants{max-bytes=0}", "drop-dead-nodes"]
    assert "fold-constants{max-bytes=0}, drop-dead-nodes" in result.report["recipe"]["text"]


@pytest.mark.parametrize("check", ["none", "each", "full"])
def test_how_closely_passes_are_watched(compile: Compile, check: str) -> None:
    assert compile(mlp.model(), check=check, cache=False).path


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"recepe": "fp32"}, 'did you mean "recipe"'),
        ({"engine": "onnx-runtime"}, 'did you mean "onnxruntime"'),
        ({"threads": "two"}, "threads takes int"),
        ({"output": "no-artifact"}, "NAME.penstock"),
        ({"target": "l4"}, "onnxruntime builds for the CPU only"),
        ({"target": "cpu,cpu"}, "stands twice"),
        ({"build_timeout": 0}, "build_timeout is 0"),
    ],
)
def test_settings_that_cannot_be_meant(compile: Compile, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        compile(mlp.model(), **settings)


def test_what_is_no_model(compile: Compile) -> None:
    with pytest.raises(UsageError, match="compile needs example inputs"):
        compile(torch.nn.Linear(2, 2))
    with pytest.raises(UsageError, match=r"a model is a torch\.nn\.Module, not str"):
        compile("model.py", example_inputs={})


def test_every_error_is_one_of_ours(compile: Compile) -> None:
    with pytest.raises(penstock.Error) as caught:
        compile(mlp.bessel())
    assert isinstance(caught.value, UnsupportedError)
    assert caught.value.exit_code == 3


# --- verdicts ------------------------------------------------------------------------------------------


def test_slower_than_eager_is_told_and_written(compile: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "interleave", clock(engine_ms=3.0))
    result = compile(mlp.model())
    assert result.path is not None
    open_artifact(result.path)
    assert result.speedup == pytest.approx(2 / 3)
    with pytest.raises(GoalError, match=r"goal not met: .* 0\.67x of eager"):
        result.raise_for_goal()
    cached = compile(mlp.model())
    assert cached.report["cached"]
    assert cached.goal == result.goal


def test_real_clocks_give_real_figures(own_cache: Path, tmp_path: Path) -> None:
    result = penstock.compile(
        mlp.model(), engine="onnxruntime", recipe="fp32", seconds=0, threads=1, output=tmp_path / "a.penstock"
    )
    chosen = result.report["chosen"]
    assert chosen["rounds"] >= 5
    assert chosen["ms"] > 0
    assert chosen["speedup"] == pytest.approx(chosen["eager_ms"] / chosen["ms"])


def test_what_is_compiled_for_this_processor_asks_for_its_features(compile: Compile) -> None:
    result = compile(mlp.model(), engine="tvm")
    assert result.path is not None
    manifest = open_artifact(result.path).manifest
    assert set(manifest.processor.flags) <= cpu_flags() and manifest.processor.lacks() == ""
    net, inputs = mlp.as_pair()
    (output,) = penstock.load(result.path)(**inputs).values()
    assert close(output, net(**inputs))


def test_the_same_compile_gives_the_same_files(compile: Compile, tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        result = compile(
            transformer.model(), recipe="int8", max_loss=0.5, cache=False, output=tmp_path / f"{name}.penstock"
        )
        assert result.path is not None
        files.append(open_artifact(result.path).manifest.files)
    for name in (BEFORE, AFTER, "weights.safetensors", "engine.onnx"):
        assert files[0][name] == files[1][name]


# --- a wrong pass --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ForgetHalf(Pass):
    """gelu(x) -> relu(x): plausible, and wrong."""

    name: ClassVar[str] = "forget-half"
    summary: ClassVar[str] = "wrong on purpose"

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        found = []
        for node in [n for n in graph.walk() if n.op.name == "aten.gelu.default"]:
            found.append(remark(node, True, "as good as"))
            made = graph.insert(op("aten.relu.default"), node.args[0], before=node)
            graph.replace(node.result, made.result)
            graph.erase(node)
        return found


def test_a_wrong_pass_is_rolled_back_and_named(
    compile: Compile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipe_module, "PASSES", (*PASSES, ForgetHalf))
    spec = mlp.model()
    result = compile(spec, recipe="forget-half, mark-fusion")
    wrong, next_ = result.records["custom"]
    assert wrong.name == "forget-half"
    assert wrong.dropped.startswith("forget-half moved the outputs by")
    assert (wrong.changes, wrong.applied, next_.dropped) == (0, 0, "")
    assert "aten.gelu.default" in show(result.graph)
    assert "aten.relu.default" not in show(result.graph)
    row = result.report["variants"]["custom"]["passes"][0]
    assert (row["name"], row["dropped"], row["applied"]) == ("forget-half", wrong.dropped, 0)
    x = spec.example_inputs["input"]
    assert close(penstock.load(result.path)(x)["output"], spec.model(x).detach())  # type: ignore[arg-type]


def test_a_wrong_engine_is_no_candidate(compile: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever slips through the passes is caught at the end, by the answers of what was built."""
    from backends.onnxruntime_engine import OnnxRuntime

    build = OnnxRuntime.build

    def wrong(self: OnnxRuntime, graph: Graph, folder: Path, options: BuildOptions) -> Built:
        ForgetHalf().run(graph)
        return build(self, graph, folder, options)

    monkeypatch.setattr(OnnxRuntime, "build", wrong)
    with pytest.raises(VerificationError, match="fp32 on onnxruntime: loss"):
        compile(replace(mlp.model(), name="wrong"), max_loss=1e-4)
