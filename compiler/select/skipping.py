"""Does an engine skip what a branch does not take? Measured, on copies of the graph whose branches we decide.

Four times tell, taken interleaved: the engine sent down the cheap side and down the expensive one (``forced``), and
two engines of straight lines that hold only the one side or only the other (``straight``). With ``d`` the time that
the expensive side adds to a straight line,

- *saved* = (expensive - cheap) of the forced engine / d: 1 when the untaken side costs nothing, 0 when both always run;
- *waste* = (forced cheap - straight cheap) / d: what of the untaken side is paid all the same, and what deciding costs.

An engine is lazy when it saves nearly all (a dear decision is no untaken side), or wastes nearly nothing; both halves
of the rounds must say so, else more rounds are taken. Where ``d`` itself drowns in the noise nothing can be said, and
nothing is lost either. A loop is a branch between no turns and several.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from backends.base import WEIGHTS_FILE, Backend, BuildOptions, Built, Engine, FlowProof, flow_name
from backends.segments import build_segments, load_segments
from compiler.select.compare import distance
from compiler.select.forced import TURNS, Region, choices, forced, inputs_of, regions_of, straight
from compiler.select.measure import rounds
from ir import COND, Graph, show
from ir.errors import PenstockError, ResourceError

Tensors = Mapping[str, torch.Tensor]
ALLOWED = 0.25
"""Share of the untaken side that a lazy engine may still spend."""
_DISTINCT = 0.9
"""Share of the rounds in which the expensive straight line must take longer than the cheap one."""
_SMALLEST = 2e-6
"""Seconds; a difference below is none."""
_AGREE = 0.99
_MOST = 8
_ROUNDS = 8
_AGAIN = 3


@dataclass(frozen=True, slots=True)
class Way:
    """A way to make an engine of a graph: as the backend does it, or as segments of it."""

    name: str
    build: Callable[[Graph, Path, BuildOptions], Built]
    load: Callable[[Path, int | None, str], Engine]


def native(backend: Backend) -> Way:
    """One engine that holds its branches itself."""
    return Way("native", backend.build, backend.load)


def segments(backend: Backend) -> Way:
    """Straight engines, dispatched by the host."""

    def build(graph: Graph, folder: Path, options: BuildOptions) -> Built:
        return build_segments(graph, folder, backend, options)

    def load(folder: Path, threads: int | None, stem: str) -> Engine:
        return load_segments(folder, backend, threads, stem)

    return Way("segments", build, load)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A proof, and whether the engine may keep this branch as it is: it is lazy, or there is nothing to lose."""

    proof: FlowProof
    keep: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """What proving may cost.

    Attributes:
        seconds: of timing, per branch.
        total: seconds after which no further branch is begun, nor measured again.
        threads: of the engines.
    """

    seconds: float = 1.0
    total: float = 120.0
    threads: int | None = None


def prove(graph: Graph, backend: Backend, way: Way, inputs: Tensors, folder: Path, limits: Limits) -> list[Verdict]:
    """One verdict per branch and loop of a graph, in the order of ``regions_of``.

    Args:
        graph: with its weights.
        backend: builds the straight lines that ``way`` is compared with.
        way: how the branches are lowered.
        inputs: of the graph.
        folder: of the payload, with the graph's weights file; what is built for the proof lies ``beside`` it.
        limits: of time.

    Raises:
        ResourceError: no space, no memory.
    """
    regions = regions_of(graph)
    if not regions:
        return []
    lowering = {"cond": "if", "while": "loop"} if way.name == "native" else {}
    scratch = beside(folder)
    share_weights(folder, scratch)
    bench = _Bench(graph, backend, way, inputs, scratch, limits, regions)
    start = time.perf_counter()
    found: list[Verdict] = []
    for index, region in enumerate(regions):
        unknown = FlowProof(flow_name(region.node), lowering.get(region.node.op.name, way.name), "none", "")
        late = time.perf_counter() - start > limits.total
        if index >= _MOST or late:
            why = "the time for proofs was used up" if late else f"only the first {_MOST} are measured"
            found.append(Verdict(replace(unknown, detail=f"not measured: {why}"), all(v.keep for v in found)))
            continue
        try:
            found.append(_decided(unknown, bench.calls(region), limits.seconds, start + limits.total))
        except ResourceError:
            raise
        except PenstockError as error:
            found.append(Verdict(replace(unknown, detail=f"not measured: {error.what.splitlines()[0]}"), False))
    return found


def _decided(unknown: FlowProof, calls: Mapping[str, Callable[[], Tensors]], seconds: float, end: float) -> Verdict:
    """Measure until the noise leaves nothing open, or often enough."""
    times = Times(**rounds(calls, seconds, _ROUNDS))
    verdict, undecided = judge(unknown, times)
    for _ in range(_AGAIN):
        if undecided and time.perf_counter() < end:
            times = times.joined(Times(**rounds(calls, seconds, _ROUNDS)))
            verdict, undecided = judge(unknown, times)
    return verdict


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of each round, all four calls of a round one after another."""

    cheap: Sequence[float]
    expensive: Sequence[float]
    straight_cheap: Sequence[float]
    straight_expensive: Sequence[float]

    def _each(self, change: Callable[[Sequence[float]], Sequence[float]]) -> Times:
        return Times(*map(change, (self.cheap, self.expensive, self.straight_cheap, self.straight_expensive)))

    def halves(self) -> tuple[Times, Times]:
        """Every other round."""
        return self._each(lambda t: t[::2]), self._each(lambda t: t[1::2])

    def ordered(self) -> Times:
        """With the cheap side being the one that is cheap as a straight line."""
        if min(self.straight_cheap) <= min(self.straight_expensive):
            return self
        return Times(self.expensive, self.cheap, self.straight_expensive, self.straight_cheap)

    def joined(self, other: Times) -> Times:
        """The rounds of both."""
        return Times(
            [*self.cheap, *other.cheap],
            [*self.expensive, *other.expensive],
            [*self.straight_cheap, *other.straight_cheap],
            [*self.straight_expensive, *other.straight_expensive],
        )


@dataclass(frozen=True, slots=True)
class _Sums:
    """Differences of the shortest times: a busy machine only ever adds."""

    added: float
    saved: float
    waste: float
    distinct: bool

    @property
    def says(self) -> str:
        if not self.distinct or self.added <= _SMALLEST:
            return "small"
        lazy = self.waste < ALLOWED * self.added or self.saved > (1 - ALLOWED) * self.added
        return "lazy" if lazy else "eager"


def _sums(times: Times) -> _Sums:
    cheap, expensive = min(times.cheap), min(times.expensive)
    short, full = min(times.straight_cheap), min(times.straight_expensive)
    longer = [f > s for f, s in zip(times.straight_expensive, times.straight_cheap, strict=True)]
    return _Sums(full - short, expensive - cheap, cheap - short, sum(longer) >= _DISTINCT * len(longer))


def judge(unknown: FlowProof, times: Times) -> tuple[Verdict, bool]:
    """What four times say, and whether more rounds could say more.

    Args:
        unknown: the proof without evidence.
        times: of whichever side is cheap, and of the other.
    """
    times = times.ordered()
    whole = _sums(times)
    seconds = {
        "taken": min(times.expensive),
        "untaken": min(times.cheap),
        "full": min(times.straight_expensive),
        "straight": min(times.straight_cheap),
    }
    known = replace(unknown, seconds=seconds)
    told = (
        f"the untaken side would add {_us(whole.added)}, of which {whole.saved / whole.added:.0%} is saved; "
        f"deciding, and what is paid in vain, cost {_us(max(whole.waste, 0.0))}"
        if whole.added > 0
        else "the sides take the same time"
    )
    said = {whole.says, *(_sums(half).says for half in times.halves())}
    if said == {"small"}:
        detail = f"too small to measure: the sides differ by {_us(max(whole.added, 0.0))}"
        return Verdict(replace(known, detail=detail), True), False
    if len(said) > 1:
        detail = f"{told}; this machine is too busy to be sure"
        return Verdict(replace(known, detail=detail), whole.says != "eager"), True
    lazy = whole.says == "lazy"
    return Verdict(replace(known, evidence="measured", detail=told, lazy=lazy), lazy), False


def _us(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if abs(seconds) >= 1e-3 else f"{seconds * 1e6:.0f} us"


class _Bench:
    """The engines of one proof. Straight lines that several branches share are built once."""

    def __init__(
        self,
        graph: Graph,
        backend: Backend,
        way: Way,
        inputs: Tensors,
        scratch: Path,
        limits: Limits,
        regions: Sequence[Region],
    ) -> None:
        self._graph, self._way, self._plain = graph, way, native(backend)
        self._inputs, self._scratch, self._limits, self._regions = inputs, scratch, limits, regions
        self._forced: Engine | None = None
        self._straight: dict[str, Engine] = {}
        self._count = 0

    def calls(self, region: Region) -> dict[str, Callable[[], Tensors]]:
        """The four calls of one branch or loop, by the names that ``Times`` has for them.

        Raises:
            PenstockError: an engine cannot be built, or two that should be equal disagree.
        """
        if self._forced is None:
            self._forced = self._made(forced(self._graph, self._regions), self._way, "forced")
        calls: dict[str, Callable[[], Tensors]] = {}
        needed: dict[str, Engine] = {}
        for name, heavy in (("cheap", False), ("expensive", True)):
            chosen = choices(self._regions, region, heavy)
            calls[name] = partial(self._forced, {**self._inputs, **inputs_of(self._regions, chosen)})
            line = straight(self._graph, chosen)
            text = show(line)
            if text not in self._straight:
                self._straight[text] = self._made(line, self._plain, f"straight.{self._count}")
                self._count += 1
            needed[text] = self._straight[text]
            calls[f"straight_{name}"] = partial(needed[text], self._inputs)
            self._agree(calls[f"straight_{name}"](), calls[name](), region)
        self._straight = needed  # what the next one shares; the others are let go
        return calls

    def _made(self, graph: Graph, way: Way, stem: str) -> Engine:
        way.build(graph, self._scratch, BuildOptions(stem=stem))
        return way.load(self._scratch, self._limits.threads, stem)

    @staticmethod
    def _agree(want: Tensors, got: Tensors, region: Region) -> None:
        numbers = {n: t for n, t in want.items() if isinstance(t, torch.Tensor) and not t.is_complex()}
        apart = distance(numbers, {n: got[n] for n in numbers})
        if apart.cosine < _AGREE and apart.max_abs > 1e-3:
            side = "its sides" if region.node.op is COND else f"{TURNS} turns"
            raise PenstockError(f"the engine and a straight line of {side} disagree: cosine {apart.cosine:.3f}")


def beside(folder: Path) -> Path:
    """Where engines go that only serve a proof."""
    return folder.with_name(folder.name + "-proof")


def share_weights(folder: Path, scratch: Path) -> None:
    """The weights once more, without a copy where the disk allows it."""
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir()
        try:
            os.link(folder / WEIGHTS_FILE, scratch / WEIGHTS_FILE)
        except OSError:
            shutil.copyfile(folder / WEIGHTS_FILE, scratch / WEIGHTS_FILE)
    except OSError as error:
        raise ResourceError(f"cannot write {scratch}: {error.strerror}") from error
