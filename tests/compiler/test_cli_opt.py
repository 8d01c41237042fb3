"""`penstock opt`: passes on IR text."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
import torch

from ir import parse, show
from ir import weights as weight_files
from tests.compiler.command import IR, Run


def test_opt_without_passes_is_a_round_trip(penstock: Run, ir_file: Path) -> None:
    assert penstock("opt", ir_file).worked().out == show(parse(IR)) == IR


def test_opt_runs_passes(penstock: Run, ir_file: Path, tmp_path: Path) -> None:
    told = penstock("opt", ir_file, "-p", "fold-constants{max-bytes=0}, drop-dead-nodes", "-v").worked()
    assert "aten.neg" not in told.out
    assert "drop-dead-nodes: applied: aten.neg.default" in told.err
    again = tmp_path / "again.ir"
    assert penstock("opt", ir_file, "-p", "drop-dead-nodes", "-o", again).worked().out == ""
    assert again.read_text() == told.out
    asked = penstock("opt", ir_file, "-p", "drop-dead-nodes", "-o", again, "--json").worked().json
    assert asked["ir"] == told.out
    assert asked["passes"] == [{"pass": "drop-dead-nodes", "changes": 1, "applied": 1, "declined": 0}]


def test_opt_reads_stdin(penstock: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(IR.encode())))
    assert penstock("opt", "-", "-p", "drop-dead-nodes").worked().out.count("aten.") == 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xff")))
    penstock("opt", "-").failed(8, "stdin is not text")


def test_opt_prints_and_dumps_the_ir_after_a_pass(penstock: Run, ir_file: Path, tmp_path: Path) -> None:
    told = penstock(
        "opt", ir_file, "-p", "fold-constants, drop-dead-nodes", "--print-ir-after", "fold-constants",
        "--dump", tmp_path / "dumps",
    ).worked()  # fmt: skip
    assert told.err == IR
    assert os.listdir(tmp_path / "dumps") == ["02_drop-dead-nodes.ir"]
    assert (tmp_path / "dumps" / "02_drop-dead-nodes.ir").read_text() == told.out


def test_opt_with_weights(penstock: Run, tmp_path: Path) -> None:
    text = IR.replace("%x, %w", "%x, %t").replace("%h:", "%t: f32[4, 4] = aten.transpose.int(%w, 0, 1)\n%h:", 1)
    (tmp_path / "t.ir").write_text(text)
    weight_files.save({"w": torch.eye(4)}, tmp_path / "w.safetensors")
    told = penstock("opt", tmp_path / "t.ir", "-p", "fold-constants", "-w", tmp_path / "w.safetensors").worked()
    assert "transpose" not in told.out
    assert "transpose" in penstock("opt", tmp_path / "t.ir", "-p", "fold-constants").worked().out


def test_opt_with_wrong_names(penstock: Run, ir_file: Path) -> None:
    penstock("opt", ir_file, "-p", "fold-constant").failed(2, 'did you mean "fold-constants"?')
    penstock("opt", ir_file, "-p", "fold-constants{max-byte=1}").failed(2, 'did you mean "max-bytes"?')
    penstock("opt", ir_file, "-p", "fold-constants{max-bytes=big}").failed(2, "takes int, not 'big'")
    penstock("opt", ir_file, "-p", "fold-constants", "--print-ir-after", "quantize").failed(
        2, "no pass 'quantize' is run"
    )
