"""``verify`` catches each planted fault, and shows the IR around it with the faulty line marked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ir import (
    Block,
    Fact,
    Graph,
    Input,
    IRError,
    Node,
    Output,
    ParseError,
    ScalarType,
    TensorType,
    Value,
    op,
    symbol,
    verify,
)
from ir.verify import same_type
from tests.corpus import CORPUS, load

Fault = Callable[[Graph], object]
F4 = TensorType(torch.float32, (4,))


def node(graph: Graph, name: str) -> Node:
    return next(n for n in graph.walk() if n.op.name == name)


def wrong_shape(graph: Graph) -> None:
    node(graph, "aten.linear.default").result.type = TensorType(torch.float32, (symbol("n"), 5))


def wrong_dtype(graph: Graph) -> None:
    node(graph, "aten.sin.default").result.type = TensorType(torch.float64, (symbol("n"), 4))


def wrong_number_of_results(graph: Graph) -> None:
    exp = node(graph, "aten.relu.default")
    exp.results = (*exp.results, Value(F4, "more", exp))


def refused_operands(graph: Graph) -> None:
    linear = node(graph, "aten.linear.default")
    graph.set_arguments(linear, (linear.args[1], linear.args[0]))


def use_before_definition(graph: Graph) -> None:
    relu = node(graph, "aten.relu.default")
    block = relu.block
    assert block is not None
    block.unlink(relu)
    block.link(relu, block.first)


def value_of_another_graph(graph: Graph) -> None:
    graph.set_arguments(node(graph, "aten.relu.default"), (load("cond").body.args[0],))


def outer_value_in_a_region(graph: Graph) -> None:
    graph.set_arguments(node(graph, "aten.sin.default"), (graph.body.args[0],))


def forgotten_use(graph: Graph) -> None:
    graph.body.args[0].uses.clear()


def false_use(graph: Graph) -> None:
    graph.body.args[0].uses[node(graph, "aten.relu.default")] = None


def forgotten_use_in_a_region(graph: Graph) -> None:
    node(graph, "cond").regions[0].args[0].uses.clear()


def use_by_an_erased_node(graph: Graph) -> None:
    relu = node(graph, "aten.relu.default")
    spare = graph.insert(op("aten.exp.default"), relu.result, before=graph.body.returned)
    graph.erase(spare)
    relu.result.uses[spare] = None


def foreign_producer(graph: Graph) -> None:
    node(graph, "aten.relu.default").result.producer = node(graph, "aten.sum.default")


def foreign_block(graph: Graph) -> None:
    node(graph, "aten.relu.default").block = Block()


def no_return(graph: Graph) -> None:
    graph.body.unlink(graph.body.returned)


def return_in_the_middle(graph: Graph) -> None:
    graph.insert(op("aten.zeros.default"), (1,))


def one_region(graph: Graph) -> None:
    cond = node(graph, "cond")
    cond.regions = cond.regions[:1]


def region_of_a_plain_node(graph: Graph) -> None:
    node(graph, "aten.relu.default").regions = node(graph, "cond").regions


def region_takes_too_little(graph: Graph) -> None:
    node(graph, "cond").regions[1].args.pop()


def region_takes_another_type(graph: Graph) -> None:
    node(graph, "cond").regions[1].args[1].type = TensorType(torch.float32, (4, 5))


def region_returns_another_type(graph: Graph) -> None:
    sum_ = node(graph, "aten.sin.default")
    sum_.result.type = TensorType(torch.float32, (4,))


def region_returns_nothing(graph: Graph) -> None:
    graph.set_arguments(node(graph, "cond").regions[0].returned, ())


def argument_not_declared(graph: Graph) -> None:
    graph.body.args.append(Value(F4, "stray"))


def unknown_kind(graph: Graph) -> None:
    graph.inputs[graph.body.args[0]] = Input("constant", "x")


def outputs_without_names(graph: Graph) -> None:
    graph.outputs = ()


def state_that_is_no_input(graph: Graph) -> None:
    graph.outputs = (Output("state", "cache"),)


FAULTS: dict[Fault, str] = {
    wrong_shape: "aten.linear.default gives [f32[n, 4]], the node says [f32[n, 5]]|region 0 returns",
    wrong_dtype: "region 1 returns [f64[n, 4]], cond gives [f32[n, 4]]",
    wrong_number_of_results: "aten.relu.default gives [f32[n, 4]], the node says",
    refused_operands: "aten.linear.default gives [f32[4, n]], the node says [f32[n, 4]]",
    use_before_definition: "%gated is used before, or outside of where, it is defined",
    value_of_another_graph: "%x is used before, or outside of where, it is defined",
    outer_value_in_a_region: "%x is used before, or outside of where, it is defined",
    forgotten_use: "the use list of %x is not true",
    false_use: "the use list of %x is not true",
    forgotten_use_in_a_region: "the use list of %x_1 is not true",
    use_by_an_erased_node: "the use list of %relu is not true",
    foreign_producer: "%relu names another producer",
    foreign_block: "the node stands in another block than it says",
    no_return: "the block does not end with return",
    return_in_the_middle: "return is not last",
    one_region: "cond has two regions",
    region_of_a_plain_node: "aten.relu.default has no regions",
    region_takes_too_little: "region 1 does not take the operands of cond",
    region_takes_another_type: "region 1 does not take the operands of cond",
    region_returns_another_type: "region 1 returns [f32[4]], cond gives [f32[n, 4]]",
    region_returns_nothing: "region 0 returns [], cond gives [f32[n, 4]]",
    argument_not_declared: "graph.inputs and the arguments of the body differ",
    unknown_kind: "unknown kind of input: 'constant'",
    outputs_without_names: "one Output per returned value",
    state_that_is_no_input: "returns state 'cache', which is no input",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_caught(fault: Fault) -> None:
    graph = load("cond")
    verify(graph)
    fault(graph)
    with pytest.raises(IRError) as caught:
        verify(graph)
    assert any(part in caught.value.what for part in FAULTS[fault].split("|")), caught.value.what
    assert not isinstance(caught.value, ParseError)


def test_the_message_shows_the_line_its_surroundings_and_the_place_in_the_model() -> None:
    graph = load("block")
    linear = node(graph, "aten.linear.default")
    linear.result.type = TensorType(torch.float32, (1,))
    with pytest.raises(IRError) as caught:
        verify(graph)
    lines = str(caught.value).splitlines()
    assert lines[0] == "aten.linear.default gives [f32[b, s, 16]], the node says [f32[1]]"
    marked = [line for line in lines if line.startswith("-> ")]
    assert marked == [
        "-> %linear: f32[1] = aten.linear.default(%layer_norm, %up_weight, %up_bias)  # layer.0.up @ model.py:6"
    ]
    assert len(lines) == 1 + 11 + 1
    assert lines[-1] == "  at layer.0.up @ model.py:6"


@pytest.mark.parametrize("name", CORPUS)
def test_the_corpus_is_well_formed_and_typed(name: str) -> None:
    verify(load(name))


def test_while() -> None:
    graph = load("while")
    loop = node(graph, "while")
    test, body = loop.regions
    lt = test.returned.operands[0]
    graph.set_arguments(test.returned, (lt, lt))
    with pytest.raises(IRError, match="the test of while returns one boolean"):
        verify(graph)
    graph.set_arguments(test.returned, (test.args[0],))
    with pytest.raises(IRError, match="the test of while returns one boolean"):
        verify(graph)
    graph.set_arguments(test.returned, (lt,))
    verify(graph)
    graph.set_arguments(body.returned, body.returned.args[::-1])
    with pytest.raises(IRError, match="region 1 returns"):
        verify(graph)


def test_the_predicate_of_cond_is_one_boolean() -> None:
    graph = load("cond")
    cond = node(graph, "cond")
    graph.set_arguments(cond, (graph.body.args[0], *cond.args[1:]))
    with pytest.raises(IRError, match="the predicate of cond is one boolean"):
        verify(graph)


def test_dead_nodes() -> None:
    with pytest.raises(IRError, match=r"aten\.(neg|exp)\.default is dead"):
        verify(load("dead_code"), Fact.NO_DEAD_NODES)
    verify(load("effects"), Fact.NO_DEAD_NODES)  # asserts have no results and are not dead
    verify(load("block"), Fact.NO_DEAD_NODES)


def test_canonical_views() -> None:
    with pytest.raises(IRError, match=r"aten.transpose.int should be spelled aten.permute.default"):
        verify(load("contiguous_views"), Fact.CANONICAL_VIEWS)
    verify(load("block"), Fact.CANONICAL_VIEWS)


def test_sizes_that_depend_on_the_data_may_have_any_name() -> None:
    def tensor(*dims: object) -> TensorType:
        return TensorType(torch.float32, dims)  # type: ignore[arg-type]

    n, u0, u1 = symbol("n"), symbol("u0"), symbol("u1")
    assert same_type(tensor(u0, 4), tensor(u1, 4))
    assert same_type(tensor(u0 + 1), tensor(n))
    assert not same_type(tensor(u0, 4), tensor(u1, 5))
    assert not same_type(tensor(n), tensor(4))
    assert not same_type(tensor(u0), tensor(u0, 1))
    assert same_type(ScalarType("int", n), ScalarType("int"))
    assert same_type(ScalarType("int", u0), ScalarType("int", u1))
    assert not same_type(ScalarType("int", n), ScalarType("int", n + 1))
    assert not same_type(ScalarType("int"), ScalarType("float"))
    assert not same_type(ScalarType("int"), tensor())
