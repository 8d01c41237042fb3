"""The command line: what each command prints, its exit codes, and that it starts without anything heavy."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from backends.onnxruntime_engine import OnnxRuntime
from backends.openvino_engine import OpenVino
from backends.reference import Reference
from compiler.artifact import open_artifact
from compiler.cli.main import EXIT_CODES, cli, main
from compiler.cli.progress import Progress
from compiler.doctor import ENGINES
from compiler.events import Event
from compiler.select import race as select
from ir import errors, parse, show
from ir import weights as weight_files
from passes import PASSES
from tests.compiler.command import MLP, MODELS, Run, clock

BLOCK = str(MODELS / "transformer.py")
ORT = ("-e", "onnxruntime", "-r", "fp32")
IR = """penstock-ir 1
graph "small"
dim batch [1, 64]
input %x: f32[batch, 4] "x"
param %w: f32[4, 4] "w"
%h: f32[batch, 4] = aten.linear.default(%x, %w)
%y: f32[batch, 4] = aten.relu.default(%h)
%dead: f32[batch, 4] = aten.neg.default(%y)
return "y" %y
"""


@pytest.fixture
def ir_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.ir"
    path.write_text(IR)
    return path


def here(tmp_path: Path) -> list[str]:
    """What a test left in its folder, beside the cache."""
    return sorted(name for name in os.listdir(tmp_path) if name != "cache")


# --- starting ------------------------------------------------------------------------------------------

HEAVY = {"torch", "numpy", "sympy", "onnx", "onnxruntime", "openvino", "rich", "yaml", "networkx", "safetensors"}


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [(["--help"], set()), (["compile", "--help"], set()), (["doctor", "--json"], set()), (["doctor"], {"rich"})],
)
def test_nothing_heavy_is_imported_to_help(arguments: list[str], allowed: set[str]) -> None:
    code = f"""
import sys
from compiler.cli.main import main
try:
    main({arguments!r})
except SystemExit as ended:
    assert not ended.code
print(sorted({{m.partition(".")[0] for m in sys.modules}} & {HEAVY!r}), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stderr.splitlines()[-1].replace("'", '"'))) <= allowed
    assert done.stdout


def test_help_names_every_command_and_every_exit_code(penstock: Run) -> None:
    told = penstock("--help").worked().out
    for name in ("compile", "run", "bench", "estimate", "inspect", "verify", "passes", "targets", "doctor", "opt"):
        assert re.search(rf"^  {name} ", told, re.MULTILINE)
    documented = set(re.findall(r"\b(\d+) ", EXIT_CODES))
    kinds = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.PenstockError)]
    assert documented == {"0", "130"} | {str(kind.exit_code) for kind in kinds}
    assert max(map(len, told.splitlines())) <= 100


def test_no_command_is_help(penstock: Run) -> None:
    assert penstock().worked().out == penstock("-h").worked().out


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_help_of_a_command(penstock: Run, name: str) -> None:
    told = penstock(name, "-h").worked().out
    for option in ("--json", "--quiet", "--verbose"):
        assert option in told


def test_version(penstock: Run) -> None:
    assert re.fullmatch(r"penstock \S+\n", penstock("--version").worked().out)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["compil"], "No such command 'compil'. Did you mean 'compile'?\n  hint: penstock --help"),
        (["compile"], "Missing argument 'MODEL'.\n  hint: penstock compile --help"),
        (["compile", "m.py", "--recipy", "x"], "No such option '--recipy'"),
        (["compile", "m.py", "--recipy", "x"], "'--recipe'"),
        (["compile", "m.py", "n.py"], "unexpected extra argument"),
        (["compile", "m.py", "--threads", "two"], "'two' is not a valid integer"),
        (["compile", "m.py", "--threads", "0"], "0 is not in the range"),
        (["compile", "m.py", "--max-loss", "nan?"], "is not a valid float"),
        (["compile", "m.py", "--max-loss", "-1"], "is not in the range"),
        (["compile", "m.py", "--seconds", "-1"], "is not in the range"),
        (["run", "a.penstock", "-s", "batch"], "'batch' is not NAME=SIZE"),
        (["run", "a.penstock", "-s", "batch=-1"], "is not NAME=SIZE"),
        (["estimate", "m.py", "-b", "1,two"], "no list of whole numbers"),
        (["estimate", "m.py", "-b", "0"], "sizes begin at 1"),
    ],
)
def test_wrong_use(penstock: Run, arguments: list[str], told: str) -> None:
    penstock(*arguments).failed(2, told, "hint: penstock")


def test_an_option_without_its_value(penstock: Run) -> None:
    penstock("compile", "m.py", "-e").failed(2, "Option '-e' requires an argument")


def test_a_bug_says_so(penstock: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise LookupError("perm")

    monkeypatch.setattr("compiler.look.describe_passes", fails)
    penstock("passes").failed(1, "this is a bug in Penstock: LookupError: perm", "hint: run again with -v")
    told = penstock("passes", "-v")
    assert told.code == 1
    assert "Traceback" in told.err


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")]
)
def test_out_of_memory(penstock: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("compiler.look.describe_passes", fails)
    penstock("passes").failed(5, "out of memory")


# --- compile -------------------------------------------------------------------------------------------


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


# --- artifacts -----------------------------------------------------------------------------------------


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


# --- looking -------------------------------------------------------------------------------------------


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


def test_passes(penstock: Run) -> None:
    rows = penstock("passes", "--json").worked().json["passes"]
    assert [row["name"] for row in rows] == [p.name for p in PASSES]
    for row in rows:
        assert row.keys() == {"name", "summary", "options", "tolerance", "requires", "gives", "breaks"}
        assert row["summary"]
        told = penstock("passes", row["name"]).worked().out
        for word in (row["name"], "options", row["tolerance"], *row["options"]):
            assert word in told
    assert penstock("passes", "fold-constants", "--json").worked().json["options"] == {"max-bytes": 1 << 20}
    assert "fold-constants" in penstock("passes", "-q").worked().out
    penstock("passes", "fold-constant").failed(2, "there is no pass 'fold-constant'", 'did you mean "fold-constants"?')


def test_targets(penstock: Run) -> None:
    rows = penstock("targets", "--json").worked().json["targets"]
    assert rows[0]["name"] == "cpu"
    assert {"l4", "h100_sxm"} <= {row["name"] for row in rows}
    told = penstock("targets").worked().out
    assert max(map(len, told.splitlines())) <= 100


def test_doctor(penstock: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {row["name"]: row for row in penstock("doctor", "--json").worked().json["findings"]}
    assert {f"engine {name}" for name in ENGINES} <= found.keys()
    package, *rest = ENGINES["openvino"]
    gone = replace(package, module="no_such_module", package="no-such-package")
    monkeypatch.setitem(ENGINES, "openvino", (gone, *rest))
    found = {row["name"]: row for row in penstock("doctor", "--json").worked().json["findings"]}
    assert found["engine openvino"]["state"] == "missing"
    assert found["engine openvino"]["fix"] == 'pip install "penstock[openvino]"'
    assert 'fix: pip install "penstock[openvino]"' in penstock("doctor").worked().out


# --- opt -----------------------------------------------------------------------------------------------


def test_opt_without_passes_is_a_round_trip(penstock: Run, ir_file: Path) -> None:
    assert penstock("opt", ir_file).worked().out == show(parse(IR)) == IR


def test_opt_runs_passes(penstock: Run, ir_file: Path, tmp_path: Path) -> None:
    told = penstock("opt", ir_file, "-p", "fold-constants{max-bytes=0}, drop-dead-nodes", "-v").worked()
    assert "aten.neg" not in told.out
    assert "drop-dead-nodes: applied: aten.neg.default" in told.err
    again = tmp_path / "again.ir"
    assert penstock("opt", ir_file, "-p", "drop-dead-nodes", "-o", again).worked().out == ""
    assert again.read_text() == told.out
    asked = penstock("opt", ir_file, "-p", "drop-dead-nodes", "-o", again, "--json").worked().json
    assert asked["ir"] == told.out
    assert asked["passes"] == [{"pass": "drop-dead-nodes", "changes": 1, "applied": 1, "declined": 0}]


def test_opt_reads_stdin(penstock: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(IR.encode())))
    assert penstock("opt", "-", "-p", "drop-dead-nodes").worked().out.count("aten.") == 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xff")))
    penstock("opt", "-").failed(8, "stdin is not text")


def test_opt_prints_and_dumps_the_ir_after_a_pass(penstock: Run, ir_file: Path, tmp_path: Path) -> None:
    told = penstock(
        "opt", ir_file, "-p", "fold-constants, drop-dead-nodes", "--print-ir-after", "fold-constants",
        "--dump", tmp_path / "dumps",
    ).worked()  # fmt: skip
    assert told.err == IR
    assert os.listdir(tmp_path / "dumps") == ["02_drop-dead-nodes.ir"]
    assert (tmp_path / "dumps" / "02_drop-dead-nodes.ir").read_text() == told.out


def test_opt_with_weights(penstock: Run, tmp_path: Path) -> None:
    text = IR.replace("%x, %w", "%x, %t").replace("%h:", "%t: f32[4, 4] = aten.transpose.int(%w, 0, 1)\n%h:", 1)
    (tmp_path / "t.ir").write_text(text)
    weight_files.save({"w": torch.eye(4)}, tmp_path / "w.safetensors")
    told = penstock("opt", tmp_path / "t.ir", "-p", "fold-constants", "-w", tmp_path / "w.safetensors").worked()
    assert "transpose" not in told.out
    assert "transpose" in penstock("opt", tmp_path / "t.ir", "-p", "fold-constants").worked().out


def test_opt_with_wrong_names(penstock: Run, ir_file: Path) -> None:
    penstock("opt", ir_file, "-p", "fold-constant").failed(2, 'did you mean "fold-constants"?')
    penstock("opt", ir_file, "-p", "fold-constants{max-byte=1}").failed(2, 'did you mean "max-bytes"?')
    penstock("opt", ir_file, "-p", "fold-constants{max-bytes=big}").failed(2, "takes int, not 'big'")
    penstock("opt", ir_file, "-p", "fold-constants", "--print-ir-after", "quantize").failed(
        2, "no pass 'quantize' is run"
    )


# --- progress ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "[" * 100_000, '{"t": 3}', '{"t": {"engines": "x"}}', '{"t": {"engines": 2}}'])
def test_a_damaged_history_is_no_reason_to_fail(own_cache: Path, content: str) -> None:
    file = own_cache / "penstock" / "phases.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with Progress("t", -1) as progress:
        progress(Event("begin", "engines"))
        progress(Event("end", "capture", seconds=1.5))
    kept: dict[str, Any] = json.loads(file.read_text())
    assert kept["t"]["capture"] == 1.5
    assert ("engines" in kept["t"]) == content.endswith("2}}")


def test_an_interrupt_is_130(penstock: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("compiler.look.describe_passes", interrupted)
    penstock("passes").failed(130, "interrupted")


def test_main_reads_the_arguments_of_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["penstock", "passes", "-q"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "fold-constants" in capsys.readouterr().out


def test_the_interpreter_is_an_engine(penstock: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.penstock"
    penstock("compile", MLP, "-o", path, "-e", "reference", "-r", "fp32", "-q").worked()
    assert open_artifact(path).manifest.engine.name == Reference.name
    penstock("run", path, "-q").worked()
