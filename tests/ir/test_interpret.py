"""The interpreter: torch node by node, control flow, state, watchers, and no value kept after its last use."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from ir import DimRange, Graph, IRError, Node, TensorType, interpret, op, symbol
from ir.reexport import example_inputs
from tests.compare import identical
from tests.corpus import CORPUS, load

N = symbol("n")


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CORPUS)
def test_the_corpus_runs_and_gives_what_the_types_say(name: str) -> None:
    graph = load(name)
    results = interpret(graph, example_inputs(graph))
    assert len(results) == len(graph.outputs)
    for value, tensor in zip(graph.body.returned.operands, results.values(), strict=True):
        assert tensor.dtype is value.tensor.dtype
        assert tensor.dim() == value.tensor.rank
        assert all(
            size == dim for size, dim in zip(tensor.shape, value.tensor.shape, strict=True) if isinstance(dim, int)
        )


def test_cond_takes_one_branch() -> None:
    graph = load("cond")
    weight = graph.weights["w"]
    up, down = torch.ones(2, 4), -torch.ones(2, 4)
    assert identical(interpret(graph, {"x": up})["y"], torch.relu(up @ weight.t()))
    assert identical(interpret(graph, {"x": down})["y"], torch.relu(torch.sin(down)))


@pytest.mark.parametrize(("p", "q"), [(True, True), (True, False), (False, True)])
def test_nested_cond(p: bool, q: bool) -> None:
    x = randn(2, 4)
    inner = torch.cos(2 * x.exp()) if q else torch.sin(x.exp())
    want = inner * x if p else -x
    got = interpret(load("cond_nested"), {"x": x, "p": torch.tensor(p), "q": torch.tensor(q)})["y"]
    torch.testing.assert_close(got, want)


def test_while() -> None:
    graph, x = load("while"), randn(2, 4)
    results = interpret(graph, {"x": x})
    for _ in range(3):
        x = torch.tanh(x @ graph.weights["w"].t())
    assert identical(results["y"], x)
    assert int(results["count"]) == 3


def test_state_goes_in_and_comes_out() -> None:
    graph = load("state")
    carried = {"cache": torch.zeros(8, 4), "step": torch.tensor(0)}
    for call in range(3):
        results = interpret(graph, {"x": randn(2, 4, seed=call), **carried})
        carried = {name: results[f"state:{name}"] for name in carried}
    assert list(results) == ["y", "state:cache", "state:step"]
    assert int(carried["step"]) == 3
    assert identical(carried["cache"][0], randn(2, 4, seed=2).mean(0))


def test_random_operators_follow_the_seed() -> None:
    graph, inputs = load("random"), {"x": randn(2, 4)}

    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return interpret(graph, inputs)["y"]

    assert identical(run(1), run(1))
    assert not identical(run(1), run(2))
    assert float(run(1).abs().sum()) > 0  # two equal random nodes are two draws


def test_assertions_hold() -> None:
    graph = Graph()
    flag = graph.add_input("input", "flag", TensorType(torch.bool, ()))
    graph.insert(op("aten._assert_async.msg"), flag, "the flag is down")
    graph.returns(flag)
    interpret(graph, {"flag": torch.tensor(True)})
    with pytest.raises(RuntimeError, match="the flag is down"):
        interpret(graph, {"flag": torch.tensor(False)})


def test_what_is_missing_is_named() -> None:
    graph = load("tied")
    with pytest.raises(IRError, match="no tensor for input 'tokens'"):
        interpret(graph, {})
    graph.weights.remove("embed.weight")
    with pytest.raises(IRError, match=r"no tensor for param 'embed.weight'"):
        interpret(graph, {"tokens": torch.zeros(1, dtype=torch.int64)})


def test_a_watcher_sees_every_node_in_order_also_in_branches() -> None:
    graph, seen = load("cond"), []

    def watch(node: Node, args: Sequence[Any], results: Sequence[Any]) -> None:
        assert len(results) == len(node.results)
        seen.append((node.op.name, len(args)))

    interpret(graph, {"x": torch.ones(1, 4)}, watch)
    names = [name for name, _ in seen]
    assert names == ["aten.sum.default", "aten.gt.Scalar", "aten.linear.default", "cond", "aten.relu.default"]


def test_gradients_are_never_recorded() -> None:
    graph = load("block")
    x = randn(1, 2, 8).requires_grad_()
    assert not interpret(graph, {"x": x})["y"].requires_grad


def chain(length: int) -> Graph:
    graph = Graph("chain", {"n": DimRange(1)})
    x = graph.add_input("input", "x", TensorType(torch.float32, (N,)))
    for _ in range(length):
        x = graph.insert(op("aten.add.Tensor"), x, 1).result
    graph.returns(x)
    return graph


def test_values_are_freed_after_their_last_use() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def watch(node: Node, args: Sequence[Any], results: Sequence[Any]) -> None:
        nonlocal most
        alive.extend(weakref.ref(r) for r in results)
        most = max(most, sum(ref() is not None for ref in alive))

    interpret(chain(50), {"x": torch.ones(4)}, watch)
    assert most <= 3  # the argument, the result, and perhaps one that is about to go


def test_results_that_nothing_reads_are_freed_at_once() -> None:
    graph, kept = load("dead_code"), []

    def watch(node: Node, args: Sequence[Any], results: Sequence[Any]) -> None:
        if node.op.name == "aten.exp.default":
            kept.extend(weakref.ref(r) for r in results)
        elif kept:
            assert kept[0]() is None

    interpret(graph, example_inputs(graph), watch)
    assert kept


def test_inputs_are_not_changed() -> None:
    for name in CORPUS:
        graph = load(name)
        inputs = example_inputs(graph)
        before = {key: x.clone() for key, x in inputs.items()}
        interpret(graph, inputs)
        assert all(identical(before[key], inputs[key]) for key in inputs), name


def test_own_operators_mean_what_they_say() -> None:
    graph = load("int8")
    x = randn(5, 8)
    q, scale, bias = (graph.weights[f"fc.{part}"] for part in ("weight", "scale", "bias"))
    exact = x @ (q.float() * scale[:, None]).t() + bias
    first = next(iter(graph)).op.target
    assert first is not None
    got = first(x, q, scale, bias)
    assert float((got - exact).norm() / exact.norm()) < 0.02
    rows, row_scale = op("penstock.quantize_rows.default").target(x)  # type: ignore[misc]
    assert rows.dtype is torch.int8
    assert int(rows.abs().max()) == 127
    torch.testing.assert_close(rows * row_scale, x, rtol=0, atol=float(row_scale.max()) / 2 + 1e-6)
