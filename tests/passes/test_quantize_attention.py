"""Attention in int8: close, exact where masks leave nothing, declined where it would not hold."""

import torch

from ir import interpret, verify
from ir.own_ops import int8_attention
from passes import QuantizeAttention
from tests.passes.case import read, told

ATTENTION = """
    dim s [2, 64]
    input %q: f32[2, 4, s, 16] "q"
    input %k: f32[2, 4, s, 16] "k"
    input %v: f32[2, 4, s, 16] "v"
    input %m: bool[2, 1, 1, s] "m"
    %y: f32[2, 4, s, 16] = aten.scaled_dot_product_attention.default(%q, %k, %v, %m)  # block.attention @ model.py:9
    return "y" %y
    """


def inputs(length: int = 24) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    made = {name: torch.randn(2, 4, length, 16) for name in "qkv"}
    mask = torch.ones(2, 1, 1, length, dtype=torch.bool)
    mask[1, ..., length // 2 :] = False
    return {**made, "m": mask}


def test_it_is_close_and_says_how_close() -> None:
    graph = read(ATTENTION)
    want = interpret(graph, inputs())["y"]
    said = QuantizeAttention().run(graph, [inputs()])
    verify(graph)
    got = interpret(graph, inputs())["y"]
    assert torch.nn.functional.cosine_similarity(got, want, dim=-1).min() > 0.99
    assert told(said)[0].startswith("+ own error ")
    assert next(n.op.name for n in graph) == "penstock.int8_attention.default"


def test_masked_keys_count_nothing_and_an_empty_row_gives_zeros() -> None:
    given = inputs()
    given["m"][0] = False
    got = int8_attention(given["q"], given["k"], given["v"], given["m"], 0.25, 0.03, 0.03, 0.03)
    assert torch.equal(got[0], torch.zeros_like(got[0]))
    far = dict(given, v=given["v"].clone())
    far["v"][1, :, 12:] = 3.0  # behind the mask
    again = int8_attention(far["q"], far["k"], far["v"], far["m"], 0.25, 0.03, 0.03, 0.03)
    assert torch.equal(again[1], got[1])


def test_declines() -> None:
    assert told(QuantizeAttention().run(read(ATTENTION))) == ("- its scales need samples",)
    samples = [inputs()]
    assert told(QuantizeAttention(max_keys=32).run(read(ATTENTION), samples)) == ("- more than 32 keys are possible",)
    causal = ATTENTION.replace("%v, %m)", "%v, None, 0.0, True)")
    assert told(QuantizeAttention().run(read(causal), samples)) == ("- it is causal or grouped",)
    (said,) = told(QuantizeAttention(max_error=0.0).run(read(ATTENTION), samples))
    assert "more than max-error" in said
