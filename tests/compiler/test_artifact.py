"""Artifacts are published whole or not at all, and no changed byte is ever loaded."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compiler.artifact import (
    MANIFEST,
    SEAL,
    Artifact,
    ChangedError,
    EngineChoice,
    FileFact,
    Manifest,
    Port,
    Processor,
    check_weights,
    copy_artifact,
    find_nonfinite,
    open_artifact,
    ports,
    read_manifest,
    reclaim,
    staging,
    storage,
)
from compiler.artifact import staging as staging_of_package
from compiler.artifact.staging import why_not_artifact
from ir import DimRange, PenstockError, parse, show
from ir.errors import ResourceError, UntrustedError, UsageError
from tests.compiler.artifacts import NATIVE, graph, manifest, publish, write

FILES = (
    "manifest.json", "manifest.sha256", "before.ir", "after.ir", "weights.safetensors", "states.safetensors",
    "engine.onnx", "report.html",
)  # fmt: skip
staging_module = sys.modules["compiler.artifact.staging"]
assert staging_of_package is staging


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return publish(tmp_path / "tiny.penstock")


def reseal(folder: Path, change: Callable[[dict[str, Any]], None] | None = None, text: str | None = None) -> None:
    """What somebody does who rewrites the manifest and its digest."""
    if text is None:
        raw = json.loads((folder / MANIFEST).read_text())
        assert change is not None
        change(raw)
        text = json.dumps(raw)
    (folder / MANIFEST).write_text(text)
    (folder / SEAL).write_text(f"{hashlib.sha256(text.encode()).hexdigest()}  {MANIFEST}\n")


# --- whole artifacts -----------------------------------------------------------------------------


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
    for spelling in ("link.penstock", "link.penstock/", "link.penstock/."):
        if spelling != "link.penstock/.":
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


# --- what the manifest may say ---------------------------------------------------------------------


def _set(*keys: str | int, to: object) -> Callable[[dict[str, Any]], None]:
    def change(raw: Any) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        raw[keys[-1]] = to

    return change


ZERO = {"sha256": "0" * 64, "bytes": 0}
PORT = {"kind": "input", "name": "x", "dtype": "f32", "shape": []}
MANIFEST_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "newer schema": (_set("schema", to=2), "artifact schema 2"),
    "schema is True": (_set("schema", to=True), "artifact schema True"),
    "no schema": (lambda raw: raw.pop("schema"), "artifact schema None"),
    "other format": (_set("format", to="zip"), "not the manifest"),
    "unknown key": (_set("surprise", to=1), "surprise"),
    "unknown inner key": (_set("engine", "surprise", to=1), r"engine\.surprise"),
    "missing key": (lambda raw: raw.pop("recipe"), "recipe: is missing"),
    "wrong type": (_set("name", to=3), "name: expected a text, found int"),
    "bool is no number": (_set("engine", "threads", to=True), r"engine\.threads"),
    "no threads": (lambda raw: raw["engine"].pop("threads"), r"engine\.threads"),
    "negative size": (_set("files", "after.ir", "bytes", to=-1), "files"),
    "huge size": (_set("files", "after.ir", "bytes", to=1 << 60), "files"),
    "large size": (_set("files", "after.ir", "bytes", to=1 << 45), "after.ir has 304 bytes"),
    "float size": (_set("files", "after.ir", "bytes", to=304.0), "files"),
    "no digest": (_set("files", "after.ir", "sha256", to="x"), "files"),
    "upper digest": (_set("files", "after.ir", "sha256", to="A" * 64), "files"),
    "required file not listed": (lambda raw: raw["files"].pop("before.ir"), "lists no before.ir"),
    "listed file missing": (_set("files", "more.bin", to=ZERO), "more.bin is missing"),
    "many files": (lambda raw: raw["files"].update({f"f{n}": ZERO for n in range(99)}), "more than 64"),
    "control character": (_set("name", to="a\x1b[2J"), "control"),
    "lone surrogate": (_set("recipe", to="\ud800"), "not valid JSON"),
    "long text": (_set("name", to="x" * 501), "501 characters"),
    "dtype": (_set("inputs", 0, "dtype", to="f31"), "dtype"),
    "none is no input": (_set("inputs", 0, "dtype", to="none"), "dtype"),
    "kind": (_set("inputs", 0, "kind", to="output"), "kind"),
    "twice the same input": (_set("inputs", 1, "name", to="x"), "two are named 'x'"),
    "code as a dim": (_set("inputs", 0, "shape", to=["__import__('os')"]), "shape"),
    "negative dim": (_set("inputs", 0, "shape", to=["-3"]), "is no size"),
    "tower of powers": (_set("inputs", 0, "shape", to=["Pow(" * 9 + "9" + ", 16)" * 9]), "powers"),
    "undeclared dim": (_set("inputs", 0, "shape", to=["n"]), "'n'"),
    "dim name": (_set("dims", "a b", to=[1, 2]), "no name of a dim"),
    "empty range": (_set("dims", "batch", to=[5, 4]), "no size"),
    "negative range": (_set("dims", "batch", to=[-1, 4]), "no size"),
    "range of one": (_set("dims", "batch", to=[1]), r"\[min, max\]"),
    "date": (_set("created", to="yesterday"), "created"),
    "pass record": (_set("passes", to=[1]), r"passes\[0\]"),
    "other architecture": (_set("processor", "arch", to="riscv128"), "compiled for riscv128"),
}  # fmt: skip


@pytest.mark.parametrize("case", MANIFEST_FAULTS)
def test_manifest_that_says_what_cannot_be(path: Path, case: str) -> None:
    change, words = MANIFEST_FAULTS[case]
    reseal(path, change)
    with pytest.raises(UntrustedError, match=words):
        open_artifact(path)


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "/etc/passwd", "..", ".", "", ".hidden", "a..b", "A.bin", "ä.bin", "a\x00b", "a b", "x" * 101,
     MANIFEST, SEAL],
)  # fmt: skip
def test_file_names_that_lead_elsewhere(path: Path, name: str) -> None:
    reseal(path, _set("files", name, to=ZERO))
    with pytest.raises(UntrustedError, match="no name of a file"):
        open_artifact(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        ("[]", "expected an object"),
        ('{"format": "penstock-artifact", "schema": 1, "schema": 1}', "stands twice"),
        ('{"a": {"b": 1, "b": 2}}', "'b' stands twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1e999}', "too large"),
        ('{"a": 1' + "0" * 5000 + "}", "too long"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a": "' + "x" * (17 << 20) + '"}', "more than"),
    ],
    ids=str.split,
)
def test_manifest_that_is_no_json(path: Path, text: str, words: str) -> None:
    reseal(path, text=text)
    with pytest.raises(UntrustedError, match=words):
        open_artifact(path)


def test_wrong_version_names_both(path: Path) -> None:
    reseal(path, lambda raw: raw.update(schema=7, penstock="9.9"))
    with pytest.raises(UntrustedError, match=r"schema 7 \(written by Penstock 9\.9\).* reads schema 1"):
        open_artifact(path)


def test_native_payload_runs_on_its_architecture_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = publish(tmp_path / "a.penstock", processor=NATIVE)
    open_artifact(path)
    monkeypatch.setattr(platform, "machine", lambda: "other")
    with pytest.raises(UntrustedError, match="this machine is other"):
        open_artifact(path)


def test_cpu_feature_that_is_missing(tmp_path: Path) -> None:
    path = publish(tmp_path / "a.penstock", processor=Processor("any", ("quantum",)))
    with pytest.raises(UntrustedError, match="quantum"):
        open_artifact(path)


def test_seal_refuses_what_could_not_be_read_back(tmp_path: Path) -> None:
    for change in ({"measurements": {"loss": float("nan")}}, {"passes": ({"t": torch.ones(1)},)}, {"name": "\x1b"}):
        with pytest.raises(PenstockError) as caught, staging(tmp_path / "a.penstock") as folder:
            write(folder, **change)
        assert caught.value.exit_code == 1
    for name in ("Engine.BIN", "a b"):
        with pytest.raises(PenstockError, match="no name"), staging(tmp_path / "a.penstock") as folder:
            (folder / name).touch()
            write(folder)
    assert os.listdir(tmp_path) == []


names = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20)
sizes = st.integers(0, 2**40)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
records = st.dictionaries(names, json_values, max_size=3)
shapes = st.lists(st.sampled_from(["n", "2*n + 1", "FloorDiv(n, 2)", "7", "0"]), max_size=4).map(tuple)
dtypes = st.sampled_from(["f32", "bf16", "i64", "bool", "f8e4m3"])


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    def some(first: str, unique: str) -> tuple[Port, ...]:
        kinds = st.sampled_from([first, "state"])
        found = draw(st.lists(names, max_size=4, unique=True))
        return tuple(Port(draw(kinds), f"{unique}{n}", draw(dtypes), draw(shapes)) for n in found)

    facts = st.builds(FileFact, st.binary(min_size=32, max_size=32).map(bytes.hex), sizes)
    low = draw(st.integers(0, 9))
    return Manifest(
        draw(names),
        EngineChoice(draw(names), draw(names), draw(st.none() | st.integers(1, 64))),
        some("input", "i"),
        some("output", "o"),
        {"n": DimRange(low, draw(st.none() | st.integers(low, 99)))},
        Processor(draw(st.sampled_from(["any", "x86_64"])), tuple(draw(st.lists(names, max_size=2)))),
        draw(names),
        draw(names) + "\n\tmore\n",
        tuple(draw(st.lists(records, max_size=3))),
        draw(records),
        draw(st.dictionaries(names, names, max_size=3)),
        {n: draw(facts) for n in ("before.ir", "after.ir", "weights.safetensors", "x")},
    )


@given(manifests())
def test_manifest_reads_back_as_written(written: Manifest) -> None:
    assert read_manifest(written.text()) == written
    assert read_manifest(written.text().encode()).text() == written.text()


@given(st.data())
def test_no_text_makes_the_reader_fail_otherwise(data: st.DataObject) -> None:
    """Cut and paste pieces of a true manifest: it is read, or it is one clear error."""
    text = manifest(files={n: FileFact("0" * 64, 1) for n in ("before.ir", "after.ir", "weights.safetensors")}).text()
    at = data.draw(st.integers(0, len(text)))
    drop = data.draw(st.integers(0, 30))
    piece = data.draw(st.sampled_from(["", "0", "null", "{}", "[]", '"x"', ",", "-1", "1e400", "true", "\\", "\x00"]))
    try:
        read_manifest(text[:at] + piece + text[at + drop :])
    except UntrustedError:
        pass


# --- publishing ------------------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["renameat2", "plain rename"])
def renaming(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way of publishing is tried with the system call and without."""
    if not request.param:
        monkeypatch.setattr(storage, "_renameat2", lambda *_: False)


@pytest.mark.usefixtures("renaming")
def test_replace_with_force_only(tmp_path: Path) -> None:
    path = publish(tmp_path / "a.penstock", name="old")
    with pytest.raises(UsageError, match="exists"):
        publish(path, name="new")
    assert open_artifact(path).manifest.name == "old"
    publish(path, force=True, name="new")
    assert open_artifact(path).manifest.name == "new"
    (path / "after.ir").write_text("damaged")  # a damaged artifact is an artifact, too
    (path / "report.html").unlink()
    publish(path, force=True, name="newer")
    assert open_artifact(path).manifest.name == "newer"
    assert os.listdir(tmp_path) == [path.name]


def _user_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")


def _user_file(path: Path) -> None:
    path.write_text("years of work")


def _user_link(path: Path) -> None:
    path.symlink_to(publish(path.parent / "real.penstock"))


def _artifact_with_notes(path: Path) -> None:
    publish(path)
    (path / "notes.txt").write_text("years of work")


def _other_manifest(path: Path) -> None:
    path.mkdir()
    (path / MANIFEST).write_text('{"manifest_version": 3, "files": {}}')


FOREIGN = [_user_folder, _user_file, _user_link, _artifact_with_notes, _other_manifest, Path.mkdir]


@pytest.mark.parametrize("make", FOREIGN)
def test_foreign_things_are_never_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "a.penstock"
    make(path)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    for force in (False, True):
        with pytest.raises(UsageError, match="not an artifact"):
            publish(path, force=force)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("renaming")
@pytest.mark.parametrize("make", FOREIGN)
def test_foreign_things_that_appear_during_the_compile(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "a.penstock"
    with pytest.raises(UsageError, match="not an artifact"), staging(path, force=True) as folder:
        write(folder)
        make(path)
    assert why_not_artifact(path)
    assert not [name for name in os.listdir(tmp_path) if ".tmp-" in name]


@pytest.mark.usefixtures("renaming")
def test_foreign_thing_that_appears_in_the_last_instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = publish(tmp_path / "a.penstock")
    real = storage.swap
    calls = []

    def late(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 1:
            _artifact_with_notes_added(target)
        real(source, target)

    def _artifact_with_notes_added(target: Path) -> None:
        (target / "notes.txt").write_text("years of work")

    monkeypatch.setattr(staging_module, "swap", late)
    with pytest.raises(UsageError, match="not an artifact"):
        publish(path, force=True)
    assert (path / "notes.txt").read_text() == "years of work"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.usefixtures("renaming")
def test_somebody_publishes_first(tmp_path: Path) -> None:
    path = tmp_path / "a.penstock"
    with pytest.raises(UsageError, match="exists"), staging(path) as folder:
        write(folder, name="late")
        publish(path, name="first")
    assert open_artifact(path).manifest.name == "first"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, UntrustedError("x"), GeneratorExit])
def test_nothing_is_left_after_an_error(tmp_path: Path, error: Any) -> None:
    with pytest.raises(BaseException) as caught, staging(tmp_path / "a.penstock") as folder:  # noqa: PT011, PT012
        assert folder.stat().st_mode & 0o777 == 0o700
        write(folder)
        raise error
    assert caught.type is error or caught.value is error
    assert os.listdir(tmp_path) == []


def test_ctrl_c_in_the_middle_of_replacing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = publish(tmp_path / "a.penstock", name="old")
    real = storage.swap

    def interrupted(source: Path, target: Path) -> None:
        real(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(staging_module, "swap", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(path, force=True, name="new")
    assert open_artifact(path).manifest.name == "new"
    assert os.listdir(tmp_path) == [path.name]


def test_ctrl_c_between_two_renames_brings_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = publish(tmp_path / "a.penstock", name="old")
    monkeypatch.setattr(storage, "_renameat2", lambda *_: False)
    real = storage.rename_new

    def interrupted(source: Path, target: Path) -> None:
        if source.name.count(".tmp-") and not os.path.lexists(target) and (source / MANIFEST).exists():
            monkeypatch.setattr(storage, "rename_new", real)
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(storage, "rename_new", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(path, force=True, name="new")
    assert open_artifact(path).manifest.name == "old"
    assert os.listdir(tmp_path) == [path.name]


def test_unsealed_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(PenstockError, match="without a seal"), staging(tmp_path / "a.penstock") as folder:
        (folder / "after.ir").touch()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a", "a.penstock.zip", ".penstock", ".a.penstock", "x" * 300 + ".penstock"])
def test_unfit_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError), staging(tmp_path / name):
        pass


def test_parents_are_made(tmp_path: Path) -> None:
    open_artifact(publish(tmp_path / "x" / "y" / "a.penstock"))


def test_published_folder_is_as_readable_as_its_files(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        path = publish(tmp_path / "a.penstock")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o750


# --- a bad disk --------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["mkdir", "write", "sync", "rename", "chmod"])
def test_disk_errors_are_resource_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(code, os.strerror(code))

    path = publish(tmp_path / "old.penstock", name="old")
    with pytest.raises(ResourceError) as caught, monkeypatch.context() as patch:  # noqa: PT012
        match call:
            case "mkdir":
                patch.setattr(Path, "mkdir", lambda self, *a, **k: None if k.get("exist_ok") else fail())
            case "write":
                patch.setattr(Path, "write_bytes", fail)
            case "sync":
                patch.setattr(os, "fsync", fail)
            case "rename":
                patch.setattr(storage, "_renameat2", fail)
            case "chmod":
                patch.setattr(Path, "chmod", fail)
        publish(path, force=True)
    assert caught.value.exit_code == 5
    assert "old.penstock" in caught.value.what
    assert caught.value.hint
    assert open_artifact(path).manifest.name == "old"
    assert os.listdir(tmp_path) == [path.name]


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        with pytest.raises(ResourceError, match="no space left"), staging(disk / "a.penstock") as folder:
            (folder / "engine.onnx").write_bytes(bytes(1 << 20))
        assert os.listdir(disk) == []
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(ResourceError, match="Read-only"):
            publish(disk / "a.penstock")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_output_path_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not a directory"):
        publish(tmp_path / "file" / "a.penstock")
    with pytest.raises(UsageError, match="not a directory"):
        publish(tmp_path / "file" / "b" / "a.penstock")


def test_output_path_in_proc() -> None:
    with pytest.raises(ResourceError):
        publish(Path("/proc/a.penstock"))


def test_errors_of_the_user_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staging(tmp_path / "a.penstock"):
        (tmp_path / "calibration.json").read_text()
    with pytest.raises(PermissionError), staging(tmp_path / "a.penstock"):
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/metric.txt")


# --- kill -9 -------------------------------------------------------------------------------------------


def _die(*_: object, **__: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _then_die(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        function(*args, **kwargs)
        _die()

    return call


def in_child(work: Callable[[], object]) -> int:
    """Wait status of a forked process; forking spares importing torch again."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001  (a child must never return into the test runner)
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


POINTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "staging made": lambda patch: patch.setattr(staging_module.fcntl, "flock", _die),
    "nothing written": lambda patch: patch.setattr(Path, "write_text", _die),
    "some files written": lambda patch: patch.setattr(Path, "write_bytes", _die),
    "sealing": lambda patch: patch.setattr(hashlib, "sha256", _die),
    "sealed": lambda patch: patch.setattr(staging_module, "sync", _die),
    "synced": lambda patch: patch.setattr(staging_module, "rename_new", _die),
    "about to swap": lambda patch: patch.setattr(staging_module, "swap", _die),
    "swapped": lambda patch: patch.setattr(staging_module, "swap", _then_die(storage.swap)),
    "removing the old one": lambda patch: patch.setattr(staging_module, "_discard", _die),
}


@pytest.mark.parametrize("replacing", [True, False])
@pytest.mark.parametrize("point", POINTS)
def test_kill_9(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, replacing: bool) -> None:
    path = tmp_path / "a.penstock"
    if replacing:
        publish(path, name="old")

    def work() -> None:
        POINTS[point](monkeypatch)
        publish(path, force=True, name="new")

    status = in_child(work)
    if "swap" not in point or replacing:
        assert os.WIFSIGNALED(status)
    if path.exists():
        assert open_artifact(path).manifest.name in ("old", "new")
    else:
        assert not replacing
    with staging(path, force=True, grace=0) as folder:
        write(folder, name="newest")
    assert open_artifact(path).manifest.name == "newest"
    assert os.listdir(tmp_path) == [path.name]


def test_living_neighbours_are_not_reclaimed(tmp_path: Path) -> None:
    with staging(tmp_path / "a.penstock") as folder:
        assert in_child(lambda: reclaim(tmp_path, grace=0) and os._exit(7)) == 0
        assert folder.exists()
        write(folder)
    open_artifact(tmp_path / "a.penstock")


def test_only_leftovers_are_reclaimed(tmp_path: Path) -> None:
    left = tmp_path / ".a.penstock.tmp-99999999-0123abcd"
    kept = [".a.penstock.tmp-1-xyz", "a.penstock.tmp-99999999-0123abcd", ".a.zip.tmp-99999999-0123abcd", ".git"]
    for name in (left.name, *kept):
        (tmp_path / name).mkdir()
    (tmp_path / ".b.penstock.tmp-99999999-0123abcd").symlink_to(tmp_path / ".git")
    (tmp_path / ".c.penstock.tmp-99999999-0123abcd").touch()
    assert reclaim(tmp_path) == []  # younger than the grace
    assert reclaim(tmp_path, grace=0) == [left]
    assert sorted(os.listdir(tmp_path)) == sorted(
        [*kept, ".b.penstock.tmp-99999999-0123abcd", ".c.penstock.tmp-99999999-0123abcd"]
    )
    assert reclaim(tmp_path / "none") == []


def test_readers_see_whole_artifacts_while_writers_replace_them(tmp_path: Path) -> None:
    path = publish(tmp_path / "a.penstock", name="0")

    def write_often() -> None:
        for n in range(20):
            publish(path, force=True, name=str(n))

    writers = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                write_often()
                code = 0
            finally:
                os._exit(code)
        writers.append(child)
    seen: list[Artifact] = [open_artifact(path) for _ in range(100)]
    assert [os.waitpid(child, 0)[1] for child in writers] == [0, 0]
    assert len({artifact.id for artifact in seen}) >= 1
    assert os.listdir(tmp_path) == [path.name]


# --- weights -------------------------------------------------------------------------------------------


def test_nonfinite_weights() -> None:
    large = torch.zeros(3, 1 << 20)
    large[2, 7] = torch.nan
    weights = {
        "good": torch.ones(3),
        "large": large,
        "strided": large.t(),
        "line": large[:, 7],
        "inf": torch.tensor([1.0, torch.inf, -torch.inf]),
        "mask": torch.full((4, 4), -torch.inf).triu(1),
        "half": torch.tensor([torch.nan], dtype=torch.bfloat16),
        "fp8": torch.tensor([1.0, torch.nan]).to(torch.float8_e4m3fn),
        "complex": torch.tensor([complex(0, float("nan"))]),
        "complex half": torch.view_as_complex(torch.tensor([[0, torch.inf]], dtype=torch.float16)),
        "int": torch.tensor([1]),
        "none": torch.empty(0),
        "scalar": torch.tensor(torch.nan),
    }
    found = {f.name: (f.nan, f.inf) for f in find_nonfinite(weights)}
    assert found == {
        "large": (1, 0), "strided": (1, 0), "line": (1, 0), "inf": (0, 2), "half": (1, 0), "fp8": (1, 0),
        "complex": (1, 0), "complex half": (0, 1), "scalar": (1, 0),
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"9 of 13 weights.*large \(1 NaN\)") as caught:
        check_weights(weights)
    assert "--allow-nonfinite" in caught.value.hint
    assert check_weights(weights, allow_nonfinite=True) == list(found)
    assert check_weights({"good": torch.ones(3)}) == []
