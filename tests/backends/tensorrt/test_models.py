"""Whole models in half precision: the emitted network, simulated, against the interpreter, and the plan built from it.

At float32, at several sizes, the conformance suite compares every model with eager torch.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils import _pytree as pytree

from backends.base import Device
from backends.tensorrt.builder import UNBOUNDED, build
from backends.tensorrt.emit import emit, emit_all, flows_of, profile_of
from backends.tensorrt.plan import STUDIED, proofs, read
from backends.tensorrt.simulate import Simulation
from ir import Graph, interpret
from ir.copy import copy_graph
from passes.cast_compute import CastCompute
from tests.zoo import ZOO, captured

A100 = Device("a100", "cuda", 80)
CAPABILITIES = (75, 80, 89, 120)
BUILT = tuple(n for n in ZOO if n not in ("compaction", "custom_op"))
FLOW = {"early_exit": "if", "nested_cond": "if", "while_loop": "loop"}


def _named(graph: Graph, inputs: object) -> dict[str, torch.Tensor]:
    """Tensors of an example in the order of the graph's own inputs."""
    leaves = [t.clone() for t in pytree.tree_leaves(inputs) if isinstance(t, torch.Tensor)]
    names = [spec.name for spec in graph.inputs.values() if spec.kind != "param" and spec.name not in graph.initial]
    return dict(zip(names, leaves, strict=True))


def _build(name: str, capability: int) -> None:
    spec, known = captured(name)
    graph = copy_graph(known)
    CastCompute("f16").run(graph)
    device = Device(f"sm_{capability}", "cuda", capability)
    emitted = emit(graph, device)
    given = {**graph.initial, **_named(graph, spec.example_inputs)}
    want, got = interpret(graph, given), Simulation(emitted)(given)
    for key in want:
        torch.testing.assert_close(got[key].float(), want[key].float(), rtol=2e-2, atol=2e-2)
    plan, _ = build(emitted, profile_of(graph, UNBOUNDED)[0], device)
    flows, outside = flows_of(emitted.network)
    found = proofs(flows, outside, read(plan, STUDIED))
    assert {p.lowering for p in found} == ({FLOW[name]} if name in FLOW else set())
    assert all(p.lazy and p.evidence == "structural" for p in found)


@pytest.mark.parametrize("name", FLOW)
def test_plans_with_branches_prove_them(name: str) -> None:
    _build(name, 89)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        pytest.param(place, name, marks=pytest.mark.long if place % 3 else pytest.mark.slow)
        for place, name in enumerate((*BUILT, "minilm"))
    ],
)
def test_plans_are_built_in_half_precision(place: int, name: str) -> None:
    _build(name, CAPABILITIES[place % len(CAPABILITIES)])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("compaction", "a shape that the data decides"),
        ("custom_op", "no TensorRT form"),
    ],
)
def test_models_that_are_refused(name: str, words: str) -> None:
    assert words in " ".join(map(str, emit_all(captured(name)[1], A100)[1]))
