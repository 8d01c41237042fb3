"""The cache gives what was put in, or nothing; it never gives something else, and never half of it."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compiler.artifact import open_artifact, staging
from compiler.cache.cache import Cache, default_root
from compiler.cache.key import Components, digest_samples, digest_tensors, key_of, machine_text
from ir import PenstockError
from ir.errors import ResourceError, UntrustedError, UsageError
from tests.compiler.artifacts import (
    components,
    no_sync,  # noqa: F401
    publish,
    write,
)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def put(cache: Cache, name: str = "tiny", **changed: str) -> str:
    """Publish an artifact with these components; its key."""
    made = components(**changed)
    folder = publish(cache.root.parent.parent / "out.penstock", force=True, name=name, made_from=made.record)
    cache.publish(made.key, folder)
    shutil.rmtree(folder)
    return made.key


def test_found_as_it_was_kept(cache: Cache, tmp_path: Path) -> None:
    key = put(cache)
    found = cache.lookup(key)
    assert found is not None
    assert found.manifest.made_from == components().record
    with staging(tmp_path / "b.penstock") as folder:
        assert cache.fetch(key, folder)
    assert open_artifact(tmp_path / "b.penstock").id == found.id
    assert cache.lookup("0" * 64) is None
    assert stat.S_IMODE(cache.root.stat().st_mode) == 0o700


def test_every_component_is_part_of_the_key() -> None:
    usual = components()
    assert usual.key == components().key == key_of(dict(reversed(usual.record.items())))
    keys = {components(**{name: "changed"}).key for name in usual.record}
    assert len(keys | {usual.key}) == len(usual.record) + 1
    here = Components("a", "b", "c", "d", "e", "f")
    assert here.penstock
    assert here.machine == machine_text()


def test_long_and_odd_components_are_kept_by_digest(cache: Cache) -> None:
    made = components(recipe="passes:\n - a\n" * 1000)
    assert len(made.record["recipe"]) == 64
    assert cache.lookup(put(cache, recipe="passes:\n - a\n" * 1000))


def test_digests_of_tensors() -> None:
    base = digest_tensors({"a": torch.ones(2), "b": torch.zeros(2)})
    assert base == digest_tensors({"b": torch.zeros(2), "a": torch.ones(2)})
    for other in (
        {"a": torch.ones(2)},
        {"a": torch.ones(2), "b": -torch.zeros(2)},
        {"a": torch.ones(2, 1), "b": torch.zeros(2)},
        {"a": torch.ones(2, dtype=torch.int32), "b": torch.zeros(2)},
        {"a": torch.zeros(2), "b": torch.ones(2)},
    ):
        assert digest_tensors(other) != base
    one, two = {"x": torch.ones(1)}, {"x": torch.zeros(1)}
    assert digest_samples([one, two]) != digest_samples([two, one])
    assert digest_samples([]) == ""


def _truncated(entry: Path) -> None:
    (entry / "engine.onnx").write_bytes(b"")


def _without_manifest(entry: Path) -> None:
    (entry / "manifest.json").unlink()


def _linked(entry: Path) -> None:
    real = entry.with_name("real")
    entry.rename(real)
    entry.symlink_to(real)


def _file(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_text("x")


def _under_a_wrong_key(entry: Path) -> None:
    shutil.rmtree(entry)
    publish(entry, made_from=components(recipe="other").record)


@pytest.mark.parametrize("fault", [_truncated, _without_manifest, _linked, _file, _under_a_wrong_key])
@pytest.mark.parametrize("way", ["lookup", "fetch"])
def test_damaged_entry_is_a_miss(cache: Cache, tmp_path: Path, fault: Callable[[Path], None], way: str) -> None:
    key = put(cache)
    fault(cache.root / f"{key}.penstock")
    into = tmp_path / "into"
    into.mkdir()
    assert (cache.lookup(key) if way == "lookup" else cache.fetch(key, into)) is None
    assert os.listdir(into) == []
    assert not os.path.lexists(cache.root / f"{key}.penstock")
    assert [name for name in os.listdir(cache.root) if ".bad-" in name]
    assert put(cache) == key
    assert cache.lookup(key)
    cache.gc(0)
    assert [name for name in os.listdir(cache.root) if name != "real"] == []


def test_unreadable_entry_is_a_miss(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    key = put(cache)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", fail)
        assert cache.lookup(key) is None
        patch.setattr(Path, "rename", fail)
        assert cache.lookup(key) is None


def test_full_disk_while_fetching_is_told(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = put(cache)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ResourceError, match="no space"), staging(tmp_path / "b.penstock") as folder:  # noqa: PT012
        monkeypatch.setattr(Path, "write_bytes", full)
        cache.fetch(key, folder)
    assert cache.lookup(key)


def test_second_publisher_uses_the_first_one(cache: Cache, tmp_path: Path) -> None:
    key = put(cache, "first")
    second = publish(tmp_path / "second.penstock", name="second")
    assert cache.publish(key, second).manifest.name == "first"


def test_publish_replaces_a_damaged_entry(cache: Cache, tmp_path: Path) -> None:
    key = put(cache, "first")
    _truncated(cache.root / f"{key}.penstock")
    second = publish(tmp_path / "second.penstock", name="second")
    assert cache.publish(key, second).manifest.name == "second"


def test_publish_within_staging(cache: Cache, tmp_path: Path) -> None:
    with staging(tmp_path / "a.penstock") as folder:
        write(folder)
        cache.publish(components().key, folder)
    assert cache.lookup(components().key)


def test_what_publish_refuses(cache: Cache, tmp_path: Path) -> None:
    path = publish(tmp_path / "a.penstock")
    with pytest.raises(PenstockError, match="does not belong"):
        cache.publish("0" * 64, path)
    for key in ("", "../x", "A" * 64, "0" * 63):
        with pytest.raises(UsageError, match="no cache key"):
            cache.lookup(key)
    (path / "engine.onnx").unlink()
    with pytest.raises(UntrustedError):
        cache.publish(components().key, path)
    assert os.listdir(cache.root) == []


def test_four_processes_publish_the_same_key(cache: Cache, tmp_path: Path) -> None:
    sources = [publish(tmp_path / f"{n}.penstock", name=str(n)) for n in range(4)]
    key = components().key
    children = []
    for source in sources:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                mine = Cache(cache.root.parent)
                names = {mine.publish(key, source).manifest.name for _ in range(5)}
                code = 0 if len(names) == 1 and mine.lookup(key) else 2
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    found = cache.lookup(key)
    assert found is not None
    assert found.manifest.name in "0123"
    assert os.listdir(cache.root) == [f"{key}.penstock"]


def test_readers_while_another_process_evicts(cache: Cache, tmp_path: Path) -> None:
    path = publish(tmp_path / "a.penstock")
    key = components().key
    child = os.fork()
    if child == 0:
        code = 1
        try:
            mine = Cache(cache.root.parent)
            for _ in range(20):
                mine.publish(key, path)
                mine.gc(0)
            code = 0
        except ResourceError:  # the reader's quarantine may win each of a few races: a clear error all the same
            code = 0
        finally:
            os._exit(code)
    wanted = open_artifact(path).id
    for _ in range(100):
        found = cache.lookup(key)
        assert found is None or found.id == wanted
    assert os.waitpid(child, 0)[1] == 0


def test_least_recently_used_goes_first(cache: Cache) -> None:
    keys = [put(cache, recipe=str(n)) for n in range(4)]
    for age, key in enumerate(keys):
        os.utime(cache.root / f"{key}.penstock", (time.time() - 1000 + age,) * 2)
    assert cache.lookup(keys[0])  # used just now
    one = sum(file.stat().st_size for file in (cache.root / f"{keys[1]}.penstock").iterdir())
    assert cache.gc(2 * one + one // 2) == [f"{keys[1]}.penstock", f"{keys[2]}.penstock"]
    assert [key for key, _ in cache.entries()] == [keys[0], keys[3]]
    small = Cache(cache.root.parent, limit=1)
    last = put(small, recipe="last")
    assert [key for key, _ in cache.entries()] == [last]


def test_quarantine_ends(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    key = put(cache)
    _truncated(cache.root / f"{key}.penstock")
    cache.lookup(key)
    assert cache.gc() == []
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 2 * 86400)
    assert len(cache.gc()) == 1
    assert os.listdir(cache.root) == []


def test_cleaning_up_never_fails(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    key = put(cache)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    for name in ("scandir", "utime"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            assert cache.gc(0) == [] or name == "utime"
    key = put(cache)
    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", fail)
        assert cache.lookup(key)
        patch.setattr(Path, "rename", fail)
        cache.gc(0)
    assert cache.lookup(key)


def test_why_miss(cache: Cache) -> None:
    assert str(cache.why_miss(components())) == "the cache is empty"
    put(cache, recipe="a", target="b")
    near = put(cache, engine_version="1.1")
    miss = cache.why_miss(components(engine_version="2.0"))
    assert miss.nearest == near
    assert miss.changed == (("engine_version", "1.1", "2.0"),)
    assert str(miss) == f"changed since entry {near[:12]}: engine_version (1.1 -> 2.0)"
    assert "was evicted, or is damaged" in str(cache.why_miss(components(engine_version="1.1")))


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PENSTOCK_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / ".cache" / "penstock"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_root() == tmp_path / "xdg" / "penstock"
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "mine"))
    assert Cache().root.parent == default_root() == tmp_path / "mine"


def test_folder_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Cache(tmp_path).root
    root.chmod(0o770)
    with pytest.raises(UntrustedError, match="not yours alone"):
        Cache(tmp_path)
    root.chmod(0o700)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(UntrustedError, match="not yours alone"):
            Cache(tmp_path)
    root.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    root.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UntrustedError, match="not yours alone"):
        Cache(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot make the cache"):
        Cache(tmp_path / "file")
