"""`penstock run`, `bench` and `verify` on an artifact; `estimate` and `inspect` on all that holds a model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from compiler.artifact import open_artifact
from ir import parse
from ir import weights as weight_files
from tests.compiler.command import IR, MLP, MODELS, Run, here

BLOCK = str(MODELS / "transformer.py")


def test_run_with_given_inputs(penstock: Run, artifact: Path, tmp_path: Path) -> None:
    given, written = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    weight_files.save({"input": torch.ones(2, 16)}, given)
    told = penstock("run", artifact, "-i", given, "-o", written, "--json").worked()
    (row,) = told.json["outputs"]
    assert row["type"] == "f32[2, 4]"
    assert weight_files.load(written)["output"].shape == (2, 4)
    assert told.json["inputs"][0]["mean"] == 1
    assert here(tmp_path) == ["in.safetensors", "mlp.penstock", "out.safetensors"]
    penstock("run", artifact, "-i", given, "-s", "batch=2").failed(2, "does not go with --inputs")
    assert penstock("run", artifact, "-q").worked().out == ""


def test_json_has_null_for_what_is_no_number(penstock: Run, artifact: Path, tmp_path: Path) -> None:
    weight_files.save({"input": torch.full((1, 16), float("nan"))}, tmp_path / "in.safetensors")
    told = penstock("run", artifact, "-i", tmp_path / "in.safetensors", "--json").worked()
    assert told.json["outputs"][0]["mean"] is None


def test_json_of_bench_and_verify(penstock: Run, artifact: Path) -> None:
    timed = penstock("bench", artifact, "--seconds", 0, "-s", "batch=2", "--json").worked().json
    assert timed["times"]["engine"]["ms"] > 0
    assert timed["inputs"] == "input f32[2, 16]"
    against = penstock("bench", artifact, "--vs", MLP, "--seconds", 0, "--threads", 1, "--json").worked().json
    assert against["threads"] == 1
    assert against["speedup"] > 0
    checked = penstock("verify", artifact, "--against", MLP, "--json").worked().json
    assert checked["ok"]
    assert checked["loss"] < 1e-6
    assert checked["id"] == open_artifact(artifact).id


def test_verify_fails_beyond_the_bound(penstock: Run, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for loss in (0.5, float("nan")):
        monkeypatch.setattr(
            "compiler.runtime.trial.verify_artifact",
            lambda *_, loss=loss: {"loss": loss, "cosine": 0.5, "max_abs": 1.0, "metric": None, "base": None},
        )
        told = penstock("verify", artifact, "--against", MLP, "--json")
        assert told.code == 6
        assert not told.json["ok"]
        assert "is more than 0.01" in told.err


def test_verify_against_another_model(penstock: Run, artifact: Path) -> None:
    penstock("verify", artifact, "--against", BLOCK).failed(2, "made from another model")
    penstock("bench", artifact, "--vs", BLOCK).failed(2, "made from another model")


def test_expected_id(penstock: Run, artifact: Path) -> None:
    penstock("run", artifact, "--expect", open_artifact(artifact).id).worked()
    penstock("run", artifact, "--expect", "0" * 64).failed(8, "not the artifact that was expected")
    penstock("verify", artifact, "--expect", "12").failed(2, "no artifact id")


def test_estimate_of_a_model_with_both_dims(penstock: Run) -> None:
    told = penstock("estimate", BLOCK, "-t", "l4,h100_sxm,cpu", "--batch", "1,8", "--seq", "16", "--json").worked()
    rows = told.json["rows"]
    assert [(r["target"], r["sizes"]["batch"]) for r in rows] == [
        (t, b) for t in ("l4", "h100_sxm", "cpu") for b in (1, 8)
    ]
    assert {r["sizes"]["seq"] for r in rows} == {16}
    text = penstock("estimate", BLOCK, "-t", "l4").worked().out
    assert re.search(r"l4 +1 +32 ", text)  # the usual 128 is beyond its range


def test_estimate_takes_dims_as_the_model_has_them(penstock: Run, tmp_path: Path) -> None:
    assert penstock("estimate", MLP, "--json").worked().json["rows"][0]["sizes"] == {"batch": 1}
    assert penstock("estimate", MLP, "-s", "batch=9", "--json").worked().json["rows"][0]["sizes"] == {"batch": 9}
    assert penstock("estimate", f"{MLP}:as_pair", "--json").worked().json["rows"][0]["sizes"] == {}
    penstock("estimate", MLP, "--seq", "16").failed(2, "no dim named 'seq'", "its dims: batch [1, 64]")
    penstock("estimate", MLP, "-s", "bach=16").failed(2, "no dim named 'bach'")
    penstock("estimate", f"{MLP}:as_pair", "--batch", "2").failed(2, "no dim named 'batch'", "every size is fixed")
    penstock("estimate", MLP, "--batch", "65").failed(2, "batch = 65 is outside the range [1, 64]")
    penstock("estimate", MLP, "--batch", "2", "-s", "batch=3").failed(2, "say the same")
    other = tmp_path / "tokens.ir"
    other.write_text(IR.replace("batch", "tokens"))
    penstock("estimate", other).failed(2, "no size for tokens [1, 64]", "--size tokens=N")
    penstock("estimate", other, "-s", "tokens=4").worked()


@pytest.mark.parametrize("recipe", ["none", "fp32", "int8", "auto"])
def test_estimate_of_ir_and_of_an_artifact(penstock: Run, ir_file: Path, artifact: Path, recipe: str) -> None:
    for model in (ir_file, artifact):
        assert penstock("estimate", model, "-r", recipe, "-t", "l4,t4", "--json").worked().json["rows"]


def test_estimate_with_unknown_names(penstock: Run, ir_file: Path) -> None:
    penstock("estimate", ir_file, "-t", "h100").failed(2, "there is no target named 'h100'", "did you mean")
    penstock("estimate", ir_file, "-t", "l4,").failed(2, "there is no target named ''")
    penstock("estimate", ir_file, "-r", "int9").failed(2, "there is no recipe 'int9'", 'did you mean "int8"?')


def test_inspect_everything_that_holds_a_model(penstock: Run, ir_file: Path, artifact: Path) -> None:
    for model, name in ((MLP, "mlp"), (ir_file, "small"), (artifact, "mlp")):
        told = penstock("inspect", model, "--json").worked().json
        assert told["name"] == name
        assert told["dims"] == {"batch": "[1, 64]"}
        assert told["engines"]["onnxruntime"] == []
        assert "can carry it" in penstock("inspect", model).worked().out
        parse(penstock("inspect", model, "--ir").worked().out)
        parse(penstock("inspect", model, "--ir", "--json").worked().json["ir"])


def test_inspect_says_what_an_engine_cannot_carry(penstock: Run) -> None:
    told = penstock("inspect", f"{MLP}:bessel").worked().out
    assert "onnxruntime  cannot carry 2:" in told
    assert "bessel_j0" in told


def test_inspect_a_pt2_file_only_when_trusted(penstock: Run, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(4, 2), (torch.ones(3, 4),)), path)
    penstock("inspect", path).failed(8, "can run code that it holds", "--trust-pickle")
    assert penstock("inspect", path, "--trust-pickle", "--json").worked().json["name"] == "m"
    path.write_bytes(b"no model")
    assert penstock("inspect", path, "--trust-pickle").code == 8
