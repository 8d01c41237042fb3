"""Samples that exits must not be calibrated on: too few, random tokens, scores that know nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from compiler.compile import compile as compile_model
from compiler.depth.samples import check_counts, check_scores, check_tokens, rank_correlation
from compiler.depth.traces import Traces
from ir.errors import UsageError
from tests.compiler.depth.made import easy_and_hard, graded
from tests.compiler.models import deep


@pytest.mark.parametrize("counts", [(99, 50, 50), (100, 49, 50), (100, 50, 49), (0, 0, 0)])
def test_too_few_samples_are_refused_with_the_numbers(counts: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match=f"{counts[0]} rows to fit maps, {counts[1]} to set thresholds"):
        check_counts(*counts)
    check_counts(100, 50, 50)


@pytest.mark.parametrize("vocabulary", [64, 1000, 30522])
def test_tokens_spread_evenly_are_refused_and_those_of_texts_are_not(vocabulary: int) -> None:
    random = torch.Generator().manual_seed(0)
    even = [{"tokens": torch.randint(1, vocabulary, (50, 128), generator=random)} for _ in range(8)]
    with pytest.raises(UsageError, match="the samples of tokens look random"):
        check_tokens(even)
    zipf = 1 / torch.arange(1, vocabulary).double()
    texts = [{"tokens": 1 + torch.multinomial(zipf, 6400, True, generator=random).reshape(50, 128)} for _ in range(8)]
    check_tokens(texts)


def test_sources_are_no_random_bytes() -> None:
    from examples.tinylm_data import read_corpus

    check_tokens([{"tokens": read_corpus().validation[:65536].long().reshape(-1, 256)}])


def _blind(traces: Traces) -> Traces:
    return replace(traces, scores=np.random.default_rng(5).random(traces.scores.shape))


@pytest.mark.parametrize("make", [easy_and_hard, graded])
@pytest.mark.parametrize("rows", [60, 1000])
def test_scores_that_know_nothing_are_refused_and_others_are_not(make, rows: int) -> None:
    traces = make(rows)
    check_scores(traces, "confidence")
    with pytest.raises(UsageError, match=r"rank correlation is .* after 1, .* after 5 blocks"):
        check_scores(_blind(traces), "confidence")
    with pytest.raises(UsageError, match="does not tell how good"):
        check_scores(replace(traces, scores=-traces.scores), "confidence")  # worse than nothing
    check_scores(replace(_blind(traces), losses=np.zeros_like(traces.losses)), "confidence")  # nothing to know


def test_rank_correlation_is_spearmans() -> None:
    random = np.random.default_rng(0)
    a = random.random(200)
    assert rank_correlation(a, np.exp(5 * a)) == pytest.approx(1)
    assert rank_correlation(a, -(a**3)) == pytest.approx(-1)
    assert abs(rank_correlation(a, random.random(200))) < 0.2
    assert rank_correlation(np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 2, 3])) == pytest.approx(1)
    assert rank_correlation(np.array([1.0, 2, 2, 4]), np.array([0.0, 1, 0, 1])) == pytest.approx(0.7071, abs=0.01)
    assert np.isnan(rank_correlation(a, np.ones(200)))


def test_a_model_whose_scores_know_nothing_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compiler.depth import calibrate

    plan = calibrate.plan
    monkeypatch.setattr(calibrate, "plan", lambda traces, *rest: plan(_blind(traces), *rest))
    traces = calibrate.Tapped.traces
    monkeypatch.setattr(calibrate.Tapped, "traces", lambda self, *given: _blind(traces(self, *given)))
    with pytest.raises(UsageError, match="give inputs like those in use") as error:
        compile_model(
            deep.model(), recipe="exits", max_drop=0.002, output=tmp_path / "x.penstock", engine="onnxruntime",
            cache=False, seconds=0.0, check="none",
        )  # fmt: skip
    assert "confidence" in error.value.what
