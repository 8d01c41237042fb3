"""Repeated blocks of a graph: the layers of a model, found by their structure.

Two values ``a`` and ``b`` of one type bound a block when what computes ``b`` of ``a`` is isomorphic to what computes
``a`` of a third value: the two are walked upwards side by side. Where the walks meet, the value is *shared* (a mask,
rotations); where both read weights, those may differ, and so may numbers and inputs of the graph (a cache per layer);
where the first reaches ``a``, the second has reached the state before. What a block makes may also be returned (the
grown cache). Module paths decide between cuts that are equally long. No name of a model is known here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from ir.core import Arg, Graph, Node, Value
from ir.ops import RETURN
from ir.types import TensorType


@dataclass(frozen=True)
class RepeatedBlock:
    """One of the blocks.

    Attributes:
        nodes: in execution order; asserts about their values are among them.
        carried_in, carried_out: the state that it takes, and the one that it hands on.
        params: weights that it does not share with every other block, in the order of the walk: one per place.
        values: every value that it reads or makes, in the order of the walk: the same place in each block.
    """

    nodes: tuple[Node, ...]
    carried_in: Value
    carried_out: Value
    params: tuple[Value, ...]
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Repeats:
    """The blocks of a graph, in order; each hands its state to the next.

    Attributes:
        blocks: two or more.
        shared: values from outside that they all read, weights among them.
        uneven: why the blocks are not equal up to their weights; empty when they are. Products in mixed precision
            and numbers that differ count: such blocks can be left out, but not rolled into one.
        stateful: each takes inputs of the graph or makes outputs of it, beside the state that it hands on.
    """

    blocks: tuple[RepeatedBlock, ...]
    shared: tuple[Value, ...]
    uneven: str = ""
    stateful: bool = False

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def states(self) -> tuple[Value, ...]:
        """The state before the first block, and after each."""
        return (self.blocks[0].carried_in, *(b.carried_out for b in self.blocks))


def find_repeats(graph: Graph) -> Repeats | str:
    """The longest chain of equal blocks in the body of a graph, or a sentence why there is none."""
    search = _Search(graph)
    found = search.chains()
    if not found:
        return search.why_not
    return max(found, key=lambda chain: (len(chain), search.purity(chain), search.place[_maker(chain.states[-1])]))


@dataclass
class _Walk:
    """Two cones side by side, the later one first.

    Attributes:
        start: the state at which the later cone ends.
        pairs: later value to earlier value, in the order of the walk.
        before: the earlier state.
        literals: whether numbers differ.
        mixed: whether products are of different kinds.
        fed: whether they read inputs of the graph that differ.
    """

    start: Value
    pairs: dict[Value, Value] = field(default_factory=dict)
    before: Value | None = None
    shared: dict[Value, None] = field(default_factory=dict)
    params: list[tuple[Value, Value]] = field(default_factory=list)
    later: dict[Node, None] = field(default_factory=dict)
    earlier: dict[Node, None] = field(default_factory=dict)
    literals: bool = False
    mixed: bool = False
    fed: bool = False


class _Apart(Exception):
    """The two cones differ."""


class _Search:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.place = {node: index for index, node in enumerate(graph.body)}
        self.why_not = "no part of the graph repeats: there are no two blocks that differ in their weights only"
        self._weights: dict[Value, bool] = {v: s.kind == "param" for v, s in graph.inputs.items()}
        for node in graph.body:
            constant = node.op.pure and not node.regions and bool(node.operands)
            constant = constant and all(self._weights[v] for v in node.operands)
            self._weights.update(dict.fromkeys(node.results, constant))

    # --- chains -------------------------------------------------------------------------------

    def chains(self) -> list[Repeats]:
        """Every chain that cannot be made longer."""
        alike: dict[object, list[Value]] = defaultdict(list)
        for node in self.graph.body:
            if len(node.results) == 1 and isinstance(node.result.type, TensorType) and node.result.tensor.rank > 1:
                alike[node.op, node.result.type].append(node.result)
        found: list[Repeats] = []
        seen: set[Value] = set()
        for values in alike.values():
            for index in range(len(values) - 1, 0, -1):
                if values[index] in seen:
                    continue
                for earlier in reversed(values[:index]):
                    chain = self._chain(values[index], earlier)
                    if chain is not None:
                        found.append(chain)
                        seen.update(chain.states)
                        break
        return found

    def _chain(self, last: Value, earlier: Value) -> Repeats | None:
        walks: list[_Walk] = []
        while True:
            walk = self._walk(last, earlier)
            if walk is None or walk.before is None:
                break
            if walks and not self._continues(walks[-1], walk):
                break
            walks.append(walk)
            last, earlier = earlier, walk.before
        return self._joined(walks) if walks else None

    @staticmethod
    def _continues(later: _Walk, walk: _Walk) -> bool:
        return tuple(later.pairs.values()) == tuple(walk.pairs) or later.mixed or walk.mixed

    def _joined(self, walks: list[_Walk]) -> Repeats | None:
        """Blocks from walks, which run from the last block to the first."""
        walks = walks[::-1]
        first = walks[0]
        assert first.before is not None
        shared = dict.fromkeys(v for walk in walks for v in walk.shared)
        cones = [tuple(first.earlier), *(tuple(walk.later) for walk in walks)]
        states = [first.before, *(walk.start for walk in walks), next(iter(walks[-1].pairs))]
        places = [tuple(first.pairs.values()), *(tuple(walk.pairs) for walk in walks)]
        params = [[p for _, p in first.params], *([p for p, _ in walk.params] for walk in walks)]
        blocks = []
        for cone, before, after, values, own in zip(cones, states[:-1], states[1:], places, params, strict=True):
            nodes = self._with_asserts(set(cone), after)
            if self._leaks(nodes, after):
                return None
            blocks.append(RepeatedBlock(nodes, before, after, tuple(own), values))
        inside = {node for block in blocks for node in block.nodes}
        if len(inside) != sum(len(b.nodes) for b in blocks) or self._depends(shared, inside):
            return None
        if not any(self._weights.get(v) for v in shared) and not any(b.params for b in blocks):
            return None
        stateful = any(w.fed for w in walks) or any(self._returned(b) for b in blocks)
        uneven = "their products differ in precision" if any(w.mixed for w in walks) else ""
        uneven = uneven or ("numbers that differ from block to block" if any(w.literals for w in walks) else "")
        uneven = uneven or ("inputs or outputs of the model's own for each" if stateful else "")
        return Repeats(tuple(blocks), tuple(shared), uneven, stateful)

    @staticmethod
    def _returned(block: RepeatedBlock) -> bool:
        made = (v for n in block.nodes for v in n.results if v is not block.carried_out)
        return any(u.op is RETURN for v in made for u in v.uses)

    def _with_asserts(self, nodes: set[Node], out: Value) -> tuple[Node, ...]:
        """With what only looks at their inner values: asserts, and nodes that nothing reads."""
        made = {v for n in nodes for v in n.results if v is not out}
        for node in [u for v in made for u in v.uses]:
            looks = node.op is not RETURN and node not in nodes and not any(v.uses for v in node.results)
            if looks and any(v in made for v in node.operands):
                nodes.add(node)
        return tuple(sorted(nodes, key=self.place.__getitem__))

    @staticmethod
    def _leaks(nodes: Iterable[Node], out: Value) -> bool:
        """Whether something outside computes with a value other than the state."""
        mine = {*nodes}
        made = (v for n in mine for v in n.results if v is not out)
        return any(u not in mine and u.op is not RETURN for v in made for u in v.uses)

    def _depends(self, shared: Iterable[Value], inside: set[Node]) -> bool:
        left, seen = [v.producer for v in shared if v.producer is not None], set[Node]()
        while left:
            node = left.pop()
            if node in inside:
                return True
            if node not in seen:
                seen.add(node)
                left.extend(v.producer for v in node.operands if v.producer is not None)
        return False

    # --- the walk -----------------------------------------------------------------------------

    def _walk(self, later: Value, earlier: Value) -> _Walk | None:
        walk = _Walk(earlier)
        left = [(later, earlier)]
        try:
            while left:
                left.extend(reversed(self._step(walk, *left.pop())))
        except _Apart:
            return None
        return walk if walk.before is not None else None

    def _step(self, walk: _Walk, one: Value, two: Value) -> list[tuple[Value, Value]]:
        """Match a value of the later cone with one of the earlier; gives what they are made of."""
        if one is walk.start:
            if one.type != two.type:
                raise _Apart
            if walk.before is None:
                walk.before = two
            if walk.before is not two:
                raise _Apart
            return []
        if one is two:
            walk.shared.setdefault(one)
            return []
        if one in walk.pairs:
            if walk.pairs[one] is not two:
                raise _Apart
            return []
        walk.pairs[one] = two
        if self._weights[one] and self._weights[two]:
            return self._weight(walk, one, two)
        first, second = one.producer, two.producer
        if first is None and second is None and one.type == two.type and not (self._weights[one] or self._weights[two]):
            walk.fed = True
            return []
        if first is None or second is None or self.place[first] < self.place[_maker(walk.start)]:
            raise _Apart
        if one.type != two.type or first.regions or second.regions or first.op.effects:
            raise _Apart
        if first.op != second.op:
            return self._product(walk, first, second)
        if first.results.index(one) != second.results.index(two):
            raise _Apart
        return self._operands(walk, first, second)

    def _weight(self, walk: _Walk, one: Value, two: Value) -> list[tuple[Value, Value]]:
        """Two weights, or values computed of weights alone."""
        first, second = one.producer, two.producer
        if one.type == two.type and first is None and second is None:
            walk.params.append((one, two))
            return []
        alike = first is not None and second is not None and first.op == second.op
        if one.type != two.type or not alike:  # another precision: a scale per channel, say
            walk.mixed = True
            self._cone(walk, one, two)
            return []
        assert first is not None and second is not None
        return self._operands(walk, first, second)

    def _operands(self, walk: _Walk, first: Node, second: Node) -> list[tuple[Value, Value]]:
        if len(first.args) != len(second.args) or first.kwargs.keys() != second.kwargs.keys():
            raise _Apart
        walk.later.setdefault(first)
        walk.earlier.setdefault(second)
        found: list[tuple[Value, Value]] = []
        for a, b in zip(first.args, second.args, strict=True):
            self._arguments(walk, a, b, found)
        for name, a in first.kwargs.items():
            self._arguments(walk, a, second.kwargs[name], found)
        return found

    def _product(self, walk: _Walk, first: Node, second: Node) -> list[tuple[Value, Value]]:
        """Two linears of different precision: what they multiply must match, their weights need not."""
        if not (_is_linear(first) and _is_linear(second)):
            raise _Apart
        one, two = first.operands[0], second.operands[0]
        if not all(self._weights[v] for n in (first, second) for v in n.operands[1:]):
            raise _Apart
        walk.mixed = True
        walk.later.setdefault(first)
        walk.earlier.setdefault(second)
        for a in first.operands[1:]:
            self._cone(walk, a, None)
        for b in second.operands[1:]:
            self._cone(walk, None, b)
        return [(one, two)]

    def _cone(self, walk: _Walk, one: Value | None, two: Value | None) -> None:
        """Take in nodes that compute weights, whatever they are."""
        for value, nodes in ((one, walk.later), (two, walk.earlier)):
            left = [value.producer] if value is not None and value.producer is not None else []
            while left:
                node = left.pop()
                nodes.setdefault(node)
                left.extend(v.producer for v in node.operands if v.producer is not None)

    def _arguments(self, walk: _Walk, a: Arg, b: Arg, found: list[tuple[Value, Value]]) -> None:
        if isinstance(a, Value) and isinstance(b, Value):
            found.append((a, b))
        elif isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
            for x, y in zip(a, b, strict=True):
                self._arguments(walk, x, y, found)
        elif isinstance(a, (int, float)) and isinstance(b, (int, float)) and type(a) is type(b):
            walk.literals |= a != b
        elif self._optional(a, b) or self._optional(b, a):  # a bias that one of them needs
            walk.mixed = True
            self._cone(walk, a if isinstance(a, Value) else None, b if isinstance(b, Value) else None)
        elif a != b or type(a) is not type(b):
            raise _Apart

    def _optional(self, a: Arg, b: Arg) -> bool:
        return a is None and isinstance(b, Value) and self._weights[b]

    # --- choosing -----------------------------------------------------------------------------

    def purity(self, chain: Repeats) -> int:
        """How many blocks lie in a module of their own, the n-th of a list of modules."""
        roots = [_common(n.origin.path for n in block.nodes if n.origin.path) for block in chain.blocks]
        return len({r for r in roots if _NUMBERED.search(r)})


_NUMBERED = re.compile(r"(^|\.)\d+(\.|$)")


def _common(paths: Iterable[str]) -> str:
    parts: list[str] | None = None
    for path in paths:
        mine = path.split(".")
        if parts is None:
            parts = mine
        same = next(
            (i for i, (a, b) in enumerate(zip(parts, mine, strict=False)) if a != b), min(len(parts), len(mine))
        )
        parts = parts[:same]
    return ".".join(parts or ())


def _maker(value: Value) -> Node:
    assert value.producer is not None
    return value.producer


def _is_linear(node: Node) -> bool:
    name = node.op.name
    return name == "aten.linear.default" or (name.startswith("penstock.") and "linear" in name)


def module_of(block: RepeatedBlock) -> str:
    """Path of the module that a block is, or the empty text."""
    return _common(n.origin.path for n in block.nodes if n.origin.path)
