"""Exits per token: a threshold holds on texts that it was not chosen on, and goes where it cannot pay."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

import penstock
from compiler.artifact import open_artifact
from compiler.artifact.generation import NEVER
from compiler.generate.drafting import Costs, Trace
from compiler.generate.exiting import choose_threshold, gain_of_exits, plan_exits, upper
from examples.tinylm import TinyLM
from ir.errors import UsageError
from tests.compiler.command import clock

CHEAP = Costs(1.0, 0.2, tuple(1 + 0.1 * n for n in range(9)))


def texts(count: int, seed: int = 0, easy: float = 0.7) -> list[Trace]:
    """Of tokens that the first layers are sure of, most are right; of the others half."""
    draws = random.Random(seed)
    made = []
    for _ in range(count):
        sure = [draws.uniform(0.9, 1) if draws.random() < easy else draws.uniform(0.2, 0.9) for _ in range(96)]
        stands = [draws.random() < (0.999 if s >= 0.9 else 0.5) for s in sure]
        made.append(Trace(tuple(sure), tuple(stands)))
    return made


def test_the_walk_counts_runs_and_tokens() -> None:
    sure, lost = Trace((0.9,) * 8, (True,) * 8), Trace((0.1,) * 8, (True,) * 8)
    assert gain_of_exits([sure], CHEAP, 0.5, 1) == pytest.approx(1 / 0.2)
    assert gain_of_exits([lost], CHEAP, 0.5, 1) == pytest.approx(1 / 1.2)
    mixed = Trace((0.9, 0.9, 0.1) * 2, (True,) * 6)  # every third token makes up for the two before it
    assert gain_of_exits([mixed], CHEAP, 0.5, 1) == pytest.approx(6 / (6 * 0.2 + 2 * 1.2))
    assert gain_of_exits([sure, lost], CHEAP, 0.5, 2) == pytest.approx(1 / 1.2), "one that waits lets all wait"
    assert CHEAP.verifying(9) == CHEAP.verify[-1] and CHEAP.verifying(11) == pytest.approx(2.0)


def test_a_budget_holds_on_texts_that_it_was_not_chosen_on() -> None:
    for seed in range(5):
        made = plan_exits(texts(32, seed), {1: CHEAP, 8: CHEAP}, 0.01)
        assert 0.8 < made.threshold < 1 and made.left > 0.5
        assert made.wrong <= 0.01 + 2 * (0.01 / (16 * 96)) ** 0.5
        assert made.gains[1] > 1.5 and made.rows in (1, 8) and "alone" in made.text()


def test_no_threshold_holds_where_sure_tokens_are_wrong() -> None:
    wrong = [Trace((0.99,) * 96, (True, False) * 48)] * 8
    made = plan_exits(wrong, {1: CHEAP}, 0.01)
    assert (made.threshold, made.rows) == (NEVER, 0) and "no probability keeps 1.00%" in made.text()
    assert "one text" in plan_exits(wrong[:1], {1: CHEAP}, 0.01).why
    few = plan_exits([Trace((0.9,) * 4, (True,) * 4)] * 2, {1: CHEAP}, 0.01)
    assert few.threshold == NEVER, "four tokens prove nothing of one in a hundred"
    assert upper(0, 10_000) < 0.001 < upper(20, 10_000) and upper(0, 0) == 1.0


def test_what_was_chosen_by_luck_is_dropped() -> None:
    chosen_on, held_out = texts(8), [Trace((0.99,) * 96, (True,) * 80 + (False,) * 16)] * 8
    mixed = [one for pair in zip(chosen_on, held_out, strict=True) for one in pair]
    made = plan_exits(mixed, {1: CHEAP}, 0.01)
    assert made.threshold == NEVER and "of held-out tokens are wrong" in made.why


def test_exits_that_do_not_pay_are_dropped_by_batch() -> None:
    """The U-shape: alone they pay, in a batch somebody always waits; with a dear first part they never do."""
    some = texts(32, easy=0.6)
    made = plan_exits(some, {1: CHEAP, 8: CHEAP}, 0.01)
    assert made.rows == 1 and made.gains[1] > 1.03 > made.gains[8]
    dear = Costs(1.0, 0.8, CHEAP.verify)
    none = plan_exits(some, {1: dear, 8: dear}, 0.01)
    assert none.threshold == NEVER and none.why == "they do not pay" and none.gains[1] < 1


def test_a_threshold_is_the_least_that_holds() -> None:
    traces = [Trace((0.9,) * 500 + (0.5,) * 500 + (0.3,) * 100, (True,) * 1000 + (False,) * 100)]
    assert choose_threshold(traces, 0.05) == 0.5
    assert choose_threshold(traces, 0.2) == 0.3
    assert choose_threshold(traces, 0.001) == NEVER


def test_planned_when_compiled(small: TinyLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("compile.interleave", "drafting.interleave"):
        monkeypatch.setattr(f"compiler.generate.{place}", clock(1.0))
    given = {
        "example_inputs": {"tokens": torch.randint(0, 256, (2, 9))}, "task": "generate", "engine": "onnxruntime",
        "threads": 1, "max_drop": "50%",
    }  # fmt: skip
    with pytest.raises(UsageError, match="no layers are given"):
        penstock.compile(small, **given)
    made = penstock.compile(small, draft=1, output=tmp_path / "small.penstock", **given)
    assert made.path is not None
    section, told = open_artifact(made.path).manifest.generate, made.report["token_exits"]
    assert section is not None and section.exit_at == told["threshold"] and section.exit_rows == told["rows"]
    engine = penstock.load(made.path)
    planned, plain = engine.generate([1, 2, 3], 12, exit_at=True)[0], engine.generate([1, 2, 3], 12)[0]
    assert told["why"] and section.exit_rows == 0  # by this clock a draft is as dear as the model
    assert planned == plain


def test_a_plan_is_for_batches_that_it_pays_in(engine: penstock.LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    generator = engine._generating()
    monkeypatch.setattr(generator, "layout", replace(generator.layout, exit_at=0.5, exit_rows=1))
    alone = engine.generate([1, 2, 3], 12, exit_at=True)[0]
    assert alone.calls == engine.generate([1, 2, 3], 12, exit_at=0.5)[0].calls and "draft" in alone.calls
    assert "draft" not in engine.generate([[1, 2, 3], [4, 5]], 12, exit_at=True)[0].calls


def test_blocks_that_are_not_the_layers_are_not_projected(
    small: TinyLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compiler.generate.filling.take_apart", lambda graph: "no part of the graph repeats")
    made = penstock.compile(
        small, example_inputs={"tokens": torch.randint(0, 256, (2, 9))}, task="generate", draft=1, seconds=0.0,
        engine="onnxruntime", threads=1, output=tmp_path / "small.penstock",
    )  # fmt: skip
    assert made.path is not None and not (made.path / "project.onnx").exists()
    engine = penstock.load(made.path)
    with pytest.raises(UsageError, match="no engine that projects"):
        engine.generate([1], 4, exit_at=0.5, fill="project")
    assert engine.generate([1], 4, exit_at=2.0)[0].tokens == engine.generate([1], 4)[0].tokens
