"""Blocks of a model (its layers) that need not all run: ``depth{mode=...}``

    keep    block ... block  ->  fewer of them: ``layers=0:1:5``, or as many as ``speedup`` leaves (``order``)
    nested  block ... block  ->  the first ``layers`` blocks, the same tail (Sorted LLaMA, 2309.08968)
    roll    block ... block  ->  one loop over stacked weights, the count a setting (``layers=N`` turns at first)
    exit    block ... block  ->  a chain of ``rows``: rows whose answer is sure leave (``at``, ``score``, ``tau``)

Blocks are found by their structure (``ir.repeats``). What a block that is left out returned by itself (a cache) is
still made, of the state that is handed past it. With all blocks, a speed-up of 1 or infinite thresholds the graph
computes exactly what it did.

Sound: not in general, which is the point: what is lost is to be measured. Exits need rows that are independent.
Profitable: a block that does not run costs nothing, in its weights too where it is gone.
Declines when the graph has no repeated blocks, and what a mode cannot do with these, each with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from ir import Graph
from ir.copy import restore
from ir.errors import UnsupportedError
from ir.repeats import module_of
from passes.base import Pass, Remark, Samples, Tolerance
from passes.depth_exits import NO_MAPS, THRESHOLDS, Maps, checked_exits, insert_exits
from passes.depth_keep import ORDERS, balanced, drop_blocks, influence, kept_count
from passes.depth_parts import Parts, take_apart
from passes.depth_roll import roll_blocks
from passes.depth_scores import GATE, SCORES

MODES = ("keep", "nested", "roll", "exit")


@dataclass(frozen=True)
class Depth(Pass):
    """Leaves out blocks: for every input, or for those that need fewer."""

    name: ClassVar[str] = "depth"
    summary: ClassVar[str] = "repeated blocks -> fewer (keep, nested), a loop (roll), or rows that leave early (exit)"
    tolerance: ClassVar[Tolerance] = Tolerance(cosine=-1.0)
    mode: str = "keep"
    speedup: float = 1.0
    order: str = "balanced"
    layers: tuple[int, ...] = ()
    at: tuple[int, ...] = ()
    score: str = "confidence"
    tau: tuple[float, ...] = ()
    maps: Maps = field(default_factory=dict, repr=False, compare=False, metadata={"text": False})
    gates: Maps = field(default_factory=dict, repr=False, compare=False, metadata={"text": False})

    def __post_init__(self) -> None:
        """Refuse what no graph could have."""
        for name, value, known in (
            ("mode", self.mode, MODES),
            ("order", self.order, ORDERS),
            ("score", self.score, (*SCORES, GATE)),
        ):
            if value not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not {value!r}")
        if not 1.0 <= self.speedup < float("inf"):
            raise ValueError(f"speedup is 1 or more, not {self.speedup:g}")
        if any(t != t for t in self.tau):
            raise ValueError("a threshold is NaN")
        if self.mode in ("nested", "roll") and (len(self.layers) > 1 or any(n < 1 for n in self.layers)):
            raise ValueError(f"{self.mode} takes layers=N: how many blocks run, 1 or more")

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        """See the module.

        Raises:
            UsageError: an exit or a block that is not there.
        """
        parts = take_apart(graph)
        if isinstance(parts, str):
            return [Remark("graph", False, parts)]
        if self.mode == "exit":
            return self._exits(graph, parts)
        if self.mode == "roll":
            return self._roll(graph, parts)
        return self._fewer(graph, parts, samples)

    def _fewer(self, graph: Graph, parts: Parts, samples: Samples) -> list[Remark]:
        kept = self._kept(graph, parts, samples)
        if isinstance(kept, Remark):
            return [kept]
        told = f"{len(kept)} of {parts.depth} blocks stay: {', '.join(map(str, kept))}"
        if len(kept) == parts.depth:
            return [Remark(_place(parts), False, f"all {parts.depth} blocks stay")]
        drop_blocks(graph, parts, kept)
        return [Remark(_place(parts), True, told)]

    def _kept(self, graph: Graph, parts: Parts, samples: Samples) -> tuple[int, ...] | Remark:
        if self.mode == "nested":
            count = self.layers[0] if self.layers else parts.depth
            return tuple(range(min(count, parts.depth)))
        if self.layers:
            return self.layers
        if self.order == "balanced":
            return balanced(parts.depth, self.speedup)
        if not samples:
            return Remark(_place(parts), False, "the influence of a block is measured on samples, and there are none")
        return influence(graph, parts.depth, kept_count(parts.depth, self.speedup), samples)

    def _roll(self, graph: Graph, parts: Parts) -> list[Remark]:
        place, count = _place(parts), self.layers[0] if self.layers else parts.depth
        try:
            roll_blocks(graph, parts, count)
        except UnsupportedError as error:
            return [Remark(place, False, error.what)]
        return [Remark(place, True, f"{parts.depth} blocks are one loop of {count} turns")]

    def _exits(self, graph: Graph, parts: Parts) -> list[Remark]:
        if THRESHOLDS in dict(graph.arguments("state")):
            return [Remark(_place(parts), False, "the graph has exits")]
        at = checked_exits(self.at, parts.depth)
        try:
            made = insert_exits(graph, at, self.score, self.tau, self.maps, self.gates)
        except UnsupportedError as error:
            return [Remark(_place(parts), False, error.what)]
        ranks = {v.tensor.rank for v in parts.answers.values()}
        restore(graph, made)
        told = f"rows may leave after {', '.join(map(str, at))} of {parts.depth} blocks, by {self.score}"
        if self.score != "agreement" and max(ranks) == 3:
            told += "; the last position decides for its row"
        return [Remark(_place(parts), True, told)]


def with_maps(depth: Depth, maps: Maps, gates: Maps = NO_MAPS) -> Depth:
    """The same pass with fitted maps and gates per exit, see ``Maps``."""
    return replace(depth, maps=dict(maps), gates=dict(gates))


def _place(parts: Parts) -> str:
    """Where the blocks are, as text."""
    first, last = (module_of(parts.repeats.blocks[i]) for i in (0, -1))
    return f"blocks {first} to {last}" if first and last else "blocks"
