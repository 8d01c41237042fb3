"""An engine for a GPU that is not here: chosen by prediction, judged through a twin, built in a child process.

Nothing of this is measured, and nothing claims to be. The loss is that of the same graph on a CPU engine (its twin);
where a backend can simulate what it emitted, that is compared as well.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from backends import WEIGHTS_FILE, Backend, BuildOptions, backend
from backends.rows import Prepared, prepared
from backends.segments import has_regions, is_segmented, ready_for, refusals, simulated_segments
from compiler.depth.judge import judge
from compiler.job import Job
from compiler.select.compare import distance
from compiler.select.lowering import build_unmeasured, listing
from compiler.select.race import Candidate, with_built
from compiler.select.reference import Loss
from compiler.select.settled import settled, without_traces
from ir import Graph, interpret
from ir import weights as weight_files
from ir.errors import MissingError, PenstockError, UnsupportedError, VerificationError

Builds = dict[tuple[str, str, int], tuple[Candidate, tuple[Path, ...]]]
"""What was built already in this compile, with its files: targets of one capability share a build."""
_TWINS = ("onnxruntime", "reference")


def build_ahead(job: Job, with_: Backend, folder: Path, done: Builds) -> tuple[list[Candidate], Candidate]:
    """The variant of least predicted time that is legal, close enough to the original, and can be built.

    Args:
        job: seen from the target.
        with_: who builds.
        folder: empty; gets weights and payload of the winner.
        done: builds of this compile; grows.

    Returns:
        Every variant with its verdict, and the one in ``folder``.

    Raises:
        PenstockError: none could be built; of the first failure's kind, with every reason.
    """
    device = job.target.device
    kit = bool(with_.why_not(device))
    made: list[Candidate] = []
    faults: list[PenstockError] = []
    winner: Candidate | None = None
    for variant in sorted(job.graphs, key=lambda v: job.seconds[v]):
        entry = Candidate(variant, with_.name, with_.version() or "", job.predicted[variant])
        if winner is not None:
            times = [job.seconds[v] * 1e3 for v in (variant, winner.variant)]
            made.append(replace(entry, why=f"predicted {times[0]:.3g} ms, {winner.variant} {times[1]:.3g} ms"))
            continue
        try:
            ready = ready_for(job.graphs[variant], with_, device, whole=kit)
            refused, left = refusals(ready.graph, with_, device)
            refused = [*ready.refused] or (refused if kit else left)  # a kit is finished whole
            if refused:
                raise UnsupportedError(listing(refused))
            entry = replace(entry, loss=_judge(job, variant))
            winner = _build(job, entry, ready, with_, folder, done, kit)
            made.append(winner)
        except PenstockError as error:
            faults.append(error)
            made.append(replace(entry, why=error.what))
        said = made[-1].why.splitlines()[0] if made[-1].why else f"built in {made[-1].build_seconds:.1f} s"
        job.phases.note("engines", f"{job.target.name}: {entry.name}: {said}")
    if winner is None:
        reasons = "\n".join(f"  - {c.name}: {c.why}" for c in made)
        raise type(faults[0])(f"nothing could be built for {job.target.name}:\n{reasons}", hint=faults[0].hint)
    return made, winner


def _judge(job: Job, variant: str) -> Loss:
    """Loss of a variant by its twin; the same for every GPU, so found once."""
    if variant not in job.twins:
        try:
            job.twins[variant] = _twin_loss(job, variant)
        except PenstockError as error:
            job.twins[variant] = error
    found = job.twins[variant]
    if isinstance(found, PenstockError):
        raise found
    loss, bound = found
    if not loss.loss <= bound:
        raise VerificationError(f"loss {loss.loss:.3g} is more than {bound:.3g}")
    return loss


def _twin_loss(job: Job, variant: str) -> tuple[Loss, float]:
    """Loss, and what it may be: rows that leave early are judged as on this machine."""
    reference, graph = job.reference, job.graphs[variant]
    assert reference is not None
    for name in _TWINS:
        twin = backend(name)
        if twin.version() is None:
            continue
        ready = prepared(graph, twin)
        if ready.refused or twin.unsupported(ready.graph):
            continue
        with tempfile.TemporaryDirectory(prefix="penstock-twin-") as scratch:
            folder = Path(scratch)
            weight_files.save(ready.graph.weights, folder / WEIGHTS_FILE)
            twin.build(ready.graph, folder)
            run = settled(twin.load(folder), graph)
            return judge(reference, run, job.exits.get(variant), job.settings.max_loss)
    raise MissingError("no CPU engine can check this graph")  # the reference takes every graph


def _build(
    job: Job, entry: Candidate, ready: Prepared, with_: Backend, folder: Path, done: Builds, kit: bool
) -> Candidate:
    device = job.target.device
    key = (with_.name, entry.variant, device.capability)
    if key in done and not kit:
        twin, files = done[key]
        for file in files:
            shutil.copyfile(file, folder / file.name)
        shared = "shares the build of a target of equal capability"
        return replace(twin, predicted=entry.predicted, loss=entry.loss, remarks=(*twin.remarks, shared))
    graph = ready.graph
    try:
        start = time.perf_counter()
        weight_files.save(graph.weights, folder / WEIGHTS_FILE)
        options = BuildOptions(
            device, job.settings.build_timeout, job.settings.build_memory,
            lambda phase, fraction: job.phases.note("progress", f"{job.target.name} {phase} {fraction:.0%}"),
        )  # fmt: skip
        built = with_.kit(graph, folder, options) if kit else build_unmeasured(graph, with_, folder, options)
        if built is None:
            raise MissingError(with_.why_not(device))
        made = with_built(entry, built, time.perf_counter() - start)
        lowering = "" if not has_regions(graph) else "segments" if is_segmented(folder) else "native"
        made = replace(made, flow=(*ready.flow, *made.flow), state="kit" if kit else "built", lowering=lowering)
        made = replace(made, verified=_verified(job, graph, with_, lowering == "segments", entry.loss))
    except BaseException:
        for file in folder.iterdir():
            file.unlink()
        raise
    if not kit:
        done[key] = (made, tuple(folder.iterdir()))
    return made


def _verified(job: Job, graph: Graph, with_: Backend, cut: bool, loss: Loss | None) -> str:
    """How the numbers were checked; a simulation that disagrees with the graph is an error of the emission."""
    assert job.reference is not None
    told = "twin on the CPU"
    simulate = simulated_segments if cut else lambda graph, backend, device: backend.simulated(graph, device)
    simulated = simulate(graph, with_, job.target.device)
    if simulated is None:
        return told
    inputs = {**graph.initial, **job.reference.example}
    want, got = _outputs(graph, inputs), simulated(inputs)
    found = distance(want, {name: got[name] for name in want})
    # a format that loses more than that turns last bits of float16 into other roundings of its own
    lost = 1.0 - loss.cosine if loss is not None else 0.0
    if 1.0 - found.cosine > max(_LARGEST_MOVE, lost):
        raise VerificationError(
            f"what {with_.name} emitted does not compute the graph: cosine {found.cosine:.6f}", hint="please report it"
        )
    return f"{told}; emitted network simulated"


_LARGEST_MOVE = 1e-3
"""One minus the cosine between what was emitted and the graph: float16 in another order of sums."""


def _outputs(graph: Graph, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = without_traces(interpret(graph, inputs))
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}


def usable_for(job: Job, backends: Sequence[Backend]) -> list[Backend]:
    """The backends that can build, or make a kit, for the job's target; those that build here first."""
    device = job.target.device
    here = [b for b in backends if b.version() is not None and not b.why_not(device)]
    kits = [b for b in backends if b.version() is not None and b.why_not(device) and type(b).kit is not Backend.kit]
    return here + ([b for b in kits if b not in here] if device.kind == "cuda" else [])
