"""What a node costs on any machine: operations and bytes, symbolic in the dims of the graph.

Conventions, chosen so that a price never exceeds what an ideal kernel must do:

* a multiply-add is two operations; a bias or a scale that rides along is none;
* each operand is read once and each result written once, whatever a kernel re-reads from its caches;
* views are free, and a tensor that was only expanded is read at the size it had before;
* a product of dequantized tensors is an int8 product: ``dequantize`` is then part of it and free.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.utils._sympy.functions import Max

from ir.core import Arg, Block, Node, Value
from ir.dims import Dim, simplify, symbol
from ir.ops import COND, RETURN, ROWS, WHILE, Op
from ir.price_rules import (
    PRODUCTS,
    SAME_ELEMENTS,
    Attention,
    Call,
    Gemm,
    Price,
    bytes_of,
    price_call,
    total_of,
)
from ir.rows import groups, rows_symbol
from ir.types import TensorType

__all__ = ["Attention", "Gemm", "Price", "bytes_of", "is_view", "price", "source_of"]

_MAX_VIEW_CHAIN = 8  # views looked through for what a kernel really reads; models chain three or four


def price(node: Node, trips: int = 1) -> Price:
    """The price of a node.

    Args:
        node: any node but ``return``.
        trips: how often the body of a ``while`` runs; nothing in the IR says.

    Returns:
        For ``cond`` the larger branch in each figure; for ``while`` ``trips`` bodies and ``trips + 1`` tests; for
        ``rows`` the region with every row alive, and what is gathered and scattered.
    """
    if node.op is COND:
        one, two = (_total(region, trips) for region in node.regions)
        return _region(node, _max(one[0], two[0]), _max(one[1], two[1]), _max(one[2], two[2]), max(one[3], two[3]))
    if node.op is WHILE:
        test, body = (_total(region, trips) for region in node.regions)
        flops, read, written, kernels = (b * trips + t * (trips + 1) for t, b in zip(test, body, strict=True))
        return _region(node, flops, read, written, kernels)
    if node.op is ROWS:
        return _rows(node, trips)
    return price_call(_call_of(node))


def is_view(node: Node) -> bool:
    """Whether the results share the memory of the first operand, so that nothing runs."""
    return node.op is not RETURN and not node.regions and price(node).kind == "view"


def _total(block: Block, trips: int) -> tuple[Dim, Dim, Dim, int]:
    prices = [price(node, trips) for node in block if node.op is not RETURN]
    return (
        total_of([p.flops for p in prices]),
        total_of([p.bytes_read for p in prices]),
        total_of([p.bytes_written for p in prices]),
        sum(p.kernels for p in prices),
    )


def rows_moved(node: Node) -> Price:
    """What gathers the live rows of ``rows`` and scatters them back, by the symbol that counts them."""
    live, carried, beside, _ = groups(node)
    picked = [bytes_of(v.type) for v in node.regions[0].args[: len(carried) + len(beside)]]
    whole = [bytes_of(v.type) for v in carried]
    return Price(
        "gather", 0, (bytes_of(live.type), *picked, *whole), (*picked, *whole), carried[0].tensor.dtype,
        kernels=1 + len(picked) + len(whole),
    )  # fmt: skip


def _rows(node: Node, trips: int) -> Price:
    moved = rows_moved(node)
    flops, read, written, kernels = _total(node.regions[0], trips)
    sums = flops, read + moved.bytes_read, written + moved.bytes_written
    all_live = {symbol(rows_symbol(node)): groups(node)[0].tensor.shape[0]}
    flops, read, written = (d if isinstance(d, int) else simplify(d.xreplace(all_live)) for d in sums)
    return _region(node, flops, read, written, kernels + moved.kernels)


def _region(node: Node, flops: Dim, read: Dim, written: Dim, kernels: Dim) -> Price:
    dtype = next((v.type.dtype for v in node.results if isinstance(v.type, TensorType)), torch.float32)
    return Price("region", flops, (read,), (written,), dtype, kernels=int(kernels))


def _call_of(node: Node) -> Call:
    operands = node.operands
    product = _packet(node) in PRODUCTS
    seen: set[Value] = set()
    sources: list[TensorType | None] = []
    for value in operands:
        sources.append(None if value in seen else source_of(value, product))
        seen.add(value)
    names = _argument_names(node.op)
    args = [(names[i] if i < len(names) else str(i), _key(arg)) for i, arg in enumerate(node.args)]
    args += [(name, _key(arg)) for name, arg in node.kwargs.items()]
    absorbed = _packet(node).startswith("dequantize_") and all(
        _packet(user) in PRODUCTS for value in node.results for user in value.uses
    )
    return Call(
        node.op, tuple(args), tuple(v.type for v in operands), tuple(sources),
        tuple(v.type for v in node.results), absorbed,
    )  # fmt: skip


def _key(arg: Arg) -> object:
    if isinstance(arg, Value):
        return arg.type
    return tuple(map(_key, arg)) if isinstance(arg, tuple) else arg


@lru_cache(maxsize=4096)
def _argument_names(op: Op) -> tuple[str, ...]:
    schema = getattr(op.target, "_schema", None)
    return tuple(a.name for a in schema.arguments) if schema is not None else ()


def _packet(node: Node) -> str:
    parts = node.op.name.split(".")
    return parts[1] if len(parts) == 3 else ""


def source_of(value: Value, product: bool) -> TensorType | None:
    """What is read for a value: before expansion, and for a product also before dequantization."""
    if not isinstance(value.type, TensorType):
        return None
    read, at = value.type, value
    for _ in range(_MAX_VIEW_CHAIN):
        packet = _packet(at.producer) if at.producer is not None else ""
        dequantize = product and packet.startswith("dequantize_")
        if not dequantize and packet not in SAME_ELEMENTS and packet != "expand":
            break
        assert at.producer is not None
        at = at.producer.operands[0]
        if packet == "expand":
            read = TensorType(read.dtype, at.tensor.shape)
        elif dequantize:
            return at.tensor  # of int4 two elements in each byte
    return read


def _max(one: Dim, two: Dim) -> Dim:
    return max(one, two) if isinstance(one, int) and isinstance(two, int) else Max(one, two)
