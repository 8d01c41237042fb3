"""Depth on each engine: exits and the rolled loop compute what the graph means, and each row leaves where it should."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backends import backend
from backends.base import Device, Engine
from backends.segments import build_engine, load_engine, ready_for, refusals, simulated_segments
from ir import Graph, interpret
from ir.weights import save
from passes.depth_exits import LAYERS, THRESHOLDS, insert_exits, taps
from passes.depth_parts import take_apart
from passes.depth_roll import roll_blocks
from tests.depth_models import BLOCKS, graph_of, tokens

INF = float("inf")
AT = (1, 3)
L4 = Device("l4", "cuda", 89, 24e9, frozenset({"fp32", "tf32", "fp16", "bf16", "fp8", "int8"}))
ENGINES = ("onnxruntime", "openvino", "tensorrt", pytest.param("tvm", marks=pytest.mark.slow))


def built(engine: str, graph: Graph, folder: Path) -> Engine:
    """Whatever the backend gives: one engine, or segments."""
    save(graph.weights, folder / "weights.safetensors")
    chosen = backend(engine)
    if engine == "tensorrt":
        made = simulated_segments(graph, chosen, L4) if refusals(graph, chosen, L4)[0] else None
        made = made or chosen.simulated(ready_for(graph, chosen, L4).graph, L4)
        assert made is not None
        return made
    build_engine(graph, folder, chosen)
    return load_engine(folder, chosen, 1)


def thresholds(graph: Graph) -> Iterator[Tensor]:
    """Nobody leaves, everybody does at the first, at the second, and some at each."""
    yield from (torch.full((2,), INF), torch.full((2,), -INF), torch.tensor([INF, -INF]))
    seen = interpret(taps(graph, AT, "confidence"), {**graph.initial, **tokens(6)})
    ordered = [seen[f"trace:depth.score.{e}"].sort().values for e in AT]
    yield torch.stack([(scores[3] + scores[4]) / 2 for scores in ordered])


@pytest.mark.parametrize("engine", [*ENGINES, pytest.param("inductor", marks=pytest.mark.slow)])
def test_exits(engine: str, tmp_path: Path) -> None:
    graph = graph_of("classes")
    chain = insert_exits(graph, AT, "confidence")
    run = built(engine, chain, tmp_path)
    for tau in thresholds(graph):
        for batch in (6, 1):
            inputs = {**tokens(6), THRESHOLDS: tau}
            inputs["tokens"] = inputs["tokens"][:batch]
            want, got = interpret(chain, inputs), run(inputs)
            assert torch.equal(got[f"trace:{LAYERS}"], want[f"trace:{LAYERS}"])
            torch.testing.assert_close(got["logits"], want["logits"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("engine", [*ENGINES, pytest.param("inductor", marks=pytest.mark.long)])
def test_one_loop_of_as_many_turns_as_asked(engine: str, tmp_path: Path) -> None:
    rolled = graph_of("lm")
    roll_blocks(rolled, take_apart(rolled), BLOCKS)
    run = built(engine, rolled, tmp_path)
    for count in (1, 3, BLOCKS):
        inputs = {**rolled.initial, **tokens(3), **{n: torch.tensor(count) for n in rolled.initial}}
        want, got = interpret(rolled, inputs), run(inputs)
        name = rolled.outputs[0].name
        torch.testing.assert_close(got[name], want[name], rtol=1e-3, atol=1e-4)
