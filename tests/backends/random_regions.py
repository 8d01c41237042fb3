"""Random graphs of branches and loops within each other, with weights, sizes and values that merely pass through."""

from __future__ import annotations

import random

import torch

from ir import COND, WHILE, Block, DimRange, Graph, Output, ScalarType, TensorType, Value, op, symbol, verify

N = symbol("n")
ROWS = TensorType(torch.float32, (N, 4))
COUNT = TensorType(torch.int64, ())
SIZE = ScalarType("int", N)


class Maker:
    """Draws nodes into the block that is open."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.graph = Graph(f"regions{seed}", {"n": DimRange(1, 9)})
        generator = torch.Generator().manual_seed(seed)
        self._tensors = [torch.randn(4, 4, generator=generator) * 0.5 for _ in range(2)]

    def make(self) -> Graph:
        graph = self.graph
        x, y = (graph.add_input("input", name, ROWS) for name in "xy")
        limit = graph.add_input("input", "limit", COUNT)
        weights = [graph.add_param(f"w{i}", t) for i, t in enumerate(self._tensors)]
        size = graph.insert(op("aten.sym_size.int"), x, 0).result
        rows = self._fill(graph.body, [x, y], weights, size, limit, 3)
        results = [rows[-1], self._random.choice(rows), self._random.choice([x, limit, *weights])]
        graph.returns(*results, outputs=[Output("output", f"out{i}") for i in range(3)])
        verify(graph)
        return graph

    def _one(self, block: Block, name: str, *args: object, **kwargs: object) -> Value:
        return self.graph.insert(op(f"aten.{name}"), *args, block=block, kwargs=kwargs).result  # type: ignore[arg-type]

    def _fill(
        self, block: Block, rows: list[Value], weights: list[Value], size: Value, limit: Value, depth: int
    ) -> list[Value]:
        """Some nodes; all float rows that there are then."""
        rows = list(rows)
        for _ in range(self._random.randint(1, 3)):
            x, w = self._random.choice(rows), self._random.choice(weights)
            kind = self._random.choice(["linear", "tanh", "full", "clone", "add", "cond", "cond", "while"])
            if kind in ("cond", "while") and depth:
                make = self._cond if kind == "cond" else self._while
                rows += make(block, rows, weights, size, limit, depth - 1)
            elif kind == "full":
                made = self._one(block, "full.default", (size, 4), 0.5)
                rows.append(self._one(block, "add.Tensor", made, x))
            elif kind == "clone":
                rows.append(self._one(block, "clone.default", x))
            elif kind == "add":
                rows.append(self._one(block, "add.Tensor", x, self._random.choice(rows)))
            elif kind == "linear":
                rows.append(self._one(block, "linear.default", x, w))
            else:
                rows.append(self._one(block, "tanh.default", x))
        return rows

    def _cond(
        self, block: Block, rows: list[Value], weights: list[Value], size: Value, limit: Value, depth: int
    ) -> list[Value]:
        if self._random.random() < 0.3:
            test = self.graph.insert(op("sym.gt"), size, 2, block=block).result
        else:
            test = self._one(block, "gt.Scalar", self._one(block, "sum.default", self._random.choice(rows)), 0.0)
        given = [*self._random.sample(rows, min(2, len(rows))), *weights, size, limit]
        regions = []
        for _ in range(2):
            inner = Block([Value(v.type, v.name) for v in given])
            count = len(given) - len(weights) - 2
            own = inner.args
            found = self._fill(inner, own[:count], own[count:-2], own[-2], own[-1], depth)
            out = [found[-1], self._random.choice([*found, self._square(inner, own[count])])]
            self.graph.returns(out[0], out[1] if out[1].type == ROWS else found[0], block=inner)
            regions.append(inner)
        return list(self.graph.insert(COND, test, tuple(given), regions=tuple(regions), block=block).results)

    def _square(self, block: Block, weight: Value) -> Value:
        return self._one(block, "square.default", weight)

    def _while(
        self, block: Block, rows: list[Value], weights: list[Value], size: Value, limit: Value, depth: int
    ) -> list[Value]:
        zero = self._one(block, "scalar_tensor.default", 0, dtype=torch.int64)
        carried, closed = (zero, self._random.choice(rows), weights[0]), (*weights, size, limit)
        test, body = (Block([Value(v.type, v.name) for v in (*carried, *closed)]) for _ in range(2))
        self.graph.returns(self._one(test, "lt.Tensor", test.args[0], test.args[-1]), block=test)
        i, x, w, *own, inner_size, inner_limit = body.args
        found = self._fill(body, [x], [*own, w], inner_size, inner_limit, depth)
        bounded = self._one(body, "tanh.default", found[-1])
        swapped = self._random.choice([w, self._one(body, "neg.default", w)])
        self.graph.returns(self._one(body, "add.Tensor", i, 1), bounded, swapped, block=body)
        made = self.graph.insert(WHILE, carried, closed, regions=(test, body), block=block)
        return [self._one(block, "linear.default", made.results[1], made.results[2])]
