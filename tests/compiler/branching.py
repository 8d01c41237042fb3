"""A graph whose branch is worth skipping, and a backend with the bug that proofs are there to find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from backends import CPU, Backend, BuildOptions, Built, Device, Engine, Unsupported, backend
from backends.base import DEFAULT
from ir import COND, RETURN, WHILE, Block, DimRange, Graph, Node, Output, TensorType, Value, map_values, op, symbol

N = symbol("n")
WIDTH = 192
DEPTH = 60
ROWS = TensorType(torch.float32, (N, WIDTH))


def products(graph: Graph, block: Block, x: Value, w: Value, depth: int) -> Value:
    for _ in range(depth):
        x = graph.insert(op("aten.tanh.default"), graph.insert(op("aten.linear.default"), x, w, block=block).result,
                         block=block).result  # fmt: skip
    return x


def branching(depth: int = DEPTH) -> Graph:
    """``x`` itself, or many products of it: as its sum says."""
    graph = Graph("branching", {"n": DimRange(1, 512)})
    x = graph.add_input("input", "x", ROWS)
    w = graph.add_param("w", torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)) / WIDTH**0.5)
    total = graph.insert(op("aten.sum.default"), x).result
    test = graph.insert(op("aten.gt.Scalar"), total, 0.0).result
    cheap, long = (Block([Value(x.type, "x"), Value(w.type, "w")]) for _ in range(2))
    graph.returns(graph.insert(op("aten.neg.default"), cheap.args[0], block=cheap).result, block=cheap)
    graph.returns(products(graph, long, *long.args, depth), block=long)
    y = graph.insert(COND, test, (x, w), regions=(cheap, long)).result
    graph.returns(y, outputs=[Output("output", "y")])
    return graph


def looping(depth: int = DEPTH // 4) -> Graph:
    """Products, as many rounds of them as an input says."""
    graph = Graph("looping", {"n": DimRange(1, 512)})
    x = graph.add_input("input", "x", ROWS)
    limit = graph.add_input("input", "limit", TensorType(torch.int64, ()))
    w = graph.add_param("w", torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)) / WIDTH**0.5)
    zero = graph.insert(op("aten.scalar_tensor.default"), 0, kwargs={"dtype": torch.int64}).result
    given = (zero, x, limit, w)
    test, body = (Block([Value(v.type, v.name) for v in given]) for _ in range(2))
    graph.returns(graph.insert(op("aten.lt.Tensor"), test.args[0], test.args[2], block=test).result, block=test)
    after = graph.insert(op("aten.add.Tensor"), body.args[0], 1, block=body).result
    graph.returns(after, products(graph, body, body.args[1], body.args[3], depth), block=body)
    made = graph.insert(WHILE, given[:2], given[2:], regions=(test, body))
    graph.returns(made.results[1], outputs=[Output("output", "y")])
    return graph


def both_sides(graph: Graph) -> Graph:
    """Every branch as a choice between the results of both sides: right answers, nothing skipped."""
    made = Graph(graph.name, graph.dims)
    table: dict[Value, Value] = {}
    for value, spec in graph.inputs.items():
        table[value] = made.add_input(spec.kind, spec.name, value.type, value.name)
        if spec.kind == "param":
            made.weights.add(spec.name, graph.weights[spec.name])

    def copied(block: Block) -> list[Value]:
        for node in block:
            args: Any = [map_values(a, lambda v: table[v]) for a in node.args]
            if node.op is RETURN:
                return args
            if node.op is COND:
                sides = []
                for region in node.regions:
                    table.update(zip(region.args, args[1], strict=True))
                    sides.append(copied(region))
                results = [
                    made.insert(op("aten.where.self"), args[0], *pair).result for pair in zip(*sides, strict=True)
                ]
            else:
                kwargs = {k: map_values(a, lambda v: table[v]) for k, a in node.kwargs.items()}
                results = list(made.insert(node.op, *args, kwargs=kwargs).results)
            table.update(zip(node.results, results, strict=True))
        raise AssertionError("no return")

    made.returns(*copied(graph.body), outputs=graph.outputs)
    return made


class Planted(Backend):
    """ONNX Runtime behind a lowering that computes both sides of every branch."""

    name, install = "planted", ""

    def __init__(self, inner: str = "onnxruntime") -> None:
        self.inner = backend(inner)

    def version(self) -> str | None:
        return self.inner.version()

    def unsupported(self, graph: Graph, device: Device = CPU) -> list[Unsupported]:
        return self.inner.unsupported(graph, device)

    def build(self, graph: Graph, folder: Path, options: BuildOptions = DEFAULT) -> Built:
        return self.inner.build(both_sides(graph), folder, options)

    def load(self, folder: Path, threads: int | None = None, stem: str = "engine") -> Engine:
        return self.inner.load(folder, threads, stem)


class Flat(Planted):
    """ONNX Runtime that knows no branches and no loops."""

    name = "flat"

    def unsupported(self, graph: Graph, device: Device = CPU) -> list[Unsupported]:
        def refusal(node: Node) -> Unsupported:
            return Unsupported(node.op.name, str(node.origin), "straight lines only")

        return [refusal(n) for n in graph.walk() if n.regions] or self.inner.unsupported(graph, device)

    def build(self, graph: Graph, folder: Path, options: BuildOptions = DEFAULT) -> Built:
        assert not any(node.regions for node in graph.walk())
        return self.inner.build(graph, folder, options)
