"""i = nonzero(live); index_copy(x, 0, i, f(x[i], m[i], w))  ->  rows(live, [x], [m], [w]) { f }

Sound: the definition of ``rows`` (``ir.rows``), for a body that keeps rows apart. Scatters that share a body become one
``rows``; ``x[live]`` with a mask is the same as with its positions. Asserts that a count of rows lies between none and
all go: it does; so do those that it is not 0, which torch adds where the body reshapes to ``-1``, then spelled out.
Profitable: an engine then gets the form that it can run, compacted or masked; by itself nothing is faster.
Declines when the body is not known to keep rows apart (``ir.rowwise``), when something else reads a value of the live
rows or their positions, or when what the body needs is made only after the scatter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from ir import ROWS, Arg, Block, Graph, Node, ScalarType, TensorType, Value, map_values, op, symbols_of
from ir.dims import is_data_symbol, symbol
from ir.rowwise import RowWalk
from passes.base import Pass, Remark, Samples, remark
from passes.drop_dead_nodes import drop_chain
from passes.rewrite import producer, rewrite
from passes.row_counts import drop_assert

_RESHAPES = ("aten.reshape.default", "aten.view.default", "aten._unsafe_view.default")
_SIZE = "aten.sym_size.int"
_NONZERO = ("aten.nonzero.default", "aten.where.default", "aten.nonzero_numpy.default")


@dataclass(frozen=True)
class MatchRows(Pass):
    """Finds work on the live rows of a batch."""

    name: ClassVar[str] = "match-rows"
    summary: ClassVar[str] = "nonzero, index_select, f, index_copy -> rows { f }"

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        """See the module."""
        return rewrite(graph, (_match, _assert))


@dataclass
class _Body:
    """What lies between the gathers and the scatters of one mask.

    Attributes:
        scatters: nodes that put rows back, in order.
        nodes: the body, unordered.
        picks: gathers of live rows.
        sizes: readers of the number of live rows.
        closed: values from elsewhere, in the order they were found.
    """

    live: Value
    scatters: list[Node] = field(default_factory=list)
    nodes: set[Node] = field(default_factory=set)
    picks: dict[Node, None] = field(default_factory=dict)
    sizes: dict[Node, None] = field(default_factory=dict)
    closed: dict[Value, None] = field(default_factory=dict)


def _positions(value: Arg) -> Value | None:
    """The mask whose true positions a value lists, ``[u]`` or ``[u, 1]``."""
    if found := producer(value, "aten.squeeze.dim", "aten.squeeze.dims", "aten.select.int", "aten.reshape.default",
                         "aten.view.default", "aten.flatten.using_ints"):  # fmt: skip
        value = found.args[0] if isinstance(value, Value) and value.tensor.rank == 1 else None
    found = producer(value, *_NONZERO)
    live = found.args[0] if found else None
    return live if isinstance(live, Value) and live.tensor.rank == 1 and live.tensor.dtype is torch.bool else None


def _mask(arg: Arg) -> Value | None:
    """The mask behind an index: itself, or its positions."""
    if not isinstance(arg, Value) or not isinstance(arg.type, TensorType) or arg.type.rank != 1:
        return None
    return arg if arg.type.dtype is torch.bool else _positions(arg)


def _pick(node: Node) -> Value | None:
    """The mask by which a node picks rows from its first operand."""
    if node.op.name == "aten.index_select.default" and node.args[1] == 0:
        return _mask(node.args[2])
    if node.op.name == "aten.index.Tensor" and isinstance(node.args[1], tuple) and len(node.args[1]) == 1:
        return _mask(node.args[1][0])
    return None


def _counted(node: Node) -> Value | None:
    """The mask whose true elements a node counts."""
    if node.op.name != _SIZE or node.args[1] != 0 or not isinstance(of := node.args[0], Value):
        return None
    picked = _pick(of.producer) if of.producer is not None else None
    return _positions(of) if picked is None else picked


def _scatter(node: Node) -> tuple[Value, Arg, Value] | None:
    """The mask, the base and the new rows of a node that puts rows back."""
    live = None
    if node.op.name == "aten.index_copy.default" and node.args[1] == 0:
        live, new = _mask(node.args[2]), node.args[3]
    elif node.op.name == "aten.index_put.default" and node.arg(3, "accumulate", False) is False:
        index, new = node.args[1:3]
        live = _mask(index[0]) if isinstance(index, tuple) and len(index) == 1 else None
    return (live, node.args[0], new) if live is not None and isinstance(new, Value) else None


def _match(graph: Graph, node: Node) -> Remark | None:
    found = _scatter(node)
    if found is None or node.block is None:
        return None
    order = {n: i for i, n in enumerate(node.block)}
    body = _collect(node, found[0], order)
    if not body.picks and not body.sizes:
        return None
    if why := _why_not(body, order):
        return remark(node, False, why)
    return _rewrite(graph, body, order)


def _collect(anchor: Node, live: Value, order: Mapping[Node, int]) -> _Body:
    body = _Body(live)
    derived: set[Node] = set()
    for node in order:
        feeders = {v.producer for v in node.operands}
        if _pick(node) is live or (node.op.name in _NONZERO and node.args[0] is live) or feeders & derived:
            derived.add(node)
    left = [anchor]
    while left:
        scatter = left.pop()
        body.scatters.append(scatter)
        before = set(body.nodes)
        _, _, new = _scatter(scatter) or (None, None, None)
        assert new is not None
        _upward(body, new, derived)
        for added in body.nodes - before:
            for user in (u for v in added.results for u in v.uses):
                other = _scatter(user)
                if other and other[0] is live and user in order and user not in (*body.scatters, *left):
                    left.append(user)
    body.scatters.sort(key=order.__getitem__)
    return body


def _upward(body: _Body, value: Value, derived: set[Node]) -> None:
    left = [value]
    while left:
        at = left.pop()
        made_by = at.producer
        scattered = _scatter(made_by) if made_by is not None else None
        if made_by is None or made_by not in derived or (scattered and scattered[0] is body.live):
            body.closed.setdefault(at)
        elif _pick(made_by) is body.live:
            body.picks.setdefault(made_by)
        elif _counted(made_by) is body.live:
            body.sizes.setdefault(made_by)
        elif made_by not in body.nodes:
            body.nodes.add(made_by)
            left.extend(reversed(made_by.operands))


def _outer(body: _Body) -> Iterator[Value]:
    """Everything that the ``rows`` node will read."""
    yield body.live
    yield from (v for n in (*body.scatters, *body.picks) for v in n.operands[:1])
    yield from body.closed


def _counts(body: _Body) -> set[str]:
    """Symbols that count the live rows: each gather by a mask may have made one of its own."""
    dims = [n.results[0].tensor.shape[0] for n in body.picks]
    dims += [t.expr for n in body.sizes if isinstance(t := n.results[0].type, ScalarType) and t.expr is not None]
    return {name for d in dims for name in symbols_of(d) if is_data_symbol(name)}


def _why_not(body: _Body, order: Mapping[Node, int]) -> str:
    if any(_positions(v) is body.live for n in body.nodes for v in n.operands):
        return "its body reads the positions of the live rows"
    mine = body.nodes | set(body.scatters)
    for node in sorted(body.nodes, key=order.__getitem__):
        for user in (u for v in node.results for u in v.uses if u not in mine):
            at = f" at {user.origin}" if str(user.origin) else ""
            return f"{user.op.name}{at} reads a value of the live rows"
    first = order[body.scatters[0]]
    if any(v.producer is not None and order[v.producer] >= first for v in _outer(body)):
        return "what its body needs is made only after the rows are put back"
    counts = _counts(body)
    batch = body.live.tensor.shape[0]
    for value in _outer(body):
        if isinstance(value.type, TensorType) and counts & {n for d in value.type.shape for n in symbols_of(d)}:
            return f"%{value.name} is sized by the live rows, but is not made of them"
    for node in (*body.scatters, *body.picks):
        if node.operands[0].tensor.shape[:1] != (batch,):
            return "what is picked from has not one row per element of the mask"
    for node in body.scatters:
        _, base, new = _scatter(node) or (None, None, None)
        assert isinstance(base, Value) and new is not None
        want = base.tensor
        if new.tensor.dtype != want.dtype or new.tensor.rank != want.rank or new.tensor.shape[1:] != want.shape[1:]:
            return f"the new rows are {new.type}, those of {want} are not"
    if not body.nodes:
        return "nothing runs on the live rows"
    return _mixes(body, order, counts)


def _mixes(body: _Body, order: Mapping[Node, int], counts: set[str]) -> str:
    if len(counts) != 1:
        return "its gathers count the live rows apart"
    rows = [n.results[0] for n in body.picks]
    walk = RowWalk(next(iter(counts)), rows, [n.results[0] for n in body.sizes])
    mixed = walk.over(sorted(body.nodes, key=order.__getitem__))
    return mixed or walk.at_the_front(new for n in body.scatters if (s := _scatter(n)) for new in s[2:])


def _rewrite(graph: Graph, body: _Body, order: Mapping[Node, int]) -> Remark:
    first = body.scatters[0]
    (count,) = _counts(body)
    carried = [n.operands[0] for n in body.scatters]
    beside = list(dict.fromkeys(n.operands[0] for n in body.picks if n.operands[0] not in carried))
    closed = list(body.closed)
    u = symbol(count)

    arguments = [Value(TensorType(v.tensor.dtype, (u, *v.tensor.shape[1:])), v.name) for v in (*carried, *beside)]
    arguments += [Value(v.type, v.name) for v in closed]
    region = Block(arguments)
    table: dict[Value, Value] = dict(zip(closed, arguments[len(carried) + len(beside) :], strict=True))
    sources = [*carried, *beside]
    table |= {n.results[0]: arguments[sources.index(n.operands[0])] for n in body.picks}
    for node in body.sizes:
        table[node.results[0]] = graph.insert(
            op(_SIZE), arguments[0], 0, block=region, origin=node.origin, types=(ScalarType("int", u),)
        ).result

    def read(value: Value) -> Arg:
        return table.get(value, value)

    news = [new for n in body.scatters if (s := _scatter(n)) for new in s[2:]]
    for node in sorted(body.nodes, key=order.__getitem__):
        assert node.block is not None
        node.block.unlink(node)
        region.link(node, None)
        graph.set_arguments(
            node,
            tuple(map_values(a, read) for a in _spelled(node)),
            {k: map_values(a, read) for k, a in node.kwargs.items()},
        )
    graph.returns(*(read(v) for v in news), block=region)
    made = graph.insert(
        ROWS, body.live, tuple(carried), tuple(beside), tuple(closed), before=first, regions=(region,),
        types=[v.type for v in carried], name=first.result.name,
    )  # fmt: skip
    for scatter, value in zip(body.scatters, made.results, strict=True):
        graph.replace(scatter.result, value)
    feeders = [v.producer for n in body.scatters for v in n.operands if v.producer is not None]
    for scatter in body.scatters:
        graph.erase(scatter)
    drop_chain(graph, *(n for n in (*body.picks, *body.sizes, *feeders) if n.block is not None))
    return remark(made, True, f"{len(body.nodes)} operation(s) run on the live rows only")


def _assert(graph: Graph, node: Node) -> Remark | None:
    return drop_assert(graph, node, _counted)


def _spelled(node: Node) -> tuple[Arg, ...]:
    """Arguments of a reshape with the size that ``-1`` stands for: of no rows torch could not tell it."""
    if node.op.name not in _RESHAPES or not isinstance(sizes := node.args[1], tuple):
        return node.args
    shape = node.result.tensor.shape
    told = tuple(d if s == -1 and isinstance(d, int) else s for s, d in zip(sizes, shape, strict=True))
    return (node.args[0], told, *node.args[2:])
