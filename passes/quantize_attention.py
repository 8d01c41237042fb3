"""scaled_dot_product_attention(q, k, v, mask)  ->  int8_attention(q, k, v, mask, scales)

Queries, keys and values in int8 with one calibrated scale each, attention weights in uint8: both products are
integer. Follows I-BERT (2101.01321) in keeping softmax itself in float.

Sound: up to rounding; a weight below 1/510 becomes zero.
Profitable: where an engine multiplies int8 faster than float32, and moves a quarter of the bytes.
Declines without samples, causal or grouped attention (not written yet), long rows of keys (``max-keys``: with
thousands of keys most weights round to zero), and where its own output moves by more than ``max-error``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ir import Graph, Node, Value, interpret, op
from ir.dims import symbols_of
from ir.own_ops import int8_attention
from passes.base import Pass, Remark, Samples, Tolerance, remark
from passes.match_attention import SDPA
from passes.rewrite import forward, number

INT8_ATTENTION = "penstock.int8_attention.default"


@dataclass
class _Seen:
    """Largest magnitude of query, key and value; one call's arguments, to judge by."""

    reach: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    call: tuple[list[Any], torch.Tensor] | None = None


@dataclass(frozen=True)
class QuantizeAttention(Pass):
    """Turns both products of attention into int8 products."""

    name: ClassVar[str] = "quantize-attention"
    summary: ClassVar[str] = "attention(q, k, v) -> both products in int8, softmax in float"
    tolerance: ClassVar[Tolerance] = Tolerance(cosine=0.95)
    max_error: float = 0.1
    max_keys: int = 1024

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        """See the module."""
        said: list[Remark] = []
        chosen: dict[Node, _Seen] = {}
        for node in graph:
            if node.op.name == SDPA:
                why_not = self._why_not(graph, node, samples)
                if why_not:
                    said.append(remark(node, False, why_not))
                else:
                    chosen[node] = _Seen()
        _observe(graph, chosen, samples)
        return said + [self._replace(graph, node, seen) for node, seen in chosen.items()]

    def _why_not(self, graph: Graph, node: Node, samples: Samples) -> str:
        query, keys, values = node.operands[:3]
        if not samples:
            return "its scales need samples"
        if node.arg(5, "is_causal") or node.kwargs.get("enable_gqa"):
            return "it is causal or grouped"
        if any(v.tensor.dtype is not torch.float32 for v in (query, keys, values)):
            return "it is not float32"
        if number(node.arg(4, "dropout_p", 0.0)) != 0.0:
            return "it drops weights at random"
        length = keys.tensor.shape[-2]
        longest = length if isinstance(length, int) else _longest(graph, keys)
        if longest is None or longest > self.max_keys:
            return f"more than {self.max_keys} keys are possible"
        return ""

    def _replace(self, graph: Graph, node: Node, seen: _Seen) -> Remark:
        if seen.call is None:
            return remark(node, False, "no sample came by here")
        query, keys, values = node.args[:3]
        assert isinstance(query, Value)
        width = query.tensor.shape[-1]
        given = number(node.kwargs.get("scale"))
        if given is None and not isinstance(width, int):
            return remark(node, False, "its scale is only known at run time")
        scale = given if given is not None else float(int(str(width)) ** -0.5)
        steps = [max(reach, 1e-12) / 127.0 for reach in seen.reach]
        args, want = seen.call
        got = int8_attention(args[0], args[1], args[2], args[3] if len(args) > 3 else None, scale, *steps)
        error = float((got - want).norm() / want.norm().clamp_min(1e-12))
        if not error <= self.max_error:
            return remark(node, False, f"own error {error:.1%}: more than max-error {self.max_error:.1%}")
        made = graph.insert(
            op(INT8_ATTENTION),
            query,
            keys,
            values,
            node.arg(3, "attn_mask"),
            scale,
            *steps,
            before=node,
            types=(node.result.type,),
            name=node.result.name,
        )
        forward(graph, node, made.result)
        return remark(made, True, f"own error {error:.1%}")


def _longest(graph: Graph, keys: Value) -> int | None:
    length = keys.tensor.shape[-2]
    tops = {name: graph.dims[name].max for name in symbols_of(length) if name in graph.dims}
    known = {name: top for name, top in tops.items() if top is not None}
    if len(known) != len(symbols_of(length)) or isinstance(length, int):
        return None
    return int(length.xreplace({s: known[s.name] for s in length.free_symbols}))


def _observe(graph: Graph, chosen: dict[Node, _Seen], samples: Samples) -> None:
    def watch(node: Node, args: Sequence[Any], results: Sequence[Any]) -> None:
        seen = chosen.get(node)
        if seen is None:
            return
        seen.reach = [max(old, float(x.abs().amax())) for old, x in zip(seen.reach, args[:3], strict=True)]
        if seen.call is None:
            seen.call = (list(args), results[0])

    if chosen:
        for sample in samples:
            interpret(graph, sample, watch)
