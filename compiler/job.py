"""One compile on its way, and the stages that all its targets share: capture, reference, passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path

from compiler import artifact
from compiler.capture.capture import capture
from compiler.cost.cost import Flow, estimate
from compiler.cost.plan import make_plan
from compiler.cost.targets import Target
from compiler.depth.calibrate import Exits
from compiler.depth.stage import calibrated, to_calibrate
from compiler.events import Phases
from compiler.pipeline.instruments import comparing, counting, dumping, pricing, timing, verifying
from compiler.pipeline.pipeline import Instrument, PassRecord, Pipeline
from compiler.pipeline.recipe import Recipe, pipelines_for, variants_for
from compiler.select.reference import Loss, Reference, sizes_of
from compiler.settings import Settings
from compiler.spec import ModelSpec
from ir import ROWS, Fact, Graph, verify
from ir.copy import copy_graph
from ir.errors import PenstockError
from passes import Pass

_FACTS = {"none": (), "each": (Fact.WELL_FORMED,), "full": (Fact.WELL_FORMED, Fact.TYPED)}


@dataclass
class Job:
    """One compile, seen from one of its targets.

    Attributes:
        target: whose prices ``records`` and ``predicted`` hold; ``seen_from`` changes it.
        reference: the original's answers; ``None`` before ``refer``.
        records: what each pass did, per variant.
        graphs: the graph of each variant.
        predicted: speed-up that the cost model expects from the passes, per variant.
        seconds: predicted time of the kernels, per variant.
        exits: of the variants whose rows leave early.
        declined: why a variant was not made.
        twins: loss of each variant by its CPU twin and what it may be, or why it has none; shared by all GPUs.
    """

    spec: ModelSpec
    settings: Settings
    recipe: Recipe
    target: Target
    phases: Phases
    reference: Reference | None = None
    records: Mapping[str, Sequence[PassRecord]] = field(default_factory=dict)
    graphs: Mapping[str, Graph] = field(default_factory=dict)
    predicted: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    exits: Mapping[str, Exits] = field(default_factory=dict)
    declined: Mapping[str, str] = field(default_factory=dict)
    twins: dict[str, tuple[Loss, float] | PenstockError] = field(default_factory=dict)

    def seen_from(self, target: Target) -> Job:
        """The same compile with the variants and the prices of one target."""
        names = [n for n in variants_for(self.recipe, target) if n in self.graphs]
        records = {n: [_priced(r, target) for r in self.records[n]] for n in names}
        seconds, predicted = {}, {}
        for name in names:
            costs = [float(r.columns["cost"]) for r in records[name] if "cost" in r.columns]
            first = next((r.columns for r in records[name] if "cost" in r.columns), {"cost": 0.0, "saved": 0.0})
            seconds[name] = costs[-1] if costs else 0.0
            predicted[name] = (float(first["cost"]) + float(first["saved"])) / max(seconds[name], 1e-12)
        graphs = {n: self.graphs[n] for n in names}
        return replace(self, target=target, records=records, graphs=graphs, predicted=predicted, seconds=seconds)


def _priced(record: PassRecord, target: Target) -> PassRecord:
    """Without the prices of other targets."""
    columns = {key: value for key, value in record.columns.items() if ":" not in key}
    for word in ("cost", "saved"):
        if f"{word}:{target.name}" in record.columns:
            columns[word] = record.columns[f"{word}:{target.name}"]
    return replace(record, columns=columns)


def capture_model(job: Job) -> Graph:
    """The model as a graph, its weights looked over."""
    with job.phases.phase("capture", "torch.export") as say:
        graph = capture(job.spec)
        if not job.settings.allow_nonfinite:
            artifact.check_weights(graph.weights)
        verify(graph, Fact.WELL_FORMED)
        dims = ", ".join(f"{name} {bounds}" for name, bounds in graph.dims.items()) or "all fixed"
        say(f"{len(graph)} nodes, {graph.weights.nbytes / 1e6:.1f} MB of weights, dims {dims}")
    return graph


def refer(job: Job, graph: Graph) -> None:
    """Run the original on the calibration inputs."""
    with job.phases.phase("reference", "the original's answers") as say:
        job.reference = Reference(job.spec, graph)
        base = job.reference.base()
        say(f"{len(job.reference.samples)} calibration inputs" + (f", metric {base:.4f}" if base is not None else ""))


def optimise(job: Job, before: Graph, targets: Sequence[Target]) -> None:
    """Run the pipeline of each variant that some target wants; what variants share in the beginning runs once."""
    assert job.reference is not None
    wanted: dict[str, Pipeline] = {}
    for target in targets:
        wanted |= {n: p for n, p in pipelines_for(job.recipe, target).items() if n not in wanted}
    shared = _shared(list(wanted.values()))
    samples = job.reference.samples
    sizes = sizes_of(before, job.reference.example)
    watch = _watch(job, targets, sizes)
    graphs: dict[str, Graph] = {}
    records: dict[str, list[PassRecord]] = {}
    exits: dict[str, Exits] = {}
    declined: dict[str, str] = {}
    with job.phases.phase("optimise", job.recipe.name) as say:
        base = copy_graph(before)
        given = Pipeline(*shared)
        common = given.run(base, watch, samples, rollback=True)
        for name, pipeline in wanted.items():
            graph = copy_graph(base)
            rest = pipeline.passes[len(shared) :]
            done = list(common)
            cut = to_calibrate(rest)
            facts, watching = given.facts, watch
            if cut is not None:
                first = Pipeline(*rest[:cut], given=facts)
                done += first.run(graph, watch, samples, rollback=True)
                made = calibrated(job, graph, sizes, alone=len(wanted) == 1)
                watching = _watch(job, targets, sizes, made.exits)
                facts, rest = first.facts, (*((made.depth,) if made.depth else ()), *rest[cut + 1 :])
                done += made.records
                if made.exits is not None:
                    exits[name] = made.exits
                elif len(wanted) > 1:
                    declined[name] = made.why
                    continue
            records[name] = done + Pipeline(*rest, given=facts).run(graph, watching, samples, rollback=True)
            if job.settings.check != "none":
                verify(graph, Fact.WELL_FORMED, Fact.TYPED)
            graphs[name] = graph
        say(", ".join(f"{name}: {len(graph)} nodes" for name, graph in graphs.items()))
    job.graphs, job.records, job.exits, job.declined = graphs, records, exits, declined


def _watch(
    job: Job, targets: Sequence[Target], sizes: Mapping[str, int], exits: Exits | None = None
) -> list[Instrument]:
    assert job.reference is not None
    watch: list[Instrument] = [counting, comparing(job.reference.samples[:1])]
    watch += [pricing(_cost(target, sizes, exits), target.name) for target in targets]
    watch += [verifying(*_FACTS[job.settings.check])] if job.settings.check != "none" else []
    return [*watch, *_dumps(job), timing]


def _cost(target: Target, sizes: Mapping[str, int], exits: Exits | None) -> Callable[[Graph], float]:
    """Seconds of a graph; where rows leave early, each by itself, the mean over where they left on held-out samples."""

    def cost(graph: Graph) -> float:
        rows = [node for node in graph.body if node.op is ROWS]
        if exits is None or not rows:
            return estimate(graph, target, sizes).seconds
        left, planned = exits.section["histogram"], make_plan(graph)
        flows = [Flow(per_node={n: float(at < taken) for at, n in enumerate(rows)}) for taken in range(len(left))]
        seconds = [estimate(planned, target, sizes, flow).seconds for flow in flows]
        return sum(n * s for n, s in zip(left, seconds, strict=True)) / sum(left)

    return cost


def _shared(pipelines: Sequence[Pipeline]) -> list[Pass]:
    """The passes that all pipelines begin with, up to exits whose thresholds are to be found: those need a graph."""
    steps = zip(*(p.passes for p in pipelines), strict=False)
    return [same[0] for same in takewhile(lambda step: len(set(step)) == 1 and to_calibrate(step) is None, steps)]


def _dumps(job: Job) -> list[Instrument]:
    found = []
    if job.settings.dump is not None:
        found.append(dumping(job.settings.dump))
    if job.settings.print_ir_after:
        say: Callable[[str], None] = lambda text: job.phases.note("ir", text)  # noqa: E731
        found.append(dumping(Path(), job.settings.print_ir_after, say))
    return found
