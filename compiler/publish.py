"""Writes what a compile made into an artifact, and tells in a row what came out for a target."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compiler import artifact
from compiler.cache.key import Components
from compiler.cost.targets import Target
from compiler.job import Job
from compiler.report import build_report, write_report
from compiler.select.race import Candidate
from compiler.spec import ModelSpec
from ir import Graph, show
from ir import weights as weight_files
from ir.errors import PenstockError


@dataclass(frozen=True, slots=True)
class Row:
    """What came out for one target.

    Attributes:
        target, device: name, and what it is.
        gpu: whether it is one.
        engine, precision: of the winner; empty when there is none.
        state: ``built``, ``kit`` (to be finished there), ``failed`` or ``refused``.
        verified: how the numbers were checked.
        loss: against the original; ``None`` when nothing was built.
        milliseconds: of one run, predicted or measured, as ``tier`` says.
        tier: ``measured`` or ``predicted``.
        build_seconds, megabytes: of the whole member.
        why: of a failure or refusal; else the first remark.
        cached: taken from an equal, earlier compile.
    """

    target: str
    device: str
    gpu: bool
    engine: str = ""
    precision: str = ""
    state: str = "built"
    verified: str = ""
    loss: float | None = None
    milliseconds: float | None = None
    tier: str = ""
    build_seconds: float = 0.0
    megabytes: float = 0.0
    why: str = ""
    cached: bool = False


def _device(target: Target) -> str:
    if target.kind == "cpu":
        return target.note or "this machine"
    return f"sm_{target.device.capability}" if target.device.kind == "cuda" else target.cc


def made_row(view: Job, winner: Candidate, folder: Path, seconds: float) -> Row:
    """Of a target that was compiled just now."""
    time = winner.engine_time
    measured = time.median if time is not None else view.seconds.get(winner.variant)
    return Row(
        view.target.name, _device(view.target), view.target.kind == "gpu",
        f"{winner.backend} {winner.version}".strip(), winner.variant,
        winner.state, winner.verified, winner.loss.loss if winner.loss else None,
        None if measured is None else measured * 1e3, "measured" if time is not None else "predicted",
        seconds, _megabytes(folder), winner.remarks[0] if winner.remarks else "",
    )  # fmt: skip


def kept_row(target: Target, report: Mapping[str, Any], folder: Path) -> Row:
    """Of a target that was taken from the cache; the figures are of then."""
    chosen = report["chosen"]
    ms = chosen.get("ms") or chosen.get("predicted_ms")
    return Row(
        target.name, _device(target), target.kind == "gpu",
        f"{chosen['engine']} {chosen['engine_version']}".strip(), chosen["variant"],
        chosen["state"], chosen["verified"], chosen["loss"], ms, chosen["tier"], chosen["build_seconds"],
        _megabytes(folder), "", True,
    )  # fmt: skip


def failed_row(target: Target, engine: str, error: PenstockError) -> Row:
    """Of a target for which nothing could be built."""
    return Row(target.name, _device(target), target.kind == "gpu", engine, state="failed", why=error.what)


def refused_row(target: Target, why: str) -> Row:
    """Of a target that no engine here builds for."""
    return Row(target.name, _device(target), target.kind == "gpu", state="refused", why=why)


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6


def artifact_name(spec: ModelSpec) -> str:
    """Name of the artifact's directory, without suffix."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", spec.name or type(spec.model).__name__).strip("-") or "model"


def publish(
    job: Job, folder: Path, before: Graph, candidates: Sequence[Candidate], winner: Candidate, made_from: Components
) -> str:
    """Write the IR, the states and the report beside the payload, and seal the folder.

    Returns:
        The artifact's id.
    """
    graph = job.graphs[winner.variant]
    device = job.target.device
    with job.phases.phase("publish", "write, sync, rename"):
        (folder / artifact.BEFORE).write_text(show(before))
        (folder / artifact.AFTER).write_text(show(graph))
        if graph.initial:
            weight_files.save(graph.initial, folder / artifact.STATES)
        report = build_report(job, candidates, winner)
        write_report(report, folder)
        inputs, outputs = artifact.ports(graph)
        on_cpu = device.kind == "cpu"
        manifest = artifact.Manifest(
            name=artifact_name(job.spec),
            engine=artifact.EngineChoice(winner.backend, winner.version, job.settings.threads if on_cpu else None),
            inputs=inputs,
            outputs=outputs,
            dims=dict(graph.dims),
            target=job.target.name,
            recipe=job.recipe.text(),
            passes=tuple(report["variants"][winner.variant]["passes"]),
            measurements=report["chosen"],
            made_from=made_from.record,
            processor=artifact.Processor.here(*_needed_flags(winner)) if on_cpu else artifact.Processor(),
            device=artifact.DeviceNeed(device.kind, device.capability),
            requires=dict(winner.requires),
            state=winner.state,
            depth=report["depth"] or None,
            flow=tuple(asdict(proof) for proof in winner.flow),
        )
        return artifact.seal(folder, manifest)


def _needed_flags(winner: Candidate) -> tuple[str, ...]:
    """CPU features that the payload itself asks for, and those without which its numbers would be others.

    Without VNNI, x86 adds up int8 products in 16 bits and saturates: not what was verified here.
    """
    asked = set(winner.requires.get("cpu", "").split())
    if winner.facts.get("int8_matmuls") and "avx512_vnni" in artifact.cpu_flags():
        asked.add("avx512_vnni")
    return tuple(sorted(asked))
