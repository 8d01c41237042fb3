"""Compiled generation gives the text of the model itself, however it is batched, drafted, streamed or stopped."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

import penstock
from compiler.artifact import open_artifact
from compiler.runtime.decoding import FILLS, Decoder, verify_drafts
from compiler.runtime.rows import Row
from compiler.runtime.sampling import Sampling, draw
from examples.tinylm import TinyLM
from ir.errors import UsageError
from tests.compiler.generate.eager import write_on

PROMPTS = [[1, 2, 3], [200], [7] * 11, [9, 8, 7, 6, 5]]
CHANCE = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 5}


def test_greedy_and_sampled_tokens_are_those_of_the_model(engine: penstock.LoadedModel, small: TinyLM) -> None:
    for prompt in PROMPTS:
        (answer,) = engine.generate(prompt, 20)
        assert list(answer.tokens) == write_on(small, prompt, 20, Sampling())
        assert answer.finish == "length"
        assert answer.calls == {"engine": 1, "decode": 19}
        (sampled,) = engine.generate(prompt, 20, **CHANCE)
        assert list(sampled.tokens) == write_on(small, prompt, 20, Sampling(**CHANCE))
    assert len({engine.generate(p, 20)[0].tokens for p in PROMPTS}) == len(PROMPTS)  # the model is not a constant


def test_a_row_does_not_depend_on_its_batch(engine: penstock.LoadedModel) -> None:
    together = engine.generate(PROMPTS, 20)
    assert [a.tokens for a in together] == [engine.generate(p, 20)[0].tokens for p in PROMPTS]
    sampled = engine.generate(PROMPTS, 20, **CHANCE)
    alone = [engine.generate(p, 20, requests=[i], **CHANCE)[0] for i, p in enumerate(PROMPTS)]
    assert [a.tokens for a in sampled] == [a.tokens for a in alone]
    again = engine.generate(PROMPTS[::-1], 20, requests=[3, 2, 1, 0], **CHANCE)
    assert [a.tokens for a in again] == [a.tokens for a in sampled[::-1]]
    assert engine.generate(PROMPTS[0], 20, **{**CHANCE, "seed": 6})[0].tokens != sampled[0].tokens


def test_rows_that_end_leave_the_batch(engine: penstock.LoadedModel) -> None:
    full = [a.tokens for a in engine.generate(PROMPTS, 20)]
    stop = full[2][3:5]
    found = engine.generate(PROMPTS, 20, stop=[stop])
    assert found[2].finish == "stop"
    for answer, tokens in zip(found, full, strict=True):
        at = next((i for i in range(len(tokens) - 1) if tokens[i : i + 2] == stop), 20)
        assert answer.tokens == tokens[:at]


def test_the_context_ends_a_text_at_the_same_token_in_any_batch(engine: penstock.LoadedModel) -> None:
    found = engine.generate(PROMPTS, 100)
    assert [a.finish for a in found] == ["context"] * 4
    assert [len(a.tokens) + len(p) for a, p in zip(found, PROMPTS, strict=True)] == [49] * 4  # the last is never read
    assert engine.generate(PROMPTS[0], 100)[0].tokens == found[0].tokens
    for options in ({"draft": 3}, {"exit_at": 2.0}):
        assert engine.generate(PROMPTS[0], 100, **options)[0].tokens == found[0].tokens


@pytest.mark.parametrize("ahead", [1, 2, 5])
@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_drafts_never_change_a_greedy_text(engine: penstock.LoadedModel, ahead: int, floor: float) -> None:
    for prompt in PROMPTS:
        plain = engine.generate(prompt, 24)[0]
        drafted = engine.generate(prompt, 24, draft=ahead, draft_floor=floor)[0]
        assert drafted.tokens == plain.tokens
        assert drafted.calls["engine"] <= 24
        assert "decode" not in drafted.calls


def test_sampled_drafts_keep_the_distribution(engine: penstock.LoadedModel, small: TinyLM) -> None:
    """The second token is the first that a draft can give: with the first, its frequencies are those of the model."""
    options, draws = {"temperature": 1.0, "top_k": 4}, 800
    sampling = Sampling(**options)
    chances = law(small, [3, 4], sampling)
    want = torch.zeros(256, 256, dtype=torch.float64)
    for token in chances.nonzero()[:, 0].tolist():
        want[token] = chances[token] * law(small, [3, 4, token], sampling)
    found = torch.zeros_like(want)
    drafted = 0
    for seed in range(draws):
        (answer,) = engine.generate([3, 4], 3, seed=seed, draft=2, **options)
        found[answer.tokens[0], answer.tokens[1]] += 1
        drafted += answer.calls.get("draft", 0)
    assert drafted >= draws  # every text was drafted
    assert found[want == 0].sum() == 0
    expected = want * draws
    often = expected >= 5
    assert often.sum() > 8
    got = torch.cat((found[often], found[~often].sum()[None]))
    due = torch.cat((expected[often], expected[~often].sum()[None]))
    degrees = int(often.sum())
    assert float(((got - due) ** 2 / due).sum()) < degrees + 4 * (2 * degrees) ** 0.5


def law(model: TinyLM, tokens: list[int], sampling: Sampling) -> torch.Tensor:
    """Probabilities of the next token."""
    return sampling.probabilities(model(torch.tensor([tokens])).detach()[0, -1])


def test_rejection_repairs_any_draft() -> None:
    """First tokens drafted from a law of their own come out in the law of the model."""
    true = torch.tensor([0.05, 0.3, 0.0, 0.25, 0.4]).log()[None].repeat(2, 1)
    draft = torch.tensor([0.5, 0.1, 0.2, 0.2, 0.0], dtype=torch.float64)
    counts, draws = torch.zeros(5), 4000
    for seed in range(draws):
        sampling = Sampling(temperature=1.0, seed=seed)
        row = Row(0, 0, 9, frozenset(), ())
        one = draw(draft, float(sampling.uniforms(0, 0, 1, 1)[0]))
        accepted, token = verify_drafts(row, [one], [draft], true, sampling)
        counts[one if accepted else token] += 1
    assert float((counts / draws - true[0].exp()).abs().sum()) < 0.05


def test_exits_that_nobody_takes_change_nothing(engine: penstock.LoadedModel) -> None:
    plain = engine.generate(PROMPTS[0], 24)[0]
    for fill in FILLS:
        never = engine.generate(PROMPTS[0], 24, exit_at=1.01, fill=fill)[0]
        assert never.tokens == plain.tokens
        always = engine.generate(PROMPTS[0], 24, exit_at=0.0, fill=fill)[0]
        assert always.calls == {"engine": 1, "project" if fill == "project" else "draft": 23}
        tried = [engine.generate(PROMPTS[0], 24, exit_at=tau, fill=fill)[0] for tau in (0.2, 0.4, 0.6, 0.8, 0.95)]
        if fill != "none":  # see the next test
            assert any(1 < some.calls["engine"] < 24 for some in tried)


def test_without_a_fill_the_first_layers_write_the_rest(engine: penstock.LoadedModel) -> None:
    met = set()
    generator = engine._generating()
    decoder = Decoder(generator._engines, generator.layout, torch.float32)
    for prompt, tau in itertools.product(PROMPTS, (0.3, 0.6, 0.9)):
        plain = engine.generate(prompt, 24)[0]
        answer = engine.generate(prompt, 24, exit_at=tau, fill="none")[0]
        full = answer.calls["engine"]  # of the prompt, and of each token before the first sure one
        met.add(full)
        assert answer.tokens[:full] == plain.tokens[:full]
        _, kv = decoder.prefill([prompt])
        shallow, written = kv.first(1), list(answer.tokens[:full])
        for at in range(23):
            logits, shallow = decoder.step("draft", torch.tensor([[written[at]]]), shallow)
            written += [int(logits.argmax())] if at + 1 >= full else []
        assert tuple(written) == answer.tokens
    assert any(1 < full < 24 for full in met)


def test_streams_are_the_answers(engine: penstock.LoadedModel) -> None:
    heard: list[list[int]] = [[] for _ in PROMPTS]
    answers = engine.generate(PROMPTS, 20, stream=lambda row, tokens: heard[row].extend(tokens))
    assert [tuple(h) for h in heard] == [a.tokens for a in answers]
    plain = answers[0].tokens
    for options in ({}, {"draft": 3}, {"exit_at": 0.5, "stop": [[255, 255]]}):
        assert sum(engine.stream(PROMPTS[0], 20, **options), ()) == engine.generate(PROMPTS[0], 20, **options)[0].tokens
    stop = plain[6:9]
    pieces = list(engine.stream(PROMPTS[0], 20, stop=[stop], draft=4))
    answer = engine.generate(PROMPTS[0], 20, stop=[stop])[0]
    assert sum(pieces, ()) == answer.tokens  # nothing was shown that the stop takes back
    with pytest.raises(UsageError, match="top_p is 2"):
        next(engine.stream(PROMPTS[0], 20, top_p=2))


def test_a_stop_sequence_ends_the_text_wherever_it_lies(engine: penstock.LoadedModel) -> None:
    plain = engine.generate("ab", 20)[0]
    assert plain.raw == bytes(plain.tokens)
    for start, length in ((0, 1), (4, 3), (17, 3)):
        stop = bytes(plain.tokens[start : start + length])
        first = plain.raw.index(stop)
        for options in ({}, {"draft": 3}):
            answer = engine.generate("ab", 20, stop=[b"\xfe\xfd\xfc", stop], **options)[0]
            assert (answer.raw, answer.finish) == (plain.raw[:first], "stop")


def test_weights_are_on_disk_once(written: Path, small: TinyLM) -> None:
    size = sum(w.numel() * 4 for w in small.parameters()) + small.cos.numel() * 8
    assert size <= (written / "weights.safetensors").stat().st_size < size * 1.1
    payloads = [written / f"{stem}.onnx" for stem in ("engine", "decode", "draft", "project")]
    assert all(p.stat().st_size < 60_000 for p in payloads)
    section = open_artifact(written).manifest.generate
    assert section is not None
    assert (section.draft, section.context, section.text) == (1, 48, "bytes")
    assert not list(written.parent.glob("**/*.safetensors.*"))


def test_another_engine_writes_the_same_text(engine: penstock.LoadedModel, written: Path) -> None:
    other = penstock.load(written, engine_override="openvino", threads=1)
    for options in ({}, {"draft": 3}):
        assert other.generate("ab", 16, **options)[0].tokens == engine.generate("ab", 16)[0].tokens


def test_none_of_zero_tokens(engine: penstock.LoadedModel) -> None:
    (answer,) = engine.generate("ab", 0)
    assert (answer.tokens, answer.finish, answer.calls) == ((), "length", {})


def test_the_plain_call_of_an_artifact_is_the_prompt_engine(engine: penstock.LoadedModel, small: TinyLM) -> None:
    tokens = torch.tensor([[5, 6, 7]])
    cache = {f"cache_{kind}_{layer}": torch.zeros(1, 2, 0, 8) for kind in "kv" for layer in range(3)}
    found = engine(
        input_ids=tokens, position_ids=torch.arange(3)[None], past_mask=torch.zeros(1, 0, dtype=torch.bool),
        new_mask=torch.ones(1, 3, dtype=torch.bool), logits_at=torch.arange(3), **cache,
    )  # fmt: skip
    torch.testing.assert_close(found["logits"], small(tokens).detach(), rtol=1e-4, atol=1e-4)
    assert found["cache_k_2"].shape == (1, 2, 3, 8)
