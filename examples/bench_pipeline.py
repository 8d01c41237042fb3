"""What the pipeline itself costs: ``python -m examples.bench_pipeline [--nodes 1000,5000,20000] [--billion]``.

Time of all passes by number of nodes (it should grow linearly), against the build time of an engine on MiniLM
(it should be a small part), and with ``--billion`` the peak memory on a random-init model of a billion parameters.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch

from compiler.capture.capture import capture
from compiler.pipeline.pipeline import Pipeline
from compiler.pipeline.recipe import PRESETS
from ir import Graph, Value, op, verify
from ir import weights as weight_files
from ir.core import Output
from ir.dims import DimRange, symbol
from ir.types import TensorType
from passes import PASSES, parse_passes

_WIDTH = 8


def deep_graph(nodes: int) -> Graph:
    """About so many nodes: blocks of linear, view, gelu, no-op cast, dropout, residual add and layer norm."""
    graph = Graph("deep", {"n": DimRange(1, 64)})
    x: Value = graph.add_input("input", "x", TensorType(torch.float32, (symbol("n"), _WIDTH)))
    count = 0
    while len(graph.body) < nodes:
        weight = graph.add_param(f"layer.{count}.weight", torch.randn(_WIDTH, _WIDTH))
        norm = graph.add_param(f"layer.{count}.norm", torch.ones(_WIDTH))
        y = graph.insert(op("aten.linear.default"), x, weight).result
        y = graph.insert(op("aten.view.default"), y, (-1, 2, _WIDTH // 2)).result
        y = graph.insert(op("aten.view.default"), y, (-1, _WIDTH)).result
        y = graph.insert(op("aten.gelu.default"), y).result
        y = graph.insert(op("aten.to.dtype"), y, torch.float32).result
        y = graph.insert(op("aten.dropout.default"), y, 0.1, False).result
        twice = [graph.insert(op("aten.mul.Tensor"), y, 2.0).result for _ in range(2)]
        y = graph.insert(op("aten.add.Tensor"), *twice).result
        y = graph.insert(op("aten.add.Tensor"), y, x).result
        x = graph.insert(op("aten.layer_norm.default"), y, (_WIDTH,), norm).result
        count += 1
    graph.returns(x, outputs=[Output("output", "y")])
    return graph


def time_pipeline(graph: Graph) -> tuple[float, float]:
    """Seconds of the passes of the fp32 recipe, and of one full verification after them."""
    pipeline = Pipeline(*parse_passes(PRESETS["fp32"], PASSES))
    start = time.perf_counter()
    pipeline.run(graph)
    passes = time.perf_counter() - start
    start = time.perf_counter()
    verify(graph)
    return passes, time.perf_counter() - start


def scaling(sizes: list[int]) -> None:
    print(f"{'nodes':>8} {'passes s':>9} {'us/node':>8} {'verify s':>9}")
    for nodes in sizes:
        graph = deep_graph(nodes)
        made = len(graph)
        passes, checked = time_pipeline(graph)
        print(f"{made:8d} {passes:9.3f} {passes / made * 1e6:8.1f} {checked:9.3f}")


def against_engines() -> None:
    from backends import backend
    from examples.minilm import model

    graph = capture(model())
    passes, checked = time_pipeline(graph)
    print(f"\nMiniLM, {len(graph)} nodes: passes {passes * 1e3:.0f} ms, full verification {checked * 1e3:.0f} ms")
    for name in ("onnxruntime", "openvino"):
        with tempfile.TemporaryDirectory() as folder:
            weight_files.save(graph.weights, Path(folder) / "weights.safetensors")
            start = time.perf_counter()
            backend(name).build(graph, Path(folder))
            emitted = time.perf_counter() - start
            backend(name).load(Path(folder))
            whole = time.perf_counter() - start
        print(
            f"  {name}: emit {emitted * 1e3:.0f} ms, build {whole * 1e3:.0f} ms; passes are {passes / whole:.1%} of it"
        )


def billion() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=20, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=32000, use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    count = sum(p.numel() for p in model.parameters())
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    print(f"\n{count / 1e9:.2f} billion parameters, {weights / 1e9:.2f} GB; peak after init {_peak() / weights:.2f}x")
    graph = capture(model, {"input_ids": torch.ones(2, 8, dtype=torch.int64)})
    print(f"peak after capture {_peak() / weights:.2f}x of the weight bytes")
    passes, checked = time_pipeline(graph)
    print(f"passes {passes:.2f} s, verification {checked:.2f} s, peak {_peak() / weights:.2f}x of the weight bytes")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", default="1000,5000,20000")
    parser.add_argument("--billion", action="store_true", help="needs about 6 GB of memory")
    given = parser.parse_args()
    if given.billion:
        billion()
        return
    scaling([int(n) for n in given.nodes.split(",")])
    against_engines()


if __name__ == "__main__":
    main()
