"""Several targets in one artifact: sealed as a whole, loaded by the device found, refused in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import penstock
from compiler.artifact import (
    MANIFEST,
    SEAL,
    Bundle,
    DeviceNeed,
    Member,
    is_bundle,
    member,
    open_bundle,
    seal_bundle,
    staging,
)
from compiler.runtime import loaded
from compiler.runtime.device import Gpu, check_device, fitting_member, gpus
from compiler.runtime.finish import finish_kit
from ir.errors import MissingError, UnsupportedError, UntrustedError, UsageError
from tests.compiler import artifacts
from tests.compiler.command import MLP, Run
from tests.compiler.models import mlp

L4, T4 = Gpu("NVIDIA L4", 89), Gpu("Tesla T4", 75)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """One target that runs here, one GPU, one kit."""
    path = tmp_path / "tiny.penstock"
    with staging(path) as folder:
        needs = {
            "cpu": (DeviceNeed(), "built"),
            "l4-fake": (DeviceNeed("cuda", 89), "built"),
            "h100-fake": (DeviceNeed("cuda", 90), "kit"),
        }
        for name, (device, state) in needs.items():
            (folder / name).mkdir()
            artifacts.write(folder / name, device=device, state=state, target=name.split("-")[0])
        seal_bundle(folder, "tiny", {name: member(folder / name) for name in needs})
    return path


def test_a_bundle_reads_back(bundle: Path) -> None:
    found = open_bundle(bundle)
    assert is_bundle(bundle) and list(found.members) == ["cpu", "l4-fake", "h100-fake"]
    assert found.members["l4-fake"].device == DeviceNeed("cuda", 89)
    assert found.members["h100-fake"].state == "kit"
    assert open_bundle(bundle, expect=found.id).id == found.id
    assert all(m.bytes == sum(f.stat().st_size for f in (bundle / n).iterdir()) for n, m in found.members.items())


def test_a_bundle_may_be_replaced_on_request_only(bundle: Path) -> None:
    with pytest.raises(UsageError, match="exists"), staging(bundle):
        pass
    with staging(bundle, force=True) as folder:
        artifacts.write(folder)
    assert not is_bundle(bundle)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", [MANIFEST, SEAL])
def test_a_changed_byte_is_noticed(bundle: Path, name: str) -> None:
    _flip(bundle / name)
    with pytest.raises(UntrustedError):
        open_bundle(bundle)


def test_a_swapped_member_is_noticed(bundle: Path, tmp_path: Path) -> None:
    """Each member is a sound artifact by itself; the bundle knows which one it was."""
    shutil.rmtree(bundle / "cpu")
    (bundle / "cpu").mkdir()
    artifacts.write(bundle / "cpu", created="2026-11-22T00:00:00Z")
    with pytest.raises(UntrustedError, match="not the artifact that was expected"):
        penstock.load(bundle)


@pytest.mark.parametrize("change", ["extra", "missing"])
def test_what_does_not_belong_is_noticed(bundle: Path, change: str) -> None:
    if change == "extra":
        (bundle / "surprise").mkdir()
    else:
        shutil.rmtree(bundle / "l4-fake")
    with pytest.raises(UntrustedError, match=r"does not belong|is missing"):
        open_bundle(bundle)


def test_a_manifest_that_says_what_cannot_be(bundle: Path) -> None:
    import hashlib

    raw = json.loads((bundle / MANIFEST).read_text())
    raw["members"]["cpu"]["surprise"] = 1
    text = json.dumps(raw).encode()
    (bundle / MANIFEST).write_bytes(text)
    (bundle / SEAL).write_text(f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n")
    with pytest.raises(UntrustedError, match="surprise"):
        open_bundle(bundle)


def _made_of(**members: tuple[str, int, str]) -> Bundle:
    return Bundle("m", {n: Member("0" * 64, n, "e", "v", DeviceNeed(k, c), s, 1) for n, (k, c, s) in members.items()})


def test_the_member_follows_the_device() -> None:
    found = _made_of(l4=("cuda", 89, "built"), cpu=("cpu", 0, "built"), h100=("cuda", 90, "kit"))
    assert fitting_member(found, ()) == "cpu"
    assert fitting_member(found, (L4,)) == "l4"
    assert fitting_member(found, (T4, L4)) == "l4"
    assert fitting_member(found, (T4,)) == "cpu"
    assert fitting_member(found, (Gpu("H100", 90),)) == "cpu"  # a kit is no engine
    assert fitting_member(found, (), "l4") == "l4"
    with pytest.raises(UsageError, match="did you mean"):
        fitting_member(found, (), "l44")


def test_nothing_fits_is_one_sentence() -> None:
    with pytest.raises(MissingError, match=r"holds l4 \(a GPU of compute capability 8\.9\); .* no NVIDIA GPU"):
        fitting_member(_made_of(l4=("cuda", 89, "built")), ())
    with pytest.raises(MissingError, match=r"built for a GPU of compute capability 8\.9; this machine has Tesla T4"):
        check_device(DeviceNeed("cuda", 89), "m.penstock", (T4,))


def test_an_engine_for_another_gpu_is_refused_at_load(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded, "gpus", lambda: (T4,))
    with pytest.raises(MissingError, match="this machine has Tesla T4"):
        penstock.load(bundle, target="l4")
    with pytest.raises(MissingError, match="this machine has Tesla T4"):
        penstock.load(bundle / "l4-fake")


def test_a_kit_says_what_to_do(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded, "gpus", lambda: (Gpu("H100", 90),))
    with pytest.raises(UsageError, match="penstock build-on-target"):
        penstock.load(bundle, target="h100")


def test_finishing_needs_a_kit_and_its_gpu(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no kit in .* fits the GPU of this machine"):
        finish_kit(bundle)
    with pytest.raises(UsageError, match="is no kit"):
        finish_kit(bundle / "cpu", tmp_path / "out.penstock")


def test_this_machine_is_asked_without_a_crash() -> None:
    assert isinstance(gpus(), tuple)


def test_a_target_of_a_single_artifact_is_refused(artifact: Path) -> None:
    with pytest.raises(UsageError, match="one target only"):
        penstock.load(artifact, target="cpu")


# --- compiled: TensorRT builds for GPUs that are not here ---------------------------------------------


def _targets(result: penstock.CompileResult) -> dict[str, str]:
    return {row.target: row.state for row in result.rows}


def test_targets_are_compiled_together(own_cache: Path, fast: None, tmp_path: Path) -> None:
    """A processor and two GPUs in one artifact, which runs here; an equal compile takes all of it from the cache."""
    path = tmp_path / "mlp.penstock"
    told = {"target": "cpu,t4,l4,rtx4090,mi300x", "recipe": "fp16", "engine": "auto", "output": path}
    result = penstock.compile(mlp.model(), **told)
    assert _targets(result) == {"cpu": "built", "t4": "built", "l4": "built", "rtx4090": "built", "mi300x": "refused"}
    assert result.failure is None
    plans = {n: (path / f"{n}-tensorrt" / "engine.plan").read_bytes() for n in ("t4", "l4", "rtx4090")}
    assert plans["l4"] == plans["rtx4090"] != plans["t4"]  # one build per compute capability
    for row in result.rows:
        assert row.tier == ("measured" if row.target == "cpu" else "predicted" if row.state == "built" else "")
    x = torch.randn(3, 16)
    torch.testing.assert_close(penstock.load(path)(input=x)["output"], mlp.model().model(x), rtol=2e-2, atol=2e-2)
    with pytest.raises(MissingError, match="no NVIDIA GPU"):
        penstock.load(path, target="t4")
    heard: list[object] = []
    again = penstock.compile(mlp.model(), **{**told, "force": True}, on_event=heard.append)
    assert all(row.cached for row in again.rows if row.state == "built"), heard


def test_what_fails_for_one_target_stops_no_other(own_cache: Path, fast: None, tmp_path: Path) -> None:
    """Turing has no bf16: its error comes last, the artifact for Ada is there."""
    path = tmp_path / "mlp.penstock"
    result = penstock.compile(mlp.model(), target="t4,l4", recipe="bf16", output=path, cache=False)
    assert _targets(result) == {"t4": "failed", "l4": "built"}
    assert list(open_bundle(path).members) == ["l4-tensorrt"]
    with pytest.raises(UnsupportedError, match="nothing could be built for t4"):
        result.raise_for_goal()


def test_a_builder_out_of_time_is_one_message(penstock: Run, tmp_path: Path) -> None:
    place = tmp_path / "late.penstock"
    asked = ("-t", "l4", "-r", "fp16", "--build-timeout", "0.01", "-o", place, "-q", "--no-cache")
    penstock("compile", MLP, *asked).failed(5, "did not finish within 0.01 s", "--build-timeout")
    assert not place.exists()


def test_a_builder_out_of_memory_is_one_message(penstock: Run, tmp_path: Path) -> None:
    place = tmp_path / "large.penstock"
    asked = ("-t", "l4", "-r", "fp16", "--build-memory", "30m", "-o", place, "-q", "--no-cache")
    penstock("compile", MLP, *asked).failed(5, "more than the 0.0 GB allowed")
    assert not place.exists()
