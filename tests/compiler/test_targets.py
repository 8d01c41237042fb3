"""Targets: every row loads and is physically possible; faults and names are told."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from compiler.cost.targets import PACKAGED, lint, lint_file, load_targets, read_cpu, target, this_cpu
from ir.errors import UsageError

DATA = yaml.safe_load(PACKAGED.read_text())
ROWS = DATA["targets"]
CPUINFO = """processor : 0
model name : Intel(R) Xeon(R) Processor @ 2.80GHz
cpu MHz : 3200.1
siblings : 4
cpu cores : 2
flags : fpu avx2 avx512f avx512_vnni
"""


@pytest.mark.parametrize("name", ROWS)
def test_rows_lint(name: str) -> None:
    assert lint(name, ROWS[name]) == []


@pytest.mark.parametrize("name", [*ROWS, *DATA["cpus"], "cpu"])
def test_rows_load(name: str) -> None:
    found = target(name)
    assert found.name == name
    assert found.peak["fp32"] > 1e11
    assert found.bandwidth > 1e9
    assert found.memory > 1e9
    assert 0 < found.t0 < 1e-4
    assert found.provenance in ("measured", "prior")
    assert all(0 < found.achieved(f) <= 1 for f in found.peak)


def test_units_are_si() -> None:
    h100 = target("h100_sxm")
    assert (h100.peak["bf16"], h100.bandwidth, h100.memory) == (989.4e12, 3350e9, 80e9)
    assert h100.t0 == pytest.approx(2.7e-6)
    assert "int4" not in h100.peak
    assert target("rtx4090").acc16["fp16"] == 330.3e12


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"fp16": 1978.9, "bf16": 1978.9}, "a rate with sparsity?"),
        ({"fp16": 900}, "is not sms*tclk*fpc"),
        ({"fp8": 3957.8}, "peak.fp8 3957.8 is 4 times fp16, not 1.9 to 2.1"),
        ({"int8": 989}, "peak.int8"),
        ({"fp4": 1978.9}, "peak.fp4"),
    ],
)
def test_planted_faults_are_caught(change: dict[str, float], told: str) -> None:
    row = copy.deepcopy(ROWS["h100_sxm"])
    row["peak"].update(change)
    assert any(told in fault for fault in lint("h100_sxm", row))


def test_impossible_efficiency_is_caught(tmp_path: Path) -> None:
    data = copy.deepcopy(DATA)
    data["targets"]["l4"]["ach"]["mm"] = 1.4
    path = tmp_path / "targets.yaml"
    path.write_text(yaml.safe_dump(data))
    assert lint_file(path) == ["l4: ach.mm 1.4 is not a fraction"]


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda d: d["targets"]["l4"].update(clock=1), "target l4: unknown key 'clock'"),
        (lambda d: d["targets"]["l4"]["peak"].update(bf17=1), 'did you mean "bf16"?'),
        (lambda d: d["targets"]["l4"].pop("bw"), "target l4: missing bw"),
        (lambda d: d["targets"]["l4"]["ach"].update(tag="sure"), "neither measured nor prior"),
        (lambda d: d.update(schema=2), "schema 2"),
        (lambda d: d.update(extra=1), "unknown key 'extra'"),
        (lambda d: d["targets"].update(l4=[]), "expected keys and values"),
    ],
)
def test_strict_file(edit: object, told: str, tmp_path: Path) -> None:
    data = copy.deepcopy(DATA)
    edit(data)  # type: ignore[operator]
    path = tmp_path / "targets.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(UsageError) as caught:
        load_targets(path)
    assert told in str(caught.value)


def test_unknown_target() -> None:
    with pytest.raises(UsageError) as caught:
        target("h100")
    assert str(caught.value).startswith(
        "there is no target named 'h100'\n  hint: did you mean \"h100_sxm\"? known: cpu, t4, a10, "
    )


def test_cpu_from_text() -> None:
    found = read_cpu(CPUINFO, usable=4, memory=16e9)
    assert (found.units, found.cc, found.memory) == (2, "x86_avx512_vnni", 16e9)  # two threads share a core
    assert found.peak["fp32"] == pytest.approx(2 * 2.8e9 * 64)  # the base clock, not the momentary one
    assert found.peak["int8"] == pytest.approx(2 * 2.8e9 * 256)
    assert "bf16" not in found.peak
    assert found.bandwidth == 16e9
    assert found.provenance == "prior"
    assert found.note == "2 core(s) at 2.80 GHz, x86_avx512_vnni; bandwidth and efficiencies are priors"


@pytest.mark.parametrize(
    ("flags", "family", "formats"),
    [
        ("avx2", "x86_avx2", {"fp32", "int8"}),
        ("avx2 avx512f", "x86_avx512", {"fp32", "int8"}),
        ("avx512f avx512_vnni avx512_bf16", "x86_avx512_vnni", {"fp32", "bf16", "int8"}),
        ("avx512f avx512_vnni amx_tile amx_int8 amx_bf16", "x86_amx", {"fp32", "bf16", "int8"}),
    ],
)
def test_cpu_families(flags: str, family: str, formats: set[str]) -> None:
    found = read_cpu(f"flags : {flags}\ncpu MHz : 2000\n", usable=8, memory=0)
    assert (found.cc, set(found.peak), found.units) == (family, formats, 8)


def test_cpu_without_description() -> None:
    assert read_cpu("", usable=3, memory=0).units == 3


def test_this_machine() -> None:
    assert this_cpu().kind == "cpu"
    assert this_cpu().name == "cpu"


def test_families_say_what_they_assume() -> None:
    assert target("x86_amx").note == "32 cores at 2.6 GHz are assumed; bandwidth and efficiencies are priors"
