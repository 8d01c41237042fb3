"""Everything that can be wrong with what a user gives, through the command line: one message, the right
exit code, nothing half-written."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from compiler.artifact import AFTER, MANIFEST, SEAL, open_artifact
from ir import weights as weight_files
from tests.compiler.command import MLP, MODELS, Run

ORT = ("-e", "onnxruntime", "-r", "fp32", "-q")
FAULTY = str(MODELS / "faulty.py")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where an artifact was to be; nothing may be there, nor beside it, afterwards."""
    folder = tmp_path / "place"
    folder.mkdir()
    yield folder / "a.penstock"
    assert os.listdir(folder) == []


# --- models --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "code", "told"),
    [
        ("nowhere.py", 2, ["no such file: nowhere.py"]),
        (f"{MODELS}/mpl.py", 2, ["no such file", "did you mean", "mlp.py"]),
        (str(MODELS), 2, ["not a model"]),
        ("no.such.module", 2, ["no module named 'no.such.module'"]),
        ("mlp.py:", 2, ["not a model: 'mlp.py:'"]),
        ("", 2, ["not a model: ''"]),
        (f"{MLP}:modell", 2, ["has no 'modell'", 'did you mean "model"?']),
        (f"{MLP}:BATCH", 2, ["is Dim, not a function"]),
        (f"{FAULTY}:needs", 2, ["needs arguments: path"]),
        (f"{FAULTY}:raises", 2, ["KeyError: 'no such checkpoint'", "faulty.py:", 'raise KeyError("no such']),
        (f"{FAULTY}:ends", 2, ["ends the program (sys.exit)"]),
        (f"{FAULTY}:gives_text", 2, ["returned str, not a ModelSpec"]),
        (f"{FAULTY}:other_argument", 2, ["no argument 'inptu'", 'did you mean "input"?']),
        (f"{FAULTY}:sample_out_of_range", 2, ["is 4, outside of dim 'batch' (8 to 64)"]),
        (f"{FAULTY}:no_such_axis", 2, ["names axis 2, but its shape is [4, 16]"]),
        (f"{FAULTY}:meta_weights", 2, ["without data (meta device): weight weight"]),
        (f"{FAULTY}:bad_calibration", 2, ["the model fails on calibration input 1", "cannot be multiplied"]),
        (f"{FAULTY}:metric_raises", 2, ["the metric failed: ValueError: no labels", "faulty.py:"]),
        (f"{FAULTY}:metric_is_number", 2, ["the metric is float"]),
        (f"{FAULTY}:fails_itself", 3, ["the model itself fails on the example inputs", "shapes cannot be multiplied"]),
        (f"{FAULTY}:model", 3, ["2 construct(s) of the model cannot be carried", "hint:"]),
        (f"{MLP}:with_nan", 2, ["hold NaN or infinity: 0.weight (1 NaN)", "--allow-nonfinite"]),
    ],
)
def test_models(penstock: Run, place: Path, model: str, code: int, told: list[str]) -> None:
    penstock("compile", model, "-o", place, *ORT).failed(code, *told)
    penstock("compile", model, "-o", place, *ORT, "--dry-run").failed(code)


def test_a_script_that_is_not_python(penstock: Run, place: Path, tmp_path: Path) -> None:
    script = tmp_path / "m.py"
    script.write_text("def model(:\n")
    penstock("compile", script, "-o", place, *ORT).failed(2, "is not valid Python", "m.py:1: `def model(:`")
    script.write_text("import no_such_package\n")
    penstock("compile", script, "-o", place, *ORT).failed(2, "ModuleNotFoundError", "install no_such_package")
    script.write_bytes(b"\xff\xfe\x00")
    penstock("compile", script, "-o", place, *ORT).failed(2, "m.py")


def test_nan_that_is_allowed(penstock: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.penstock"
    penstock("compile", f"{MLP}:with_nan", "-o", path, *ORT, "--allow-nonfinite").worked()
    open_artifact(path)


# --- names and options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-t", "l44"], ["there is no target named 'l44'", 'did you mean "l4"?']),
        (["-t", "l4", "-e", "openvino"], ["no engine here builds for l4", "penstock estimate MODEL --target l4"]),
        (["-e", "openvno"], ["no backend is named 'openvno'", 'did you mean "openvino"?']),
        (["-r", "int9"], ["there is no recipe 'int9'", 'did you mean "int8"?']),
        (["-r", "quantise{keep=2}"], ["there is no recipe", 'did you mean "quantize"?']),
        (["-r", "drop-dead-nodes, quantise"], ["there is no pass 'quantise'", 'did you mean "quantize"?']),
        (["-r", "quantize{kep=2}"], ["pass quantize has no option 'kep'", 'did you mean "keep"?']),
        (["-r", "quantize{keep=two}"], ["option keep of quantize takes int, not 'two'"]),
        (["-r", "quantize{keep}"], ["option 'keep' of quantize has no value"]),
        (["-r", "quantize{keep=2"], ["cannot read the passes"]),
        (["-r", "none.yaml"], ["no such recipe: none.yaml"]),
        (["--check", "ful"], ["check is 'ful'", 'did you mean "full"?']),
        (["--threads", "2.5"], ["'2.5' is not a valid integer"]),
        (["--max-loss", "1 %"], ["'1 %' is not a valid float"]),
        (["--print-ir-after", "quantise"], ["no pass 'quantise' is run", 'did you mean "quantize"?']),
        (["--max-los", "1"], ["No such option '--max-los'", "'--max-loss'"]),
    ],
)
def test_names_and_options(
    penstock: Run, place: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], told: list[str]
) -> None:
    def too_late(*_: object) -> None:
        raise AssertionError("it was captured before it was refused")

    monkeypatch.setattr("compiler.compile.capture_model", too_late)
    penstock("compile", MLP, "-o", place, "-q", *options).failed(2, *told)


# --- inputs at run time --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"input": torch.ones(65, 16)}, ["input", "batch", "65"]),
        ({"input": torch.ones(2, 15)}, ["input", "15", "16"]),
        ({"input": torch.ones(2, 16, dtype=torch.float64)}, ["input", "f64", "f32"]),
        ({"input": torch.ones(2, 16, dtype=torch.int64)}, ["input", "i64", "f32"]),
        ({"input": torch.ones(16)}, ["input", "[16]"]),
        ({"inptu": torch.ones(2, 16)}, ["inptu", 'did you mean "input"']),
        ({"input": torch.ones(2, 16), "mask": torch.ones(2)}, ["mask"]),
        ({}, ["input"]),
    ],
)
def test_inputs(
    penstock: Run, artifact: Path, tmp_path: Path, inputs: dict[str, torch.Tensor], told: list[str]
) -> None:
    given, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    weight_files.save(inputs, given)
    penstock("run", artifact, "-i", given, "-o", out).failed(2, *told)
    assert not out.exists()


def test_sizes_of_random_inputs(penstock: Run, artifact: Path) -> None:
    penstock("run", artifact, "-s", "batch=65").failed(2, "batch=65 is out of range: batch is in [1, 64]")
    penstock("run", artifact, "-s", "batch=0").failed(2, "batch=0 is out of range")
    penstock("bench", artifact, "-s", "bach=2").failed(2, "there is no dim 'bach'", 'did you mean "batch"?')


def test_files_of_inputs(penstock: Run, artifact: Path, tmp_path: Path) -> None:
    given = tmp_path / "in.safetensors"
    penstock("run", artifact, "-i", given).failed(2, "no such file")
    penstock("run", artifact, "-i", tmp_path).failed(2, "is not a file")
    given.write_bytes(b"no tensors")
    penstock("run", artifact, "-i", given).failed(8, "is not a safetensors file")
    weight_files.save({"input": torch.ones(2, 16)}, given)
    given.write_bytes(given.read_bytes()[:-4])
    penstock("run", artifact, "-i", given).failed(8, "is not a safetensors file")


def test_places_for_outputs(penstock: Run, artifact: Path, tmp_path: Path) -> None:
    penstock("run", artifact, "-o", tmp_path).failed(2, "is a directory")
    penstock("run", artifact, "-o", tmp_path / "no" / "out").failed(2, "there is no directory")
    penstock("run", artifact, "-o", artifact / MANIFEST / "out").failed(2, "there is no directory")
    penstock("run", artifact, "-o", "/proc/out").failed(5)
    penstock("run", artifact, "-o", os.devnull, "-q").worked()
    assert not Path(os.devnull).is_file()


# --- artifacts -----------------------------------------------------------------------------------------


def _flip(path: Path, name: str) -> None:
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)


def _cut(path: Path, name: str) -> None:
    (path / name).write_bytes((path / name).read_bytes()[:-1])


def _link(path: Path, name: str) -> None:
    (path / name).rename(path.parent / "elsewhere")
    (path / name).symlink_to(path.parent / "elsewhere")


def _hard_link(path: Path, name: str) -> None:
    os.link(path / name, path.parent / "elsewhere")


def _swap(path: Path, name: str) -> None:
    other = "before.ir" if name != "before.ir" else AFTER
    here, there = (path / name).read_bytes(), (path / other).read_bytes()
    (path / name).write_bytes(there + b"\n")
    (path / other).write_bytes(here)


def _remove(path: Path, name: str) -> None:
    (path / name).unlink()


def _add(path: Path, name: str) -> None:
    (path / f"{name}.bak").touch()


FAULTS: list[Callable[[Path, str], None]] = [_flip, _cut, _link, _hard_link, _swap, _remove, _add]


@pytest.mark.parametrize("name", [MANIFEST, SEAL, "engine.onnx", "weights.safetensors", AFTER, "report.html"])
@pytest.mark.parametrize("fault", FAULTS)
def test_artifacts_that_were_tampered_with(
    penstock: Run, artifact: Path, fault: Callable[[Path, str], None], name: str
) -> None:
    fault(artifact, name)
    for command in ("run", "verify", "bench", "inspect", "estimate"):
        penstock(command, artifact).failed(8, "mlp.penstock")


def test_an_artifact_under_a_link(penstock: Run, artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "link.penstock").symlink_to(artifact)
    penstock("run", tmp_path / "link.penstock").failed(8, "is a symbolic link")


def test_what_is_no_artifact(penstock: Run, tmp_path: Path) -> None:
    (tmp_path / "file.penstock").touch()
    (tmp_path / "empty.penstock").mkdir()
    for command in ("run", "verify", "bench", "inspect", "estimate"):
        penstock(command, tmp_path / "none.penstock").failed(2, "there is no artifact")
        penstock(command, tmp_path / "file.penstock").failed(2, "is not a directory")
        penstock(command, tmp_path / "empty.penstock").failed(8, MANIFEST)


def test_a_tampered_artifact_can_be_replaced(penstock: Run, artifact: Path) -> None:
    _flip(artifact, "engine.onnx")
    penstock("compile", MLP, "-o", artifact, *ORT).failed(2, "--force")
    penstock("compile", MLP, "-o", artifact, *ORT, "--force").worked()
    open_artifact(artifact)


# --- IR text -------------------------------------------------------------------------------------------

GOOD = """penstock-ir 1
graph "small"
dim batch [1, 64]
input %x: f32[batch, 4] "x"
%y: f32[batch, 4] = aten.relu.default(%x)
return "y" %y
"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD.replace("relu.default(%x)", "relu.default(%x"), "line 5"),
        (GOOD.replace("%y: f32", "%y: f33"), "line 5: not a type: 'f33'"),
        (GOOD.replace("(%x)", "(%z)"), "line 5"),
        (GOOD.replace("relu.default", "rellu.default"), "line 5"),
        (GOOD.replace("[batch, 4] =", "[batch, 5] ="), "not well formed"),
        (GOOD.replace("penstock-ir 1", "penstock-ir 9"), "line 1"),
        (GOOD.replace('return "y" %y\n', ""), "the text ends before"),
        ("", "the text ends"),
        ("hello", "line 1"),
        ("\0" * 100, "line 1"),
    ],
)
def test_ir_text(penstock: Run, tmp_path: Path, text: str, told: str) -> None:
    path, out = tmp_path / "g.ir", tmp_path / "out.ir"
    path.write_text(text)
    penstock("opt", path, "-o", out).failed(8, told)
    penstock("inspect", path).failed(8, told)
    penstock("estimate", path).failed(8, told)
    assert not out.exists()


def test_torch_does_not_tell_its_own_story(penstock: Run, tmp_path: Path) -> None:
    heard: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.addFilter(lambda record: heard.append(record) or False)  # type: ignore[func-returns-value]
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addHandler(handler)
    try:
        (tmp_path / "g.ir").write_text(GOOD.replace("relu.default(%x)", "mm.default(%x, %x)"))
        penstock("opt", tmp_path / "g.ir").failed(8, "not well formed", "aten.mm.default")
    finally:
        logger.removeHandler(handler)
    assert heard == []


def test_files_of_ir(penstock: Run, tmp_path: Path) -> None:
    path = tmp_path / "g.ir"
    for command in ("opt", "inspect", "estimate"):
        penstock(command, path).failed(2, "no such file")
    path.mkdir()
    for command in ("opt", "inspect"):
        penstock(command, path).failed(2)
    path.rmdir()
    path.write_bytes(b"\xff\xfe\x00\x00")
    for command in ("opt", "inspect", "estimate"):
        penstock(command, path).failed(8, "is not text")
    path.write_text(GOOD)
    penstock("opt", path, "-o", tmp_path).failed(2, "is a directory")
    penstock("opt", path, "-o", tmp_path / "no" / "g.ir").failed(2, "there is no directory")
    penstock("opt", path, "-w", tmp_path / "w.safetensors").failed(2, "no such file")
    penstock("opt", path, "-w", path).failed(8, "is not a safetensors file")
    penstock("opt", path, "-p", "drop-dead-nodes", "--dump", path).failed(2, "is not a folder")
    assert path.read_text() == GOOD


@pytest.mark.parametrize("weights", [{"w": torch.ones(2, 2)}, {"w": torch.ones(4, 4, dtype=torch.int64)}, {}])
def test_weights_that_do_not_fit_the_ir(penstock: Run, tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    text = GOOD.replace("%y:", "%t: f32[4, 4] = aten.transpose.int(%w, 0, 1)\n%y:").replace(
        "%t: f", 'param %w: f32[4, 4] "w"\n%t: f', 1
    )
    (tmp_path / "g.ir").write_text(text.replace("relu.default(%x)", "linear.default(%x, %t)"))
    weight_files.save(weights, tmp_path / "w.safetensors")
    told = penstock("opt", tmp_path / "g.ir", "-p", "fold-constants", "-w", tmp_path / "w.safetensors")
    told.failed(8, "line 5", "'w'")


# --- places --------------------------------------------------------------------------------------------


def test_output_places_that_cannot_be_meant(penstock: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full.penstock").mkdir()
    (tmp_path / "full.penstock" / "thesis.txt").touch()
    penstock("compile", MLP, "-o", tmp_path / "file" / "a.penstock", *ORT).failed(2, "is not a directory")
    penstock("compile", MLP, "-o", tmp_path / "file", *ORT, "--force").failed(2, "NAME.penstock")
    told = penstock("compile", MLP, "-o", tmp_path / "full.penstock", *ORT, "--force")
    told.failed(2, "is not an artifact", "never deleted")
    assert (tmp_path / "file").read_text() == "mine"
    assert os.listdir(tmp_path / "full.penstock") == ["thesis.txt"]


def test_output_places_without_permission(penstock: Run, tmp_path: Path) -> None:
    penstock("compile", MLP, "-o", "/proc/a.penstock", *ORT).failed(5, "/proc")
    penstock("compile", MLP, "-o", "/proc/below/a.penstock", *ORT).failed(5, "/proc/below")
    penstock("compile", MLP, "--dry-run", "--dump", "/proc/dumps", "-q").failed(5, "/proc/dumps")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A small disk of its own; the tests that need one are skipped where nothing can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("cannot mount a small disk here")
        return place

    yield mount
    subprocess.run(["umount", place], capture_output=True, check=False)


@pytest.mark.parametrize("size", ["32k", "300k", "676k", "680k", "692k", "716k"])
def test_a_disk_that_fills_up(penstock: Run, disk: Callable[[str], Path], size: str) -> None:
    """Early, in the weights; then in the payload; late, in the IR, the report and the manifest."""
    place = disk(f"size={size}")
    told = penstock("compile", f"{MLP}:large", "-o", place / "a.penstock", *ORT, "--no-cache")
    told.failed(5, "space left")
    assert os.listdir(place) == []


def test_a_full_disk_for_outputs(penstock: Run, artifact: Path, disk: Callable[[str], Path], tmp_path: Path) -> None:
    place = disk("size=8k")
    (place / "fill").write_bytes(bytes(4 << 10))
    (tmp_path / "g.ir").write_text(GOOD)
    penstock("run", artifact, "-o", place / "out").worked()
    penstock("run", artifact, "-o", place / "more").failed(5, "no space left")
    penstock("opt", tmp_path / "g.ir", "-o", place / "g.ir").failed(5, "no space left")
    assert sorted(os.listdir(place)) == ["fill", "out"]
    penstock("compile", MLP, "--dry-run", "-q", "--dump", place / "dumps").failed(5, "no space left")


def test_a_disk_that_is_read_only(penstock: Run, disk: Callable[[str], Path]) -> None:
    place = disk("size=64k,ro")
    penstock("compile", MLP, "-o", place / "a.penstock", *ORT).failed(5, "Read-only file system")
    assert os.listdir(place) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_while_it_is_written(
    penstock: Run, place: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write = Path.write_text

    def fails(path: Path, *args: Any, **kwargs: Any) -> int:
        if path.name == AFTER:
            raise OSError(number, os.strerror(number), str(path))
        return write(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", fails)
    penstock("compile", MLP, "-o", place, *ORT, "--no-cache").failed(5, "hint:")


def test_a_cache_that_cannot_be_used_does_not_matter(
    penstock: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "file"))
    penstock("compile", MLP, "-o", tmp_path / "a.penstock", *ORT).worked()


# --- interruptions -------------------------------------------------------------------------------------


def hears_ctrl_c() -> None:
    """What a shell starts in the background does not, nor do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(model: str, output: Path, ready: Path) -> subprocess.Popen[bytes]:
    """A compile in a process of its own, at the point where the model says that it is ready."""
    command = [sys.executable, "-m", "compiler.cli.main", "compile", f"{MODELS}/slow.py:{model}", "-o", str(output)]
    process = subprocess.Popen(
        [*command, "--no-cache", *ORT], cwd=ROOT, env=os.environ | {"READY": str(ready)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=hears_ctrl_c,
    )  # fmt: skip
    for _ in range(600):
        if ready.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    assert ready.exists(), process.communicate()[1]
    return process


@pytest.mark.parametrize("point", ["factory", "engine"])
def test_ctrl_c(place: Path, tmp_path: Path, own_cache: Path, point: str) -> None:
    process = start(point, place, tmp_path / "ready")
    if point == "engine":
        assert os.listdir(place.parent) != []
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (out, err.strip()) == (b"", b"error: interrupted")


def test_kill_9_leaves_nothing_that_looks_whole_and_the_next_compile_cleans_up(penstock: Run, tmp_path: Path) -> None:
    folder = tmp_path / "place"
    process = start("engine", folder / "a.penstock", tmp_path / "ready")
    process.kill()
    process.communicate(timeout=30)
    (left,) = os.listdir(folder)
    assert left.startswith(".")
    assert list((folder / left).rglob("engine.onnx"))
    penstock("run", folder / "a.penstock").failed(2, "there is no artifact")
    os.utime(folder / left, (0, 0))  # a minute later
    penstock("compile", MLP, "-o", folder / "b.penstock", *ORT).worked()
    assert os.listdir(folder) == ["b.penstock"]


def test_kill_9_while_an_artifact_is_replaced_keeps_the_old_one(
    artifact: Path, tmp_path: Path, own_cache: Path
) -> None:
    before = open_artifact(artifact).id
    whole = sorted(os.listdir(artifact))
    command = [sys.executable, "-m", "compiler.cli.main", "compile", f"{MODELS}/slow.py:engine", "-o", str(artifact)]
    ready = tmp_path / "ready"
    process = subprocess.Popen(
        [*command, "--force", "--no-cache", *ORT], cwd=ROOT, env=os.environ | {"READY": str(ready)}
    )
    while not ready.exists() and process.poll() is None:
        time.sleep(0.1)
    process.kill()
    process.wait(timeout=30)
    assert open_artifact(artifact).id == before
    assert sorted(os.listdir(artifact)) == whole
    shutil.rmtree(artifact)
