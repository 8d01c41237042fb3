"""ExportedProgram -> IR -> ExportedProgram: the same numbers each way, and again once more."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.export import Dim

from ir import Graph, interpret, parse, show, verify
from ir.errors import UnsupportedError
from ir.exported import import_program
from ir.reexport import example_inputs, to_exported, to_module
from tests.compare import identical, outputs
from tests.corpus import CORPUS, load
from tests.random_graphs import graphs


def names(graph: Graph) -> list[str]:
    return [s.name for s in graph.inputs.values() if s.kind != "param"]


def assert_same(graph: Graph, module: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    want = outputs(graph, inputs)
    torch.manual_seed(1)
    with torch.no_grad():
        got = module(*(inputs[name] for name in names(graph)))
    assert len(got) == len(want)
    assert all(map(identical, want.values(), got))


@pytest.mark.parametrize("name", CORPUS)
def test_reemission_is_exact_and_round_trips(name: str) -> None:
    graph = load(name)
    assert_same(graph, to_module(graph), example_inputs(graph))
    program = to_exported(graph)
    for seed in range(2):
        assert_same(graph, program.module(), example_inputs(graph, seed=seed))
    again = import_program(program, graph.name)
    verify(again)
    assert show(parse(show(again))) == show(again)
    inputs = example_inputs(graph)
    renamed = dict(zip(names(again), inputs.values(), strict=True))
    want, got = outputs(graph, inputs), outputs(again, renamed)
    assert all(map(identical, want.values(), got.values()))
    twice = to_exported(again, renamed)
    assert_same(again, twice.module(), renamed)


@pytest.mark.parametrize("name", ["block", "attention", "rotary", "symbolic", "cond", "state"])
def test_the_program_holds_for_other_sizes(name: str) -> None:
    graph = load(name)
    program = to_exported(graph).module()
    for size in (2, 4):
        sizes = {
            dim: min(max(size + i, bounds.min), bounds.max or 99) for i, (dim, bounds) in enumerate(graph.dims.items())
        }
        assert_same(graph, program, example_inputs(graph, sizes))


@settings(max_examples=4)
@given(graphs(most=6))
def test_random_graphs_come_back(graph: Graph) -> None:
    inputs = example_inputs(graph, {"n": 3, "m": 4})
    program = to_exported(graph, inputs)
    assert_same(graph, program.module(), inputs)
    assert_same(import_program(program, "again"), program.module(), inputs)


class Sample(nn.Module):
    """Tied weights, a buffer, a constant, a branch, a size, two outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("shift", torch.arange(4.0))

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.embed(tokens) + self.shift
        x = torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x.sin(), (x,))
        return {"logits": self.head(x).reshape(tokens.shape[0], -1), "hidden": x}


def exported(model: nn.Module, *args: torch.Tensor, shapes: object = None) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(model.eval(), args, dynamic_shapes=shapes, strict=False)  # type: ignore[arg-type]


def test_import_keeps_names_ties_dims_and_origins() -> None:
    model, tokens = Sample(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    program = exported(model, tokens, shapes=({0: Dim("batch", min=1, max=8)},))
    symbol_name = str(next(iter(program.range_constraints)))
    graph = import_program(program, "sample", {symbol_name: "batch"})
    verify(graph)
    assert [o.name for o in graph.outputs] == ["logits", "hidden"]
    assert sorted(graph.weights) == ["embed.weight", "shift"]
    assert graph.weights["embed.weight"].data_ptr() == model.embed.weight.data_ptr()
    assert list(graph.dims) == ["batch"]
    assert [repr(v.type) for _, v in graph.arguments("input")] == ["i64[batch, 3]"]
    linear = next(n for n in graph if n.op.name == "aten.linear.default")
    assert linear.origin.path == "head"
    assert linear.origin.line.startswith("tests/ir/test_exported.py:")
    for given_tokens in (tokens, torch.tensor([[7, 8, 9]])):
        want = model(given_tokens)
        got = interpret(graph, dict(zip(names(graph), [given_tokens], strict=True)))
        assert all(identical(want[key].detach(), got[key]) for key in want)


def test_buffers_that_change_are_state() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count.add_(1)
            return x * self.count

    program = exported(Counter(), torch.ones(2)).run_decompositions({})
    graph = import_program(program, "counter")
    verify(graph)
    assert [s.kind for s in graph.inputs.values()] == ["state", "input"]
    assert identical(graph.initial["count"], torch.zeros(()))
    results = interpret(graph, {"count": torch.tensor(4.0), names(graph)[1]: torch.ones(2)})
    assert identical(results["state:count"], torch.tensor(5.0))


def test_everything_that_cannot_be_carried_is_listed_at_once() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            counts, edges = torch.histogramdd(x, [2, 2])
            more, _ = torch.histogramdd(x, [3, 3])
            return counts.sum() + more.sum() + edges[0].sum()

    with pytest.raises(UnsupportedError) as caught:
        import_program(exported(Odd(), torch.rand(4, 2)), "odd")
    message = str(caught.value)
    assert message.startswith("2 construct(s) of the model cannot be carried")
    assert message.count("aten.histogramdd.default") == 2
    assert message.count("hint:") == 2
    assert caught.value.exit_code == 3


def test_examples_have_the_types_that_the_graph_says() -> None:
    for name in CORPUS:
        graph = load(name)
        values = {s.name: v for v, s in graph.inputs.items()}
        for key, tensor in example_inputs(graph, seed=3).items():
            assert tensor.dtype is values[key].tensor.dtype
            assert tensor.dim() == values[key].tensor.rank
    graph = load("block")
    assert example_inputs(graph, {"b": 5})["x"].shape == (5, 3, 8)
    assert identical(example_inputs(graph, seed=1)["x"], example_inputs(graph, seed=1)["x"])
    assert not identical(example_inputs(graph, seed=1)["x"], example_inputs(graph, seed=2)["x"])
