"""Random graphs that are well typed by construction: each step draws an operator and operands that fit.

Graphs have dynamic dims, weights, literals that fold, duplicates, dead ends, no-ops and now and then a branch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from hypothesis import strategies as st

from ir import COND, ROWS, Arg, Block, DimRange, Graph, Origin, TensorType, Value, op, symbol, verify
from tests.corpus import weight

Draw = st.DrawFn
Step = Callable[["Builder", Value], "Value | None"]
WIDTHS = (2, 4, 6)
UNARY = ("relu", "sigmoid", "tanh", "neg", "exp", "silu", "gelu", "abs", "sin", "square")
BINARY = ("add.Tensor", "sub.Tensor", "mul.Tensor", "maximum.default", "div.Tensor")
NO_OPS = ("alias", "detach", "clone", "contiguous")


class Builder:
    """A graph while it grows: the float values so far, and the hypothesis draw that decides."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.graph = Graph("random", {"n": DimRange(1, 9), "m": DimRange(2, 8)})
        self.block: Block | None = None
        self.floats: list[Value] = []

    def choose(self, *options: object) -> object:
        return self.draw(st.sampled_from(options))

    def add(self, name: str, *args: Arg, **kwargs: Arg) -> tuple[Value, ...]:
        full = name if name.startswith("aten.") else f"aten.{name}"
        full += ".default" if full.count(".") == 1 else ""
        origin = Origin("block", f"random.py:{len(self.graph) + 1}")
        return self.graph.insert(op(full), *args, block=self.block, origin=origin, kwargs=kwargs).results

    def one(self, name: str, *args: Arg, **kwargs: Arg) -> Value:
        return self.add(name, *args, **kwargs)[0]

    def param(self, *shape: int) -> Value:
        name = f"w{len(self.graph.weights)}"
        return self.graph.add_param(name, weight(name, TensorType(torch.float32, shape)))

    def like(self, x: Value) -> Value:
        """A value of the same type as x, often x itself."""
        return self.draw(st.sampled_from([v for v in self.floats if v.type == x.type] or [x]))

    def any_float(self) -> Value:
        return self.draw(st.sampled_from(self.floats[-6:]))


def _width(x: Value) -> int | None:
    """The last dim of x where it is a number."""
    shape = x.tensor.shape
    return shape[-1] if shape and isinstance(shape[-1], int) else None


def _axis(b: Builder, x: Value) -> int:
    return b.draw(st.integers(-x.tensor.rank, x.tensor.rank - 1))


def unary(b: Builder, x: Value) -> Value:
    return b.one(str(b.choose(*UNARY)), x)


def binary(b: Builder, x: Value) -> Value:
    return b.one(str(b.choose(*BINARY)), x, b.like(x))


def scalar(b: Builder, x: Value) -> Value:
    name = str(b.choose("add.Tensor", "mul.Tensor", "add.Scalar", "mul.Scalar", "sub.Scalar", "div.Tensor"))
    return b.one(name, x, b.choose(0, 1, 1.0, 2, 0.5, -3.0))  # type: ignore[arg-type]


def no_op(b: Builder, x: Value) -> Value:
    return b.one(str(b.choose(*NO_OPS)), x)


def cast(b: Builder, x: Value) -> Value:
    wide = b.one("to.dtype", x, b.choose(torch.float32, torch.float64, torch.bfloat16))  # type: ignore[arg-type]
    return b.one("to.dtype", wide, torch.float32)


def linear(b: Builder, x: Value) -> Value | None:
    width = _width(x)
    if width is None:
        return None
    out = b.draw(st.sampled_from(WIDTHS))
    bias = (b.param(out),) if b.draw(st.booleans()) else ()
    return b.one("linear", x, b.param(out, width), *bias)


def matmul_folded(b: Builder, x: Value) -> Value | None:
    """A product with a weight that is transposed and scaled first: foldable."""
    width = _width(x)
    if width is None:
        return None
    turned = b.one("t", b.param(b.draw(st.sampled_from(WIDTHS)), width))
    return b.one("matmul", x, b.one("mul.Tensor", turned, 2.0))


def attention(b: Builder, x: Value) -> Value | None:
    if x.tensor.rank < 2:
        return None
    scores = b.one("matmul", x, b.one("transpose.int", x, -2, -1))
    return b.one("matmul", b.one("softmax.int", b.one("mul.Tensor", scores, 0.25), -1), x)


def transpose(b: Builder, x: Value) -> Value | None:
    return b.one("transpose.int", x, _axis(b, x), _axis(b, x)) if x.tensor.rank > 1 else None


def permute(b: Builder, x: Value) -> Value:
    return b.one("permute", x, tuple(b.draw(st.permutations(range(x.tensor.rank)))))


def unsqueezed(b: Builder, x: Value) -> Value | None:
    if x.tensor.rank > 3:
        return None
    axis = b.draw(st.integers(0, x.tensor.rank))
    y = b.one("unsqueeze", x, axis)
    return b.one("squeeze.dim", y, axis) if b.draw(st.booleans()) else y


def reshape(b: Builder, x: Value) -> Value | None:
    width = _width(x)
    if width is None or width % 2 or x.tensor.rank > 3:
        return None
    if b.draw(st.booleans()):
        return b.one("unflatten.int", x, -1, (2, width // 2))
    return b.one("reshape", x, (-1, width)) if x.tensor.rank > 1 else None


def sliced(b: Builder, x: Value) -> Value | None:
    width = _width(x)
    if width is None or width < 2:
        return None
    start = b.draw(st.integers(0, 1))
    return b.one("slice.Tensor", x, -1, start, b.choose(width, width - 1, 2**63 - 1))  # type: ignore[arg-type]


def concatenated(b: Builder, x: Value) -> Value:
    parts = (x, b.like(x)) if b.draw(st.booleans()) else (x,)
    return b.one("cat", parts, _axis(b, x))


def split(b: Builder, x: Value) -> Value | None:
    width = _width(x)
    if width is None or width < 4:
        return None
    return b.draw(st.sampled_from(b.add("split.Tensor", x, 2, -1)))


def softmax(b: Builder, x: Value) -> Value:
    return b.one("softmax.int", x, _axis(b, x))


def layer_norm(b: Builder, x: Value) -> Value | None:
    width = _width(x)
    return None if width is None else b.one("layer_norm", x, (width,), b.param(width), b.param(width), 1e-5)


def rms_norm(b: Builder, x: Value) -> Value | None:
    width = _width(x)
    if width is None:
        return None
    mean = b.one("mean.dim", b.one("pow.Tensor_Scalar", x, 2), (-1,), True)
    return b.one("mul.Tensor", b.one("mul.Tensor", x, b.one("rsqrt", b.one("add.Tensor", mean, 1e-6))), b.param(width))


def reduced(b: Builder, x: Value) -> Value:
    name = str(b.choose("sum.dim_IntList", "mean.dim", "amax.default"))
    return b.one(name, x, (_axis(b, x),), bool(b.draw(st.booleans())))


def largest(b: Builder, x: Value) -> Value:
    return b.add("max.dim", x, _axis(b, x))[0]


def where(b: Builder, x: Value) -> Value:
    return b.one("where.self", b.one("gt.Scalar", x, 0.0), x, b.like(x))


def masked(b: Builder, x: Value) -> Value:
    return b.one("masked_fill.Scalar", x, b.one("lt.Scalar", x, -1.0), b.choose(0.0, -1e9))  # type: ignore[arg-type]


def dropout(b: Builder, x: Value) -> Value:
    return b.one("dropout", x, 0.5, False)


def constant(b: Builder, x: Value) -> Value:
    full = b.one("full", (1,), b.choose(0, 1, 0.5), dtype=torch.float32)  # type: ignore[arg-type]
    return b.one("mul.Tensor", x, b.one("add.Tensor", full, 1.0))


def duplicate(b: Builder, x: Value) -> Value:
    name = str(b.choose(*UNARY))
    return b.one("add.Tensor", b.one(name, x), b.one(name, x))


def dead(b: Builder, x: Value) -> None:
    b.add("topk", x, 1, -1)
    b.one("exp", b.one("neg", x))


def branch(b: Builder, x: Value) -> Value | None:
    if b.block is not None:
        return None
    predicate = b.one("gt.Scalar", b.one("sum", x), 0.0)
    regions = []
    for step in (unary, duplicate):
        b.block = Block([Value(x.type, "x")])
        b.graph.returns(step(b, b.block.args[0]), block=b.block)
        regions.append(b.block)
    b.block = None
    made = b.graph.insert(COND, predicate, (x,), regions=tuple(regions), origin=Origin("gate", "random.py:1"))
    return made.result


def live_rows(b: Builder, x: Value) -> Value | None:
    """Work on those rows whose mean is positive; rows are apart, since ``x`` is over the batch."""
    if b.block is not None or x.tensor.rank < 2 or x.tensor.shape[0] != symbol("n"):
        return None
    live = b.one("gt.Scalar", b.one("mean.dim", x, tuple(range(1, x.tensor.rank))), 0.0)
    width = _width(x)
    closed = () if width is None else (b.param(width, width),)
    inner = Value(TensorType(x.tensor.dtype, (symbol("u0"), *x.tensor.shape[1:])), "x")
    b.block = Block([inner, *(Value(v.type, "w") for v in closed)])
    y = unary(b, inner)
    if closed:
        y = b.one("linear", y, b.block.args[1])
    b.graph.returns(duplicate(b, y), block=b.block)
    regions, b.block = (b.block,), None
    origin = Origin("early", "random.py:2")
    return b.graph.insert(ROWS, live, (x,), (), closed, regions=regions, origin=origin).result


STEPS: tuple[Step, ...] = (
    unary, binary, scalar, no_op, cast, linear, matmul_folded, attention, transpose, permute, unsqueezed, reshape,
    sliced, concatenated, split, softmax, layer_norm, rms_norm, reduced, largest, where, masked, dropout, constant,
    duplicate, dead, branch, live_rows,
)  # fmt: skip


@st.composite
def graphs(draw: Draw, most: int = 10) -> Graph:
    """A verified graph of at most ``most`` steps, with its weights."""
    b = Builder(draw)
    n, m = symbol("n"), symbol("m")
    shapes: Mapping[str, tuple[object, ...]] = {"x": (n, 4), "y": (n, m, 6), "z": (2, 4)}
    for name, shape in shapes.items():
        b.floats.append(b.graph.add_input("input", name, TensorType(torch.float32, shape)))  # type: ignore[arg-type]
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=3, max_size=most)):
        x = b.any_float()
        if x.tensor.rank == 0 or x.tensor.rank > 5:
            continue
        made = step(b, x)
        if made is not None:
            b.floats.append(made)
    results = draw(st.lists(st.sampled_from(b.floats[-4:]), min_size=1, max_size=3))
    b.graph.returns(*results)
    verify(b.graph)
    return b.graph
