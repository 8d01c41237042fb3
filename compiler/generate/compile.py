"""``penstock compile MODEL --task generate``: parts through the passes, built by every engine, the fastest kept."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from backends import WEIGHTS_FILE, Backend, BuildOptions, Engine, FlowProof, backend
from backends.segments import build_engine, load_engine
from compiler import artifact
from compiler.artifact.generation import DECODE, PREFILL, PROJECT, Generation
from compiler.cost.targets import Target
from compiler.events import Phases
from compiler.generate.drafting import MORE, PROMPTS, choose, given_of, measure_costs, traces_of
from compiler.generate.exiting import ROWS, plan_exits
from compiler.generate.filling import projecting
from compiler.generate.parts import parts, share_weights, texts
from compiler.generate.step import layout_of
from compiler.job import Job, capture_model, optimise, refer
from compiler.pipeline.recipe import Recipe, recipe
from compiler.report import build_report, write_report
from compiler.runtime.decoding import Decoder
from compiler.select.measure import interleave, torch_threads
from compiler.select.race import Candidate
from compiler.select.reference import Loss
from compiler.settings import Settings
from compiler.spec import ModelSpec
from ir import Graph, show
from ir import weights as weight_files
from ir.errors import LimitError, PenstockError, ResourceError, UsageError, VerificationError


@dataclass(frozen=True)
class Made:
    """What came out.

    Attributes:
        id: of the artifact, which lies in the folder.
        graph: of the prompt's part, as chosen.
        job: of the step that generates a token.
        candidates, chosen: every variant on every engine.
        report: as in ``report.json``.
    """

    id: str
    graph: Graph
    job: Job
    candidates: Sequence[Candidate]
    chosen: Candidate
    report: Mapping[str, Any]


def compile_generate(
    spec: ModelSpec, settings: Settings, target: Target, backends: Sequence[Backend], phases: Phases, folder: Path,
    name: str,
) -> Made:  # fmt: skip
    """Build and seal an artifact that generates, in ``folder``.

    Raises:
        UnsupportedError: the model has no cached step, or an operator has no form.
        VerificationError: no engine stays within the loss bound.
        PenstockError: none could be built.
    """
    if target.kind != "cpu":
        raise UsageError("generation is compiled for the processor only", hint="--target cpu")
    layout = layout_of(spec.model)
    wanted = parts(spec, layout, settings.draft)
    # the text must be the model's own: what loses quality is for the user to ask for
    chosen = recipe("fp32" if settings.recipe == "auto" else settings.recipe)
    jobs, befores = {}, {}
    for part in wanted:
        phases.note("generate", f"{part.stem}: {part.depth} of {layout.layers} layers")
        job = Job(part.spec, settings, chosen, target, phases)
        befores[part.stem] = capture_model(job)
        refer(job, befores[part.stem])
        optimise(job, befores[part.stem], [target])
        jobs[part.stem] = job.seen_from(target)
    if settings.draft:
        filling = projecting(jobs[DECODE], befores[DECODE], settings.draft, layout.layers)
        if isinstance(filling, str):
            phases.note("generate", f"skipped layers cannot be filled by projection: {filling}")
        else:
            jobs[PROJECT] = filling
    candidates, winner = _race(jobs, backends, folder)
    graphs = {stem: job.graphs[winner.variant] for stem, job in jobs.items()}
    section = Generation(**asdict(layout), draft=settings.draft, project=settings.draft if PROJECT in jobs else 0)
    told: dict[str, Any] = {}
    if settings.draft:
        section, told = _planned(section, jobs, winner, folder, spec)
    with phases.phase("publish", "write, sync, rename"):
        job = jobs[DECODE]
        report = build_report(job, candidates, winner)
        report |= told
        identity = _seal(folder, name, section, befores[PREFILL], graphs, job, chosen, winner, report)
    return Made(identity, graphs[PREFILL], job, candidates, winner, report)


def _planned(
    layout: Generation, jobs: Mapping[str, Job], winner: Candidate, folder: Path, spec: ModelSpec
) -> tuple[Generation, dict[str, Any]]:
    """How far to draft, and for a budget where tokens may leave, measured on the engines that were chosen."""
    settings, phases = jobs[DECODE].settings, jobs[DECODE].phases
    with phases.phase("drafts", "traces of the model's own text") as say, torch_threads(settings.threads):
        with_ = backend(winner.backend)
        engines = {stem: load_engine(folder, with_, settings.threads, stem) for stem in jobs}
        dtype = dict(jobs[DECODE].graphs[winner.variant].arguments("input"))["cache_k_0"].tensor.dtype
        decoder = Decoder(engines, layout, dtype)
        tokens = texts(spec, layout, PROMPTS if settings.max_drop is None else MORE)
        traces, prompt = traces_of(decoder, tokens), tokens[0, : given_of(tokens, layout)].tolist()
        costs = {1: measure_costs(decoder, prompt)}
        drafts = choose(traces, costs[1])
        say(drafts.text())
    made, told = replace(layout, ahead=drafts.ahead, floor=drafts.floor), {"drafts": asdict(drafts)}
    if settings.max_drop is None:
        return made, told
    with phases.phase("exits", f"{len(traces)} texts, budget {settings.max_drop:.2%}") as say:
        with torch_threads(settings.threads):
            costs |= {n: measure_costs(decoder, prompt, rows=n) for n in ROWS if n > 1}
        exits = plan_exits(traces, costs, settings.max_drop)
        say(exits.text())
    return replace(made, exit_at=exits.threshold, exit_rows=exits.rows), {**told, "token_exits": exits.plain()}


def _race(jobs: Mapping[str, Job], backends: Sequence[Backend], folder: Path) -> tuple[list[Candidate], Candidate]:
    """Every variant on every engine, judged part by part, timed on one token; the winner's files go to ``folder``."""
    first = jobs[DECODE]
    settings, phases = first.settings, first.phases
    tried: list[Candidate] = []
    engines: dict[str, Engine] = {}
    with (
        phases.phase("engines", "build, verify, measure") as say,
        tempfile.TemporaryDirectory(dir=folder, prefix="build-") as scratch,
        torch_threads(settings.threads),
    ):
        for variant in first.graphs:
            graphs = {stem: job.graphs[variant] for stem, job in jobs.items()}
            store = share_weights(graphs)
            for each in backends:
                place = Path(scratch) / f"{variant}-{each.name}"
                made = Candidate(variant, each.name, each.version() or "", first.predicted[variant])
                try:
                    made, engine = _try(made, jobs, graphs, store, each, place)
                    if not made.why:
                        engines[made.name] = engine
                except PenstockError as error:
                    if isinstance(error, ResourceError) and not isinstance(error, LimitError):
                        raise
                    made = replace(made, why=error.what)
                tried.append(made)
                told = made.why.splitlines()[0] if made.why else f"built in {made.build_seconds:.1f} s"
                phases.note("engines", f"{made.name}: {told}")
        if not engines:
            reasons = "\n".join(f"  - {c.name}: {c.why}" for c in tried)
            lost = any(c.loss is not None for c in tried)
            raise (VerificationError if lost else PenstockError)(f"no engine generates:\n{reasons}")
        assert first.reference is not None
        inputs = first.reference.example
        calls: dict[str, Any] = {"eager": first.reference.eager_call()}
        calls |= {key: partial(engine, inputs) for key, engine in engines.items()}
        found = interleave(calls, settings.seconds * len(calls))
        best = min(engines, key=lambda key: found[key].median)
        tried = [_timed(c, found, best) for c in tried]
        winner = next(c for c in tried if c.name == best)
        for file in (Path(scratch) / f"{winner.variant}-{winner.backend}").iterdir():
            os.replace(file, folder / file.name)
        say(f"{winner.name}: one token {winner.speedup:.2f}x eager")
    return tried, winner


def _timed(made: Candidate, found: Mapping[str, Any], best: str) -> Candidate:
    if made.why:
        return made
    timed = replace(made, engine_time=found[made.name], eager_time=found["eager"])
    return timed if made.name == best else replace(timed, why=f"slower: {timed.speedup:.2f}x")


def _try(
    made: Candidate, jobs: Mapping[str, Job], graphs: Mapping[str, Graph], store: Mapping[str, torch.Tensor],
    with_: Backend, folder: Path,
) -> tuple[Candidate, Engine]:  # fmt: skip
    """Build every part beside one store of weights, and judge each; the engine is that of one token."""
    settings = jobs[DECODE].settings
    start = time.perf_counter()
    folder.mkdir()
    weight_files.save(store, folder / WEIGHTS_FILE)
    losses: list[Loss] = []
    flow: list[FlowProof] = []
    requires: dict[str, str] = {}
    kept: Engine | None = None
    for stem, graph in graphs.items():
        options = BuildOptions(jobs[stem].target.device, settings.build_timeout, settings.build_memory, stem=stem)
        built = build_engine(graph, folder, with_, options)
        flow += built.flow
        requires.update(built.requires)
        engine = load_engine(folder, with_, settings.threads, stem)
        kept = engine if stem == DECODE else kept
        reference = jobs[stem].reference
        assert reference is not None
        losses.append(reference.judge(engine))
        if not losses[-1].loss <= settings.max_loss:
            shutil.rmtree(folder, ignore_errors=True)
            why = f"{stem}: loss {losses[-1].loss:.3g} is more than {settings.max_loss:g}"
            return replace(made, loss=losses[-1], why=why), engine
    assert kept is not None
    worst = max(losses, key=lambda loss: loss.loss)
    return replace(
        made, build_seconds=time.perf_counter() - start, facts=dict(kept.facts()), flow=tuple(flow),
        requires=requires, loss=worst, verified="run on this machine",
    ), kept  # fmt: skip


def _seal(
    folder: Path, name: str, section: Generation, before: Graph, graphs: Mapping[str, Graph], job: Job,
    chosen: Recipe, winner: Candidate, report: Mapping[str, Any],
) -> str:  # fmt: skip
    (folder / artifact.BEFORE).write_text(show(before))
    for stem, graph in graphs.items():
        (folder / (artifact.AFTER if stem == PREFILL else f"{stem}.ir")).write_text(show(graph))
    write_report(report, folder)
    inputs, outputs = artifact.ports(graphs[PREFILL])
    return artifact.seal(folder, artifact.Manifest(
        name=name,
        engine=artifact.EngineChoice(winner.backend, winner.version, job.settings.threads),
        inputs=inputs,
        outputs=outputs,
        dims=dict(graphs[PREFILL].dims),
        target=job.target.name,
        recipe=chosen.text(),
        passes=tuple(report["variants"][winner.variant]["passes"]),
        measurements=report["chosen"],
        processor=artifact.Processor.here(*winner.requires.get("cpu", "").split()),
        requires=dict(winner.requires),
        generate=section,
    ))  # fmt: skip
