"""Gathers everything that a compile knows into one plain record: the content of ``report.json``."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

import torch

from compiler.artifact.manifest import now, penstock_version, ports
from compiler.cost import Estimate, estimate
from compiler.reference import Reference, sizes_of
from compiler.report import kernels
from compiler.report.environment import environment
from compiler.report.plain import plain, show_seconds, show_times, starred
from compiler.targets import Target
from ir import Graph
from ir.errors import UsageError
from ir.types import DTYPE_NAMES
from passes import Remark

if TYPE_CHECKING:  # the compile that imports this module
    from compiler.compile import Settings
    from compiler.events import Phases
    from compiler.pipeline import PassRecord
    from compiler.recipe import Recipe
    from compiler.select import Candidate
    from compiler.spec import ModelSpec

SCHEMA = 1
FORMAT = "penstock-report"
_PLAIN_VARIANT = "fp32"
"""What the other variants of a recipe are compared with, on the same engine."""


class Job(Protocol):
    """What a compile knows at its end."""

    @property
    def spec(self) -> ModelSpec: ...  # noqa: D102
    @property
    def settings(self) -> Settings: ...  # noqa: D102
    @property
    def recipe(self) -> Recipe: ...  # noqa: D102
    @property
    def target(self) -> Target: ...  # noqa: D102
    @property
    def phases(self) -> Phases: ...  # noqa: D102
    @property
    def reference(self) -> Reference | None: ...  # noqa: D102
    @property
    def records(self) -> Mapping[str, Sequence[PassRecord]]: ...  # noqa: D102
    @property
    def graphs(self) -> Mapping[str, Graph]: ...  # noqa: D102
    @property
    def predicted(self) -> Mapping[str, float]: ...  # noqa: D102


def build_report(
    job: Job, candidates: Sequence[Candidate], winner: Candidate | None, before: Graph | None = None
) -> dict[str, Any]:
    """The report of a compile as plain data.

    Args:
        job: the compile.
        candidates: every variant on every engine; empty after a dry run.
        winner: the one that was taken.
        before: the graph as captured, for its kernels; without it only its predicted time is known.
    """
    variant = winner.variant if winner else max(job.predicted, key=lambda v: job.predicted[v], default="")
    graph = job.graphs.get(variant)
    name = job.spec.name or type(job.spec.model).__name__
    sizes = _sizes(job, graph)
    report = {
        "format": FORMAT,
        "schema": SCHEMA,
        "name": name,
        "penstock": penstock_version(),
        "created": now(),
        "verdict": _verdict(job, name, candidates, winner),
        "chosen": _chosen(job, winner) if winner else {},
        "chosen_variant": variant,
        "candidates": [_candidate(job, c, candidates, winner) for c in candidates],
        "variants": {v: _variant(job, v) for v in job.records},
        **_prices(job, graph, before, variant, sizes),
        "phases": {phase: round(seconds, 4) for phase, seconds in job.phases.seconds.items()},
        "environment": environment(job.settings.threads),
        "signature": _signature(graph),
        "sizes": sizes,
        "settings": _settings(job),
        "recipe": {"name": job.recipe.name, "text": job.recipe.text(), "passes": dict(job.recipe.passes)},
        "reproduce": {"command": _command(job), "python": _python(job, name, graph)},
    }
    found: dict[str, Any] = plain(report)
    return found


# --- the verdict ---------------------------------------------------------------------------------


def _verdict(job: Job, name: str, candidates: Sequence[Candidate], winner: Candidate | None) -> dict[str, Any]:
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
        "loss_kind": "relative drop of the metric" if job.spec.metric else "one minus the worst cosine",
        "metric_before": None,
        "metric_after": None,
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
    }


def _within(job: Job, made: Candidate) -> bool:
    return made.loss is not None and made.loss.loss <= job.settings.max_loss


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


# --- candidates ----------------------------------------------------------------------------------


def _chosen(job: Job, made: Candidate) -> dict[str, Any]:
    """One flat row for the manifest; what the engine says about itself never hides what we measured."""
    time, eager, loss = made.engine_time, made.eager_time, made.loss
    return {
        **dict(made.facts),
        "engine": made.backend,
        "engine_version": made.version,
        "variant": made.variant,
        "ms": _ms(time.median if time else None),
        "eager_ms": _ms(eager.median if eager else None),
        "speedup": _speedup(job, made),
        "baseline": _baseline(job, made),
        "loss": loss.loss if loss else None,
        "max_loss": job.settings.max_loss,
        "cosine": loss.cosine if loss else None,
        "metric_before": loss.base if loss else None,
        "metric_after": loss.metric if loss else None,
        "rounds": time.rounds if time else 0,
        "tier": "measured",
    }


def _candidate(job: Job, made: Candidate, candidates: Sequence[Candidate], winner: Candidate | None) -> dict[str, Any]:
    time, eager, loss = made.engine_time, made.eager_time, made.loss
    costs = _costs(job.records.get(made.variant, ()))
    taken = winner is not None and (made.variant, made.backend) == (winner.variant, winner.backend)
    return {
        "name": made.name,
        "variant": made.variant,
        "engine": made.backend,
        "version": made.version,
        "taken": taken,
        "why": made.why or ("the fastest within the loss bound" if taken else ""),
        "predicted_speedup": made.predicted,
        "predicted_ms": _ms(costs[-1] if costs else None),
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
    }


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


# --- passes --------------------------------------------------------------------------------------


def _variant(job: Job, variant: str) -> dict[str, Any]:
    records = job.records[variant]
    costs = _costs(records)
    return {
        "predicted_speedup": job.predicted.get(variant),
        "before_seconds": costs[0] if costs else None,
        "after_seconds": costs[-1] if costs else None,
        "nodes": len(job.graphs[variant]) if variant in job.graphs else None,
        "passes": [_pass(record) for record in records],
    }


def _costs(records: Sequence[PassRecord]) -> list[float]:
    """Predicted seconds before the first pass, and after each that was priced."""
    priced = [r.columns for r in records if "cost" in r.columns]
    if not priced:
        return []
    start = float(priced[0]["cost"]) + float(priced[0].get("saved", 0.0))
    return [start, *(float(columns["cost"]) for columns in priced)]


def _pass(record: PassRecord) -> dict[str, Any]:
    columns = record.columns
    return {
        "name": record.name,
        "changes": record.changes,
        "applied": record.applied,
        "declined": record.declined,
        "ms": columns.get("ms"),
        "nodes": columns.get("nodes"),
        "seconds": columns.get("cost"),
        "saved_seconds": columns.get("saved"),
        "moved": columns.get("moved"),
        "cosine": columns.get("cosine"),
        "dropped": record.dropped,
        "remarks": _folded(record.remarks, bool(record.dropped)),
    }


def _folded(remarks: Sequence[Remark], dropped: bool) -> list[dict[str, Any]]:
    """Equal remarks as one with a count; those that differ in the number of a block are equal."""
    groups: dict[tuple[str, bool, str], list[Remark]] = {}
    for said in remarks:
        groups.setdefault((starred(said.at), said.applied, said.why), []).append(said)
    return [
        {
            "at": pattern if len({said.at for said in same}) > 1 else same[0].at,
            "applied": applied and not dropped,
            "why": f"rolled back with its pass: {why}" if applied and dropped else why,
            "count": len(same),
        }
        for (pattern, applied, why), same in groups.items()
    ]


# --- the cost model ------------------------------------------------------------------------------


def _sizes(job: Job, graph: Graph | None) -> dict[str, int]:
    return sizes_of(graph, job.reference.example) if graph is not None and job.reference is not None else {}


def _estimated(graph: Graph | None, target: Target, sizes: Mapping[str, int]) -> tuple[Estimate | None, str]:
    if graph is None:
        return None, "no graph"
    try:
        return estimate(graph, target, sizes), ""
    except UsageError as error:  # a size that only the data decides
        return None, error.what


def _prices(
    job: Job, graph: Graph | None, before: Graph | None, variant: str, sizes: Mapping[str, int]
) -> dict[str, Any]:
    found, why_not = _estimated(graph, job.target, sizes)
    first, _ = _estimated(before, job.target, sizes)
    costs = _costs(job.records.get(variant, ()))
    start = kernels.totals(first, len(before or ())) if first else {"seconds": costs[0] if costs else None}
    return {
        "nodes": kernels.kernel_rows(found.rows) if found else [],
        "nodes_before": kernels.kernel_rows(first.rows) if first else [],
        "structure": kernels.structure(found.rows) if found else [],
        "totals": {"before": start, "after": kernels.totals(found, len(graph or ())) if found else {}},
        "memory": kernels.memory(found, job.target) if found else {},
        "roof": kernels.roof(job.target),
        "assumed": [*found.notes] if found else [why_not],
    }


# --- how to use it, how to make it again ---------------------------------------------------------


def _signature(graph: Graph | None) -> dict[str, Any]:
    if graph is None:
        return {"inputs": [], "outputs": [], "dims": {}}
    inputs, outputs = ports(graph)
    return {
        "inputs": [{"kind": p.kind, "name": p.name, "type": str(p)} for p in inputs],
        "outputs": [{"kind": p.kind, "name": p.name, "type": str(p)} for p in outputs],
        "dims": {name: [bounds.min, bounds.max] for name, bounds in graph.dims.items()},
    }


def _settings(job: Job) -> dict[str, Any]:
    given = asdict(job.settings)
    return {key: value for key, value in given.items() if key not in ("dump", "print_ir_after")}


def _command(job: Job) -> str:
    """The command line for the same result; only the caller knows how the model was named."""
    given = job.settings
    parts = ["penstock", "compile", "MODEL", "--target", given.target, "--recipe", given.recipe]
    parts += ["--engine", given.engine, "--max-loss", f"{given.max_loss:g}"]
    parts += ["--threads", str(given.threads)] if given.threads is not None else []
    parts += ["--allow-nonfinite"] if given.allow_nonfinite else []
    return shlex.join(parts)


def _python(job: Job, name: str, graph: Graph | None) -> str:
    inputs, _ = ports(graph) if graph is not None else ((), ())
    named = [p.name for p in inputs if p.kind == "input"]
    # a name that is no identifier (nested inputs have dots) can only be passed in a dict
    given = ", ".join(f"{n}=..." if n.isidentifier() else f"**{{{n!r}: ...}}" for n in named)
    return f"import penstock\n\nmodel = penstock.load({name + '.penstock'!r})\noutputs = model({given})\n"


def slowest_phase(report: Mapping[str, Any]) -> str:
    """``engines 12.3 s``: where the time of the compile went."""
    phases = report["phases"]
    name = max(phases, key=lambda p: phases[p], default="")
    return f"{name} {show_seconds(phases[name])}" if name else ""
