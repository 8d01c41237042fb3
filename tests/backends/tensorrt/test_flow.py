"""Branches and loops: simulated, only one side run, and proven lazy from the built plan; a planted bug is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from backends.base import Device, FlowProof
from backends.tensorrt.builder import build
from backends.tensorrt.emit import Emitted, emit, flows_of, profile_of
from backends.tensorrt.network import NetworkScope
from backends.tensorrt.plan import STUDIED, proofs, read
from backends.tensorrt.simulate import Simulation
from ir import Graph, interpret, parse
from tests.conformance.regions import EXIT, LOOP, NESTED

L4 = Device("l4", "cuda", 89)
LOOP_IN_IF = """
penstock-ir 1
graph "loop_in_if"
dim n [1, 64]
input %x: f32[n, 4] "x"
param %w: f32[4, 4] "w"
%top: f32[] = aten.amax.default(%x)
%go: bool[] = aten.gt.Scalar(%top, 0.0)
%y: f32[n, 4] = cond(%go, [%x, %w]) do
region(%a: f32[n, 4], %b: f32[4, 4])
  %zero: i64[] = aten.scalar_tensor.default(0, dtype=!i64)
  %i: i64[], %r: f32[n, 4] = while([%zero, %a], [%b, %a]) do
  region(%i0: i64[], %y0: f32[n, 4], %w0: f32[4, 4], %a0: f32[n, 4])
    %more: bool[] = aten.lt.Scalar(%i0, 3)
    return %more
  end
  region(%i1: i64[], %y1: f32[n, 4], %w1: f32[4, 4], %a1: f32[n, 4])
    %next: i64[] = aten.add.Tensor(%i1, 1)
    %p: f32[n, 4] = aten.linear.default(%y1, %w1)
    %q: f32[n, 4] = aten.add.Tensor(%p, %a1)
    %t: f32[n, 4] = aten.tanh.default(%q)
    return %next, %t
  end
  return %r
end
region(%a2: f32[n, 4], %b2: f32[4, 4])
  return %a2
end
return "y" %y
"""
CASES = {
    "exit": (EXIT, [{"x": torch.rand(3, 4) + 0.1}, {"x": -torch.rand(5, 4) - 0.1}]),
    "nested": (NESTED, [{"x": torch.randn(2, 4)}, {"x": torch.rand(3, 4)}, {"x": -torch.rand(4, 4) - 0.1}]),
    "loop": (LOOP, [{"x": torch.randn(3, 4)[: k + 1], "limit": torch.tensor(k)} for k in (0, 1, 2)]),
    "loop in if": (LOOP_IN_IF, [{"x": torch.rand(3, 4)}, {"x": -torch.rand(2, 4)}]),
}


def _graph(text: str, width: int = 4) -> Graph:
    """The case, or the same with wider matrices: products of width 4 are no products in a plan."""
    text = text.lstrip().replace(", 4]", f", {width}]").replace("f32[4,", f"f32[{width},")
    text = text.replace("f32[n, 2]", f"f32[n, {width // 2}]").replace(", 2], 3.0)", f", {width // 2}], 3.0)")
    return parse(text, {"w": torch.randn(width, width, generator=torch.Generator().manual_seed(0)) * 0.5})


@pytest.mark.parametrize("case", CASES)
def test_simulation_equals_the_interpreter(case: str) -> None:
    text, runs = CASES[case]
    graph = _graph(text)
    run = Simulation(emit(graph, L4))
    for inputs in runs:
        want, got = interpret(graph, inputs), run(inputs)
        assert list(got) == list(want)
        for name in want:
            torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-6)


def test_simulation_runs_only_the_side_taken() -> None:
    run = Simulation(emit(_graph(EXIT), L4))
    run({"x": torch.ones(3, 4)})
    assert not any(name.startswith("matmul") for name in run.ran)
    run({"x": -torch.ones(3, 4)})
    assert sum(name.startswith("matmul") for name in run.ran) == 2


def _proofs(graph: Graph) -> tuple[Emitted, tuple[FlowProof, ...]]:
    emitted = emit(graph, L4)
    plan, _ = build(emitted, profile_of(graph, 64)[0], L4)
    flows, outside = flows_of(emitted.network)
    return emitted, proofs(flows, outside, read(plan, STUDIED))


@pytest.mark.parametrize("case", CASES)
def test_plans_prove_that_sides_are_skipped(case: str) -> None:
    found = _proofs(_graph(CASES[case][0], 64))[1]
    assert {p.lowering for p in found} == {"exit": {"if"}, "nested": {"if"}, "loop": {"loop", "if"}}.get(
        case, {"loop", "if"}
    )
    for proof in found:  # the conditional in the loop holds a tanh only
        assert proof.lazy == ((case, proof.lowering) != ("loop", "if")), proof


def test_a_branch_that_reads_past_its_inputs_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the engine builds and computes the right thing, but both sides always."""
    read_routed = NetworkScope.read

    def unrouted(self: NetworkScope, name: str, in_loop: bool = False) -> Any:
        return read_routed(self, name, in_loop=True)

    graph = _graph(EXIT, 64)
    (right,) = _proofs(graph)[1]
    assert right.lazy and right.evidence == "structural"
    monkeypatch.setattr(NetworkScope, "read", unrouted)
    (wrong,) = _proofs(graph)[1]
    assert not wrong.lazy and "every run" in wrong.detail


def test_another_version_gives_no_evidence() -> None:
    emitted = emit(_graph(EXIT), L4)
    flows, outside = flows_of(emitted.network)
    (proof,) = proofs(flows, outside, read(b"main {\n label bb1: \n}\n", "1.8.0"))
    assert (proof.evidence, proof.lazy) == ("none", False)
