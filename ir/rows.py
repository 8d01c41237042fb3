"""``rows``: run a region on the live rows of a batch only. What it means, and its two lowerings.

``rows(live, [carried], [beside], [closed])`` holds one region, whose arguments are the carried, the beside and the
closed values in turn, and which returns one value per carried one, of its type::

    index  = nonzero(live)                                      # live: bool [n]
    new... = region(carried[index]..., beside[index]..., closed...)
    result = carried with its rows at index replaced by new     # no live row: nothing runs

Carried and beside values are tensors over the same ``n`` rows; carried ones come back, beside ones (an attention mask)
are only read. Closed values (weights, sizes) are handed over whole. The region is typed for a number of rows that
depends on the data: a symbol of its own (``u0``) stands where ``n`` stands outside, so that ``sym_size`` inside is the
number of rows at hand and a size that was fixed at capture is a type error, not a wrong answer.

Contract: the region is row-wise, each row of its results follows from the same row of its arguments (and from closed
values) alone. Then the *masked* lowering, all rows and a choice at the end, equals the *compacted* one;
``ir.rowwise`` proves it for the operators it knows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from ir.copy import copy_graph
from ir.core import Arg, Block, Graph, Node, Value
from ir.dims import Dim, is_data_symbol, simplify, symbol, symbols_of
from ir.errors import IRError
from ir.ops import COND, RETURN, ROWS, op
from ir.types import ScalarType, TensorType, Type

MODES = ("compacted", "masked")


def groups(node: Node) -> tuple[Value, tuple[Value, ...], tuple[Value, ...], tuple[Value, ...]]:
    """``live``, carried, beside and closed values of a ``rows`` node.

    Raises:
        IRError: the arguments have another form.
    """
    parts = node.args if len(node.args) == 4 and not node.kwargs else (None, None, None, None)
    live, *lists = parts
    if not isinstance(live, Value) or not all(isinstance(a, tuple) for a in lists):
        raise IRError("rows takes live and three lists: carried, beside, closed", where=str(node.origin))
    found = [tuple(v for v in a if isinstance(v, Value)) for a in lists if isinstance(a, tuple)]
    if sum(map(len, found)) != sum(len(a) for a in lists if isinstance(a, tuple)):
        raise IRError("rows takes values only", where=str(node.origin))
    carried, beside, closed = found
    return live, carried, beside, closed


def rows_symbol(node: Node) -> str:
    """Name of the symbol that stands for the number of live rows inside of a verified ``rows`` node."""
    size = node.regions[0].args[0].tensor.shape[0]
    assert not isinstance(size, int)
    return str(size)


def fault(node: Node) -> str:
    """What is wrong with the form of a ``rows`` node; empty when nothing is."""
    try:
        live, carried, beside, closed = groups(node)
    except IRError as error:
        return error.what
    if not isinstance(live.type, TensorType) or live.type.dtype is not torch.bool or live.type.rank != 1:
        return f"live is {live.type}, not one boolean per row"
    if not carried:
        return "rows carries nothing"
    n = live.type.shape[0]
    region = node.regions[0]
    first = region.args[0].type if region.args else None
    size = first.shape[0] if isinstance(first, TensorType) and first.rank else None
    if size is None or isinstance(size, int) or not size.is_Symbol or not is_data_symbol(size.name):
        return "the rows of a region are counted by a symbol such as u0"
    want: list[Type] = []
    for value in (*carried, *beside):
        if not isinstance(value.type, TensorType) or not value.type.rank or not _same_size(value.type.shape[0], n):
            return f"%{value.name} is {value.type}, not one row per element of live, {live.type}"
        want.append(TensorType(value.type.dtype, (size, *value.type.shape[1:])))
    want += [v.type for v in closed]
    outside = {name for t in [live.type, *(v.type for v in node.operands)] for name in _symbols(t)}
    if size.name in outside:
        return f"the rows of the region are counted by {size.name}, which the operands know"
    if [v.type for v in region.args] != want:
        return f"the region takes {[v.type for v in region.args]}, rows hands over {want}"
    if [v.type for v in node.results] != [v.type for v in carried]:
        return f"rows gives {[v.type for v in node.results]}, not the types of what it carries"
    returned = [getattr(a, "type", a) for a in region.returned.args]
    if returned != want[: len(carried)]:
        return f"the region returns {returned}, rows carries {want[: len(carried)]}"
    return ""


def _same_size(a: Dim, b: Dim) -> bool:
    return a == b or any(map(is_data_symbol, symbols_of(a) | symbols_of(b)))


def _symbols(type_: Type) -> set[str]:
    if isinstance(type_, TensorType):
        return {name for d in type_.shape for name in symbols_of(d)}
    return set(symbols_of(type_.expr)) if isinstance(type_, ScalarType) and type_.expr is not None else set()


def fresh_symbol(graph: Graph) -> str:
    """A symbol for a size that depends on the data, which nothing in the graph has."""
    values = [*(v for b in graph.blocks() for v in b.args), *(v for n in graph.walk() for v in n.results)]
    taken = {name for v in values for name in _symbols(v.type)} | graph.dims.keys()
    return next(name for name in (f"u{i}" for i in itertools.count()) if name not in taken)


def lowered(graph: Graph, mode: str) -> Graph:
    """The graph itself, or a copy without ``rows``, for an engine that has no such thing.

    Args:
        graph: any verified graph.
        mode: ``compacted`` or ``masked``; the second only where ``ir.rowwise.mixing`` finds nothing.
    """
    if not any(node.op is ROWS for node in graph.walk()):
        return graph
    made = copy_graph(graph)
    while nodes := [node for node in made.walk() if node.op is ROWS and node.block is not None]:
        for node in nodes:
            lower(made, node, mode)
    return made


def lower(graph: Graph, node: Node, mode: str) -> list[Value]:
    """Replace one ``rows`` node by plain operators; gives the values that stand for its results.

    Raises:
        IRError: unknown mode.
    """
    if mode not in MODES:
        raise IRError(f"rows is lowered {' or '.join(MODES)}, not {mode!r}")
    made = _masked(graph, node) if mode == "masked" else _compacted(graph, node)
    for old, new in zip(node.results, made, strict=True):
        new.name = new.name or old.name
        graph.replace(old, new)
    graph.erase(node)
    return made


def _masked(graph: Graph, node: Node) -> list[Value]:
    """All rows go through the region; where ``live`` is false the old row stays. Shapes are those of the batch."""
    live, carried, beside, closed = groups(node)
    n = live.tensor.shape[0]
    region = node.regions[0]
    assert node.block is not None
    changed = _inline(graph, region, (*carried, *beside, *closed), node.block, node, rows_symbol(node), n)
    made = []
    for old, new in zip(carried, changed, strict=True):
        ones = (1,) * (old.tensor.rank - 1)
        choice = live
        if ones:
            shape = TensorType(torch.bool, (n, *ones))
            choice = graph.insert(
                op("aten.reshape.default"), live, (-1, *ones), before=node, types=(shape,), name="live"
            ).result
        made.append(graph.insert(op("aten.where.self"), choice, new, old, before=node, types=(old.type,)).result)
    return made


def _compacted(graph: Graph, node: Node) -> list[Value]:
    """Gather the live rows, run the region on them, scatter its results back; with none alive, do nothing at all.

    The guard also keeps the region from shapes without elements, of which engines cannot tell what ``-1`` stands for.
    """
    live, carried, beside, closed = groups(node)
    given = (live, *carried, *beside, *closed)
    some, none = (Block([Value(v.type, v.name) for v in given]) for _ in range(2))
    graph.returns(*none.args[1 : 1 + len(carried)], block=none)
    _gathered(graph, node, some)
    truth = TensorType(torch.bool, ())
    any_ = graph.insert(op("aten.any.default"), live, before=node, types=(truth,), name="any_live").result
    types = tuple(v.type for v in carried)
    return list(graph.insert(COND, any_, given, before=node, regions=(some, none), types=types).results)


def _gathered(graph: Graph, node: Node, block: Block) -> None:
    """Fill a block, whose arguments are live, carried, beside and closed values, with the work on the live rows."""
    _, carried, beside, _ = groups(node)
    live, *rest = block.args
    rows, whole = rest[: len(carried) + len(beside)], rest[len(carried) + len(beside) :]
    u = symbol(fresh_symbol(graph))
    at = node.origin

    def add(name: str, type_: TensorType, *args: Arg, called: str = "") -> Value:
        return graph.insert(op(name), *args, block=block, origin=at, types=(type_,), name=called).result

    where = add("aten.nonzero.default", TensorType(torch.int64, (u, 1)), live, called="live_at")
    index = add("aten.squeeze.dim", TensorType(torch.int64, (u,)), where, 1, called="live_at")
    picked = [
        add(
            "aten.index_select.default", TensorType(v.tensor.dtype, (u, *v.tensor.shape[1:])), v, 0, index,
            called=v.name,
        )
        for v in rows
    ]  # fmt: skip
    changed = _inline(graph, node.regions[0], (*picked, *whole), block, None, rows_symbol(node), u)
    results = [
        add("aten.index_copy.default", old.tensor, old, 0, index, new)
        for old, new in zip(rows[: len(carried)], changed, strict=True)
    ]
    graph.returns(*results, block=block)


def _inline(
    graph: Graph, region: Block, given: Sequence[Value], block: Block, before: Node | None, name: str, size: Dim
) -> list[Value]:
    """Move the nodes of a region into a block, its rows counted by ``size``; gives what it returns."""
    table = {symbol(name): size}
    _retype(region, table)
    for argument, value in zip(region.args, given, strict=True):
        argument.type = value.type  # equal by now, up to what verification takes for equal
        graph.replace(argument, value)
    returned = [a for a in region.returned.args if isinstance(a, Value)]
    for value in returned:
        value.uses.pop(region.returned, None)
    for inner in region:
        region.unlink(inner)
        if inner.op is not RETURN:
            block.link(inner, before)
    return returned


def _retype(block: Block, table: dict[object, Dim]) -> None:
    values = [*block.args, *(v for n in block for v in n.results)]
    for value in values:
        value.type = retyped(value.type, table)
    for inner in block:
        for region in inner.regions:
            _retype(region, table)


def retyped(type_: Type, table: dict[object, Dim]) -> Type:
    """A type with symbols replaced."""
    if isinstance(type_, TensorType):
        return TensorType(type_.dtype, tuple(_changed(d, table) for d in type_.shape))
    if isinstance(type_, ScalarType) and type_.expr is not None:
        return ScalarType(type_.kind, _changed(type_.expr, table))
    return type_


def _changed(dim: Dim, table: dict[object, Dim]) -> Dim:
    return dim if isinstance(dim, int) else simplify(dim.xreplace(table))
