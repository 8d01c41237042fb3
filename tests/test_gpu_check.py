"""``examples.gpu_check`` without a GPU: its arithmetic, and the same code on the processor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from examples import gpu_check
from examples.gpu_report import Row, markdown, table


def test_without_a_gpu_one_sentence_and_code_4(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 4
    assert capsys.readouterr().err.count("\n") == 1


def test_dry_run_takes_the_way_of_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--device", "cpu", "--models", "tiny,unheard", "--engines", "eager,reference,torch_tensorrt,unknown"]
    assert (
        gpu_check.main([*words, "--dtypes", "fp32", "--batches", "1,2", "--rounds", "3", "--out", str(tmp_path)]) == 0
    )
    (written,) = tmp_path.glob("gpu_check_*_dry.json")
    found = json.loads(written.read_text())
    assert "nothing about a GPU" in found["dry run"]
    *rows, unheard = found["rows"]
    assert "no such model" in unheard["note"]
    assert len(rows) == 2 * 2 * 4  # batches, paths, engines
    for row in rows:
        assert row["predicted"] > 0
        if row["engine"] in ("eager", "reference"):
            assert row["milliseconds"] > 0 and row["error"] < 1e-5
        else:
            assert row["milliseconds"] is None
    notes = {row["engine"]: row["note"] for row in rows}
    assert notes["torch_tensorrt"].startswith("not importable: ") and "no backend is named" in notes["unknown"]
    predicted = {row["path"]: row["predicted"] for row in rows if row["batch"] == 2}
    assert predicted["taken"] < predicted["untaken"]  # the exit skips half of the blocks
    assert written.with_suffix(".md").read_text() in capsys.readouterr().out


def test_ratios_are_within_a_cell() -> None:
    rows = [
        Row("m", "fp16", 1, "", "eager", 4.0, 0.1, 0.0, 1.5),
        Row("m", "fp16", 1, "", "compile", 2.0),
        Row("m", "fp16", 1, "", "tvm", 1.0),
        Row("m", "fp16", 8, "", "tvm", 1.0),
        Row("m", "fp16", 1, "", "tensorrt", note="not importable: no module | none"),
    ]
    assert [line[7:9] for line in table(rows)] == [
        ("1.00", "2.00"), ("0.50", "1.00"), ("0.25", "0.50"), ("-", "-"), ("-", "-"),
    ]  # fmt: skip
    text = markdown(rows, {"date": "today", "versions": {"torch": "2"}})
    assert "- versions: torch 2" in text and text.count("\n| m ") == 5
    assert all(line.count("|") == 13 for line in text.splitlines() if line.startswith("|"))


def test_turns_and_their_summary() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    ticks = iter(range(100))

    def clock(call: gpu_check.Call) -> float:
        call()
        return float(next(ticks))

    taken = gpu_check.in_turns(calls, clock, 3)
    assert order == ["a", "a", "b", "b", *"ababab"] and taken == {"a": [0, 2, 4], "b": [1, 3, 5]}
    assert gpu_check.summary([1.0, 3.0, 2.0]) == (2.0, 0.5)


def test_errors_are_relative_and_never_hidden() -> None:
    want = [torch.tensor([1.0, -4.0])]
    assert gpu_check.error_of(want, [torch.tensor([1.0, -4.0])]) == 0
    assert gpu_check.error_of(want, [torch.tensor([2.0, -4.0])]) == 0.25
    assert gpu_check.error_of(want, [torch.tensor([1.0, float("nan")])]) == float("inf")
    assert gpu_check.error_of(want, [torch.tensor([1.0])]) == float("inf")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Tesla T4", "t4"), ("NVIDIA L4", "l4"), ("NVIDIA L40S", "l40s"), ("NVIDIA A10", "a10"),
        ("NVIDIA A100-SXM4-80GB", "a100_80"), ("NVIDIA H100 80GB HBM3", "h100_sxm"), ("NVIDIA H100 PCIe", "h100_pcie"),
        ("NVIDIA H200", "h200_sxm"), ("NVIDIA GeForce RTX 4090", "rtx4090"), ("NVIDIA B200", "b200"),
    ],
)  # fmt: skip
def test_a_gpu_is_found_by_its_own_name(name: str, found: str) -> None:
    known = gpu_check.by_name(name)
    assert known is not None and known.name == found


def test_an_unknown_gpu_is_no_other() -> None:
    assert gpu_check.by_name("Voodoo 2") is None
