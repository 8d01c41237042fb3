"""What a manifest may say, and that it reads back as it was written."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compiler.artifact import (
    MANIFEST,
    SEAL,
    EngineChoice,
    FileFact,
    Manifest,
    Port,
    Processor,
    open_artifact,
    read_manifest,
    staging,
)
from ir import DimRange, PenstockError
from ir.errors import UntrustedError
from tests.compiler.artifacts import (
    manifest,
    no_sync,  # noqa: F401
    publish,
    reseal,
    write,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return publish(tmp_path / "tiny.penstock")


def _set(*keys: str | int, to: object) -> Callable[[dict[str, Any]], None]:
    def change(raw: Any) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        raw[keys[-1]] = to

    return change


ZERO = {"sha256": "0" * 64, "bytes": 0}
PORT = {"kind": "input", "name": "x", "dtype": "f32", "shape": []}
MANIFEST_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "newer schema": (_set("schema", to=3), "artifact schema 3"),
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
    "many files": (lambda raw: raw["files"].update({f"f{n}": ZERO for n in range(2099)}), "more than 2048"),
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
    "dim name": (_set("dims", "a b", to=[1, 2]), "'a b' is no name here"),
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
    with pytest.raises(UntrustedError, match="is no name here"):
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
    with pytest.raises(UntrustedError, match=r"schema 7 \(written by Penstock 9\.9\).* reads schema 2"):
        open_artifact(path)


def test_foreign_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = publish(tmp_path / "a.penstock", processor=Processor.here())
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
        with pytest.raises(PenstockError, match="no name"), staging(tmp_path / "a.penstock") as folder:  # noqa: PT012
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
    with suppress(UntrustedError):
        read_manifest(text[:at] + piece + text[at + drop :])
