"""What part budget of the depth bench says of engines whose answers are known."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import penstock
from examples import bench_depth
from examples.classifier import Accuracy
from passes.depth_exits import LAYERS

CLASSES = 4


class Known(nn.Module):
    """The class of a text is its first token."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {"logits": 5 * nn.functional.one_hot(input_ids[:, 0], CLASSES).float()}


@dataclass
class Early:
    """Rows of class 0 leave after layer 1, and are taken for class 1."""

    depth: Mapping[str, Any] | None = field(
        default_factory=lambda: {"oracle": 1.5, "blocks": 6, "exits": [1]}  # as a section says it
    )

    @property
    def manifest(self) -> Any:
        return SimpleNamespace(depth=self.depth, engine=SimpleNamespace(name="a"))

    def facts(self) -> dict[str, Any]:
        return {"engine": "made up"}

    def __call__(self, effort: float | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        return Known()(**inputs) if effort == 1 else self.trace(**inputs)[0]

    def trace(self, **inputs: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        early = (inputs["input_ids"][:, 0] == 0) & (self.depth is not None)
        moved = torch.where(early, 1, inputs["input_ids"][:, 0])
        answer = Known()(moved[:, None], inputs["attention_mask"])
        return answer, {LAYERS: torch.where(early, 1, 6)} if self.depth else {}


@pytest.fixture
def spec() -> penstock.ModelSpec:
    ids = torch.arange(8)[:, None].repeat(1, 5) % CLASSES
    mask = torch.ones_like(ids)
    mask[:4, 3:] = 0
    report = [{"input_ids": ids[:4], "attention_mask": mask[:4]}, {"input_ids": ids[4:], "attention_mask": mask[4:]}]
    labels = torch.tensor([0, 1, 2, 3, 1, 1, 2, 3])  # of the rows of class 0 one is right as it is, one when changed
    return penstock.ModelSpec(Known(), report[0], exit_samples={"report": report}, metric=Accuracy(report, labels))


def test_what_exits_change_is_told_beside_what_that_does_to_the_metric(spec: penstock.ModelSpec) -> None:
    told = bench_depth._quality(spec, Early())
    assert told["rows"] == 8
    assert told["agreement"] == told["by_exits"] and told["agreement"][0] == 0.25 and told["agreement"][1] > 0.1
    assert told["drop"][0] == 0 and told["drop"][1] > 0
    assert told["layers"][0] == (2 * 1 + 6 * 6) / 8 and told["oracle_layers"] == 1.5
    plain = bench_depth._quality(spec, Early(None))
    assert plain["agreement"] == (0, 0) and "layers" not in plain


def test_rows_are_batched_anew_and_cut_to_their_longest(spec: penstock.ModelSpec) -> None:
    report = spec.exit_samples["report"]
    found = bench_depth._batched(report, 2, 100)
    assert [tuple(one["input_ids"].shape) for one in found] == [(2, 3), (2, 3), (2, 5), (2, 5)]
    assert torch.equal(torch.cat([one["input_ids"][:, 0] for one in found]), torch.arange(8) % CLASSES)
    (one,) = bench_depth._batched(report, 3, 4)
    assert one["input_ids"].shape == (3, 5) and one["attention_mask"].sum() == 3 + 3 + 5


def test_times_are_set_against_the_same_and_the_best_engine_without_exits(
    spec: penstock.ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"fp32 on a": 10.0, "int8 on a": 5.0, "exits": 6.0, "int8-exits": 4.0, "exits, all blocks": 11.0,
             "int8-exits, all blocks": 6.0, "eager": 20.0, "torch.compile": 15.0}  # fmt: skip

    def in_turns(calls: Mapping[str, bench_depth.Call], *rest: Any) -> dict[str, float]:
        for call in calls.values():
            call()
        return {name: times[name] for name in calls}

    monkeypatch.setattr(bench_depth, "in_turns", in_turns)
    monkeypatch.setattr(torch, "compile", lambda model, **rest: model)
    engines = {"fp32 on a": Early(None), "int8 on a": Early(None), "exits": Early(), "int8-exits": Early()}
    quality = {name: bench_depth._quality(spec, engine) for name, engine in engines.items()}
    args = argparse.Namespace(texts=8, seconds=0.0, max_drop=0.01)
    row = bench_depth._timed("classifier", spec, engines, quality, 2, args)
    assert row["full"] == "int8 on a" and row["over_full"] == {"exits": 0.833, "int8-exits": 1.25}
    assert row["over_same"] == {"exits": (1.667, 1.667), "int8-exits": (1.25, 1.25)}
    assert row["overhead"] == {"exits": 0.1, "int8-exits": 0.2} and row["check_of_a_block"]["exits"] == 0.6
    del engines["int8 on a"], engines["int8-exits"]  # which lost more than was allowed
    assert bench_depth._timed("classifier", spec, engines, quality, 1, args)["full"] == "fp32 on a"
