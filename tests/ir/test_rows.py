"""``rows``: its two lowerings mean the same, its form is checked, and regions that mix rows are found out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ir import (
    ROWS,
    Block,
    DimRange,
    Graph,
    IRError,
    Node,
    TensorType,
    Value,
    interpret,
    map_values,
    parse,
    show,
    symbol,
    verify,
)
from ir.copy import copy_graph
from ir.reexport import to_exported
from ir.rows import MODES, lowered
from ir.rowwise import mixing
from tests import random_graphs
from tests.corpus import load
from tests.row_regions import LIVE, rows_of, some_inputs, the_rows

APART = {
    "pointwise": "%r: f32[u0, 3, 4] = aten.mul.Tensor(%a, %a)",
    "the row itself": "%r: f32[u0, 3, 4] = aten.clone.default(%a)",
    "linear": "%r: f32[u0, 3, 4] = aten.linear.default(%a, %c)",
    "beside": "%r: f32[u0, 3, 4] = aten.matmul.default(%b, %a)",
    "weights first": "%t: f32[4, 4] = aten.softmax.int(%c, 0)\n%r: f32[u0, 3, 4] = aten.matmul.default(%a, %t)",
    "attention": "%r: f32[u0, 3, 4] = aten.scaled_dot_product_attention.default(%a, %a, %a, %b)",
    "softmax": "%r: f32[u0, 3, 4] = aten.softmax.int(%a, -1)",
    "cumsum": "%r: f32[u0, 3, 4] = aten.cumsum.default(%a, 1)",
    "norm": "%r: f32[u0, 3, 4] = aten.layer_norm.default(%a, [3, 4])",
    "mean of the row": "%t: f32[u0] = aten.mean.dim(%a, [1, 2])\n%v: f32[u0, 1] = aten.unsqueeze.default(%t, 1)\n"
    "%q: f32[u0, 1, 1] = aten.unsqueeze.default(%v, -1)\n%r: f32[u0, 3, 4] = aten.sub.Tensor(%a, %q)",
    "turned": "%t: f32[3, u0, 4] = aten.permute.default(%a, [1, 0, 2])\n%s: f32[3, u0, 4] = aten.softmax.int(%t, 0)\n"
    "%r: f32[u0, 3, 4] = aten.transpose.int(%s, 0, 1)",
    "flattened": "%t: f32[3*u0, 4] = aten.reshape.default(%a, [-1, 4])\n%q: f32[3*u0, 4] = aten.mm.default(%t, %c)\n"
    "%n: int<u0> = aten.sym_size.int(%a, 0)\n%r: f32[u0, 3, 4] = aten.reshape.default(%q, [%n, 3, 4])",
    "constant rows": "%n: int<u0> = aten.sym_size.int(%a, 0)\n%o: f32[u0, 1, 4] = aten.full.default([%n, 1, 4], 0.5)\n"
    "%r: f32[u0, 3, 4] = aten.add.Tensor(%a, %o)",
    "expanded": "%n: int<u0> = aten.sym_size.int(%a, 0)\n%t: f32[4] = aten.select.int(%c, 0, 1)\n"
    "%o: f32[u0, 3, 4] = aten.expand.default(%t, [%n, 3, 4])\n%r: f32[u0, 3, 4] = aten.maximum.default(%a, %o)",
    "pieces": "%t0: f32[u0, 3, 2], %t1: f32[u0, 3, 2] = aten.split.Tensor(%a, 2, -1)\n"
    "%r: f32[u0, 3, 4] = aten.cat.default([%t1, %t0], 2)",
    "picks within": "%t: i64[u0, 3, 4] = aten.argsort.default(%a, 1)\n"
    "%r: f32[u0, 3, 4] = aten.gather.default(%a, 1, %t)",
}  # fmt: skip
TOGETHER = {
    "mean over the rows": (
        "%t: f32[1, 3, 4] = aten.mean.dim(%a, [0], True)\n%r: f32[u0, 3, 4] = aten.sub.Tensor(%a, %t)",
        "aten.mean.dim reduces over the rows",
    ),
    "one number of all": (
        "%t: f32[] = aten.sum.default(%a)\n%r: f32[u0, 3, 4] = aten.sub.Tensor(%a, %t)",
        "aten.sum.default reduces over the rows",
    ),
    "softmax over the rows": (
        "%r: f32[u0, 3, 4] = aten.softmax.int(%a, 0)",
        "aten.softmax.int works along the axis of the rows",
    ),
    "running sum": (
        "%r: f32[u0, 3, 4] = aten.cumsum.default(%a, 0)",
        "aten.cumsum.default works along the axis of the rows",
    ),
    "reversed": (
        "%r: f32[u0, 3, 4] = aten.flip.default(%a, [0])",
        "aten.flip.default works along the axis of the rows",
    ),
    "numbered": (
        "%n: int<u0> = aten.sym_size.int(%a, 0)\n%t: f32[u0] = aten.arange.default(%n, dtype=!f32)\n"
        "%q: f32[u0, 1, 1] = aten.reshape.default(%t, [-1, 1, 1])\n%r: f32[u0, 3, 4] = aten.add.Tensor(%a, %q)",
        "aten.arange.default computes with the number of rows",
    ),
    "counted": (
        "%n: int<u0> = aten.sym_size.int(%a, 0)\n%r: f32[u0, 3, 4] = aten.mul.Scalar(%a, %n)",
        "aten.mul.Scalar computes with the number of rows",
    ),
    "filled with the count": (
        "%n: int<u0> = aten.sym_size.int(%a, 0)\n%r: f32[u0, 3, 4] = aten.full.default([%n, 3, 4], %n, dtype=!f32)",
        "aten.full.default computes with the number of rows",
    ),
    "attends across": (
        "%t: f32[3, u0, 4] = aten.permute.default(%a, [1, 0, 2])\n"
        "%s: f32[3, u0, 4] = aten.scaled_dot_product_attention.default(%t, %t, %t)\n"
        "%r: f32[u0, 3, 4] = aten.permute.default(%s, [1, 0, 2])",
        "aten.scaled_dot_product_attention.default attends across the rows",
    ),
    "one scale for all": (
        "%q: i8[4, 4] = aten.to.dtype(%c, !i8)\n%s: f32[4] = aten.select.int(%c, 0, 0)\n"
        "%r: f32[u0, 3, 4] = penstock.int8_linear_dynamic.default(%a, %q, %s, None)",
        "penstock.int8_linear_dynamic.default quantizes with one scale for all rows",
    ),
    "regrouped": (
        "%t: f32[3, u0, 4] = aten.permute.default(%a, [1, 0, 2])\n"
        "%q: f32[3*u0, 4] = aten.reshape.default(%t, [-1, 4])\n"
        "%n: int<u0> = aten.sym_size.int(%a, 0)\n%r: f32[u0, 3, 4] = aten.reshape.default(%q, [%n, 3, 4])",
        "aten.reshape.default regroups across the rows",
    ),
    "at random": ("%r: f32[u0, 3, 4] = aten.rand_like.default(%a)", "aten.rand_like.default draws at random"),
}


def agree(graph: Graph, inputs: dict[str, torch.Tensor], mode: str) -> bool:
    want, got = interpret(graph, inputs), interpret(lowered(graph, mode), inputs)
    return all(torch.allclose(got[k], want[k], rtol=1e-5, atol=1e-6, equal_nan=True) for k in want)


@pytest.mark.parametrize("name", APART)
def test_regions_that_keep_rows_apart_are_proven_and_lower_to_equal_results(name: str) -> None:
    graph = rows_of(APART[name])
    assert mixing(the_rows(graph)) == ""
    for mode in MODES:
        verify(lowered(graph, mode))
        assert agree(graph, some_inputs(1, ()), mode) and agree(graph, some_inputs(1, (0,)), mode)
        assert all(agree(graph, some_inputs(8, live), mode) for live in LIVE.values())


@pytest.mark.parametrize("name", TOGETHER)
def test_regions_that_mix_rows_are_found_out(name: str) -> None:
    body, why = TOGETHER[name]
    graph = rows_of(body)
    assert mixing(the_rows(graph)) == why
    torch.manual_seed(0)
    assert not agree(graph, some_inputs(8, LIVE["some"]), "masked"), "the two lowerings differ: the answer matters"


def test_a_row_that_is_not_live_comes_out_as_it_went_in() -> None:
    graph = rows_of("%r: f32[u0, 3, 4] = aten.add.Scalar(%a, 1.0)")
    inputs = some_inputs(8, LIVE["some"])
    y = interpret(graph, inputs)["y"] - inputs["x"]
    assert [bool(row.abs().max() > 0.5) for row in y] == inputs["live"].tolist()


def test_a_size_that_was_fixed_is_a_type_error() -> None:
    with pytest.raises(IRError, match="does not accept"):
        rows_of("%r: f32[u0, 3, 4] = aten.reshape.default(%a, [8, 3, 4])")


def test_rows_of_rows_lower_from_the_outside_in() -> None:
    graph = load("rows_nested")
    assert [mixing(n) for n in graph.walk() if n.op is ROWS] == ["", ""]
    for mode in MODES:
        made = lowered(graph, mode)
        verify(made)
        assert not any(n.op is ROWS for n in made.walk())
        for seed in range(4):
            x = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed))
            assert agree(graph, {"x": x}, mode)
    assert lowered(made, "masked") is made, "what has no rows is left alone"


def test_an_inner_region_that_mixes_is_found_out() -> None:
    text = """%t: f32[u0] = aten.amax.default(%a, [1, 2])
    %l: bool[u0] = aten.gt.Scalar(%t, 0.5)
    %r: f32[u0, 3, 4] = rows(%l, [%a], [], []) do
    region(%i: f32[u1, 3, 4])
      %o: f32[u1, 3, 4] = aten.softmax.int(%i, 0)
      return %o
    end"""
    assert mixing(the_rows(rows_of(text))) == "rows holds aten.softmax.int works along the axis of the rows"


def test_a_graph_with_rows_goes_back_to_torch() -> None:
    graph = load("rows")
    inputs = {"x": torch.randn(4, 3, 4), "mask": torch.ones(4, 1, 3, dtype=torch.bool)}
    made = to_exported(graph, inputs).module()(*inputs.values())
    for got, want in zip(made, interpret(graph, inputs).values(), strict=True):
        torch.testing.assert_close(got, want)


FAULTS = {
    "live of another type": ("input %live: bool[n]", "input %live: i64[n]", "not one boolean per row"),
    "live of another rank": ("input %live: bool[n]", "input %live: bool[n, 1]", "not one boolean per row"),
    "other rows": ("input %m: f32[n, 3, 3]", "input %m: f32[3, 3, 3]", "not one row per element of live"),
    "nothing carried": ("rows(%live, [%x], [%m], [%w])", "rows(%live, [], [%x, %m], [%w])", "rows carries nothing"),
    "three arguments": ("rows(%live, [%x], [%m], [%w])", "rows(%live, [%x], [%m, %w])", "three lists"),
    "a literal": ("[%w]) do", "[1.0]) do", "takes values only"),
    "fixed rows": ("%a: f32[u0, 3, 4], %b: f32[u0,", "%a: f32[8, 3, 4], %b: f32[8,", "counted by a symbol"),
    "the batch inside": ("%a: f32[u0, 3, 4], %b: f32[u0,", "%a: f32[n, 3, 4], %b: f32[n,", "counted by a symbol"),
    "other arguments": ("%b: f32[u0, 3, 3]", "%b: f32[u0, 3, 1]", "the region takes"),
    "another result": ("return %r\n", "return %b\n", "the region returns"),
    "two results": ("return %r\n", "return %r, %r\n", "the region returns"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_form_are_told(name: str) -> None:
    old, new, told = FAULTS[name]
    text = show(rows_of("%r: f32[u0, 3, 4] = aten.relu.default(%a)"))
    assert old in text
    graph = parse(text.replace(old, new))
    with pytest.raises(IRError, match=told):
        verify(graph)


def test_an_unknown_lowering_is_refused() -> None:
    with pytest.raises(IRError, match="compacted or masked"):
        lowered(rows_of(APART["linear"]), "fast")


@st.composite
def regions(draw: random_graphs.Draw) -> Graph:
    """A graph whose only node is ``rows`` over a random region; some of them mix rows."""
    b = random_graphs.Builder(draw)
    n, u = symbol("n"), symbol("u0")
    graph = b.graph = Graph("rows", {"n": DimRange(1, 64)})
    live = graph.add_input("input", "live", TensorType(torch.bool, (n,)))
    x = graph.add_input("input", "x", TensorType(torch.float32, (n, 3, 4)))
    b.block = Block([Value(TensorType(torch.float32, (u, 3, 4)), "a")])
    b.floats = list(b.block.args)
    steps = [
        s for s in random_graphs.STEPS if s not in (random_graphs.branch, random_graphs.cast, random_graphs.live_rows)
    ]
    for step in draw(st.lists(st.sampled_from(steps), min_size=1, max_size=6)):
        value = b.any_float()
        if 0 < value.tensor.rank < 6 and (made := step(b, value)) is not None:
            b.floats.append(made)
    same = [v for v in b.floats if v.type == b.floats[0].type]
    graph.returns(same[-1], block=b.block)
    closed = _close(graph, b.block)
    types = (x.type,)
    node = graph.insert(ROWS, live, (x,), (), closed, regions=(b.block,), types=types)
    graph.returns(node.result)
    verify(graph)
    return graph


def _close(graph: Graph, block: Block) -> tuple[Value, ...]:
    """Make closed arguments of what a region reads from outside."""
    inside = {*block.args, *(v for node in block for v in node.results)}
    table: dict[Value, Value] = {}

    def read(value: Value) -> Value:
        return value if value in inside else table.setdefault(value, Value(value.type, value.name))

    for node in block:
        args = tuple(map_values(a, read) for a in node.args)
        graph.set_arguments(node, args, {k: map_values(a, read) for k, a in node.kwargs.items()})
    block.args += table.values()
    return tuple(table)


@settings(max_examples=60, deadline=None)
@given(graph=regions())
def test_what_is_proven_is_true(graph: Graph) -> None:
    node = the_rows(graph)
    apart = mixing(node) == ""
    for live in LIVE.values():
        inputs = {k: v for k, v in some_inputs(8, live).items() if k != "m"}
        want = interpret(graph, inputs)["output_0"]
        if apart:
            got = interpret(lowered(graph, "masked"), inputs)["output_0"]
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, equal_nan=True)
        torch.testing.assert_close(interpret(lowered(graph, "compacted"), inputs)["output_0"], want, equal_nan=True)


def test_a_copy_holds_its_own_region() -> None:
    graph = load("rows")
    made = copy_graph(graph)
    lowered(graph, "masked")
    verify(graph)
    verify(made)
    first: Node = the_rows(graph)
    assert the_rows(made).regions[0] is not first.regions[0]
