"""Artifacts are published whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compiler.artifact import (
    MANIFEST,
    Artifact,
    open_artifact,
    reclaim,
    staging,
    storage,
)
from compiler.artifact.staging import why_not_artifact
from ir import PenstockError
from ir.errors import ResourceError, UntrustedError, UsageError
from tests.compiler.artifacts import (
    no_sync,  # noqa: F401
    publish,
    write,
)

staging_module = sys.modules["compiler.artifact.staging"]  # the name in the package is the function


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
    with pytest.raises(UsageError, match="not an artifact"), staging(path, force=True) as folder:  # noqa: PT012
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
    with pytest.raises(UsageError, match="exists"), staging(path) as folder:  # noqa: PT012
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


def test_every_file_is_on_the_disk_before_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.penstock"
    early, late = set(), set()

    def note(descriptor: int) -> None:
        (late if path.exists() else early).add(os.path.realpath(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", note)
    publish(path)
    assert {Path(name).name for name in early} >= set(os.listdir(path))
    assert {Path(name).parent for name in early} > {tmp_path}  # the files, and their folder
    assert late == {str(tmp_path)}


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
def test_disk_errors_are_resource_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str) -> None:
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
