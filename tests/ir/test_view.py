"""The networkx picture of a graph and what is read off it."""

from __future__ import annotations

import networkx as nx
import pytest

from ir import COND, RETURN, Graph, Node
from ir.view import critical_path, cut, dominators, network
from tests.corpus import CORPUS, load


def node(graph: Graph, name: str) -> Node:
    return next(n for n in graph.walk() if n.op.name == name)


@pytest.mark.parametrize("name", CORPUS)
def test_the_picture_holds_each_node_in_execution_order(name: str) -> None:
    graph = load(name)
    picture = network(graph)
    assert list(picture) == list(graph)
    assert nx.is_directed_acyclic_graph(picture)
    place = {n: i for i, n in enumerate(graph)}
    assert all(place[a] < place[b] for a, b in picture.edges)
    assert all(set(picture.predecessors(n)) == {v.producer for v in n.operands} - {None} for n in picture)


def test_a_region_has_a_picture_of_its_own() -> None:
    graph = load("cond_nested")
    region = node(graph, "cond").regions[0]
    assert [n.op.name for n in network(region)] == ["aten.exp.default", "cond", "aten.mul.Tensor", "return"]


def test_the_critical_path_is_the_slowest_chain() -> None:
    graph = load("block")
    path = critical_path(graph, lambda n: 1.0)
    names = [n.op.name.split(".")[-2] if n.op is not RETURN else "return" for n in path]
    assert names == ["layer_norm", "linear", "gelu", "linear", "add", "return"]
    branches = load("swiglu")
    slow = node(branches, "aten.silu.default")
    assert slow in critical_path(branches, lambda n: 9.0 if n is slow else 1.0)
    up = [n for n in branches if n.op.name == "aten.linear.default"][1]
    assert up in critical_path(branches, lambda n: 9.0 if n is up else 1.0)
    assert [n.op for n in critical_path(load("empty"), lambda n: 1.0)] == [RETURN]


def test_post_dominators() -> None:
    graph = load("swiglu")
    via = dominators(graph)
    gate, up, down = (n for n in graph if n.op.name == "aten.linear.default")
    mul = node(graph, "aten.mul.Tensor")
    assert via[gate] is node(graph, "aten.silu.default")
    assert via[up] is mul
    assert via[mul] is down
    assert via[down] is graph.body.returned
    assert graph.body.returned not in via


def test_dead_nodes_have_no_dominator() -> None:
    graph = load("dead_code")
    assert node(graph, "aten.exp.default") not in dominators(graph)


def test_a_value_that_is_returned_leads_straight_out() -> None:
    graph = load("two_outputs")
    via = dominators(graph)
    assert via[node(graph, "aten.relu.default")] is graph.body.returned
    assert via[node(graph, "aten.linear.default")] is graph.body.returned


def test_what_a_partition_carries_across() -> None:
    graph = load("swiglu")
    gate, up, _ = (n for n in graph if n.op.name == "aten.linear.default")
    silu, mul = node(graph, "aten.silu.default"), node(graph, "aten.mul.Tensor")
    assert cut(graph, {gate, silu, up}) == [(silu, mul), (up, mul)]
    assert cut(graph, set(graph)) == []
    assert not [n for n in network(graph) if n.op is COND]
