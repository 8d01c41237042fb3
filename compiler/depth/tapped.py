"""Runs a graph's taps over samples: features, answers and scores of every exit, row by row.

The model runs once. What other maps would answer follows from the features alone, so only the tail is run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compiler.depth.adapt import Map
from compiler.depth.traces import Floats, Traces
from ir import Graph, Node, Value
from ir.core import Arg
from ir.errors import UsageError
from ir.interpret import interpret, run_node
from passes.depth_exits import taps

KINDS = ("agreement", "cosine", "kl")
"""Of loss, per row, against running all blocks: another class is chosen (0 or 1); 1 - cosine; divergence in nats."""
RowQuality = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]
"""Quality of each row of the outputs for some inputs, larger is better: ``quality(outputs, inputs) -> [rows]``."""


@dataclass(frozen=True)
class Run:
    """One sample that went through: inputs, and every trace by its key."""

    inputs: Mapping[str, Tensor]
    results: Mapping[str, Tensor]


class Tapped:
    """A graph with taps, and the samples that ran through it."""

    def __init__(self, graph: Graph, at: Sequence[int], score: str, heard: Callable[[float], None] | None = None):
        """Take a graph with repeated blocks.

        Raises:
            UnsupportedError: it has none, or mixes rows.
        """
        self._graph, self._score = graph, score
        self.at = tuple(at)
        self._taps = taps(graph, at, score, features=True)
        self.names = [o.name for o in graph.outputs if o.kind == "output"]
        self._heard = heard or (lambda done: None)
        self._tail: _Partial | None = None
        self._none: Map = (torch.empty(0), torch.empty(0))

    def run(self, samples: Sequence[Mapping[str, Tensor]]) -> list[Run]:
        """Every sample, at every depth."""
        found = []
        for count, sample in enumerate(samples, 1):
            found.append(Run(sample, interpret(self._taps, sample)))
            self._heard(count / len(samples))
        return found

    def features(self, runs: Sequence[Run], exit_: int) -> Tensor:
        """Of one depth, all rows: [rows, width]."""
        found = torch.cat([r.results[f"trace:depth.feature.{exit_}"].float() for r in runs])
        return found

    def full(self, runs: Sequence[Run], name: str) -> Tensor:
        """An output of all blocks, all rows."""
        return torch.cat([r.results[name] for r in runs])

    def mapped(self, runs: Sequence[Run], maps: Mapping[int, Map]) -> list[Run]:
        """What the same samples give with maps; an exit without one answers through the bare tail."""
        if self._tail is None:
            width = int(runs[0].results[f"trace:depth.feature.{self.at[0]}"].shape[-1])
            self._none = (torch.eye(width), torch.zeros(width))
            graph = taps(self._graph, self.at, self._score, dict.fromkeys(self.at, self._none), features=True)
            keys = [k for e in (0, *self.at) if (k := f"trace:depth.feature.{e}") in runs[0].results]
            want = [o.key for o in graph.outputs if o.key.startswith(("trace:depth.answer", "trace:depth.score"))]
            self._tail = _Partial(graph, keys, want)
        weights: dict[str, Tensor] = {}
        for exit_ in self.at:
            weight, bias = maps.get(exit_, self._none)
            weights |= {f"depth.map.{exit_}.weight": weight.float(), f"depth.map.{exit_}.bias": bias.float()}
        tail = self._tail
        if tail.reads_inputs:
            return [Run(r.inputs, {**r.results, **tail(r.inputs, r.results, weights)}) for r in runs]
        joined = {key: torch.cat([r.results[key] for r in runs]) for key in tail.known}
        counts = [len(r.results[next(iter(joined))]) for r in runs]
        made = {key: t.split(counts) for key, t in tail({}, joined, weights).items()}
        return [Run(r.inputs, {**r.results, **{k: t[i] for k, t in made.items()}}) for i, r in enumerate(runs)]

    def traces(self, runs: Sequence[Run], kind: str, quality: RowQuality | None, blocks: int) -> Traces:
        """Scores and losses of all rows."""
        scores, losses = [], []
        for run in runs:
            scores.append(torch.stack([run.results[f"trace:depth.score.{e}"] for e in self.at], 1).double())
            full = {n: run.results[n] for n in self.names}
            told = [self._loss(run, e, full, kind, quality) for e in self.at]
            losses.append(torch.stack(told, 1).double())
        return Traces(_numpy(scores), _numpy(losses), self.at, blocks)

    def _loss(self, run: Run, exit_: int, full: Mapping[str, Tensor], kind: str, quality: RowQuality | None) -> Tensor:
        answer = {n: run.results.get(f"trace:depth.answer.{exit_}.{n}", t) for n, t in full.items()}
        return row_losses(full, answer, run.inputs, kind, quality)


def row_losses(
    full: Mapping[str, Tensor],
    answer: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    kind: str,
    quality: RowQuality | None,
) -> Tensor:
    """Loss of each row of an answer against that of all blocks; of several outputs the largest."""
    if quality is not None:
        drop = quality(full, inputs).double() - quality(answer, inputs).double()
        if drop.ndim != 1:
            raise UsageError(f"row_quality gives a tensor of shape {tuple(drop.shape)}, not one number per row")
        return drop
    names = [n for n, t in full.items() if t.is_floating_point() and t.ndim > 1]
    return torch.stack([_row_loss(full[n].double(), answer[n].double(), kind) for n in names]).amax(0)


def _row_loss(want: Tensor, got: Tensor, kind: str) -> Tensor:
    if kind == "cosine":
        return 1 - torch.cosine_similarity(want.flatten(1), got.flatten(1), dim=-1)
    if want.ndim == 3:  # the last position decides
        want, got = want[:, -1], got[:, -1]
    if kind == "agreement":
        return (want.argmax(-1) != got.argmax(-1)).double()
    logs = want.log_softmax(-1)
    return (logs.exp() * (logs - got.log_softmax(-1))).sum(-1)


def loss_kind(runs: Sequence[Run], names: Sequence[str]) -> str:
    """``cosine`` where every row of the answer has length 1, as embeddings do; else ``agreement`` of the class."""
    first = runs[0].results[names[0]].double()
    unit = bool(((first.flatten(1).norm(dim=-1) - 1).abs() < 1e-3).all())
    return "cosine" if unit or first.ndim > 3 else "agreement"


def _numpy(parts: Sequence[Tensor]) -> Floats:
    return np.asarray(torch.cat(list(parts)).numpy(), np.float64)


class _Partial:
    """Runs the part of a graph between some of its outputs, whose content is known, and others."""

    def __init__(self, graph: Graph, known: Sequence[str], wanted: Sequence[str]) -> None:
        returned = {o.key: a for o, a in zip(graph.outputs, graph.body.returned.args, strict=True)}
        self._graph = graph
        self._known = {key: value for key in known if isinstance(value := returned[key], Value)}
        self._wanted = {key: value for key in wanted if isinstance(value := returned[key], Value)}
        have = set(self._known.values())
        left = [v for v in self._wanted.values() if v not in have]
        needed: set[Node] = set()
        while left:
            node = left.pop().producer
            if node is not None and node not in needed:
                needed.add(node)
                left += [v for v in node.operands if v not in have]
        self._nodes = [n for n in graph.body if n in needed]
        self.known = tuple(self._known)
        read = {v for n in self._nodes for v in n.operands}
        self.reads_inputs = any(v in read for kind in ("input", "state") for _, v in graph.arguments(kind))

    def __call__(
        self, inputs: Mapping[str, Tensor], results: Mapping[str, Tensor], weights: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The wanted outputs; ``weights`` stand for the graph's own of their names."""
        env: dict[Value, Any] = {value: results[key] for key, value in self._known.items()}
        for value, spec in self._graph.inputs.items():
            source = self._graph.weights if spec.kind == "param" else inputs
            if spec.name in source:
                like = value.tensor.dtype
                env[value] = weights[spec.name].to(like) if spec.name in weights else source[spec.name]
        with torch.no_grad():
            for node in self._nodes:
                args = [_read(a, env) for a in node.args]
                kwargs = {k: _read(a, env) for k, a in node.kwargs.items()}
                env.update(zip(node.results, run_node(node, args, kwargs), strict=True))
        return {key: env[value] for key, value in self._wanted.items()}


def _read(arg: Arg, env: Mapping[Value, Any]) -> Any:
    if isinstance(arg, Value):
        return env[arg]
    return [_read(a, env) for a in arg] if isinstance(arg, tuple) else arg
