"""Which engine, which precision: build them, judge them, time them against the original, keep the fastest."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch

from backends import BACKENDS, backend
from backends.base import CPU, DEFAULT, Backend, BuildOptions, Built, Engine, FlowProof
from backends.segments import ready_for, unsupported_segments
from compiler.depth.calibrate import Exits
from compiler.depth.judge import judge, timing_inputs
from compiler.events import Phases
from compiler.job import Job
from compiler.select.lowering import listing, lower
from compiler.select.measure import Timing, interleave, torch_threads
from compiler.select.reference import Loss, Reference
from compiler.select.settled import settled
from compiler.select.skipping import Limits
from ir import Graph
from ir.errors import LimitError, MissingError, PenstockError, ResourceError, UnsupportedError, VerificationError

_TOGETHER = 2 << 30


@dataclass(frozen=True)
class Candidate:
    """One variant on one engine.

    Attributes:
        variant: of the recipe: fp32, bf16, int8, custom.
        backend: name of the engine.
        version: of the engine's package.
        predicted: speed-up over the captured graph that the cost model expects from the passes alone.
        build_seconds: to emit, build and load.
        engine_time, eager_time: measured interleaved, in the same run.
        loss: against the original.
        facts: what the built engine really contains.
        remarks: what its builder had to say.
        requires: what the machine that loads it must have.
        flow: what is known about each branch and loop.
        verified: how its numbers were checked.
        lowering: of branches and loops: ``native`` or ``segments``; empty where there are none.
        bound: what it may lose; ``None``: as much as any candidate of the compile.
        state: ``built``, or ``kit``: to be finished on the machine that has the device.
        why: why it was not taken; empty for the one that was.
    """

    variant: str
    backend: str
    version: str = ""
    predicted: float = 1.0
    build_seconds: float = 0.0
    engine_time: Timing | None = None
    eager_time: Timing | None = None
    loss: Loss | None = None
    facts: Mapping[str, int | str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    requires: Mapping[str, str] = field(default_factory=dict)
    flow: tuple[FlowProof, ...] = ()
    verified: str = ""
    state: str = "built"
    why: str = ""
    lowering: str = ""
    bound: float | None = None

    @property
    def name(self) -> str:
        """``int8 on onnxruntime``."""
        return f"{self.variant} on {self.backend}"

    @property
    def speedup(self) -> float:
        """Times as fast as eager; 0 when it was not timed."""
        if self.engine_time is None or self.eager_time is None:
            return 0.0
        return self.eager_time.median / self.engine_time.median


def chosen_backends(name: str) -> list[Backend]:
    """The engines to try: one by name, every one that builds quickly for ``auto``, every one for ``all``.

    Raises:
        UsageError: unknown name, the nearest is suggested.
        MissingError: it is not installed; the message says which command brings it.
    """
    if name not in ("auto", "all"):
        found = backend(name)
        if found.version() is None:
            raise MissingError(f"engine {name!r} is not installed", hint=found.install)
        return [found]
    usable = [b for b in BACKENDS if b.name != "reference" and (name == "all" or not b.patient)]
    usable = [b for b in usable if b.version() is not None and not b.why_not(CPU)]
    if not usable:
        raise MissingError("no engine is installed", hint=" or ".join(b.install for b in BACKENDS if b.install))
    return usable


class Race:
    """Builds and judges candidates one after another; those that pass are timed together, interleaved.

    Engines whose weights together take more than ``_TOGETHER`` bytes are timed one by one against the original
    instead, and only one of them is in memory at a time.
    """

    def __init__(
        self, reference: Reference, threads: int | None, max_loss: float, seconds: float, phases: Phases,
        options: BuildOptions = DEFAULT, exits: Mapping[str, Exits] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self._exits = exits
        self._timed_on = [reference.example, *timing_inputs(exits, reference.example)]
        self._reference = reference
        self._options = options
        self._threads = threads
        self._max_loss = max_loss
        self._seconds = seconds
        self._phases = phases
        self._folders: dict[str, Path] = {}
        self._engines: dict[str, Engine] = {}
        self._missing: list[PenstockError] = []
        self._bytes = 0
        self.candidates: list[Candidate] = []

    def enter(self, variant: str, graph: Graph, with_: Backend, folder: Path, predicted: float) -> None:
        """Build and judge one candidate; a failure is a candidate that says why."""
        made = Candidate(variant, with_.name, with_.version() or "", predicted)
        self._folders[made.name] = folder
        try:
            made = self._try(made, graph, with_, folder)
        except PenstockError as error:
            if isinstance(error, ResourceError) and not isinstance(error, LimitError):
                raise  # the disk is full: no other candidate will find room
            self._missing.append(error)
            made = replace(made, why=error.what)
        if made.why:
            shutil.rmtree(folder, ignore_errors=True)
        self.candidates.append(made)
        self._phases.note("engines", f"{made.name}: {made.why.splitlines()[0] if made.why else _built(made)}")

    def _try(self, made: Candidate, graph: Graph, with_: Backend, folder: Path) -> Candidate:
        ready = ready_for(graph, with_)
        if ready.refused and unsupported_segments(graph, with_):  # else the host does what the engine cannot
            raise UnsupportedError(listing(ready.refused))
        whole, graph = graph, ready.graph
        limits = Limits(min(1.0, self._seconds), threads=self._threads)
        with torch_threads(self._threads):
            inputs = {**graph.initial, **self._reference.example}
            lowered = lower(graph, with_, folder, inputs, limits, self._options, whole if ready.flow else None)
        # cut at its ``rows``, the pieces tell what became of them
        rows = () if any(p.node.startswith("rows") for p in lowered.flow) else ready.flow
        engine = settled(lowered.engine, graph)
        made = replace(with_built(made, lowered.built, lowered.seconds), verified="run on this machine")
        made = replace(
            made,
            facts={**made.facts, **_facts(engine, (*rows, *lowered.flow))},
            lowering=lowered.lowering,
            flow=(*rows, *lowered.flow),
            remarks=lowered.remarks,
        )
        for remark in lowered.remarks:
            self._phases.note("engines", f"{made.name}: {remark}")
        with torch_threads(self._threads):
            loss, bound = judge(self._reference, engine, self._exits.get(made.variant), self._max_loss)
            made = replace(made, loss=loss, bound=bound)
            if not loss.loss <= bound:
                return replace(made, why=f"loss {loss.loss:.3g} is more than {bound:.3g}")
            self._bytes += graph.weights.nbytes
            if self._bytes > _TOGETHER:
                return self._timed({made.name: engine}, [made])[0]
        self._engines[made.name] = engine
        return made

    def _timed(self, engines: Mapping[str, Engine], made: Sequence[Candidate]) -> list[Candidate]:
        inputs = self._timed_on[1:] or self._timed_on
        calls: dict[str, Callable[[], object]] = {"eager": self._reference.eager_call()}
        if len(inputs) > 1:
            calls = {"eager": partial(_each, self._reference.eager_run, inputs)}
        calls |= {name: partial(_each, engine, inputs) for name, engine in engines.items()}
        found = {n: t.per(len(inputs)) for n, t in interleave(calls, self._seconds * len(calls)).items()}
        return [
            replace(c, eager_time=found["eager"], engine_time=found[c.name]) if c.name in found else c for c in made
        ]

    def winner(self) -> Candidate | None:
        """Time those that passed; the fastest wins, the others learn why not."""
        if self._engines:
            with torch_threads(self._threads):
                self.candidates = self._timed(self._engines, self.candidates)
            self._engines.clear()
        able = [c for c in self.candidates if not c.why and c.engine_time is not None]
        best = max(able, key=lambda c: c.speedup, default=None)
        for c in able:
            self._phases.note("engines", f"{c.name}: {_time(c)}")
        self.candidates = [
            c
            if c.why or c is best or best is None
            else replace(c, why=f"slower: {c.speedup:.2f}x, not {best.speedup:.2f}x")
            for c in self.candidates
        ]
        return best

    def fault_kind(self) -> type[PenstockError]:
        """The kind of the first failure: what an exit code should say."""
        return type(self._missing[0]) if self._missing else PenstockError

    def move(self, winner: Candidate, folder: Path) -> None:
        """Move the files of the winner into the artifact."""
        for file in self._folders[winner.name].iterdir():
            os.replace(file, folder / file.name)


def _each(run: Callable[[Mapping[str, torch.Tensor]], object], inputs: Sequence[Mapping[str, torch.Tensor]]) -> None:
    for one in inputs:
        run(one)


def _facts(engine: Engine, flow: Sequence[FlowProof]) -> dict[str, int | str]:
    """What the engine says of itself, and how many ``rows`` became what."""
    return dict(engine.facts()) | Counter(f"rows_{p.lowering}" for p in flow if p.node.startswith("rows"))


def with_built(made: Candidate, built: Built, seconds: float) -> Candidate:
    """A candidate with what its build made and found out."""
    return replace(
        made, build_seconds=seconds, facts=dict(built.facts), remarks=built.remarks, requires=dict(built.requires),
        flow=built.flow,
    )  # fmt: skip


def run_race(job: Job, backends: Sequence[Backend], folder: Path) -> tuple[list[Candidate], Candidate]:
    """Every variant on every engine; the winner's files are moved into ``folder``.

    Raises:
        VerificationError: none stays within the loss bound.
        PenstockError: none could be built.
    """
    assert job.reference is not None
    settings = job.settings
    options = BuildOptions(job.target.device, settings.build_timeout, settings.build_memory)
    race = Race(job.reference, settings.threads, settings.max_loss, settings.seconds, job.phases, options, job.exits)
    for variant, why in job.declined.items():
        race.candidates.append(Candidate(variant, "no engine", why=why))
    with (
        job.phases.phase("engines", "build, verify, measure") as say,
        # within the staging folder: who reclaims that after a kill reclaims this as well
        tempfile.TemporaryDirectory(dir=folder, prefix="build-") as scratch,
    ):
        for variant, graph in job.graphs.items():
            for each in backends:
                race.enter(variant, graph, each, Path(scratch) / f"{variant}-{each.name}", job.predicted[variant])
        winner = race.winner()
        if winner is None:
            reasons = "\n".join(f"  - {c.name}: {c.why}" for c in race.candidates)
            lost = any(c.loss is not None for c in race.candidates)
            fault = VerificationError if lost else race.fault_kind()
            raise fault(
                f"no engine stays within a loss of {settings.max_loss:g}:\n{reasons}"
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


def _built(made: Candidate) -> str:
    assert made.loss is not None
    metric = f", metric {made.loss.metric:.4f}" if made.loss.metric is not None else ""
    return f"built in {made.build_seconds:.1f} s, loss {made.loss.loss:.2g}{metric}"


def _time(made: Candidate) -> str:
    assert made.engine_time is not None
    return f"{made.engine_time.median * 1e3:.2f} ms, {made.speedup:.2f}x eager"
