"""Gathers everything that a compile knows into one plain record: the content of ``report.json``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from compiler.artifact.manifest import now, penstock_version, ports
from compiler.cost.cost import Estimate, estimate
from compiler.cost.targets import Target
from compiler.report import kernels
from compiler.report.environment import environment
from compiler.report.job import Job
from compiler.report.measured import candidate_row, chosen_row, verdict_row
from compiler.report.pass_rows import costs_of, variant_row
from compiler.report.plain import plain
from compiler.select.reference import sizes_of
from ir import Graph
from ir.errors import UsageError

if TYPE_CHECKING:
    from compiler.select.race import Candidate

SCHEMA = 1
FORMAT = "penstock-report"


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
        "verdict": verdict_row(job, name, candidates, winner),
        "chosen": chosen_row(job, winner) if winner else {},
        "chosen_variant": variant,
        "candidates": [candidate_row(job, c, candidates, winner) for c in candidates],
        "depth": _depth(job, variant, winner),
        "flow": [asdict(proof) for proof in winner.flow] if winner else [],
        "variants": {v: variant_row(job, v) for v in job.records},
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


def _depth(job: Job, variant: str, winner: Candidate | None) -> dict[str, Any]:
    if variant not in job.exits:
        return {}
    loss = winner.loss if winner else None
    return job.exits[variant].told(loss.base, loss.metric) if loss else dict(job.exits[variant].section)


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
    costs = costs_of(job.records.get(variant, ()))
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
    parts += ["--task", given.task, "--draft", str(given.draft)] if given.task else []
    parts += ["--allow-nonfinite"] if given.allow_nonfinite else []
    return shlex.join(parts)


def _python(job: Job, name: str, graph: Graph | None) -> str:
    inputs, _ = ports(graph) if graph is not None else ((), ())
    named = [p.name for p in inputs if p.kind == "input"]
    # a name that is no identifier (nested inputs have dots) can only be passed in a dict
    given = ", ".join(f"{n}=..." if n.isidentifier() else f"**{{{n!r}: ...}}" for n in named)
    return f"import penstock\n\nmodel = penstock.load({name + '.penstock'!r})\noutputs = model({given})\n"
