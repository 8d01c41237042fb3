"""The main job: capture, optimise every variant, build every engine, measure, keep the best, publish."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from backends import BACKENDS, Backend, backend
from compiler import artifact
from compiler.cache.earlier import Earlier, components, earlier, keep
from compiler.cache.key import Components
from compiler.cost.targets import Target, targets
from compiler.events import Listener, Phases, silent
from compiler.generate.compile import compile_generate
from compiler.job import Job, capture_model, optimise, refer
from compiler.pipeline.pipeline import PassRecord, check_runs
from compiler.pipeline.recipe import pipelines_for, with_exits
from compiler.pipeline.recipe import recipe as read_recipe
from compiler.publish import Row, artifact_name, failed_row, kept_row, made_row, publish, refused_row
from compiler.report import build_report
from compiler.select.ahead import Builds, build_ahead, usable_for
from compiler.select.race import Candidate, chosen_backends, run_race
from compiler.settings import read_settings
from compiler.spec import Metric, ModelSpec
from ir import Graph
from ir.errors import GoalError, MissingError, PenstockError, UsageError


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
        rows: of several targets, what came out for each; then ``candidates`` are of all, ``chosen`` is ``None``.
        failure: of several targets, the first error; the artifact holds the others.

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
    rows: Sequence[Row] = ()
    failure: PenstockError | None = None

    @property
    def speedup(self) -> float:
        """Times as fast as the original in eager mode, measured in one run, same inputs and threads."""
        return float((self.report["chosen"] or {}).get("speedup") or 0.0)

    def raise_for_goal(self) -> None:
        """Raise GoalError when the goal was not met; of several targets, the error of the first that failed."""
        if self.failure is not None:
            raise self.failure
        if self.goal:
            raise GoalError(f"goal not met: {self.goal}")


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
    wanted = targets(chosen.target)
    made = read_recipe(chosen.recipe)
    made = with_exits(made) if chosen.max_drop is not None else made
    job = Job(spec, chosen, made, wanted[0], Phases(on_event))
    path = Path(output) if output is not None else Path(f"{artifact_name(spec)}.penstock")
    several = len(wanted) > 1 or chosen.engine == "all"
    _check(job, wanted, several)
    if chosen.dry_run:
        before = capture_model(job)
        refer(job, before)
        optimise(job, before, wanted)
        return _result(job.seen_from(wanted[0]), None, "", [], None, before)
    with artifact.staging(path, force=chosen.force) as folder:  # an unwritable place fails before the slow part
        if chosen.task == "generate":
            return _generating(job, path, folder)
        if several:
            return _several(job, wanted, path, folder)
        before = capture_model(job)
        made_from = components(spec, before, job.recipe, chosen)
        kept = _earlier(job, made_from, folder)
        if kept is None:
            refer(job, before)
            optimise(job, before, wanted)
            view = job.seen_from(wanted[0])
            candidates, winner = _build(view, chosen.engine, folder, {})
            identity = publish(view, folder, before, candidates, winner, made_from)
            if chosen.cache:
                keep(made_from, folder, job.phases)
    if kept is not None:
        return _result_of(path, kept)
    return _result(view, path, identity, candidates, winner, before)


def _generating(job: Job, path: Path, folder: Path) -> CompileResult:
    """A language model with a cache: several engines in one artifact."""
    backends = chosen_backends(job.settings.engine)
    made = compile_generate(job.spec, job.settings, job.target, backends, job.phases, folder, artifact_name(job.spec))
    tried = tuple(made.candidates)
    return CompileResult(
        path, made.id, made.graph, made.job.records, tried, made.chosen, made.report, _goal(made.report)
    )


def _earlier(job: Job, made_from: Components, folder: Path) -> Earlier | None:
    watched = job.settings.dump is not None or job.settings.print_ir_after  # then the passes must really run
    return earlier(made_from, folder, job.phases) if job.settings.cache and not watched else None


def _build(view: Job, engine: str, folder: Path, done: Builds) -> tuple[list[Candidate], Candidate]:
    """Every candidate for one target and the winner, whose files lie in ``folder``."""
    if view.target.kind == "cpu":
        return run_race(view, chosen_backends(engine), folder)
    able = usable_for(view, _for_gpu(engine))
    if not able:
        raise UsageError(f"no installed engine builds for {view.target.name}: {_whys(view.target, engine)}")
    with view.phases.phase(f"build {view.target.name}", "in a child process") as say:
        found = build_ahead(view, able[0], folder, done)
        say(f"{found[1].name}, {found[1].state}")
    return found


def _for_gpu(engine: str) -> list[Backend]:
    if engine in ("auto", "all"):
        return [b for b in BACKENDS if b.name in _GPU_ENGINES]
    return chosen_backends(engine)


def _whys(target: Target, engine: str) -> str:
    if target.device.kind not in ("cpu", "cuda"):
        return f"engines are for NVIDIA GPUs and processors, not for {target.cc}"
    told = []
    for each in _for_gpu(engine):
        why = each.why_not(target.device) if each.version() is not None else f"not installed ({each.install})"
        told.append(f"{each.name}: {why}")
    return "; ".join(told)


_GPU_ENGINES = ("tensorrt", "tvm")
"""In the order in which they are tried for a GPU; torch's own compiler, which leaves a kit, when it is asked for."""


def _several(job: Job, wanted: Sequence[Target], path: Path, folder: Path) -> CompileResult:
    """A bundle: a member per target (and engine, when all are asked for). What fails for one stops no other."""
    before = capture_model(job)
    rows: list[Row] = []
    plan: list[tuple[str, Target, str, Path]] = []
    for target in wanted:
        engines = _engines(job, target)
        if not engines:
            rows.append(refused_row(target, _whys(target, job.settings.engine)))
        for engine in engines:
            name = f"{target.name}-{engine}" if target.kind != "cpu" else target.name
            plan.append((name, target, engine, folder / name))
    made: dict[str, artifact.Member] = {}
    candidates: list[Candidate] = []
    reports: dict[str, Any] = {}
    failure: PenstockError | None = None
    done: Builds = {}
    ready = False
    for name, target, engine, place in plan:
        place.mkdir(mode=0o700)
        asked = replace(job.settings, target=target.name, engine=engine)
        made_from = components(job.spec, before, job.recipe, asked)
        kept = _earlier(job, made_from, place)
        try:
            if kept is None:
                if not ready:
                    refer(job, before)
                    optimise(job, before, [t for _, t, _, _ in plan])
                    ready = True
                view = replace(job, settings=asked).seen_from(target)
                start = job.phases.total
                tried, winner = _build(view, engine, place, done)
                candidates += tried
                identity = publish(view, place, before, tried, winner, made_from)
                if job.settings.cache:
                    keep(made_from, place, job.phases)
                rows.append(made_row(view, winner, place, job.phases.total - start))
                reports[name] = build_report(view, tried, winner)
            else:
                identity = kept.id
                rows.append(kept_row(target, kept.report, place))
                reports[name] = kept.report
            made[name] = artifact.member(place)
        except PenstockError as error:
            failure = failure or error
            shutil.rmtree(place)
            rows.append(failed_row(target, engine, error))
    if not made:
        raise failure or UsageError("nothing can be built for any of these targets", hint="penstock targets lists them")
    order = [t.name for t in wanted]
    rows.sort(key=lambda row: order.index(row.target))
    identity = artifact.seal_bundle(folder, artifact_name(job.spec), made)
    report = {"name": artifact_name(job.spec), "rows": [asdict(r) for r in rows], "members": reports}
    return CompileResult(path, identity, before, job.records, candidates, None, report, "", rows, failure)


def _engines(job: Job, target: Target) -> list[str]:
    """Names of the engines that get a member for a target; ``auto`` stands for the choice among all."""
    asked = job.settings.engine
    if target.kind == "cpu":
        fits = asked in ("auto", "all") or not backend(asked).why_not(target.device)
        return [asked] if fits else []
    able = [b.name for b in usable_for(replace(job, target=target), _for_gpu(asked))]
    every = asked == "all" or (asked == "auto" and job.settings.target == "all")
    return able if every else able[:1]


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


def _check(job: Job, wanted: Sequence[Target], several: bool) -> None:
    """What cannot be meant fails before the slow part."""
    settings = job.settings
    if settings.task == "generate" and (several or settings.dry_run):
        what = "a dry run" if settings.dry_run else "several targets or engines"
        raise UsageError(f"--task generate does not go with {what}", hint="one target, engine auto or by name")
    pipelines = [p for t in wanted for p in pipelines_for(job.recipe, t).values()]
    if settings.print_ir_after:
        check_runs(settings.print_ir_after, *pipelines)
    if settings.engine not in ("auto", "all"):
        backend(settings.engine)
    if several or (settings.dry_run and settings.engine == "auto"):  # a plan needs no engine
        return
    target = wanted[0]
    if target.kind == "cpu":
        chosen_backends(settings.engine)
        if target.name != "cpu" and target.cc != targets("cpu")[0].cc:
            raise UsageError(
                f"engines are measured on the machine that compiles, and this is no {target.name}",
                hint=f"penstock estimate MODEL --target {target.name} predicts it",
            )
    elif not usable_for(job, _for_gpu(settings.engine)):
        absent = any(b.version() is None for b in _for_gpu(settings.engine))
        raise (MissingError if absent else UsageError)(
            f"no engine here builds for {target.name}: {_whys(target, settings.engine)}",
            hint=f"penstock estimate MODEL --target {target.name} predicts it without one",
        )


def _result(
    job: Job,
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
