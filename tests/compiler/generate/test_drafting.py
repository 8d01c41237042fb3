"""How far to draft: the walk is arithmetic, and the choice follows costs and traces."""

from __future__ import annotations

import pytest
import torch

import penstock
from compiler.generate.drafting import LEAST_GAIN, Costs, Trace, choose, gain_of, trace_of
from compiler.runtime.decoding import Decoder

CHEAP = Costs(1.0, 0.1, (1.0,) * 9)


def trace(pattern: str) -> Trace:
    """``+`` stands and is sure, ``-`` neither, ``?`` stands and is not sure."""
    return Trace(tuple(0.9 if c == "+" else 0.3 for c in pattern), tuple(c != "-" for c in pattern))


def test_the_walk_counts_runs_and_tokens() -> None:
    # two drafts stand and a third token comes with the run: 3 tokens of 1 each for 2 * .1 + 1
    assert gain_of([trace("+" * 30)], CHEAP, 2, 0.0) == pytest.approx(3 / 1.2)
    assert gain_of([trace("-" * 30)], CHEAP, 2, 0.0) == pytest.approx(1 / 1.2, rel=0.05)
    # below the floor a draft ends: one token is drafted, and verified, in vain
    assert gain_of([trace("-" * 30)], CHEAP, 2, 0.5) == pytest.approx(1 / 1.1)


def test_drafts_that_stand_are_long_and_those_that_do_not_are_none() -> None:
    made = choose([trace("+" * 64)], CHEAP)
    assert made.ahead == 8 and made.gain == pytest.approx(8.9 / 1.8, rel=0.1) and made.agreement == 1
    none = choose([trace("-" * 64)], CHEAP)
    assert none.ahead == 0 and none.gain < LEAST_GAIN and "do not pay" in none.text()
    dear = choose([trace("+" * 64)], Costs(1.0, 1.0, (1.0,) * 9))
    assert dear.ahead == 0, "a draft as dear as the model cannot pay"


def test_a_context_without_room_has_no_drafts() -> None:
    made = choose([Trace((), ())], Costs(1.0, 0.1, (1.0,)))
    assert made.ahead == 0 and "do not pay" in made.text()


def test_a_floor_is_chosen_where_it_tells_good_drafts_from_bad_ones() -> None:
    made = choose([trace(("+" * 7 + "-" * 5) * 6)], CHEAP)
    assert made.floor > 0.3 and made.gain > gain_of([trace(("+" * 7 + "-" * 5) * 6)], CHEAP, made.ahead, 0.0)


def test_a_trace_is_what_drafting_sees(engine: penstock.LoadedModel) -> None:
    generator = engine._generator
    assert generator is not None
    decoder = Decoder(generator._engines, generator.layout, generator._dtype)
    prompt = list(b"def f(")
    found = trace_of(decoder, prompt, 16)
    text = engine.generate([prompt], 16)[0].tokens
    assert len(found.sure) == len(found.stands) == 15 and all(0 < s <= 1 for s in found.sure)
    _, kv = decoder.prefill([[*prompt, *text[:4]]])
    shallow = kv.crop(kv.slots - 1).first(1)
    drafted, _ = decoder.step("draft", torch.tensor([[text[3]]]), shallow)
    assert (int(drafted[0, 0].argmax()) == text[4]) == found.stands[3]


def test_the_plan_is_in_the_artifact(engine: penstock.LoadedModel) -> None:
    layout = engine.manifest.generate
    assert layout is not None and 0 <= layout.ahead <= 8 and 0 <= layout.floor <= 1
    plain = engine.generate(b"import ", 20)[0]
    assert engine.generate(b"import ", 20, draft=True)[0].tokens == plain.tokens
