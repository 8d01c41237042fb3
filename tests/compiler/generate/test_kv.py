"""The cache between steps: crop, fork, append and select move numbers and change none."""

from __future__ import annotations

import pytest
import torch

import penstock
from compiler.runtime.decoding import Decoder
from compiler.runtime.kv import KeyValues
from examples.tinylm import TinyLM
from ir.errors import UsageError


def decoder_of(engine: penstock.LoadedModel) -> Decoder:
    generator = engine._generating()
    return Decoder(generator._engines, generator.layout, torch.float32)


def test_crop_then_append_is_as_if_nothing_had_been_there(engine: penstock.LoadedModel) -> None:
    decoder = decoder_of(engine)
    _, kv = decoder.prefill([[1, 2, 3, 4], [5, 6]])
    before = kv.fork()
    for token in (7, 8, 9):
        _, kv = decoder.step("decode", torch.tensor([[token], [token]]), kv)
    assert kv.slots == 7
    cropped = kv.crop(4)
    assert same(cropped, before)
    new = {name: t[:, :, 4:] for name, t in kv.tensors.items()}
    assert same(cropped.append(new, kv.mask[:, 4:]), kv)
    assert kv.crop(7) is kv
    for slots in (-1, 8):
        with pytest.raises(UsageError, match="the cache has 7 slots"):
            kv.crop(slots)


def test_a_crop_counts_tokens_and_not_paddings(engine: penstock.LoadedModel) -> None:
    _, kv = decoder_of(engine).prefill([[1, 2, 3, 4], [5]])
    assert kv.positions.tolist() == [4, 1]
    assert kv.crop(3).positions.tolist() == [3, 0]


def test_forks_go_their_own_ways(engine: penstock.LoadedModel) -> None:
    decoder = decoder_of(engine)
    _, kv = decoder.prefill([[1, 2, 3]])
    kept = {name: t.clone() for name, t in kv.tensors.items()}
    one, _ = decoder.step("decode", torch.tensor([[4]]), kv.fork())
    two, _ = decoder.step("decode", torch.tensor([[5]]), kv.fork())
    again, _ = decoder.step("decode", torch.tensor([[4]]), kv)
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
    assert all(torch.equal(kv.tensors[name], t) for name, t in kept.items())


def test_selected_rows_lose_the_paddings_that_nobody_needs(engine: penstock.LoadedModel) -> None:
    decoder = decoder_of(engine)
    _, kv = decoder.prefill([[1, 2, 3, 4, 5], [6, 7], [8, 9, 10]])
    _, alone = decoder.prefill([[6, 7], [8, 9, 10]])
    some = kv.select(torch.tensor([1, 2]))
    assert torch.equal(some.mask, alone.mask)
    assert torch.equal(some.positions, alone.positions)
    for name, tensor in some.tensors.items():
        real = some.mask[:, None, :, None].expand_as(tensor)
        torch.testing.assert_close(tensor[real], alone.tensors[name][real])


def test_what_exits_missed_is_made_up_for(engine: penstock.LoadedModel) -> None:
    """Tokens that ran the first layers only, then all of them at once: the cache and the logits of full steps."""
    decoder = decoder_of(engine)
    _, kv = decoder.prefill([[1, 2, 3]])
    full = kv
    for token in (4, 5, 6):
        want, full = decoder.step("decode", torch.tensor([[token]]), full)
    got, caught = decoder.step("engine", torch.tensor([[4, 5, 6]]), kv, at=torch.tensor([2]))
    torch.testing.assert_close(got, want)
    for name, tensor in full.tensors.items():
        torch.testing.assert_close(caught.tensors[name], tensor)
    shallow = kv.first(1)
    for token in (4, 5, 6):
        _, shallow = decoder.step("draft", torch.tensor([[token]]), shallow)
    for name, tensor in shallow.tensors.items():  # the first layers wrote the same already
        torch.testing.assert_close(tensor, full.tensors[name])


def test_a_copied_fill_repeats_the_last_layer_that_ran(engine: penstock.LoadedModel) -> None:
    decoder = decoder_of(engine)
    _, kv = decoder.prefill([[1, 2, 3]])
    _, shallow = decoder.step("draft", torch.tensor([[4]]), kv.first(1))
    filled = kv.copied(shallow)
    assert same(filled.crop(3), kv)
    assert same(filled.first(1), shallow)
    for kind in ("k", "v"):
        for layer in range(3):
            new = filled.tensors[f"cache_{kind}_{layer}"][:, :, 3:]
            assert torch.equal(new, shallow.tensors[f"cache_{kind}_0"][:, :, 3:])


def test_a_projected_fill_is_what_the_other_layers_make_of_the_state(
    engine: penstock.LoadedModel, small: TinyLM
) -> None:
    decoder = decoder_of(engine)
    prompts, token = [[1, 2, 3], [4, 5]], torch.tensor([[7], [8]])
    _, kv = decoder.prefill(prompts)
    want, shallow = decoder.step("draft", token, kv.first(1))
    got, filled = decoder.step("project", token, kv)
    torch.testing.assert_close(got, want)
    assert same(filled.crop(kv.slots), kv)
    for name, tensor in shallow.tensors.items():
        torch.testing.assert_close(filled.tensors[name], tensor)
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            cos, sin = small.cos[: len(prompt) + 1], small.sin[: len(prompt) + 1]
            state = small.layers[0](small.embed(torch.tensor([[*prompt, int(token[row])]])), cos, sin)
            for layer in (1, 2):
                _, (key, value) = small.layers[layer].attention.cached(
                    small.layers[layer].attention_norm(state), cos, sin, None, None
                )
                for kind, made in (("k", key), ("v", value)):
                    new = filled.tensors[f"cache_{kind}_{layer}"][row, :, -1]
                    torch.testing.assert_close(new, made[0, :, -1], rtol=1e-4, atol=1e-4)


def same(a: KeyValues, b: KeyValues) -> bool:
    return (
        torch.equal(a.mask, b.mask)
        and torch.equal(a.positions, b.positions)
        and all(torch.equal(t, b.tensors[name]) for name, t in a.tensors.items())
    )
