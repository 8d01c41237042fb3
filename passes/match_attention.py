"""softmax(q @ k^T * scale + mask) @ v  ->  scaled_dot_product_attention(q, k, v, mask, scale)
and, before it, keys and values repeated for grouped queries  ->  enable_gqa

Sound: the definition of scaled dot-product attention; sums run in another order.
Profitable: engines have a kernel that never writes the seq x seq matrix (FlashAttention, 2205.14135).
Declines when the scores have another reader (attention weights are returned), when softmax is not over
the keys, or when the repeat is not the grouped-query pattern.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ir import Arg, Fact, Graph, Node, TensorType, Value, op
from passes.base import Pass, Remark, Samples, Tolerance, remark
from passes.canonicalize_views import EXPAND, PERMUTE, RESHAPE
from passes.drop_dead_nodes import drop_chain
from passes.rewrite import forward, ints, number, only_user, producer, rewrite

SDPA = "aten.scaled_dot_product_attention.default"
_MATMUL = "aten.matmul.default"


@dataclass(frozen=True)
class MatchAttention(Pass):
    """Puts decomposed attention back into one node."""

    name: ClassVar[str] = "match-attention"
    summary: ClassVar[str] = "softmax(q @ k^T * scale + mask) @ v -> scaled_dot_product_attention"
    requires: ClassVar[frozenset[Fact]] = Pass.requires | {Fact.CANONICAL_VIEWS}
    tolerance: ClassVar[Tolerance] = Tolerance(rtol=1e-4, atol=1e-5)

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        """See the module."""
        return rewrite(graph, (_attention, _grouped))


def _attention(graph: Graph, node: Node) -> Remark | None:
    if node.op.name != _MATMUL:
        return None
    soft = producer(node.args[0], "aten.softmax.int", "aten._softmax.default")
    if soft is None:
        return None
    chain = [soft]
    scores: Arg = soft.args[0]
    mask: Arg = None
    scale = 1.0
    if (added := producer(scores, "aten.add.Tensor")) is not None and not added.kwargs:
        chain.append(added)
        scores, mask = added.args[:2]
        if producer(scores, _MATMUL, "aten.mul.Tensor", "aten.div.Tensor") is None:
            scores, mask = mask, scores
    scaled = producer(scores, "aten.mul.Tensor", "aten.div.Tensor")
    if scaled is not None and (factor := number(scaled.args[1])):
        chain.append(scaled)
        scale = factor if "mul" in scaled.op.name else 1.0 / factor
        scores = scaled.args[0]
    product = producer(scores, _MATMUL)
    if product is None:
        return None
    chain.append(product)
    return _to_sdpa(graph, node, chain, mask, scale)


def _to_sdpa(graph: Graph, node: Node, chain: list[Node], mask: Arg, scale: float) -> Remark:
    soft, product = chain[0], chain[-1]
    query, keys, values = product.args[0], product.args[1], node.args[1]
    turned = producer(keys, PERMUTE)
    assert isinstance(query, Value) and isinstance(keys, Value) and isinstance(values, Value)
    if any(not only_user(step.result) for step in chain):
        return remark(node, False, "the attention weights have another reader")
    rank = query.tensor.rank
    if rank < 3 or keys.tensor.rank != rank or values.tensor.rank != rank:
        return remark(node, False, "query, keys and values differ in rank")
    axis = soft.args[1]
    dtype = soft.arg(2, "dtype")
    if not isinstance(axis, int) or axis % rank != rank - 1 or dtype not in (None, False, query.tensor.dtype):
        return remark(node, False, "softmax is not over the keys, or casts")
    if query.tensor.shape[:-2] != keys.tensor.shape[:-2] or values.tensor.shape[:-2] != keys.tensor.shape[:-2]:
        return remark(node, False, "batch dims are broadcast")
    if isinstance(mask, Value) and not _fits(mask, soft.result.tensor):
        return remark(node, False, "the mask is not of the type of the scores")
    if mask is not None and not isinstance(mask, Value):
        return remark(node, False, "a number is added to the scores")
    swap = (*range(rank - 2), rank - 1, rank - 2)
    order = ints(turned.args[1]) if turned is not None else None
    if turned is not None and order is not None and tuple(a % rank for a in order) == swap:
        straight: Arg = turned.args[0]
    elif turned is not None and order is not None:  # permute the source so that keys lie as [..., seq, dim]
        whole = tuple(order[a] for a in swap)
        straight = graph.insert(op(PERMUTE), turned.args[0], whole, before=node).result
    else:
        straight = graph.insert(op(PERMUTE), keys, swap, before=node).result
    made = graph.insert(
        op(SDPA), query, straight, values, mask, 0.0, False, before=node,
        types=(node.result.type,), name=node.result.name, kwargs={"scale": scale},
    )  # fmt: skip
    forward(graph, node, made.result)
    drop_chain(graph, soft)
    return remark(made, True, f"{len(chain) + 1} operations are one")


def _fits(mask: Value, scores: TensorType) -> bool:
    return mask.tensor.dtype == scores.dtype and mask.tensor.rank <= scores.rank


def _grouped(graph: Graph, node: Node) -> Remark | None:
    """reshape(expand(unsqueeze(k, 2))) for both keys and values  ->  enable_gqa."""
    if node.op.name != SDPA or node.kwargs.get("enable_gqa"):
        return None
    sources = [_repeated(node.args[1]), _repeated(node.args[2])]
    if sources == [None, None]:
        return None
    keys, values = sources
    query = node.args[0]
    if keys is None or values is None or not isinstance(query, Value):
        return remark(node, False, "keys and values are repeated in different ways")
    if keys.tensor.shape[1] != values.tensor.shape[1] or keys.tensor.dtype != torch.float32:
        return remark(node, False, "keys and values have different heads, or are not float32")
    old = [v.producer for v in node.operands[1:3] if v.producer is not None]
    graph.set_arguments(node, (query, keys, values, *node.args[3:]), {**node.kwargs, "enable_gqa": True})
    drop_chain(graph, *old)
    return remark(node, True, "repeated keys and values are grouped queries")


def _repeated(arg: Arg) -> Value | None:
    """The source [b, heads, s, d] of [b, heads * n, s, d] with each head repeated n times."""
    outer = producer(arg, RESHAPE)
    grown = producer(outer.args[0], EXPAND) if outer else None
    split = producer(grown.args[0], "aten.unsqueeze.default") if grown else None
    if outer is None or grown is None or split is None or split.args[1] not in (2, -3):
        return None
    source = split.args[0]
    if not isinstance(source, Value) or source.tensor.rank != 4:
        return None
    b, heads, s, d = source.tensor.shape
    times = grown.result.tensor.shape[2]
    if grown.result.tensor.shape != (b, heads, times, s, d) or not isinstance(heads, int) or not isinstance(times, int):
        return None
    return source if outer.result.tensor.shape == (b, heads * times, s, d) else None
