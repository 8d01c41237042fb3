"""The main job: capture, optimise every variant, build every engine, measure, keep the best, publish."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from compiler import artifact
from compiler.cache.earlier import Earlier, components, earlier, keep
from compiler.cache.key import Components
from compiler.capture.capture import capture
from compiler.cost.cost import estimate
from compiler.cost.targets import Target
from compiler.cost.targets import target as find_target
from compiler.events import Listener, Phases, silent
from compiler.pipeline.instruments import comparing, counting, dumping, pricing, timing, verifying
from compiler.pipeline.pipeline import Instrument, PassRecord, Pipeline, check_runs
from compiler.pipeline.recipe import Recipe
from compiler.pipeline.recipe import recipe as read_recipe
from compiler.report import build_report, write_report
from compiler.select.race import Candidate, Race, chosen_backends
from compiler.select.reference import Reference, sizes_of
from compiler.settings import Settings, read_settings
from compiler.spec import Metric, ModelSpec
from ir import Fact, Graph, show, verify
from ir import weights as weight_files
from ir.copy import copy_graph
from ir.errors import GoalError, UsageError, VerificationError
from passes import Pass

_FACTS = {"none": (), "each": (Fact.WELL_FORMED,), "full": (Fact.WELL_FORMED, Fact.TYPED)}


@dataclass(frozen=True)
class CompileResult:
    """What a compile made.

    Attributes:
        path: the artifact; ``None`` after a dry run.
        id: digest of its manifest; ``load(path, expect=id)`` accepts nothing else.
        graph: the graph of the chosen variant.
        records: what each pass did, per variant.
        candidates: every variant on every engine, with its time, loss, and why it was not taken.
        chosen: the one in the artifact.
        report: all of that as plain data, as in ``report.json``.
        goal: empty, or why the goal was not met although an artifact was written.

    Out of the cache come ``path``, ``id``, ``graph`` (without weights), ``report`` (with ``cached``) and ``goal``.
    """

    path: Path | None
    id: str
    graph: Graph
    records: Mapping[str, Sequence[PassRecord]]
    candidates: Sequence[Candidate]
    chosen: Candidate | None
    report: Mapping[str, Any]
    goal: str = ""

    @property
    def speedup(self) -> float:
        """Times as fast as the original in eager mode, measured in one run, same inputs and threads."""
        return float((self.report["chosen"] or {}).get("speedup") or 0.0)

    def raise_for_goal(self) -> None:
        """Raise GoalError when the goal was not met."""
        if self.goal:
            raise GoalError(f"goal not met: {self.goal}")


@dataclass
class _Job:
    """One compile on its way."""

    spec: ModelSpec
    settings: Settings
    recipe: Recipe
    target: Target
    phases: Phases
    reference: Reference | None = None
    records: dict[str, list[PassRecord]] = field(default_factory=dict)
    graphs: dict[str, Graph] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)


def compile(
    model: torch.nn.Module | ModelSpec,
    *,
    example_inputs: Mapping[str, Any] | None = None,
    dynamic_shapes: Mapping[str, Any] | None = None,
    calibration: Sequence[Mapping[str, Any]] = (),
    metric: Metric | None = None,
    name: str = "",
    output: str | os.PathLike[str] | None = None,
    on_event: Listener = silent,
    **settings: Any,
) -> CompileResult:
    """Compile a model for a target.

    Args:
        model: a module, or a ``ModelSpec`` that holds the next five as well; those given here replace its own.
        example_inputs: a tensor per argument of ``forward``.
        dynamic_shapes: argument name -> axis -> ``Dim``.
        calibration: more inputs, for passes that measure and for the loss.
        metric: quality of a callable, higher is better.
        name: of the artifact.
        output: directory of the artifact; ``NAME.penstock`` here when absent.
        on_event: hears of phases and notes.
        **settings: fields of ``Settings``.

    Raises:
        UsageError: a setting is unknown or cannot be meant; the model and its inputs do not fit.
        UnsupportedError: lists what cannot be carried.
        MissingError: no engine is installed that could do it.
        VerificationError: no candidate stays within ``max_loss``.
        ResourceError: no space or permission for the artifact.
    """
    spec = _spec(model, example_inputs, dynamic_shapes, calibration, metric, name)
    chosen = read_settings(settings)
    job = _Job(spec, chosen, read_recipe(chosen.recipe), find_target(chosen.target), Phases(on_event))
    path = Path(output) if output is not None else Path(f"{_file_name(spec)}.penstock")
    _check(job)
    if chosen.dry_run:
        before = _capture(job)
        _refer(job, before)
        _optimise(job, before)
        return _result(job, None, "", [], None, before)
    with artifact.staging(path, force=chosen.force) as folder:  # an unwritable place fails before the slow part
        before = _capture(job)
        made_from = components(spec, before, job.recipe, chosen)
        watched = chosen.dump is not None or chosen.print_ir_after  # then the passes must really run
        kept = earlier(made_from, folder, job.phases) if chosen.cache and not watched else None
        if kept is None:
            candidates, winner, identity = _make(job, before, folder, made_from)
    if kept is not None:
        return _result_of(path, kept)
    return _result(job, path, identity, candidates, winner, before)


def _make(job: _Job, before: Graph, folder: Path, made_from: Components) -> tuple[list[Candidate], Candidate, str]:
    before_text = show(before)
    _refer(job, before)
    _optimise(job, before)
    candidates, winner = _race(job, folder)
    identity = _publish(job, folder, before_text, candidates, winner, made_from)
    if job.settings.cache:
        keep(made_from, folder, job.phases)
    return candidates, winner, identity


def _spec(
    model: torch.nn.Module | ModelSpec,
    example_inputs: Mapping[str, Any] | None,
    dynamic_shapes: Mapping[str, Any] | None,
    calibration: Sequence[Mapping[str, Any]],
    metric: Metric | None,
    name: str,
) -> ModelSpec:
    given: dict[str, Any] = {
        "example_inputs": example_inputs, "dynamic_shapes": dynamic_shapes, "calibration": calibration,
        "metric": metric, "name": name,
    }  # fmt: skip
    if isinstance(model, ModelSpec):
        return replace(
            model, **{key: value for key, value in given.items() if isinstance(value, torch.Tensor) or value}
        )
    if example_inputs is None:
        raise UsageError("compile needs example inputs", hint='compile(model, example_inputs={"x": tensor})')
    return ModelSpec(model, example_inputs, dynamic_shapes or {}, calibration, metric, name or type(model).__name__)


def _check(job: _Job) -> None:
    """What cannot be meant fails before the slow part."""
    pipelines = job.recipe.pipelines().values()
    if job.settings.print_ir_after:
        check_runs(job.settings.print_ir_after, *pipelines)
    if job.settings.engine != "auto" or not job.settings.dry_run:  # a plan needs no engine
        chosen_backends(job.settings.engine)
    if job.target.kind != "cpu":
        raise UsageError(
            f"no engine here is built for {job.target.name} yet: this version compiles for cpu",
            hint=f"penstock estimate MODEL --target {job.target.name} predicts it without that GPU",
        )


def _file_name(spec: ModelSpec) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", spec.name or type(spec.model).__name__).strip("-") or "model"


def _capture(job: _Job) -> Graph:
    with job.phases.phase("capture", "torch.export") as say:
        graph = capture(job.spec)
        if not job.settings.allow_nonfinite:
            artifact.check_weights(graph.weights)
        verify(graph, Fact.WELL_FORMED)
        say(f"{len(graph)} nodes, {graph.weights.nbytes / 1e6:.1f} MB of weights, dims {_dims(graph)}")
    return graph


def _refer(job: _Job, graph: Graph) -> None:
    with job.phases.phase("reference", "the original's answers") as say:
        job.reference = Reference(job.spec, graph)
        base = job.reference.base()
        say(f"{len(job.reference.samples)} calibration inputs" + (f", metric {base:.4f}" if base is not None else ""))


def _dims(graph: Graph) -> str:
    return ", ".join(f"{name} {bounds}" for name, bounds in graph.dims.items()) or "all fixed"


def _optimise(job: _Job, before: Graph) -> None:
    """Run the pipeline of each variant; passes that variants share in the beginning run once."""
    assert job.reference is not None
    sizes = sizes_of(before, job.reference.example)

    def cost(graph: Graph) -> float:
        return estimate(graph, job.target, sizes).seconds

    before_cost = cost(before)
    variants = {n: p for n, p in job.recipe.pipelines().items() if not _pointless(job, n)}
    shared = _shared(list(variants.values()))
    samples = job.reference.samples
    watch: list[Instrument] = [counting, pricing(cost), comparing(samples[:1])]
    watch += [verifying(*_FACTS[job.settings.check])] if job.settings.check != "none" else []
    watch += [*_dumps(job), timing]
    with job.phases.phase("optimise", job.recipe.name) as say:
        base = copy_graph(before)
        given = Pipeline(*shared)
        common = given.run(base, watch, samples, rollback=True)
        for name, pipeline in variants.items():
            graph = copy_graph(base)
            rest = Pipeline(*pipeline.passes[len(shared) :], given=given.facts)
            job.records[name] = common + rest.run(graph, watch, samples, rollback=True)
            if job.settings.check != "none":
                verify(graph, Fact.WELL_FORMED, Fact.TYPED)
            job.graphs[name] = graph
            job.predicted[name] = before_cost / max(cost(graph), 1e-12)
        say(", ".join(f"{name}: {len(graph)} nodes" for name, graph in job.graphs.items()))


def _shared(pipelines: Sequence[Pipeline]) -> list[Pass]:
    """The passes that all pipelines begin with."""
    steps = zip(*(p.passes for p in pipelines), strict=False)
    return [same[0] for same in takewhile(lambda step: len(set(step)) == 1, steps)]


def _pointless(job: _Job, variant: str) -> bool:
    """A bf16 variant of ``auto`` on a processor that multiplies bf16 no faster is not worth its build."""
    without = variant == "bf16" and job.recipe.name == "auto" and "bf16" not in job.target.peak
    if without:
        job.phases.note("optimise", f"bf16 not tried: {job.target.name} has no bf16 instructions")
    return without


def _dumps(job: _Job) -> list[Instrument]:
    found = []
    if job.settings.dump is not None:
        found.append(dumping(job.settings.dump))
    if job.settings.print_ir_after:
        say: Callable[[str], None] = lambda text: job.phases.note("ir", text)  # noqa: E731
        found.append(dumping(Path(), job.settings.print_ir_after, say))
    return found


def _race(job: _Job, folder: Path) -> tuple[list[Candidate], Candidate]:
    assert job.reference is not None
    backends = chosen_backends(job.settings.engine)
    race = Race(job.reference, job.settings.threads, job.settings.max_loss, job.settings.seconds, job.phases)
    with (
        job.phases.phase("engines", "build, verify, measure") as say,
        # within the staging folder: who reclaims that after a kill reclaims this as well
        tempfile.TemporaryDirectory(dir=folder, prefix="build-") as scratch,
    ):
        for variant, graph in job.graphs.items():
            for backend in backends:
                race.enter(variant, graph, backend, Path(scratch) / f"{variant}-{backend.name}", job.predicted[variant])
        winner = race.winner()
        if winner is None:
            reasons = "\n".join(f"  - {c.name}: {c.why}" for c in race.candidates)
            lost = any(c.loss is not None for c in race.candidates)
            fault = VerificationError if lost else race.fault_kind()
            raise fault(
                f"no engine stays within a loss of {job.settings.max_loss:g}:\n{reasons}"
                if lost
                else f"no engine could be built:\n{reasons}",
                hint="allow more with --max-loss, or use --recipe fp32"
                if lost
                else "penstock doctor says what is missing",
            )
        race.move(winner, folder)
        say(
            f"{winner.name}: {winner.speedup:.2f}x eager at loss {winner.loss.loss:.2g}" if winner.loss else winner.name
        )
    return race.candidates, winner


def _publish(
    job: _Job,
    folder: Path,
    before_text: str,
    candidates: Sequence[Candidate],
    winner: Candidate,
    made_from: Components,
) -> str:
    graph = job.graphs[winner.variant]
    with job.phases.phase("publish", "write, sync, rename"):
        (folder / artifact.BEFORE).write_text(before_text)
        (folder / artifact.AFTER).write_text(show(graph))
        if graph.initial:
            weight_files.save(graph.initial, folder / artifact.STATES)
        report = build_report(job, candidates, winner)
        write_report(report, folder)
        inputs, outputs = artifact.ports(graph)
        manifest = artifact.Manifest(
            name=_file_name(job.spec),
            engine=artifact.EngineChoice(winner.backend, winner.version, job.settings.threads),
            inputs=inputs,
            outputs=outputs,
            dims=dict(graph.dims),
            target=job.target.name,
            recipe=job.recipe.text(),
            passes=tuple(report["variants"][winner.variant]["passes"]),
            measurements={**report["chosen"], "flow": report["flow"]},
            made_from=made_from.record,
            processor=artifact.Processor.here(*_needed_flags(winner)),
        )
        return artifact.seal(folder, manifest)


def _needed_flags(winner: Candidate) -> tuple[str, ...]:
    """Without VNNI, x86 adds up int8 products in 16 bits and saturates: other numbers than were verified here."""
    has_vnni = "avx512_vnni" in artifact.cpu_flags()
    return ("avx512_vnni",) if has_vnni and winner.facts.get("int8_matmuls") else ()


def _result(
    job: _Job,
    path: Path | None,
    identity: str,
    candidates: Sequence[Candidate],
    winner: Candidate | None,
    before: Graph,
) -> CompileResult:
    report = build_report(job, candidates, winner)
    graph = job.graphs[winner.variant] if winner else next(iter(job.graphs.values()), before)
    goal = _goal(report)
    return CompileResult(path, identity, graph, job.records, tuple(candidates), winner, report, goal)


def _result_of(path: Path, kept: Earlier) -> CompileResult:
    """The result of an earlier, equal compile."""
    report = {**kept.report, "cached": True}
    graph = kept.graph
    return CompileResult(path, kept.id, graph, {}, (), None, report, _goal(report))


def _goal(report: Mapping[str, Any]) -> str:
    speedup = report["chosen"].get("speedup") if report["chosen"] else None
    if speedup is None or speedup >= 1.0:
        return ""
    return f"the fastest engine within the loss bound runs at {speedup:.2f}x of eager: not faster"
