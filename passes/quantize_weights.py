"""linear(x, w, b)  ->  linear(x, dequantize(q), b): weights in int8 or int4, activations and product as they were

    format=int8   dequantize_per_channel(q, scale)      one scale per output channel
    format=int4   dequantize_int4(packed, scale, block) one scale per block of input channels

Each scale is where the squared error of its weights is least. With samples, int4 weights make up for the rounding
of those before them (``compensate``; GPTQ, 2210.17323), and the mean of what is lost goes into the bias.

Sound: up to rounding of the weights; those that the format holds come out exactly.
Profitable: a product with few rows waits for its weights, of which a half or a quarter is left of float16.
Declines small weights (``min-weights``), inputs that are no whole number of blocks, paths in ``skip``, the ``keep``
most sensitive ones, and those whose own output moves by more than ``max-error``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ir import Graph, Node, TensorType, Value, op
from passes.base import Pass, Remark, Samples, Tolerance, remark
from passes.linears import Linear, Observed, find, mean_loss, observe, readers, settle, weight_error
from passes.narrow_weights import Int4Weight, Int8Weight, compensation, to_int4, to_int8

LINEAR = "aten.linear.default"
DEQUANTIZE_INT8 = "quantized_decomposed.dequantize_per_channel.default"
DEQUANTIZE_INT4 = "penstock.dequantize_int4.default"
_FORMATS = ("int8", "int4")
_ROWS = 1024  # to compensate by; 384 give MiniLM a tenth more loss


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Keeps weights of linears in int8 or int4."""

    name: ClassVar[str] = "quantize-weights"
    summary: ClassVar[str] = "linear(x, w) -> linear(x, dequantize(q)), weights in int8 or int4"
    tolerance: ClassVar[Tolerance] = Tolerance(cosine=0.9)
    format: str = "int8"
    block: int = 128
    compensate: bool = True
    skip: tuple[str, ...] = ()
    keep: int = 0
    max_error: float = 0.2
    min_weights: int = 4096

    def __post_init__(self) -> None:
        """Refuse an unknown format, and a block that no two elements of a byte share."""
        if self.format not in _FORMATS:
            raise ValueError(f"format is one of {', '.join(_FORMATS)}, not {self.format!r}")
        if self.block < 2 or self.block % 2:
            raise ValueError(f"block is even and positive, not {self.block}")

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        """See the module."""
        linears, said = find(graph, self.skip, self.min_weights)
        if self.format == "int4":
            for node in [n for n, found in linears.items() if found.matrix.shape[1] % self.block]:
                inputs = linears.pop(node).matrix.shape[1]
                said.append(remark(node, False, f"{inputs} inputs are no whole number of blocks of {self.block}"))
        seen = observe(graph, linears, samples, _ROWS)
        made: dict[Node, Int8Weight | Int4Weight] = {}
        for x, group in readers(linears).items():
            wanted = self.compensate and self.format == "int4" and x in seen
            factor = compensation(torch.cat(seen[x].rows)) if wanted else None
            made.update({found.node: self._weight(found, factor) for found in group})
        errors = {
            node: weight_error(seen.get(found.x), found.matrix, made[node].float()) for node, found in linears.items()
        }
        return said + settle(
            errors, self.keep, self.max_error,
            lambda node, place: self._replace(graph, linears[node], made[node], seen.get(linears[node].x), place),
        )  # fmt: skip

    def _weight(self, found: Linear, factor: torch.Tensor | None) -> Int8Weight | Int4Weight:
        if self.format == "int8":
            return to_int8(found.matrix)
        return to_int4(found.matrix, self.block, found.dtype, factor)

    def _replace(
        self, graph: Graph, found: Linear, weight: Int8Weight | Int4Weight, seen: Observed | None, place: str
    ) -> Remark:
        wide = _dequantized(graph, found, weight)
        shift = None if seen is None else mean_loss(seen, found.matrix - weight.float())
        made = found.replace(graph, LINEAR, found.x, wide, found.shifted_bias(graph, shift, found.dtype))
        return remark(made, True, f"{place}, weights in {self.format}")


def _dequantized(graph: Graph, found: Linear, weight: Int8Weight | Int4Weight) -> Value:
    node: Node = found.node
    type_ = TensorType(found.dtype, tuple(found.matrix.shape))
    scale = graph.add_param(f"{found.name}.scale", weight.scale)
    if isinstance(weight, Int4Weight):
        packed = graph.add_param(f"{found.name}.int4", weight.packed)
        return graph.insert(op(DEQUANTIZE_INT4), packed, scale, weight.block, before=node, types=(type_,)).result
    q = graph.add_param(f"{found.name}.int8", weight.q)
    out = {} if found.dtype is torch.float32 else {"out_dtype": found.dtype}
    return graph.insert(op(DEQUANTIZE_INT8), q, scale, None, 0, -127, 127, torch.int8, before=node, types=(type_,),
                        kwargs=out).result  # fmt: skip
