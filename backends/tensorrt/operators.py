"""Operators with a native form that is better than that of their primitives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from backends.arguments import Refused, dtype_of, number, result_type
from backends.onnx_emit.attention import attention as plain_attention
from backends.onnx_emit.pointwise import Emitter
from backends.onnx_emit.products import linear as plain_linear
from backends.tensorrt.formats import FORMATS
from backends.tensorrt.layers import alike, cast, constant, ew, matmul, rank, reduce, scalar, select, unsqueeze
from backends.tensorrt.network import NetworkScope
from ir import Arg, Node, Value

_LARGEST_HEAD = 256


def attention(
    s: NetworkScope, node: Node, q: Value, k: Value, v: Value, mask: Arg = None, dropout: Arg = 0.0,
    is_causal: Arg = False, scale: Arg = None, enable_gqa: Arg = False,
) -> Any:  # fmt: skip
    """The native attention layer where it is legal; else products around a softmax, which TensorRT fuses as well.

    The layer does not scale (the query is scaled before), knows halves only, and does not exist within a conditional
    or a loop. A row that a boolean mask leaves empty gives zeros, as in torch: such masks go the other way.
    """
    if dropout or not _native(s, node, q, k, v, mask):
        return plain_attention(s, node, q, k, v, mask, dropout, is_causal, scale, enable_gqa)
    if is_causal and mask is not None:
        raise Refused("attention that is causal and has a mask")
    width = q.tensor.shape[-1]
    assert isinstance(width, int)
    by = 1.0 / math.sqrt(width) if scale is None else number(scale)
    query = scalar(s, "PROD", s.read(s[q]), by)
    kinds = s.trt.CausalMaskKind
    layer = s.network.definition.add_attention_v2(
        query, s.read(s[k]), s.read(s[v]), s.trt.AttentionNormalizationOp.SOFTMAX,
        kinds.UPPER_LEFT if is_causal else kinds.NONE,
    )  # fmt: skip
    kept = None
    if isinstance(mask, Value):
        bias, kept = _bias(s, mask, q.tensor.dtype)
        layer.mask = bias
    layer.name = s.emission.fresh("attention")
    layer.decomposable = True  # for heads that no kernel fits, and for several around control flow
    s.network.products.append((layer.name, s.within))
    made = s.layer(layer)
    return made if kept is None else ew(s, "PROD", made, kept)


def _native(s: NetworkScope, node: Node, q: Value, k: Value, v: Value, mask: Arg) -> bool:
    if s.in_flow or not hasattr(s.network.definition, "add_attention_v2"):
        return False
    if any(t.tensor.rank != 4 or t.tensor.dtype not in (torch.float16, torch.bfloat16) for t in (q, k, v)):
        return False
    width = q.tensor.shape[-1]
    if not isinstance(width, int) or width != v.tensor.shape[-1] or width % 8 or not 16 <= width <= _LARGEST_HEAD:
        return False
    return isinstance(q.tensor.shape[1], int) and isinstance(k.tensor.shape[1], int)


def _bias(s: NetworkScope, mask: Value, dtype: torch.dtype) -> tuple[Any, Any]:
    """The mask as a 4-D term in the type of the query, and a factor that is 0 for rows with nothing to attend to."""
    x = s.read(s[mask])
    x = unsqueeze(s, x, range(4 - rank(x)))
    least = constant(s, torch.full((1, 1, 1, 1), torch.finfo(dtype).min), dtype)
    zero, one = (constant(s, torch.full((1, 1, 1, 1), n), dtype) for n in (0.0, 1.0))
    if mask.tensor.dtype == torch.bool:
        some = reduce(s, "MAX", select(s, x, one, zero), [3], True)
        return select(s, x, zero, least), some
    x = cast(s, x, dtype)
    highest = reduce(s, "MAX", x, [3], True)
    empty = scalar(s, "EQUAL", highest, -math.inf)
    return ew(s, "MAX", x, least), select(s, empty, zero, one)


def linear(s: NetworkScope, node: Node, x: Value, weight: Value, bias: Arg = None) -> Any:
    """``x @ weight.T + bias``; the weight is read as it lies, also a dequantized one."""
    if weight.tensor.rank != 2 or x.tensor.rank < 2 or dtype_of(x) != weight.tensor.dtype:
        return plain_linear(s, node, x, weight, bias)
    left, right = alike(s, s.read(s[x]), s.read(s[weight]))
    made = matmul(s, left, right, turn_b=True)
    if bias is None:
        return made
    return ew(s, "SUM", made, s.read(s.tensor(bias, result_type(node))))


def embedding(s: NetworkScope, node: Node, weight: Value, indices: Value, *_: Arg) -> Any:
    """Rows of a table; torch takes no negative ones."""
    return s.layer(s.network.definition.add_gather(s.read(s[weight]), s.read(s[indices]), 0))


def bound(form: Any) -> Emitter:
    """A form that gives a tensor of the network, as one that gives a name."""

    def emit(s: NetworkScope, node: Node, *args: Arg) -> str:
        made = form(s, node, *args)
        return made if isinstance(made, str) else s.bind(made, node.op.name.split(".")[-2])

    return emit


OPERATORS: Mapping[str, Emitter] = {
    "aten.scaled_dot_product_attention.default": bound(attention),
    "aten.linear.default": bound(linear),
    "aten.embedding.default": bound(embedding),
    **{name: bound(form) for name, form in FORMATS.items()},
}
