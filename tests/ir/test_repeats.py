"""Blocks are found by structure, in every transformer of the zoo, before and after the presets."""

from __future__ import annotations

import pytest
import torch

from compiler.capture.capture import capture
from compiler.capture.inputs import bind_inputs, flatten_inputs
from compiler.pipeline.recipe import PRESETS
from ir import Graph, interpret, parse
from ir.copy import copy_graph
from ir.repeats import Repeats, find_repeats, module_of
from passes import PASSES, Depth, parse_passes
from tests import zoo
from tests.depth_models import BLOCKS, graph_of

QUICK = ("gpt2", "llama", "vit", "whisper_encoder")
OTHERS = ("bert", "qwen3", "mixtral", "t5_encoder", "mamba")


def found(graph: Graph) -> Repeats:
    repeats = find_repeats(graph)
    assert isinstance(repeats, Repeats), repeats
    return repeats


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_every_transformer(name: str) -> None:
    spec = getattr(zoo, name)(layers=3)
    graph = capture(spec)
    sample = flatten_inputs(bind_inputs(spec.model, spec.example_inputs).named)
    for preset in ("", "fp32", "int8"):
        made = copy_graph(graph)
        for pass_ in parse_passes(PRESETS.get(preset, "").replace("quantize", "quantize{min-weights=1}"), PASSES):
            pass_.run(made, [sample])
        repeats = found(made)
        paths = [module_of(block) for block in repeats.blocks]
        assert len(repeats) == 3 and len(set(paths)) == 3, (preset, paths)
        assert all(str(number) in path.split(".") for number, path in enumerate(paths)), paths
        assert_a_chain(made, repeats)
        assert bool(repeats.uneven) == (preset == "int8")


def assert_a_chain(graph: Graph, repeats: Repeats) -> None:
    """Blocks hand on one state and nothing else; what they share is computed before them."""
    owner = {v: i for i, b in enumerate(repeats.blocks) for n in b.nodes for v in n.results}
    for index, block in enumerate(repeats.blocks):
        mine = set(block.nodes)
        read = {v for n in mine for v in n.operands if owner.get(v) != index}
        assert {v for v in read if v in owner} <= {block.carried_in}
        assert all(u in mine for n in mine for v in n.results if v is not block.carried_out for u in v.uses)
        assert read <= {block.carried_in, *block.params, *repeats.shared, *read & set(graph.params())}
    assert not owner.keys() & set(repeats.shared)


def test_shared_values_and_weights() -> None:
    repeats = found(graph_of("lm"))
    assert len(repeats) == BLOCKS and {v.name for v in repeats.shared} == {"slice_1", "slice_2"}
    assert [len(block.params) for block in repeats.blocks] == [9] * BLOCKS
    assert len({v for block in repeats.blocks for v in block.params}) == 9 * BLOCKS


def test_one_block_again_and_again_shares_its_weights() -> None:
    repeats = found(graph_of("lm", shared=True))
    assert len(repeats) == BLOCKS and not any(block.params for block in repeats.blocks)


@pytest.mark.parametrize("name", ["unet_block", "tied", "running_mean"])
def test_a_net_without_blocks_says_so(name: str) -> None:
    assert "no two blocks" in str(find_repeats(zoo.captured(name)[1]))


BLOCK = """%a{i}: f32[n, 4] = aten.linear.default(%x{i}, %w{i})
%x{j}: f32[n, 4] = aten.{op}.default(%a{i})
"""


def chain(*ops: str, more: str = "", out: str = "") -> Graph:
    head = 'penstock-ir 1\ngraph "g"\ndim n [1, 8]\ninput %x0: f32[n, 4] "x"\n'
    params = "".join(f'param %w{i}: f32[4, 4] "w{i}"\n' for i in range(len(ops)))
    body = "%x00: f32[n, 4] = aten.tanh.default(%x0)\n" if not ops else ""
    body += "".join(BLOCK.format(i=i, j=i + 1, op=op) for i, op in enumerate(ops))
    return parse(f'{head}{params}{body}{more}return "y" %x{len(ops)}{out}\n')


def test_structure_alone_is_enough() -> None:
    repeats = found(chain("tanh", "tanh", "tanh", "sigmoid"))
    assert [b.carried_out.name for b in repeats.blocks] in (["x1", "x2", "x3"], ["a1", "a2", "a3"])


@pytest.mark.parametrize(
    "graph",
    [
        chain("tanh", "sigmoid"),
        chain("tanh", "tanh", more="%z: f32[n, 4] = aten.neg.default(%a1)\n", out=', "z" %z'),
    ],
    ids=["other operators", "an inner value is read outside"],
)
def test_what_is_no_block(graph: Graph) -> None:
    repeats = find_repeats(graph)
    assert isinstance(repeats, str) or "a1" in {s.name for s in repeats.states}


CACHED = """%a{i}: f32[n, 4] = aten.linear.default(%x{i}, %w{i})
%c{i}: f32[n, 8] = aten.cat.default([%k{i}, %a{i}], 1)
%s{i}: f32[n, 4] = aten.slice.Tensor(%c{i}, 1, 4, 8)
%x{j}: f32[n, 4] = aten.tanh.default(%s{i})
"""


def test_blocks_may_keep_a_state_of_their_own() -> None:
    """Each reads an input and returns a value that no other does: a cache per layer."""
    graph = parse(
        'penstock-ir 1\ngraph "g"\ndim n [1, 8]\n'
        + "".join(f'param %w{i}: f32[4, 4] "w{i}"\n' for i in range(3))
        + "".join(f'input %{v}: f32[n, 4] "{v}"\n' for v in ("x0", "k0", "k1", "k2"))
        + "".join(CACHED.format(i=i, j=i + 1) for i in range(3))
        + 'return "y" %x3, "c0" %c0, "c1" %c1, "c2" %c2\n',
        {f"w{i}": torch.randn(4, 4) for i in range(3)},
    )
    repeats = found(graph)
    assert len(repeats) == 3 and repeats.stateful and "of the model's own" in repeats.uneven
    assert not found(chain("tanh", "tanh", "tanh")).stateful
    inputs = {"x0": torch.randn(2, 4), **{f"k{i}": torch.randn(2, 4) for i in range(3)}}
    want = interpret(graph, inputs)
    (said,) = Depth(mode="nested", layers=(2,)).run(graph)
    got = interpret(graph, inputs)
    assert said.applied and not torch.equal(got["y"], want["y"])
    for name in ("c0", "c1"):
        assert torch.equal(got[name], want[name])
    state = torch.tanh(want["c1"][:, 4:])  # the third block's own part reads what the second hands on
    assert torch.equal(got["y"], state)
    assert torch.equal(got["c2"][:, 4:], torch.nn.functional.linear(state, graph.weights["w2"]))
    for mode in ("roll", "exit"):
        (declined,) = Depth(mode=mode).run(copy_graph(graph))
        assert not declined.applied
