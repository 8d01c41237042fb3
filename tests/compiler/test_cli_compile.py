"""`penstock compile`: what it prints, leaves and ends with."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from backends.onnxruntime_engine import OnnxRuntime
from backends.openvino_engine import OpenVino
from backends.reference import Reference
from compiler.artifact import open_artifact
from compiler.select import race as select
from ir import parse
from tests.compiler.command import MLP, MODELS, Run, clock, here

ORT = ("-e", "onnxruntime", "-r", "fp32")


def test_compile_run_bench_verify(penstock: Run, tmp_path: Path) -> None:
    path = tmp_path / "mlp.penstock"
    told = penstock("compile", MLP, "-o", path, *ORT).worked()
    assert told.out.endswith(f"artifact  {path}\nnext      penstock run {path}\n")
    assert "2.00x vs torch eager" in told.out
    for phase in ("load", "capture", "reference", "optimise", "engines", "publish"):
        assert f"✓ {phase}" in told.err
    assert here(tmp_path) == ["mlp.penstock"]
    assert "output" in penstock("run", path, "-s", "batch=3").worked().out
    assert "f32[3, 4]" in penstock("run", path, "-s", "batch=3").out
    assert "files match their digests" in penstock("verify", path, "--against", MLP).worked().out
    assert "x vs torch eager" in penstock("bench", path, "--vs", MLP, "--seconds", 0).worked().out


def test_the_default_place_is_renewed_a_named_one_is_not(
    penstock: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert penstock("compile", MLP, *ORT, "-q").worked().out == "mlp.penstock\n"
    penstock("compile", MLP, *ORT, "-o", "mlp.penstock").failed(2, "exists", "--force")
    penstock("compile", MLP, *ORT, "-o", "mlp.penstock", "--force", "-q").worked()
    assert here(tmp_path) == ["mlp.penstock"]


def test_quiet_prints_the_path_alone(penstock: Run, tmp_path: Path) -> None:
    path = tmp_path / "mlp.penstock"
    told = penstock("compile", MLP, "-o", path, *ORT, "-q").worked()
    assert (told.out, told.err) == (f"{path}\n", "")


def test_json_of_a_compile(penstock: Run, tmp_path: Path) -> None:
    path = tmp_path / "mlp.penstock"
    told = penstock("compile", f"{MLP}:prints", "-o", path, *ORT, "--json").worked()
    assert told.json["path"] == str(path)
    assert told.json["id"] == open_artifact(path).id
    assert told.json["chosen"]["speedup"] == pytest.approx(2)
    assert told.err == "hello from the model\n"  # stdout is for the result


def test_verbose_tells_every_remark(penstock: Run, tmp_path: Path) -> None:
    told = penstock("compile", MLP, "-o", tmp_path / "a.penstock", *ORT, "-v").worked()
    assert "fp32: mark-fusion: applied: aten." in told.out


def test_a_cached_compile_is_said_to_be_one(penstock: Run, tmp_path: Path) -> None:
    first = penstock("compile", MLP, "-o", tmp_path / "a.penstock", *ORT, "--json").worked()
    again = penstock("compile", MLP, "-o", tmp_path / "b.penstock", *ORT, "--json").worked()
    assert again.json["cached"]
    assert again.json["id"] == first.json["id"]
    anew = penstock("compile", MLP, "-o", tmp_path / "c.penstock", *ORT, "--json", "--no-cache").worked()
    assert not anew.json.get("cached")


def test_dry_run_writes_nothing(penstock: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = penstock("compile", MLP, "--dry-run").worked()
    assert "nothing was built or measured" in told.out
    assert here(tmp_path) == []
    assert penstock("compile", MLP, "--dry-run", "--json").worked().json["path"] is None
    assert penstock("compile", MLP, "--dry-run", "-q").worked().out == ""


def test_dumps_and_ir_after_a_pass(penstock: Run, tmp_path: Path) -> None:
    path, folder = tmp_path / "a.penstock", tmp_path / "dumps"
    asked = ("--dump", folder, "--print-ir-after", "mark-fusion")
    for _ in range(2):  # also when an equal compile is at hand
        told = penstock("compile", MLP, "-o", path, "--force", *ORT, *asked, "--json").worked()
        assert told.json["path"]
        assert told.err.startswith("penstock-ir 1")
        parse(told.err)
    (name,) = os.listdir(folder)
    assert re.fullmatch(r"\d\d_mark-fusion\.ir", name)
    assert (folder / name).read_text() == told.err


def test_goal_not_met_but_the_artifact_is_there(penstock: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "interleave", clock(engine_ms=4.0))
    path = tmp_path / "mlp.penstock"
    told = penstock("compile", MLP, "-o", path, *ORT, "-q")
    assert told.code == 7
    assert told.out == f"{path}\n"
    assert (
        told.err == "error: goal not met: the fastest engine within the loss bound runs at 0.50x of eager: not faster\n"
    )
    open_artifact(path)
    told = penstock("compile", MLP, "-o", path, "--force", *ORT, "--json")
    assert told.code == 7
    assert told.json["verdict"]["state"] == "missed"


def test_no_engine_within_the_loss(penstock: Run, tmp_path: Path) -> None:
    told = penstock(
        "compile", MLP, "-o", tmp_path / "a.penstock", "-e", "reference", "-r", "bf16", "--max-loss", 0, "-q"
    )
    told.failed(6, "no engine stays within a loss of 0:", "bf16 on reference: loss", "--max-loss")
    assert here(tmp_path) == []


def test_an_engine_that_is_not_installed(penstock: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenVino, "version", lambda self: None)
    path = tmp_path / "a.penstock"
    told = penstock("compile", "nowhere.py", "-o", path, "-e", "openvino", "-q")
    told.failed(2, "no such file")
    told = penstock("compile", MLP, "-o", path, "-e", "openvino", "-q")
    told.failed(4, "engine 'openvino' is not installed", 'hint: pip install "penstock[openvino]"')
    monkeypatch.setattr(OnnxRuntime, "version", lambda self: None)
    penstock("compile", MLP, "-o", path, "-q").failed(4, "no engine is installed", "penstock[onnxruntime]")
    penstock("compile", MLP, "--dry-run").worked()  # a plan needs none
    assert here(tmp_path) == []


def test_an_artifact_whose_engine_is_not_installed(
    penstock: Run, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnnxRuntime, "version", lambda self: None)
    penstock("run", artifact).failed(4, "onnxruntime", 'hint: pip install "penstock[onnxruntime]"')


def test_every_unsupported_construct_is_listed(penstock: Run, tmp_path: Path) -> None:
    told = penstock("compile", MODELS / "faulty.py", "-o", tmp_path / "a.penstock", "-q")
    told.failed(3, "2 construct(s) of the model", "faulty.py:", "if x.mean() > 0:", "for _ in range(int(x.sum())):")
    assert here(tmp_path) == []


def test_what_no_engine_carries(penstock: Run, tmp_path: Path) -> None:
    told = penstock("compile", f"{MLP}:bessel", "-o", tmp_path / "a.penstock", "-e", "onnxruntime", "-q")
    told.failed(3, "no engine could be built", "2 operation(s) it cannot carry", "bessel_j0", "bessel_j1", "mlp.py:")
    assert here(tmp_path) == []


def test_a_recipe_file(penstock: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("version: 1\nengine: reference\nmax-loss: 0.5\npasses: fold-constants, drop-dead-nodes\n")
    told = penstock("compile", MLP, "-o", tmp_path / "a.penstock", "-r", recipe, "--max-loss", 0.25, "--json").worked()
    assert told.json["settings"]["max_loss"] == 0.25
    assert told.json["chosen"]["engine"] == "reference"
    assert [row["name"] for row in told.json["variants"]["custom"]["passes"]] == ["fold-constants", "drop-dead-nodes"]
    recipe.write_text("version: 1\nengin: reference\n")
    penstock("compile", MLP, "-r", recipe, "-q").failed(2, "mine.yaml", "unknown key 'engin'", 'did you mean "engine"?')


def test_the_interpreter_is_an_engine(penstock: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.penstock"
    penstock("compile", MLP, "-o", path, "-e", "reference", "-r", "fp32", "-q").worked()
    assert open_artifact(path).manifest.engine.name == Reference.name
    penstock("run", path, "-q").worked()
