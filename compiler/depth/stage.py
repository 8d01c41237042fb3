"""Exits as a stage of a compile: the samples, the budget, and what becomes of ``depth{mode=exit}`` without tau."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from compiler.capture.inputs import bind_inputs, flatten_inputs
from compiler.depth.calibrate import PARTS, Exits, Outcome, calibrate, split_samples
from compiler.pipeline.pipeline import PassRecord
from ir import Graph
from ir.errors import UsageError
from passes import Pass, Remark
from passes.depth import Depth

if TYPE_CHECKING:
    from compiler.job import Job


@dataclass(frozen=True)
class Calibrated:
    """What is to be run in place of the pass, or a record of why nothing is."""

    depth: Depth | None = None
    exits: Exits | None = None
    records: tuple[PassRecord, ...] = ()
    why: str = ""


def to_calibrate(passes: Sequence[Pass]) -> int | None:
    """Place of the first pass whose thresholds are to be found: exits without any."""
    return next((i for i, p in enumerate(passes) if isinstance(p, Depth) and p.mode == "exit" and not p.tau), None)


def calibrated(job: Job, graph: Graph, sizes: Mapping[str, int], alone: bool) -> Calibrated:
    """Find the exits of a variant.

    Args:
        job: the compile.
        graph: of the variant, after the passes before.
        sizes: of the dims in the example.
        alone: whether it is the only variant: then samples that cannot do are an error, not a reason.

    Raises:
        UsageError: there are too few samples, or they are not the user's own.
    """
    settings = job.settings
    budget = settings.max_drop if settings.max_drop is not None else settings.max_loss
    with job.phases.phase("exits", f"thresholds for a loss of {budget:g}") as say:
        try:
            found = calibrate(
                graph, _samples(job, graph), budget, job.target, sizes, job.spec.row_quality,
                batches=_batches(graph, sizes), heard=lambda text: job.phases.note("exits", text),
            )  # fmt: skip
        except UsageError as error:
            if alone:
                raise
            found = Outcome(None, error.what)
        say(_told(found))
    if found.exits is None:
        remark = Remark("blocks", False, found.why)
        return Calibrated(records=(PassRecord("depth{mode=exit}", 0, (remark,)),), why=found.why)
    return Calibrated(found.exits.depth, found.exits)


def _told(found: Outcome) -> str:
    if found.exits is None:
        return f"none: {found.why}"
    told = found.exits.section
    layers = ", ".join(map(str, told["exits"]))
    return (
        f"after {layers} of {told['blocks']} blocks by {told['criterion']}: {told['expected']:.2f} blocks expected, "
        f"held-out loss {told['loss']:.3g}"
    )


def _samples(job: Job, graph: Graph) -> Mapping[str, Sequence[Mapping[str, Tensor]]]:
    spec = job.spec
    if spec.exit_samples:
        if set(spec.exit_samples) != set(PARTS):
            raise UsageError(f"exit_samples has the parts {', '.join(spec.exit_samples)}, not {', '.join(PARTS)}")
        return {
            name: [flatten_inputs(bind_inputs(spec.model, s).named) for s in spec.exit_samples[name]] for name in PARTS
        }
    if not spec.calibration:
        raise UsageError(
            "exits are calibrated on inputs of your own, and the model came with none",
            hint="give ModelSpec(calibration=...): made-up inputs would tell nothing of yours",
        )
    rows = {n: v.tensor.shape[0] for n, v in graph.arguments("input") if v.tensor.rank}
    first = next(iter(rows.values()))
    batched = [n for n, d in rows.items() if d == first]
    samples = [flatten_inputs(bind_inputs(spec.model, s).named) for s in spec.calibration]
    return split_samples(samples, batched)


def _batches(graph: Graph, sizes: Mapping[str, int]) -> tuple[int, ...]:
    first = next((v.tensor.shape[0] for _, v in graph.arguments("input") if v.tensor.rank), 1)
    rows = first if isinstance(first, int) else sizes.get(str(first), 1)
    return tuple(dict.fromkeys((rows, 1, 8)))
