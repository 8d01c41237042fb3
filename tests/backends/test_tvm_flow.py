"""Branches of TVM's virtual machine: they compute right, and the proof that a side is skipped is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from backends.tvm.child import build
from backends.tvm.engine import TvmEngine
from backends.tvm.flow import proofs
from ir import Graph, interpret, parse, show, verify
from ir.weights import save
from tests.conformance.regions import EXIT, NESTED, runs


def _graph(text: str) -> Graph:
    graph = parse(text, {"w": torch.randn(4, 4, generator=torch.Generator().manual_seed(0)) * 0.5})
    verify(graph)
    return graph


def _built(graph: Graph, folder: Path) -> str:
    """Build in this process and check the numbers; the listing of what was built."""
    save(graph.weights, folder / "weights.safetensors")
    request = {"text": show(graph), "folder": str(folder), "stem": "engine", "level": ""}
    code = build(request, lambda phase, fraction: None)["code"]
    run = TvmEngine(folder, "engine", 1)
    assert int(run.facts()["ifs"]) >= 1
    for inputs in runs(graph):
        torch.testing.assert_close(run(inputs), interpret(graph, inputs), rtol=1e-5, atol=1e-5)
    return str(code)


@pytest.mark.parametrize(("text", "count"), [(EXIT, 1), (NESTED, 2)], ids=["exit", "nested"])
def test_branches_run_either_side_and_prove_that_they_skip_the_other(text: str, count: int, tmp_path: Path) -> None:
    graph = _graph(text)
    found = proofs(graph, _built(graph, tmp_path))
    assert [(p.lowering, p.evidence, p.lazy) for p in found] == [("if", "structural", True)] * count


def test_a_lowering_that_computes_both_sides_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: right numbers, and a jump between two results that are both there already."""
    from tvm import relax

    real = relax.If

    def both(test: Any, yes: Any, no: Any) -> Any:
        builder = relax.BlockBuilder.current()
        return real(test, builder.emit(yes), builder.emit(no))

    monkeypatch.setattr(relax, "If", both)
    graph = _graph(EXIT)
    (proof,) = proofs(graph, _built(graph, tmp_path))
    assert (proof.evidence, proof.lazy) == ("none", False)
    assert proof.detail == "a side of a conditional jump calls nothing"


LISTING = """
@main:
  {ahead}
  call  gt               in: %4, %6       dst: %void
  If    %7, 3
  call  {yes}      in: %0           dst: %8
  goto  2
  call  {no}       in: %0, %1       dst: %10
  ret   %16

@gt packed_func;

@first:
  call  vm.builtin.make_tuple in: %0     dst: %1
  ret   %1

@second:
  call  {kernel} in: %0     dst: %1
  ret   %1
"""


@pytest.mark.parametrize(
    ("ahead", "yes", "no", "kernel", "why"),
    [
        ("", "first", "second", "gemm", ""),
        ("", "first", "first", "gemm", "what a side of a conditional jump calls is called elsewhere too"),
        ("call  second in: %0 dst: %3", "first", "second", "gemm",
         "what a side of a conditional jump calls is called elsewhere too"),
        ("call  gemm in: %0 dst: %3", "first", "second", "copy", "0 functions of branches multiply, where 1 sides do"),
    ],
    ids=["apart", "both sides alike", "called ahead of the jump too", "product moved ahead of the jump"],
)  # fmt: skip
def test_proof_wants_each_side_behind_its_jump(ahead: str, yes: str, no: str, kernel: str, why: str) -> None:
    (proof,) = proofs(_graph(EXIT), LISTING.format(ahead=ahead, yes=yes, no=no, kernel=kernel))
    assert (proof.lazy, proof.evidence) == ((False, "none") if why else (True, "structural"))
    assert proof.detail == why if why else "jumps" in proof.detail
