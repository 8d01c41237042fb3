"""Cells of control flow: every region operator, both ways and in each other, with inputs that take each path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from ir import ROWS, Arg, DimRange, Graph, Output, TensorType, Value, op, parse, symbol, verify
from ir.reexport import example_inputs
from ir.rows import lowered
from ir.rowwise import mixing
from tests.corpus import CORPUS, add_weights, load

_HEAD = 'penstock-ir 1\ngraph "region"\n'
EXIT = (
    _HEAD
    + """dim n [1, 64]
input %x: f32[n, 4] "x"
param %w: f32[4, 4] "w"
%top: f32[] = aten.mean.default(%x)
%sure: bool[] = aten.gt.Scalar(%top, 0.0)
%y: f32[n, 4] = cond(%sure, [%x, %w]) do
region(%a: f32[n, 4], %b: f32[4, 4])
  %c: f32[n, 4] = aten.clone.default(%a)
  return %c
end
region(%a2: f32[n, 4], %b2: f32[4, 4])
  %d: f32[n, 4] = aten.linear.default(%a2, %b2)
  %e: f32[n, 4] = aten.linear.default(%d, %b2)
  return %e
end
%z: f32[n, 4] = aten.add.Tensor(%y, %x)
return "z" %z
"""
)

NESTED = (
    _HEAD
    + """dim n [1, 64]
input %x: f32[n, 4] "x"
param %w: f32[4, 4] "w"
%n1: int<n> = aten.sym_size.int(%x, 0)
%many: bool = sym.gt(%n1, 2)
%y: f32[n, 4], %k: f32[] = cond(%many, [%x, %w, %n1]) do
region(%a: f32[n, 4], %b: f32[4, 4], %s: int<n>)
  %top: f32[] = aten.mean.default(%a)
  %low: bool[] = aten.lt.Scalar(%top, 0.0)
  %r: f32[n, 4] = cond(%low, [%a, %b]) do
  region(%a1: f32[n, 4], %b1: f32[4, 4])
    %m: f32[n, 4] = aten.matmul.default(%a1, %b1)
    return %m
  end
  region(%a2: f32[n, 4], %b2: f32[4, 4])
    return %a2
  end
  %one: f32[] = aten.scalar_tensor.default(1.0)
  return %r, %one
end
region(%a3: f32[n, 4], %b3: f32[4, 4], %s3: int<n>)
  %f: f32[n, 2] = aten.full.default([%s3, 2], 3.0)
  %g: f32[n, 4] = aten.cat.default([%f, %f], 1)
  %h: f32[] = aten.sum.default(%g)
  return %g, %h
end
return "y" %y, "k" %k
"""
)

LOOP = (
    _HEAD
    + """dim n [1, 64]
input %x: f32[n, 4] "x"
input %limit: i64[] "limit"
param %w: f32[4, 4] "w"
%zero: i64[] = aten.scalar_tensor.default(0, dtype=!i64)
%i: i64[], %y: f32[n, 4] = while([%zero, %x], [%limit, %w]) do
region(%i0: i64[], %y0: f32[n, 4], %l0: i64[], %w0: f32[4, 4])
  %more: bool[] = aten.lt.Tensor(%i0, %l0)
  return %more
end
region(%i1: i64[], %y1: f32[n, 4], %l1: i64[], %w1: f32[4, 4])
  %next: i64[] = aten.add.Tensor(%i1, 1)
  %p: f32[n, 4] = aten.linear.default(%y1, %w1)
  %odd: i64[] = aten.remainder.Scalar(%i1, 2)
  %is_odd: bool[] = aten.eq.Scalar(%odd, 1)
  %q: f32[n, 4] = cond(%is_odd, [%p]) do
  region(%p1: f32[n, 4])
    %t: f32[n, 4] = aten.tanh.default(%p1)
    return %t
  end
  region(%p2: f32[n, 4])
    return %p2
  end
  return %next, %q
end
return "i" %i, "y" %y
"""
)

LOOP_IN_BRANCH = (
    _HEAD
    + """dim n [1, 64]
input %x: f32[n, 4] "x"
input %limit: i64[] "limit"
%zero: i64[] = aten.scalar_tensor.default(0, dtype=!i64)
%top: f32[] = aten.mean.default(%x)
%go: bool[] = aten.gt.Scalar(%top, 0.0)
%y: f32[n, 4], %k: i64[] = cond(%go, [%x, %zero, %limit]) do
region(%a: f32[n, 4], %z: i64[], %l: i64[])
  %i: i64[], %b: f32[n, 4] = while([%z, %a], [%l]) do
  region(%i0: i64[], %b0: f32[n, 4], %l0: i64[])
    %more: bool[] = aten.lt.Tensor(%i0, %l0)
    return %more
  end
  region(%i1: i64[], %b1: f32[n, 4], %l1: i64[])
    %next: i64[] = aten.add.Tensor(%i1, 1)
    %c: f32[n, 4] = aten.mul.Scalar(%b1, -0.5)
    return %next, %c
  end
  return %b, %i
end
region(%a2: f32[n, 4], %z2: i64[], %l2: i64[])
  return %a2, %l2
end
return "y" %y, "k" %k
"""
)

UNTIL = (
    _HEAD
    + """dim n [1, 64]
input %x: f32[n, 4] "x"
%size: int<n> = aten.sym_size.int(%x, 0)
%none: f32[] = aten.scalar_tensor.default(0.0)
%sum: f32[], %y: f32[n, 4] = while([%none, %x], [%size]) do
region(%t0: f32[], %y0: f32[n, 4], %s0: int<n>)
  %most: f32[] = aten.amax.default(%y0)
  %more: bool[] = aten.gt.Scalar(%most, 0.1)
  return %more
end
region(%t1: f32[], %y1: f32[n, 4], %s1: int<n>)
  %half: f32[n, 4] = aten.div.Scalar(%y1, 2)
  %per: f32[] = aten.add.Tensor(%t1, %s1)
  return %per, %half
end
return "sum" %sum, "y" %y
"""
)


def _numbers() -> Graph:
    """Arithmetic on sizes that a call of one operator cannot show: on truth values, on fractions."""
    graph = Graph("numbers", {"n": DimRange(1, 64)})
    x = graph.add_input("input", "x", TensorType(torch.float32, (symbol("n"), 4)))

    def made(name: str, *args: Arg) -> Value:
        return graph.insert(op(name), *args).result

    n = made("aten.sym_size.int", x, 0)
    many, odd = made("sym.gt", n, 2), made("sym.eq", made("sym.mod", n, 2), 1)
    third = made("sym.truediv", n, 3)
    found = [made(f"sym.{k}", many, odd) for k in ("and", "or")]
    found += [made("sym.not", many), made("sym.ite", odd, n, made("sym.add", n, 7))]
    found += [made(f"sym.{k}", third) for k in ("ceil", "floor", "trunc", "round", "int")]
    results = [made("aten.scalar_tensor.default", v) for v in found]
    graph.returns(*results, outputs=[Output("output", f"y{i}") for i in range(len(results))])
    return graph


_TEXTS = {
    "cond: early exit, weights captured": EXIT,
    "cond: nested, on a size, sizes as operands, two results, a branch that returns its operand": NESTED,
    "while: 0, 1, n turns, a branch in the body": LOOP,
    "while in a branch of cond": LOOP_IN_BRANCH,
    "while: until the data says so, a size as operand": UNTIL,
}
LIMITS = (0, 1, 2, 5)
Runs = tuple[Mapping[str, torch.Tensor], ...]


def _parsed(text: str) -> Callable[[], Graph]:
    def make() -> Graph:
        graph = parse(text)
        add_weights(graph)
        verify(graph)
        return graph

    return make


def _lowered(name: str, mode: str) -> Callable[[], Graph]:
    return lambda: lowered(load(name), mode)


def regions() -> Mapping[str, Callable[[], Graph]]:
    """A graph by what it shows: those above, arithmetic on sizes, and every one of the corpus that holds a region."""
    found = {name: _parsed(text) for name, text in _TEXTS.items()}
    found["numbers made of sizes"] = _numbers
    for name, text in CORPUS.items():
        if "rows(" in text:
            found[f"{name}, compacted"] = _lowered(name, "compacted")
            if not any(mixing(node) for node in load(name).walk() if node.op is ROWS):
                found[f"{name}, masked"] = _lowered(name, "masked")
        elif "cond(" in text or "while(" in text:
            found[f"{name} of the corpus"] = lambda name=name: load(name)  # type: ignore[misc]
    return MappingProxyType(found)


def runs(graph: Graph) -> Runs:
    """Inputs at three sizes, whose floats are mixed, positive and negative; a ``limit`` counts up."""
    found: list[Mapping[str, torch.Tensor]] = []
    for seed, size in enumerate((1, 3, 6)):
        sizes = {name: max(size, bounds.min) for name, bounds in graph.dims.items()}
        for turn, change in enumerate((lambda x: x, torch.abs, lambda x: -x.abs())):
            made = example_inputs(graph, sizes, seed)
            made = {k: change(v) if v.is_floating_point() else v for k, v in made.items()}
            if "limit" in made:
                made["limit"] = torch.tensor(LIMITS[(seed + turn) % len(LIMITS)])
            found.append(made)
    return tuple(found)
