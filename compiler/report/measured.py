"""What was measured: the verdict, the candidate that was taken, and why not the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from compiler.report.job import Job
from compiler.report.pass_rows import costs_of
from compiler.report.plain import show_times
from ir.types import DTYPE_NAMES

if TYPE_CHECKING:
    from compiler.select.race import Candidate

_PLAIN_VARIANT = "fp32"
"""What the other variants of a recipe are compared with, on the same engine."""
_MUCH_SPREAD = 0.25  # half the distance of the 10th and 90th percentile; a quiet machine stays below 0.1
_FEW_ROUNDS = 10  # fewer give no percentiles


_EXIT_LOSSES = {
    "agreement": "held-out rows that answer differently",
    "cosine": "one minus the mean cosine of held-out rows",
    "kl": "mean divergence of held-out rows, nats",
    "row_quality": "mean drop of the rows' quality, held-out",
}


def _loss_kind(job: Job, winner: Candidate | None) -> str:
    if job.spec.metric:
        return "relative drop of the metric"
    exits = job.exits.get(winner.variant) if winner else None
    return _EXIT_LOSSES[exits.section["metric"]] if exits else "one minus the worst cosine"


def verdict_row(job: Job, name: str, candidates: Sequence[Candidate], winner: Candidate | None) -> dict[str, Any]:
    """What came out, against which baseline, and whether that was the goal."""
    bound = job.settings.max_loss
    row: dict[str, Any] = {
        "name": name,
        "target": job.target.name,
        "target_note": job.target.note,
        "goal": f"faster than torch eager, loss at most {bound:g}",
        "met": False,
        "state": "planned" if not candidates else "failed",
        "text": "",
        "speedup": None,
        "baseline": "",
        "loss": None,
        "max_loss": bound,
        "loss_kind": _loss_kind(job, winner),
        "metric_before": None,
        "metric_after": None,
        "noise": "",
    }
    if winner is None:
        best = max(job.predicted.values(), default=1.0)
        row["text"] = (
            f"nothing was built or measured; the passes are predicted to give {show_times(best)}"
            if not candidates
            else f"no engine stays within a loss of {bound:g}"
        )
        return row
    loss = winner.loss
    row |= {"loss": loss.loss, "metric_before": loss.base, "metric_after": loss.metric} if loss else {}
    if job.target.kind != "cpu":
        done = "built" if winner.state == "built" else "a kit was written, to be finished there,"
        told = f"{done} for {job.target.name} without that GPU: nothing was run on it; "
        told += f"the passes are predicted to give {show_times(winner.predicted)}"
        return row | {"state": "built", "text": told}
    speedup = _speedup(job, winner)
    if speedup is None:
        return row | {"text": f"{winner.name} is not within a loss of {bound:g}"}
    met = speedup >= 1.0
    baseline = _baseline(job, winner)
    goal = "" if met else ": not faster than the original"
    return row | {
        "met": met,
        "state": "met" if met else "missed",
        "speedup": speedup,
        "baseline": baseline,
        "text": f"{show_times(speedup)} {baseline}{goal}",
        "noise": _noise(winner),
    }


def _noise(made: Candidate) -> str:
    """Why the times are not to be trusted much; empty when they are."""
    spread = max((t.spread for t in (made.engine_time, made.eager_time) if t), default=0.0)
    rounds = made.engine_time.rounds if made.engine_time else 0
    if spread <= _MUCH_SPREAD and rounds >= _FEW_ROUNDS:
        return ""
    why = f"times vary by {spread:.0%}" if spread > _MUCH_SPREAD else f"{rounds} rounds are few"
    return f"{why}: penstock bench measures again, best on a quiet machine"


def _within(job: Job, made: Candidate) -> bool:
    bound = job.settings.max_loss if made.bound is None else made.bound
    return made.loss is not None and made.loss.loss <= bound


def _speedup(job: Job, made: Candidate) -> float | None:
    """The measured one; none for a candidate whose answers are not good enough, however fast it is."""
    return made.speedup if made.engine_time is not None and _within(job, made) else None


def _baseline(job: Job, made: Candidate) -> str:
    rounds = made.engine_time.rounds if made.engine_time else 0
    return f"vs torch eager {_eager_dtype(job)}, same inputs, same threads, interleaved, median of {rounds}"


def _eager_dtype(job: Job) -> str:
    """Element type of most of the original's weights."""
    sizes: Counter[torch.dtype] = Counter()
    for param in job.spec.model.parameters():
        sizes[param.dtype] += param.numel()
    common = sizes.most_common(1)
    kind = common[0][0] if common else torch.float32
    return {"f32": "fp32", "f16": "fp16"}.get(DTYPE_NAMES.get(kind, ""), str(kind).removeprefix("torch."))


def chosen_row(job: Job, made: Candidate) -> dict[str, Any]:
    """One flat row for the manifest; what the engine says about itself never hides what we measured."""
    time, eager, loss = made.engine_time, made.eager_time, made.loss
    return {
        **dict(made.facts),
        "engine": made.backend,
        "engine_version": made.version,
        "variant": made.variant,
        "ms": _ms(time.median if time else None),
        "spread": time.spread if time else None,
        "eager_ms": _ms(eager.median if eager else None),
        "eager_spread": eager.spread if eager else None,
        "speedup": _speedup(job, made),
        "baseline": _baseline(job, made),
        "loss": loss.loss if loss else None,
        "max_loss": job.settings.max_loss,
        "cosine": loss.cosine if loss else None,
        "metric_before": loss.base if loss else None,
        "metric_after": loss.metric if loss else None,
        "rounds": time.rounds if time else 0,
        "predicted_ms": _ms(_predicted(job, made)),
        "tier": "measured" if time else "predicted",
        "state": made.state,
        "verified": made.verified,
        "build_seconds": made.build_seconds,
        "lowering": made.lowering,
    }


def candidate_row(
    job: Job, made: Candidate, candidates: Sequence[Candidate], winner: Candidate | None
) -> dict[str, Any]:
    """One variant on one engine: predicted, measured, and why it was not taken."""
    time, eager, loss = made.engine_time, made.eager_time, made.loss
    taken = winner is not None and (made.variant, made.backend) == (winner.variant, winner.backend)
    return {
        "name": made.name,
        "variant": made.variant,
        "engine": made.backend,
        "version": made.version,
        "taken": taken,
        "why": made.why or (("the fastest within the loss bound" if time else "least predicted time") if taken else ""),
        "predicted_speedup": made.predicted,
        "predicted_ms": _ms(_predicted(job, made)),
        "ms": _ms(time.median if time else None),
        "low_ms": _ms(time.low if time else None),
        "high_ms": _ms(time.high if time else None),
        "eager_ms": _ms(eager.median if eager else None),
        "rounds": time.rounds if time else 0,
        "speedup": _speedup(job, made),
        **_gain(job, made, candidates),
        "loss": loss.loss if loss else None,
        "within_loss": None if loss is None else _within(job, made),
        "cosine": loss.cosine if loss else None,
        "max_abs": loss.max_abs if loss else None,
        "metric_before": loss.base if loss else None,
        "metric_after": loss.metric if loss else None,
        "build_seconds": made.build_seconds,
        "facts": dict(made.facts),
        "state": made.state,
        "verified": made.verified,
        "remarks": list(made.remarks),
        "lowering": made.lowering,
        "flow": [asdict(proof) for proof in made.flow],
    }


def _predicted(job: Job, made: Candidate) -> float | None:
    costs = costs_of(job.records.get(made.variant, ()))
    return costs[-1] if costs else None


def _gain(job: Job, made: Candidate, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Predicted and measured gain over the plain variant on the same engine: like with like."""
    same_engine = (c for c in candidates if c.backend == made.backend)
    base = next((c for c in same_engine if c.variant == _PLAIN_VARIANT), None)
    mine = _speedup(job, made)
    theirs = _speedup(job, base) if base else None
    if base is None or base is made or not mine or not theirs:
        return {"gain_base": "", "gain_predicted": None, "gain_measured": None}
    return {
        "gain_base": base.name,
        "gain_predicted": made.predicted / base.predicted if base.predicted else None,
        "gain_measured": mine / theirs,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
