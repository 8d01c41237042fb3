"""The verbs that change a graph keep its use lists, order and version true."""

from __future__ import annotations

import pytest
import torch

from ir import COND, RETURN, Block, Graph, IRError, Node, Origin, Output, TensorType, Value, map_values, op, verify

F4 = TensorType(torch.float32, (4,))
ADD, EXP, CAT, PAD = op("aten.add.Tensor"), op("aten.exp.default"), op("aten.cat.default"), op("aten.full.default")


def names(block: Graph | Block) -> list[str]:
    return [node.op.name.split(".")[1] if "." in node.op.name else node.op.name for node in block]


@pytest.fixture
def graph() -> Graph:
    """exp(x) + x, returned."""
    graph = Graph("small")
    x = graph.add_input("input", "x", F4)
    exp = graph.insert(EXP, x, name="e")
    total = graph.insert(ADD, exp.result, x)
    graph.returns(total.result)
    return graph


def test_use_lists_hold_each_reader_once(graph: Graph) -> None:
    x = next(iter(graph.inputs))
    exp, add, _ = graph
    assert list(x.uses) == [exp, add]
    double = graph.insert(ADD, x, x, before=add)
    assert list(x.uses) == [exp, add, double]
    assert double.operands == (x, x)
    graph.erase(double)
    assert list(x.uses) == [exp, add]


def test_replace_reaches_nested_tuples_and_keyword_arguments(graph: Graph) -> None:
    x = next(iter(graph.inputs))
    exp, add, _ = graph
    cat = graph.insert(CAT, (x, exp.result, x), 0, before=add)
    keyed = graph.insert(ADD, x, before=add, kwargs={"other": x}, types=(F4,))
    graph.replace(x, exp.result)
    assert not any(v is x for n in (cat, keyed, add) for v in n.operands)
    assert cat.args == ((exp.result,) * 3, 0)
    assert keyed.kwargs == {"other": exp.result}
    assert not x.uses
    assert exp in exp.result.uses  # exp read x as well: the caller keeps what must stay apart


def test_replace_by_itself_changes_nothing(graph: Graph) -> None:
    x, version = next(iter(graph.inputs)), graph.version
    graph.replace(x, x)
    assert graph.version == version


def test_replace_refuses_another_type(graph: Graph) -> None:
    x = next(iter(graph.inputs))
    other = graph.add_input("input", "other", TensorType(torch.float32, (5,)))
    with pytest.raises(IRError, match=r"changes the type of %x: f32\[4\] -> f32\[5\]"):
        graph.replace(x, other)
    with pytest.raises(IRError, match="a literal cannot stand for the tensor %x"):
        graph.replace(x, 1.0)


def test_replace_a_scalar_by_a_literal() -> None:
    graph = Graph()
    x = graph.add_input("input", "x", F4)
    size = graph.insert(op("aten.sym_size.int"), x, 0)
    reader = graph.insert(op("aten.reshape.default"), x, (1, size.result))
    graph.returns(reader.result)
    graph.replace(size.result, 4)
    graph.erase(size)
    assert reader.args == (x, (1, 4))
    verify(graph)


def test_erase_refuses_what_is_used_and_what_is_gone(graph: Graph) -> None:
    exp, add, _ = graph
    with pytest.raises(IRError, match=r"cannot erase aten\.exp\.default: it is used"):
        graph.erase(exp)
    spare = graph.insert(EXP, add.result, before=graph.body.returned)
    graph.erase(spare)
    with pytest.raises(IRError, match="was erased before"):
        graph.erase(spare)
    with pytest.raises(IRError, match="before a node that was erased"):
        graph.insert(EXP, add.result, before=spare)


def test_order_is_that_of_insertion(graph: Graph) -> None:
    exp, add, returned = graph
    first = graph.insert(PAD, (1,), 0.0, before=exp, types=(TensorType(torch.float32, (1,)),))
    assert names(graph) == ["full", "exp", "add", "return"]
    assert (first.previous, first.next, graph.body.first) == (None, exp, first)
    assert (returned.previous, returned.next, graph.body.last) == (add, None, returned)
    assert [n.op for n in reversed(graph.body)] == [n.op for n in graph][::-1]
    graph.erase(first)
    assert graph.body.first is exp
    assert exp.previous is None
    assert first.block is first.previous is first.next is None
    assert len(graph.body) == 3


def test_walking_while_rewriting_is_safe(graph: Graph) -> None:
    seen = []
    for node in graph:
        seen.append(node.op)
        if node.op is EXP:
            graph.insert(EXP, node.result, before=node.next)
    assert seen == [EXP, ADD, RETURN]
    assert names(graph) == ["exp", "exp", "add", "return"]


def test_every_verb_moves_the_version(graph: Graph) -> None:
    x = next(iter(graph.inputs))
    exp, add, _ = graph
    versions = [graph.version]

    def moved() -> None:
        assert graph.version > versions[-1]
        versions.append(graph.version)

    spare = graph.insert(EXP, x, before=add)
    moved()
    graph.replace(exp.result, spare.result)
    moved()
    graph.erase(exp)
    moved()
    graph.set_arguments(spare, (x,))
    moved()
    graph.set_hint(spare, "fuse", 1)
    moved()
    weight = graph.add_param("w", torch.zeros(2))
    moved()
    graph.drop_argument(weight)
    moved()
    graph.set_hint(spare, "fuse", 1)  # the same again is no change
    assert graph.version == versions[-1]


def test_set_arguments_moves_uses(graph: Graph) -> None:
    x = next(iter(graph.inputs))
    exp, add, _ = graph
    graph.set_arguments(add, (x, x), {"alpha": 2})
    assert not exp.result.uses
    assert add.kwargs == {"alpha": 2}
    assert add.arg(1, "other") is x
    assert add.arg(2, "alpha") == 2
    assert add.arg(3, "out", 7) == 7
    verify(graph)


def test_arguments(graph: Graph) -> None:
    x = next(iter(graph.inputs))
    with pytest.raises(IRError, match="cannot drop %x: it is used"):
        graph.drop_argument(x)
    with pytest.raises(IRError, match="there is a input named 'x' already"):
        graph.add_input("input", "x", F4)
    graph.add_input("state", "x", F4)  # another kind may have the name
    weight = graph.add_param("a.b", torch.ones(2))
    again = graph.add_param("a.b", torch.ones(2))
    assert graph.params() == {weight: "a.b", again: "a.b.1"}
    assert graph.param_of(weight) == "a.b"
    assert graph.param_of(x) is None
    graph.drop_argument(weight)
    assert list(graph.weights) == ["a.b.1"]
    assert list(graph.inputs) == graph.body.args
    assert graph.add_param("a.b", torch.ones(2)).name == "a_b"


def test_values_and_nodes_know_where_they_come_from(graph: Graph) -> None:
    exp = next(iter(graph))
    assert exp.result.name == "e"
    assert str(Origin("layer.0", "m.py:3")) == "layer.0 @ m.py:3"
    assert str(Origin(line="m.py:3")) == "m.py:3"
    placed = graph.insert(EXP, exp.result, before=exp.next, origin=Origin("layer.0"))
    heir = graph.insert(EXP, exp.result, before=placed)
    assert heir.origin == placed.origin
    assert heir.result.origin == placed.origin
    assert next(iter(graph.inputs)).origin == Origin()


def test_several_results_have_no_single_one(graph: Graph) -> None:
    x = next(iter(graph.inputs))
    top = graph.insert(op("aten.topk.default"), x, 2, before=graph.body.returned, name="top")
    assert [v.name for v in top.results] == ["top_0", "top_1"]
    with pytest.raises(IRError, match="has 2 results, not one"):
        top.result  # noqa: B018
    size = graph.insert(op("aten.sym_size.int"), x, 0, before=graph.body.returned)
    with pytest.raises(IRError, match="not a tensor"):
        size.result.tensor  # noqa: B018


def test_the_first_node_of_an_empty_region_goes_into_it(graph: Graph) -> None:
    region = Block([Value(F4, "a")])
    made = graph.insert(EXP, region.args[0], block=region)
    assert list(region) == [made]
    assert made.block is region


def test_a_block_that_does_not_end_has_no_return() -> None:
    with pytest.raises(IRError, match="does not end with return"):
        Graph().body.returned  # noqa: B018


def test_one_output_per_returned_value(graph: Graph) -> None:
    with pytest.raises(IRError, match="one Output per returned value"):
        graph.returns(outputs=[Output("output", "y")])


def test_regions_and_purity(graph: Graph) -> None:
    x = next(iter(graph.inputs))
    pred = graph.add_input("input", "p", TensorType(torch.bool, ()))

    def region(name: str) -> Block:
        block = Block([Value(F4, "a")])
        graph.returns(graph.insert(op(name), block.args[0], block=block).result, block=block)
        return block

    def branch(name: str) -> Node:
        regions = (region("aten.exp.default"), region(name))
        return graph.insert(COND, pred, (x,), regions=regions, before=graph.body.returned)

    assert branch("aten.sin.default").pure
    assert not branch("aten.bernoulli.default").pure
    verify(graph)
    assert len(graph) == sum(1 for _ in graph.walk()) == 5 + 2 * 4
    assert len(list(graph.blocks())) == 5


def test_map_values_keeps_the_rest() -> None:
    x, y = Value(F4, "x"), Value(F4, "y")
    assert map_values((x, (1, x), None), lambda _: y) == (y, (1, y), None)
