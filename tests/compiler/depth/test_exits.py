"""Exits through compile: the budget on held-out rows, effort at run time, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import penstock
from compiler.artifact import open_artifact
from compiler.compile import compile as compile_model
from compiler.cost.targets import this_cpu
from compiler.depth.calibrate import calibrate, split_samples
from compiler.runtime.depth import read_grid
from compiler.runtime.loaded import LoadedModel, load
from compiler.settings import read_settings
from ir.errors import UntrustedError, UsageError
from tests.compiler.models import deep, mlp

SETTINGS = {"engine": "onnxruntime", "cache": False, "seconds": 0.0, "check": "none"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = tmp_path_factory.mktemp("exits") / "deep.penstock"
    compile_model(deep.model(), recipe="exits", max_drop="2%", max_loss=0.02, output=path, **SETTINGS)
    return load(path)


def _full(rows: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        return deep.model(samples=1).model(**rows)["logits"]


def test_rows_leave_early_and_keep_to_the_budget_on_rows_that_nobody_saw(model: LoadedModel) -> None:
    changed, depths = [], []
    for seed in range(1000, 1020):
        rows = deep.inputs(64, seed)
        answer, trace = model.trace(**rows)
        changed.append(answer["logits"].argmax(-1) != _full(rows).argmax(-1))
        depths.append(trace["depth.layers"])
    drop = torch.cat(changed).double()
    section = model.manifest.depth
    assert section is not None
    assert drop.mean() <= 0.02 + 2 * drop.std() / len(drop) ** 0.5
    mean = torch.cat(depths).double().mean()
    assert mean < 5 and abs(mean - section["expected"]) < 0.5


def test_effort_1_is_all_blocks_exactly_and_effort_0_the_first_exit(model: LoadedModel) -> None:
    rows = deep.inputs(16, 77)
    answer, trace = model.trace(effort=1, **rows)
    assert (trace["depth.layers"] == 6).all()
    assert torch.allclose(answer["logits"], _full(rows), atol=1e-4)
    assert (model.trace(effort=0, **rows)[1]["depth.layers"] == model.manifest.depth["exits"][0]).all()
    means = [model.trace(effort=e, **rows)[1]["depth.layers"].double().mean() for e in (0, 0.3, 0.6, 0.9, 1.0)]
    assert means == sorted(means)
    assert torch.equal(model(**rows)["logits"], model(effort=None, **rows)["logits"])


@pytest.mark.parametrize("effort", [-0.1, 1.5, float("nan"), "high", True])
def test_an_effort_out_of_range_is_one_message(model: LoadedModel, effort: object) -> None:
    with pytest.raises(UsageError, match="not a number from 0 to 1"):
        model(effort=effort, **deep.inputs(2, 0))


def test_effort_of_a_model_without_exits_is_one_message(compiled: Path) -> None:
    with pytest.raises(UsageError, match="has no exits"):
        load(compiled)(effort=0.5, input=torch.zeros(4, 16))


def test_an_empty_batch_is_outside_of_the_dim(model: LoadedModel) -> None:
    with pytest.raises(penstock.InputError, match="batch"):
        model(input=torch.zeros(0, 16))


def test_the_section_tells_everything_that_was_promised(model: LoadedModel) -> None:
    section = model.manifest.depth
    assert section is not None
    assert section["blocks"] == 6 and sum(section["histogram"]) == section["samples"]["report"]
    assert section["loss"] <= 0.04 and section["threshold_bound"] <= section["budget"] == 0.02
    assert 0 < section["loss_error"] < 0.02 and 1 <= section["oracle"] <= section["expected"]
    assert "task" not in section, "the model came without a metric"
    assert section["curve"][-1]["loss"] == 0 and len(section["digest"]) == 64
    assert 0 < section["adapt"]["rows"] < section["samples"]["fit"], "a quarter chooses among maps"
    assert "kept" in section["gates"]


def test_a_grid_that_was_tampered_with_is_not_read(model: LoadedModel) -> None:
    section = dict(model.manifest.depth or {})
    for change in ({"thresholds": [["nan"]]}, {"efforts": [0, 2]}, {"exits": []}, {"thresholds": 3}):
        with pytest.raises(UntrustedError, match="no grid of thresholds"):
            read_grid({**section, **change})


# --- what is refused, or answered with full depth ---------------------------------------------------------


@pytest.mark.parametrize(("make", "told"), [(deep.few, "exits need samples"), (deep.without_samples, "of your own")])
def test_too_few_samples_or_none_of_the_users_own_are_refused(make, told: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=told):
        compile_model(make(), recipe="exits", max_drop=0.02, output=tmp_path / "x.penstock", **SETTINGS)


def test_a_budget_that_no_threshold_meets_gives_all_blocks_and_the_numbers(tmp_path: Path) -> None:
    made = compile_model(
        deep.model(blocks=3), recipe="exits", max_drop=1e-6, output=tmp_path / "x.penstock", **SETTINGS
    )
    (why,) = [r.why for rows in made.records.values() for row in rows for r in row.remarks if "budget" in r.why
              or "no threshold" in r.why]  # fmt: skip
    assert "no threshold keeps the loss within 1e-06" in why and "would lose" in why
    rows = deep.inputs(4, 5)
    with torch.inference_mode():
        want = deep.model(blocks=3).model(**rows)["logits"]
    assert torch.allclose(load(tmp_path / "x.penstock")(**rows)["logits"], want, atol=1e-4)


def test_a_graph_without_repeated_blocks_gives_all_of_it_with_the_reason(tmp_path: Path) -> None:
    made = compile_model(mlp.model(), recipe="exits", max_drop=0.1, output=tmp_path / "x.penstock",
                         calibration=[mlp._inputs(32)], **SETTINGS)  # fmt: skip
    assert "no part of the graph repeats" in str([r for rows in made.records.values() for r in rows])


def test_in_auto_the_variants_that_got_no_exits_say_why(tmp_path: Path) -> None:
    made = compile_model(deep.few(), recipe="fp32+exits", max_drop=0.02, output=tmp_path / "x.penstock", **SETTINGS)
    whys = {c.variant: c.why for c in made.candidates}
    assert "exits need samples" in whys["exits"] and not whys["fp32"]


def test_embeddings_are_judged_by_their_cosine(tmp_path: Path) -> None:
    from compiler.capture.capture import capture

    spec = deep.model(samples=24, blocks=4, unit=True)
    graph = capture(spec)
    samples = split_samples(list(spec.calibration), ["input"])
    found = calibrate(graph, samples, 0.05, this_cpu(), {"batch": 1}, batches=(1,))
    assert found.exits is not None
    assert found.exits.section["metric"] == "cosine" and found.exits.section["criterion"] == "agreement"
    assert found.exits.section["loss"] <= 0.05
    assert len(graph.settings()) == 0  # the graph stays as it is


@pytest.mark.parametrize(
    ("given", "want"), [("0.5%", 0.005), ("0.005", 0.005), ("1", 1.0), (0.01, 0.01), (" 2% ", 0.02)]
)
def test_a_budget_is_a_share_or_per_cent(given: str | float, want: float) -> None:
    assert read_settings({"max_drop": given}).max_drop == pytest.approx(want)


@pytest.mark.parametrize("given", ["much", "0", 0.0, -0.1, "101%", "nan", "", "%"])
def test_a_budget_that_cannot_be_meant_is_refused(given: object) -> None:
    with pytest.raises(UsageError, match="max_drop"):
        read_settings({"max_drop": given})


def test_a_part_that_has_another_name_is_refused(tmp_path: Path) -> None:
    spec = replace(deep.few(), exit_samples={"train": []})
    with pytest.raises(UsageError, match="parts train, not fit, threshold, report"):
        compile_model(spec, recipe="exits", max_drop=0.02, output=tmp_path / "x.penstock", **SETTINGS)


def test_the_report_and_inspect_tell_where_rows_leave(model: LoadedModel, tmp_path: Path) -> None:
    from compiler.look import exits_of
    from compiler.report.charts import adaptive
    from compiler.report.terminal import adaptive_lines

    folder = model._artifact.folder
    page = (folder / "report.html").read_text()
    assert "Adaptive depth" in page and "<polyline" in page
    section = exits_of(str(folder))
    assert section is not None and section == model.manifest.depth
    lines = "\n".join(adaptive_lines(section))
    assert "blocks expected" in lines and "thresholds after block" in lines and " +- " in lines
    assert "metric 0.8000 -> 0.7900" in adaptive_lines({**section, "task": {"before": 0.8, "after": 0.79}})[0]
    drawn = adaptive({"depth": section})
    assert sum(row["share"] for row in drawn["rows"]) == pytest.approx(1)
    assert adaptive({}) == {}


def test_gates_decide_where_they_are_cheaper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compiler.depth.calibrate._GATES_SAVE", float("inf"))  # as if they were, on this small model
    path = tmp_path / "deep.penstock"
    compile_model(deep.model(), recipe="exits", max_drop="2%", max_loss=0.02, output=path, **SETTINGS)
    gated = load(path)
    section = gated.manifest.depth
    assert section is not None and section["criterion"] == "gate" and section["gates"]["kept"]
    rows = deep.inputs(64, 1000)
    answer, trace = gated.trace(**rows)
    left = trace["depth.layers"].double()
    assert len(left.unique()) > 1 and abs(left.mean() - section["expected"]) < 1
    assert (answer["logits"].argmax(-1) != _full(rows).argmax(-1)).double().mean() <= 0.02 + 2 * (0.02 / 64) ** 0.5
    whole, trace = gated.trace(effort=1, **rows)
    assert (trace["depth.layers"] == 6).all() and torch.allclose(whole["logits"], _full(rows), atol=1e-4)


@pytest.mark.slow
def test_plans_for_a_gpu_leave_early_too(tmp_path: Path) -> None:
    path = tmp_path / "deep.penstock"
    compile_model(
        deep.model(), recipe="fp16-exits", max_drop="2%", max_loss=0.02, output=path, target="t4", engine="tensorrt",
        cache=False,
    )  # fmt: skip
    manifest = open_artifact(path).manifest
    assert manifest.depth is not None and manifest.depth["expected"] < 5
    assert {(p["lowering"], p["evidence"], p["lazy"]) for p in manifest.flow} == {("bucketed", "structural", True)}
