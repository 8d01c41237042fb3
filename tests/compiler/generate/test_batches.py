"""Drafts and exits of whole batches: the text of a row is what it is alone."""

from __future__ import annotations

import pytest
import torch

import penstock
from compiler.runtime.decoding import FILLS, Decoder
from compiler.runtime.kv import KeyValues
from tests.compiler.generate.test_generate import CHANCE, PROMPTS


@pytest.mark.parametrize(("ahead", "floor"), [(1, 0.0), (3, 0.0), (6, 0.3), (8, 1.0)])
def test_drafts_of_a_batch_never_change_a_greedy_text(engine: penstock.LoadedModel, ahead: int, floor: float) -> None:
    plain = engine.generate(PROMPTS, 24)
    drafted = engine.generate(PROMPTS, 24, draft=ahead, draft_floor=floor)
    assert [(a.tokens, a.finish) for a in drafted] == [(a.tokens, a.finish) for a in plain]
    assert drafted[0].calls["engine"] < 24 + ahead
    stop = list(plain[2].tokens[3:5])
    some = {"stop": [stop], "requests": [4, 5, 6, 7]}
    assert [a.tokens for a in engine.generate(PROMPTS, 24, draft=ahead, **some)] == [
        a.tokens for a in engine.generate(PROMPTS, 24, **some)
    ]


def test_sampled_drafts_of_a_batch_are_those_of_each_row(engine: penstock.LoadedModel) -> None:
    together = engine.generate(PROMPTS, 16, draft=3, **CHANCE)
    alone = [engine.generate(p, 16, draft=3, requests=[i], **CHANCE)[0] for i, p in enumerate(PROMPTS)]
    assert [a.tokens for a in together] == [a.tokens for a in alone]


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 1.01])
def test_exits_of_a_batch_are_those_of_each_row(engine: penstock.LoadedModel, threshold: float, fill: str) -> None:
    together = engine.generate(PROMPTS, 20, exit_at=threshold, fill=fill)
    alone = [engine.generate(p, 20, exit_at=threshold, fill=fill)[0] for p in PROMPTS]
    assert [a.tokens for a in together] == [a.tokens for a in alone]
    runs = together[0].calls["engine"] - 1
    assert runs <= sum(a.calls["engine"] - 1 for a in alone), "rows that wait together share a run"
    if threshold == 0.0:
        assert runs == 0


@pytest.mark.parametrize("options", [{}, {"exit_at": 2.0}, {"exit_at": 0.5}])
def test_a_text_that_goes_nowhere_is_given_up(engine: penstock.LoadedModel, options: dict[str, float]) -> None:
    whole = engine.generate(PROMPTS, 20, **options)
    same = engine.generate(PROMPTS, 20, stop_below=1e-6, **options)
    assert [a.tokens for a in same] == [a.tokens for a in whole]
    none = engine.generate(PROMPTS, 20, stop_below=1.0, **options)
    assert [(a.tokens, a.finish) for a in none] == [((), "unsure")] * 4
    some = engine.generate(PROMPTS, 20, stop_below=0.3, **options)
    for short, full in zip(some, whole, strict=True):
        assert full.tokens[: len(short.tokens)] == short.tokens
        assert (short.finish == "unsure") == (len(short.tokens) < 20)
    assert {a.finish for a in some} >= {"unsure"}


def test_what_is_accepted_differs_from_row_to_row(engine: penstock.LoadedModel) -> None:
    generator = engine._generating()
    decoder = Decoder(generator._engines, generator.layout, torch.float32)
    _, kv = decoder.prefill([[1, 2, 3], [4, 5]])
    given = torch.tensor([[7, 8, 9], [10, 11, 12]])
    _, grown = decoder.step("engine", given, kv, at=torch.arange(3))
    made = grown.accepted(kv.slots, torch.tensor([1, 2]), 99)
    assert made.slots == 5 and made.positions.tolist() == [4, 4]
    assert made.mask.tolist() == [[True] * 4 + [False], [False, *[True] * 4]]
    packed = made.packed()
    assert packed.slots == 4 and bool(packed.mask.all()) and packed.positions.tolist() == [4, 4]
    assert made.accepted(5, torch.tensor([0, 0]), 0).slots == 4, "packed once there are more paddings than allowed"
    _, right = decoder.prefill([[1, 2, 3, 7], [4, 5, 10, 11]])
    ahead = torch.tensor([[20], [21]])
    want, _ = decoder.step("decode", ahead, right)
    for kv_ in (made, packed):
        got, _ = decoder.step("decode", ahead, kv_)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_row_takes_the_whole_models_cache_where_it_was_not_sure() -> None:
    def filled(value: float) -> KeyValues:
        return KeyValues(
            {"cache_k_0": torch.full((2, 1, 1, 1), value)}, torch.ones(2, 1, dtype=torch.bool), torch.ones(2)
        )

    mixed = filled(1.0).where(torch.tensor([False, True]), filled(2.0))
    assert mixed.tensors["cache_k_0"].flatten().tolist() == [1.0, 2.0]
