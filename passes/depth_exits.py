"""Early exits: a chain of ``rows`` regions, and the taps by which their thresholds are found.

    h1 = blocks 1..e1 (h0)                         every row
    answer, score = tail(map(h1))                  the graph's own tail: no head is added
    live = score < thresholds[0]
    answer, score, h = rows(live) { blocks e1+1..e2, tail, score }
    ...
    answer = rows(live) { the blocks that are left, tail }

A map is affine and optional, one per exit, in front of the tail's last narrow value: pooled or normed features. A gate
is linear, looks at the same value, and is only there for the score of that name. The thresholds are a setting, f32
``[exits]``; a row that leaves nowhere gets what the graph gave before. A NaN score leaves nowhere. Taps compute the
same answers and scores for every row, in a straight line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from ir import RETURN, ROWS, Block, Graph, Node, Origin, Output, TensorType, Value
from ir.copy import copy_graph
from ir.dims import Dim
from ir.errors import UnsupportedError, UsageError
from ir.rowwise import mixing
from passes.depth_parts import Parts, copy_nodes, erase_unread, hoist, outputs_with, take_apart
from passes.depth_region import Region
from passes.depth_scores import GATE, SCORES, Emitter, Memory, gate_of, score_of, why_not

THRESHOLDS = "depth.thresholds"
LAYERS = "depth.layers"
Maps = Mapping[int, tuple[torch.Tensor, torch.Tensor]]
"""Exit to the weight ``[features, features]`` and bias ``[features]`` of its map, as for a linear.

Gates have the same form: weight ``[features]`` and bias ``[]``.
"""
NO_MAPS: Maps = MappingProxyType({})


def insert_exits(
    graph: Graph, at: Sequence[int], score: str, tau: Sequence[float] = (), maps: Maps = NO_MAPS, gates: Maps = NO_MAPS
) -> Graph:
    """A graph with exits, of the same answers, with the trace ``depth.layers`` and the setting ``depth.thresholds``.

    Args:
        graph: of repeated blocks; it stays as it is.
        at: depths after which rows may leave, 1 to all but one; every one of them when empty.
        score: one of ``SCORES``, or ``GATE``.
        tau: a threshold per exit, or one for all; infinite (nobody leaves) when empty.
        maps: fitted maps; of depth 0 too for agreement.
        gates: one per exit, for the score ``GATE``.

    Raises:
        UsageError: an exit where no block ends, an unknown score, thresholds that are too many, too few or NaN.
        UnsupportedError: the graph has no repeated blocks, no axis of rows, or mixes rows.
    """
    made = copy_graph(graph)
    exits = _Exits(made, at, score, maps, gates)
    exits.insert(thresholds_of(tau, len(exits.at)))
    return made


def taps(
    graph: Graph, at: Sequence[int], score: str, maps: Maps = NO_MAPS, features: bool = False, gates: Maps = NO_MAPS
) -> Graph:
    """The graph with traces ``depth.answer.E.NAME`` and ``depth.score.E`` of each exit, every row at every depth.

    Args:
        graph: see ``insert_exits``, as for what follows.
        at: depths.
        score: one of ``SCORES``, or ``GATE``.
        maps: fitted maps.
        gates: one per exit, for the score ``GATE``.
        features: also ``depth.feature.E``, what a map of exit E is applied to; for all blocks and, with agreement,
            for depth 0 too.

    Raises:
        UsageError, UnsupportedError: see ``insert_exits``.
    """
    made = copy_graph(graph)
    _Exits(made, at, score, maps, gates).tap(features)
    return made


def thresholds_of(tau: Sequence[float], count: int) -> torch.Tensor:
    """The setting: f32 ``[count]``.

    Raises:
        UsageError: another number of thresholds, or a NaN.
    """
    told = tuple(tau) or (float("inf"),)
    if len(told) == 1:
        told *= count
    if len(told) != count:
        raise UsageError(f"{len(told)} thresholds were given for {count} exits", hint="one for all, or one per exit")
    if any(t != t for t in told):
        raise UsageError("a threshold is NaN", hint="inf lets nobody leave, -inf everybody")
    return torch.tensor(told, dtype=torch.float32)


@dataclass
class _Answer:
    """What one exit says.

    Attributes:
        values: place among the outputs to the answer there.
        score: f32 ``[rows]``.
    """

    values: dict[int, Value]
    feature: Value
    score: Value | None = None
    memory: Memory = field(default_factory=dict)


class _Exits:
    def __init__(self, graph: Graph, at: Sequence[int], score: str, maps: Maps, gates: Maps) -> None:
        if score not in (*SCORES, GATE):
            raise UsageError(f"there is no score {score!r}", hint=f"one of {', '.join((*SCORES, GATE))}")
        parts = take_apart(graph)
        if isinstance(parts, str):
            raise UnsupportedError(f"no exits: {parts}")
        if parts.repeats.stateful:
            raise UnsupportedError("no exits: each block keeps a state of its own, which rows that leave would owe")
        self.graph, self.parts, self.score = graph, parts, score
        self.at = checked_exits(at, parts.depth)
        self._rows = _batch(parts)
        self._scored = _scored(parts, score)
        self._cut = feature_of(parts)
        self._maps = {e: self._map(e, *maps[e]) for e in sorted(maps)}
        self._gates = {e: self._gate(e, gates) for e in self.at} if score == GATE else {}
        hoist(graph, parts)

    def _map(self, exit_: int, weight: torch.Tensor, bias: torch.Tensor) -> tuple[Value, Value]:
        like = self._cut.tensor
        width = like.shape[-1]
        if exit_ not in (0, *self.at):
            raise UsageError(f"there is a map for exit {exit_}, but no such exit")
        if tuple(weight.shape) != (width, width) or tuple(bias.shape) != (width,):
            told = f"{list(weight.shape)} and {list(bias.shape)}"
            raise UsageError(f"the map of exit {exit_} is {told}, its features are {like}")
        return (
            self.graph.add_param(f"depth.map.{exit_}.weight", weight.to(like.dtype)),
            self.graph.add_param(f"depth.map.{exit_}.bias", bias.to(like.dtype)),
        )

    def _gate(self, exit_: int, gates: Maps) -> tuple[Value, Value]:
        like = self._cut.tensor
        if exit_ not in gates:
            raise UsageError(f"exit {exit_} has no gate", hint="gates are fitted by `penstock compile --max-drop`")
        weight, bias = gates[exit_]
        if tuple(weight.shape) != like.shape[-1:] or bias.numel() != 1:
            raise UsageError(f"the gate of exit {exit_} is {list(weight.shape)}, its features are {like}")
        return (
            self.graph.add_param(f"depth.gate.{exit_}.weight", weight.float().reshape(1, -1)),
            self.graph.add_param(f"depth.gate.{exit_}.bias", bias.float().reshape(1)),
        )

    # --- one exit -----------------------------------------------------------------------------

    def _answer(
        self, depth: int, table: dict[Value, Value], block: Block, before: Node | None, sizes: Mapping[object, Dim],
    ) -> _Answer:  # fmt: skip
        """The tail once more; ``table`` says what its values are here, the last state among them."""
        last, cut = self.parts.states[-1], self._cut
        table.setdefault(last, last)
        emit = Emitter(self.graph, self._origin(depth), block, before)
        nodes = list(self.parts.tail)
        until = 0 if cut is last else 1 + next(i for i, n in enumerate(nodes) if cut in n.results)
        copy_nodes(self.graph, nodes[:until], table, block, before, sizes)
        feature = table[cut]
        if depth in self._maps:
            weight, bias = (table.get(v, v) for v in self._maps[depth])
            table[cut] = emit("linear.default", feature, weight, bias, called=f"mapped_{depth}")
        copy_nodes(self.graph, nodes[until:], table, block, before, sizes)
        values = {place: table.get(v, v) for place, v in self.parts.answers.items()}
        for place, value in values.items():
            if value is table[last]:  # carried twice, as state and as answer, which need not stay the same
                values[place] = emit("clone.default", value, called="answer")
        return _Answer(values, feature)

    def _judge(
        self, exit_: int, answer: _Answer, emit: Emitter, previous: Value | None, memory: Memory,
        table: Mapping[Value, Value] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        if self._gates:
            weight, bias = (table.get(v, v) for v in self._gates[exit_])
            answer.score = gate_of(emit, answer.feature, weight, bias)
            return
        answer.score, answer.memory = score_of(emit, self.score, answer.values[self._scored], previous, memory)

    def _origin(self, depth: int) -> Origin:
        return self.parts.states[depth].origin

    def _zero(self, end: Node) -> _Answer | None:
        """What agreement compares the first exit with: the answer of no block at all."""
        if self.score != "agreement":
            return None
        table = {self.parts.states[-1]: self.parts.states[0]}
        return self._answer(0, table, self.graph.body, end, {})

    # --- taps ---------------------------------------------------------------------------------

    def tap(self, features: bool) -> None:
        """Add the traces."""
        graph, parts = self.graph, self.parts
        end = graph.body.returned
        more: list[tuple[Output, Value]] = []
        zero = self._zero(end)
        previous = zero.values[self._scored] if zero else None
        memory: Memory = {}
        read = {0: zero.feature} if zero else {}
        for exit_ in self.at:
            answer = self._answer(exit_, {parts.states[-1]: parts.states[exit_]}, graph.body, end, {})
            self._judge(exit_, answer, Emitter(graph, self._origin(exit_), graph.body, end), previous, memory)
            assert answer.score is not None
            previous, memory = answer.values[self._scored], answer.memory
            read[exit_] = answer.feature
            for place, value in answer.values.items():
                more.append((Output("trace", f"depth.answer.{exit_}.{graph.outputs[place].name}"), value))
            more.append((Output("trace", f"depth.score.{exit_}"), answer.score))
        if features:
            read[parts.depth] = self._cut
            more += [(Output("trace", f"depth.feature.{e}"), value) for e, value in read.items()]
        outputs_with(graph, {}, more)

    # --- the chain ----------------------------------------------------------------------------

    def insert(self, tau: torch.Tensor) -> None:
        graph, parts = self.graph, self.parts
        end = graph.body.returned
        old = [n for b in parts.repeats.blocks[self.at[0] :] for n in b.nodes] + list(parts.tail)
        thresholds = graph.add_input("state", THRESHOLDS, TensorType(torch.float32, (len(self.at),)), "thresholds")
        graph.initial[THRESHOLDS] = tau

        state = parts.states[self.at[0]]
        emit = Emitter(graph, self._origin(self.at[0]), graph.body, end)
        answer = self._answer(self.at[0], {parts.states[-1]: state}, graph.body, end, {})
        zero = self._zero(end)
        self._judge(self.at[0], answer, emit, zero.values[self._scored] if zero else None, {})
        assert answer.score is not None
        layer = emit("full_like.default", answer.score, self.at[0], called="layers", dtype=torch.int64)
        live: Value | None = None
        for index, start in enumerate(self.at):
            assert answer.score is not None
            bound = emit("select.int", thresholds, 0, index, called="threshold")
            stays = emit("logical_not.default", emit("ge.Tensor", answer.score, bound), called="live")
            live = stays if live is None else emit("logical_and.default", live, stays, called="live")
            stop = (*self.at, parts.depth)[index + 1]
            answer, state, layer = self._segment(start, stop, live, answer, state, layer)
        outputs_with(graph, answer.values, [(Output("trace", LAYERS), layer)])
        order = {n: i for i, n in enumerate(graph.body)}
        erase_unread(graph, sorted(set(old), key=order.__getitem__))
        for node in graph.walk():
            if node.op is ROWS and (why := mixing(node)):
                raise UnsupportedError(f"no exits: {why}", hint="exits run on rows that have to be independent")

    def _segment(
        self, start: int, stop: int, live: Value, answer: _Answer, state: Value, layer: Value
    ) -> tuple[_Answer, Value, Value]:
        """Blocks ``start + 1 .. stop`` on live rows, and what they say at the end."""
        graph, parts = self.graph, self.parts
        last = stop == parts.depth
        old = _carried(answer, layer)
        if not last:
            assert answer.score is not None
            old |= {"score": answer.score, "state": state} | {f"memory {n}": v for n, v in answer.memory.items()}
        carried = list(dict.fromkeys(old.values()))  # a score may be its own memory
        beside = [state] if last else []
        nodes = [n for b in parts.repeats.blocks[start:stop] for n in b.nodes]
        inner = {v for n in (*nodes, *parts.tail) for v in n.results} | set(parts.states)
        outside = [v for n in (*nodes, *parts.tail) for v in n.operands if v not in inner]
        outside += [v for v in parts.answers.values() if v not in inner]
        outside += (*self._maps.get(stop, ()), *self._gates.get(stop, ()))
        origin = self._origin(stop)
        region = Region(graph, self._rows, live, carried, beside, outside, origin)
        emit = Emitter(graph, origin, region.block)
        table = region.table
        table[parts.states[start]] = region.of(state)
        copy_nodes(graph, nodes, table, region.block, None, region.sizes)
        table[parts.states[-1]] = table[parts.states[stop]]
        made = self._answer(stop, table, region.block, None, region.sizes)
        new = _carried(made, emit("full_like.default", region.of(layer), stop, called="layers"))
        if not last:
            known = {n: region.of(v) for n, v in answer.memory.items()}
            self._judge(stop, made, emit, region.of(answer.values[self._scored]), known, table)
            assert made.score is not None
            new |= {"score": made.score, "state": table[parts.states[stop]]}
            new |= {f"memory {n}": v for n, v in made.memory.items()}
        places = {value: name for name, value in old.items()}
        results = dict(zip(carried, region.done([new[places[v]] for v in carried]), strict=True))
        after = {name: results[v] for name, v in old.items()}
        told = _Answer({place: after[f"answer {place}"] for place in answer.values}, made.feature)
        if last:
            return told, state, after["layer"]
        told.score = after["score"]
        told.memory = {n: after[f"memory {n}"] for n in made.memory}
        return told, after["state"], after["layer"]


def _carried(answer: _Answer, layer: Value) -> dict[str, Value]:
    return {f"answer {place}": value for place, value in answer.values.items()} | {"layer": layer}


# --- what can be told beforehand --------------------------------------------------------------


def checked_exits(at: Sequence[int], depth: int) -> tuple[int, ...]:
    """Exits in order; every one of them when none is named.

    Raises:
        UsageError: no block ends there.
    """
    told = tuple(at) or tuple(range(1, depth))
    wrong = next((e for e in told if not 1 <= e < depth), None)
    if wrong is not None:
        raise UsageError(f"there is no exit {wrong}: the model has {depth} blocks", hint=f"from 1 to {depth - 1}")
    if list(told) != sorted(set(told)):
        raise UsageError(f"exits go up, {':'.join(map(str, told))} does not")
    return told


def _batch(parts: Parts) -> Dim:
    """The number of rows.

    Raises:
        UnsupportedError: it is fixed to more than one, or some answer has another first axis.
    """
    state = parts.states[0]
    rows = state.tensor.shape[0]
    if isinstance(rows, int) and rows != 1:
        raise UnsupportedError(
            f"no exits: the batch is {rows} for good",
            hint="make dim 0 of the inputs dynamic, or 1: rows leave one by one",
        )
    if not isinstance(rows, int) and not rows.is_Symbol:
        raise UnsupportedError(f"no exits: the first axis of the state, {state.type}, is not the batch")
    for value in parts.answers.values():
        shape = value.tensor.shape if isinstance(value.type, TensorType) else ()
        if shape[:1] != (rows,):
            raise UnsupportedError(f"no exits: the output %{value.name}, {value.type}, has not one element per row")
    return rows


def _scored(parts: Parts, score: str) -> int:
    """Place of the output that is scored: the first that can be."""
    reasons = {place: why_not(score, value) for place, value in parts.answers.items()}
    found = next((place for place, why in reasons.items() if not why), None)
    if found is None:
        raise UnsupportedError(f"no exits: {next(iter(reasons.values()))}")
    return found


def feature_of(parts: Parts) -> Value:
    """Where a map goes: the last of the narrowest values of the tail that all of its answer comes through."""
    last = parts.states[-1]
    tail = set(parts.tail)
    waiting = {last: sum(u in tail or u.op is RETURN for u in last.uses)}
    cuts = [last]
    for node in parts.tail:
        for value in dict.fromkeys(node.operands):
            if value in waiting:
                waiting[value] -= 1
        waiting |= {v: len(v.uses) for v in node.results}
        open_ = [v for v, count in waiting.items() if count]
        if len(open_) == 1 and open_[0] in node.results:
            cuts.append(open_[0])
    answers = set(parts.answers.values())
    fit = [
        v for v in cuts
        if v not in answers and isinstance(v.type, TensorType) and v.tensor.dtype.is_floating_point
        and v.tensor.rank > 1 and isinstance(v.tensor.shape[-1], int)
    ]  # fmt: skip
    narrow = min((v.tensor.rank for v in fit), default=0)
    return next((v for v in reversed(fit) if v.tensor.rank == narrow), last)
