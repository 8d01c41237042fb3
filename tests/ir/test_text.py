"""``show``: one spelling for each graph, the same in every run; ``parse`` reads it back exactly."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from ir import RETURN, Arg, Graph, Origin, TensorType, op, parse, show, verify
from ir.text import name_values, show_arg
from tests.corpus import CORPUS, load
from tests.random_graphs import graphs

F2 = TensorType(torch.float32, (2,))


@pytest.mark.parametrize("name", CORPUS)
def test_show_is_the_inverse_of_parse_on_the_corpus(name: str) -> None:
    graph = load(name)
    assert show(graph) == CORPUS[name]
    assert show(parse(CORPUS[name])) == CORPUS[name]
    verify(graph)


@given(graphs())
def test_show_is_the_inverse_of_parse_on_random_graphs(graph: Graph) -> None:
    text = show(graph)
    again = parse(text, graph.weights)
    assert show(again) == text
    verify(again)


def test_the_whole_graph_comes_back() -> None:
    graph = load("cond_nested")
    again = parse(show(graph))
    for old, new in zip(graph.walk(), again.walk(), strict=True):
        assert (old.op, old.origin, dict(old.hints)) == (new.op, new.origin, dict(new.hints))
        assert [v.type for v in old.results] == [v.type for v in new.results]
    assert again.dims == graph.dims
    assert again.outputs == graph.outputs
    assert list(again.inputs.values()) == list(graph.inputs.values())


@pytest.mark.parametrize(
    ("literal", "text"),
    [
        (None, "None"),
        (True, "True"),
        (1, "1"),
        (-(2**63), "-9223372036854775808"),
        (1.0, "1.0"),
        (-0.0, "-0.0"),
        (1e-300, "1e-300"),
        (1e22, "1e+22"),
        (0.1 + 0.2, "0.30000000000000004"),
        (math.inf, "!inf"),
        (-math.inf, "!-inf"),
        (math.nan, "!nan"),
        (1.5 - 2j, "!complex(1.5,-2.0)"),
        (complex(math.inf, math.nan), "!complex(inf,nan)"),
        ("tanh", '"tanh"'),
        ('a "b" \\ # é\n', '"a \\"b\\" \\\\ # \\u00e9\\n"'),
        (torch.float32, "!f32"),
        (torch.complex128, "!c128"),
        (torch.device("cpu"), "!device(cpu)"),
        (torch.device("cuda", 1), "!device(cuda:1)"),
        (torch.strided, "!strided"),
        (torch.sparse_coo, "!sparse_coo"),
        (torch.channels_last, "!channels_last"),
        (torch.contiguous_format, "!contiguous_format"),
        ((), "[]"),
        ((1, (2.0, None), ()), "[1, [2.0, None], []]"),
    ],
)
def test_literals(literal: Arg, text: str) -> None:
    assert show_arg(literal, {}) == text
    graph = Graph()
    graph.insert(op("aten.full.default"), literal, types=(F2,))
    graph.returns()
    (node, _) = parse(show(graph))
    assert repr(node.args) == repr((literal,))


def test_names_are_unique_and_printable() -> None:
    graph = Graph()
    values = [graph.add_input("input", f"{i}", F2, name) for i, name in enumerate(["a.b", "a b", "a_b", "a_b_1", ""])]
    unnamed = graph.insert(op("aten.exp.default"), values[0])
    graph.returns(unnamed.result)
    assert list(name_values(graph).values()) == ["a_b", "a_b_1", "a_b_2", "a_b_1_1", "4", "exp"]
    assert show(parse(show(graph))) == show(graph)


def test_origins_survive_in_any_spelling() -> None:
    for origin in (Origin("layer.0", "m.py:3"), Origin(line="m.py:3"), Origin("layer"), Origin("a # b", "x y.py:1")):
        graph = Graph()
        graph.insert(op("aten.zeros.default"), (2,), origin=origin)
        graph.returns()
        (node, _) = parse(show(graph))
        assert node.origin == origin


def test_mark_and_surroundings() -> None:
    graph = load("pointwise")
    node = next(n for n in graph if n.op.name == "aten.silu.default")
    lines = show(graph, mark=node, around=2).splitlines()
    assert len(lines) == 5
    assert [line.startswith("-> ") for line in lines] == [False, False, True, False, False]
    assert "aten.silu.default" in lines[2]
    assert show(graph, mark=node).count("-> ") == 1


def test_a_mark_within_a_region() -> None:
    graph = load("cond_nested")
    node = next(n for n in graph.walk() if n.op.name == "aten.cos.default")
    assert "-> %cos" in show(graph, mark=node, around=1)
    returned = next(n for n in graph.walk() if n.op is RETURN and n.block is node.block)
    assert "-> return %cos" in show(graph, mark=returned)
