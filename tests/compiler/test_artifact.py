"""A sealed artifact loads as it was written, and no changed byte is ever loaded."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compiler.artifact import (
    MANIFEST,
    SEAL,
    ChangedError,
    copy_artifact,
    open_artifact,
    ports,
    staging,
)
from ir import parse, show
from ir.errors import UntrustedError, UsageError
from tests.compiler.artifacts import (
    graph,
    manifest,
    no_sync,  # noqa: F401
    publish,
)

FILES = (
    "manifest.json", "manifest.sha256", "before.ir", "after.ir", "weights.safetensors", "states.safetensors",
    "engine.onnx", "report.html",
)  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return publish(tmp_path / "tiny.penstock")


def test_round_trip(path: Path) -> None:
    artifact = open_artifact(path)
    assert replace(artifact.manifest, files={}) == manifest()
    assert set(artifact.manifest.files) == set(FILES) - {MANIFEST, SEAL}
    assert show(artifact.graph("after.ir")) == show(graph())
    assert torch.equal(artifact.initial_states()["sum"], torch.ones(4))
    assert [port.name for port in artifact.manifest.states] == ["sum"]
    assert open_artifact(path, expect=artifact.id).id == artifact.id
    assert os.listdir(path.parent) == [path.name]


def test_same_input_gives_the_same_id(tmp_path: Path) -> None:
    ids = {open_artifact(publish(tmp_path / f"{n}.penstock")).id for n in "ab"}
    assert len(ids) == 1


def test_seal_is_what_sha256sum_reads(path: Path) -> None:
    subprocess.run(["sha256sum", "-c", SEAL], cwd=path, check=True, capture_output=True)


def test_another_id_than_expected(path: Path) -> None:
    with pytest.raises(UntrustedError, match="not the artifact that was expected"):
        open_artifact(path, expect="0" * 64)
    with pytest.raises(UsageError, match="no artifact id"):
        open_artifact(path, expect="abc")


def test_copy_holds_the_checked_bytes(path: Path, tmp_path: Path) -> None:
    with staging(tmp_path / "copy.penstock") as folder:
        copied = copy_artifact(path, folder)
    assert open_artifact(tmp_path / "copy.penstock").id == copied.id
    assert all((tmp_path / "copy.penstock" / name).stat().st_nlink == 1 for name in FILES)


def test_ports_of_outputs_without_a_tensor() -> None:
    made = parse('penstock-ir 1\ngraph "g"\ninput %x: f32[2] "x"\nreturn "a" None, "b" 3, "c" 1.5, "d" True, "e" %x\n')
    assert [str(port) for port in ports(made)[1]] == ["none[]", "i64[]", "f64[]", "bool[]", "f32[2]"]


# --- every changed byte ----------------------------------------------------------------------------


def refused(path: Path, name: str) -> UntrustedError:
    with pytest.raises(UntrustedError) as caught:
        open_artifact(path)
    assert caught.value.exit_code == 8
    assert name in caught.value.what or "manifest" in caught.value.what
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("name", FILES)
def test_flipped_bit(path: Path, name: str) -> None:
    whole = (path / name).read_bytes()
    dice = random.Random(name)
    places = {0, len(whole) - 1, *(dice.randrange(len(whole)) for _ in range(60))}
    for place in places:
        faulty = bytearray(whole)
        faulty[place] ^= 1 << dice.randrange(8)
        (path / name).write_bytes(faulty)
        refused(path, name)
    (path / name).write_bytes(whole)
    open_artifact(path)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _append(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\n")


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _link(file: Path) -> None:
    elsewhere = file.parent.parent / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def _hard_link(file: Path) -> None:
    os.link(file, file.parent.parent / "other")


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("fault", [_truncate, _append, _empty, _link, _hard_link, _folder, _pipe, Path.unlink])
def test_fault_of_a_file(path: Path, name: str, fault: Callable[[Path], None]) -> None:
    fault(path / name)
    refused(path, name)


@pytest.mark.parametrize("other", [name for name in FILES if name != "before.ir"])
def test_swapped_files(path: Path, other: str) -> None:
    (path / other).rename(path / "x")
    (path / "before.ir").rename(path / other)
    (path / "x").rename(path / "before.ir")
    refused(path, "")


@pytest.mark.parametrize("name", ["note.txt", ".hidden", "engine.onnx.bak", "sub"])
def test_extra_file(path: Path, name: str) -> None:
    (path / name).mkdir() if name == "sub" else (path / name).touch()
    assert "does not belong" in refused(path, name).what


def test_link_to_an_artifact(path: Path) -> None:
    (path.parent / "link.penstock").symlink_to(path)
    for spelling in ("link.penstock", "link.penstock/"):
        with pytest.raises(UntrustedError, match="symbolic link"):
            open_artifact(f"{path.parent}/{spelling}")


def test_no_artifact_there(tmp_path: Path) -> None:
    (tmp_path / "file.penstock").touch()
    (tmp_path / "dir.penstock").mkdir()
    for name in ("none.penstock", "file.penstock", "file.penstock/x.penstock"):
        with pytest.raises(UsageError):
            open_artifact(tmp_path / name)
    refused(tmp_path / "dir.penstock", "manifest.json")


def test_changed_while_it_is_loaded(path: Path) -> None:
    artifact = open_artifact(path)
    artifact.recheck()
    (path / "engine.onnx").write_bytes((path / "engine.onnx").read_bytes())
    with pytest.raises(ChangedError, match=r"engine\.onnx was changed"):
        artifact.recheck()
    (path / "engine.onnx").unlink()
    with pytest.raises(ChangedError, match="vanished"):
        artifact.recheck()
    (path / "after.ir").write_text("x")
    with pytest.raises(UntrustedError, match=r"after\.ir"):
        artifact.graph("after.ir")
