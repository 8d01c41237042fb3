"""The few operators torch has no public name for, defined in torch's own terms.

They live in torch's registry under ``penstock::`` like any custom operator: meaning, meta kernel and
reference execution come from the same few lines of torch.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ir import narrow


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 per row of the last dim: ``(q, scale)`` with ``x ~ q * scale``, scale = absmax/127.

    ``x``: float ``[..., K]``; ``q``: int8 ``[..., K]``; ``scale``: f32 ``[..., 1]``. LLM.int8 (2208.07339), section 2.
    """
    scale = x.float().abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127.0
    return torch.round(x.float() / scale).clamp(-127, 127).to(torch.int8), scale


def int8_linear_dynamic(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Linear with int8 weights and activations quantized while it runs (uint8, one scale per tensor).

    ``x``: float ``[..., K]``; ``weight``: int8 ``[N, K]``; ``scale``: f32 ``[N]``; ``bias``: f32 ``[N]``.
    Activation: asymmetric uint8 over ``[min(x, 0), max(x, 0)]``, exactly ONNX DynamicQuantizeLinear, so
    that an engine's integer product equals this one bit for bit up to the last float rounding.
    """
    low = x.amin().float().clamp_max(0.0)
    high = x.amax().float().clamp_min(0.0)
    step = (high - low) / 255.0
    step = torch.where(step == 0, torch.ones_like(step), step)
    zero = torch.round(-low / step).clamp(0, 255)
    quantized = (torch.round(x.float() / step) + zero).clamp(0, 255) - zero
    y = _integer_product(quantized, weight) * (step * scale)
    return (y if bias is None else y + bias).to(x.dtype)


def _integer_product(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight^T`` of whole numbers, exact up to one rounding to float32 at the end.

    Float32 holds integers below 2**24 exactly, enough for 512 products of 255 * 127 at a time.
    """
    depth = 512
    if x.shape[-1] <= depth:
        return torch.nn.functional.linear(x, weight.float())
    parts = zip(x.split(depth, -1), weight.split(depth, -1), strict=True)
    total = sum(torch.nn.functional.linear(a, b.float()).to(torch.int32) for a, b in parts)
    assert isinstance(total, Tensor)
    return total.float()


def int8_linear_static(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, x_scale: Tensor, x_zero: int
) -> Tensor:
    """Linear with int8 weights and activations quantized by scales known at compile time.

    ``y = ((clamp(round(x / x_scale) + x_zero, 0, 255) - x_zero) @ weight^T) * scale + bias``

    ``x``: float ``[..., K]``; ``weight``: int8 ``[N, K]``; ``scale``: f32 ``[N]``, of weight and activation
    together; ``bias``: f32 ``[N]``; ``x_scale``: f32 ``[]`` or ``[K]`` (smoothing, SmoothQuant 2211.10438).
    """
    quantized = (torch.round(x.float() / x_scale) + x_zero).clamp(0, 255) - x_zero
    y = _integer_product(quantized, weight) * scale
    return (y if bias is None else y + bias).to(x.dtype)


def int8_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    query_scale: float,
    key_scale: float,
    value_scale: float,
) -> Tensor:
    """Attention whose two products are integer: ``softmax(q @ k^T * scale + mask) @ v``.

    ``query``, ``key``, ``value``: float ``[..., seq, dim]``, taken as int8 ``round(x / x_scale)`` in [-127, 127];
    the weights after softmax as uint8 ``round(255 * p)``. ``mask``: as in ``scaled_dot_product_attention``; a row
    that it leaves empty gives zeros.
    """
    q, k, v = (
        (x.float() / step).round().clamp(-127, 127) * step
        for x, step in ((query, query_scale), (key, key_scale), (value, value_scale))
    )
    scores = q @ k.transpose(-1, -2) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype is torch.bool else scores + mask
    weights = torch.softmax(scores, -1).masked_fill(scores.amax(-1, keepdim=True) == float("-inf"), 0.0)
    return ((weights * 255.0).round() / 255.0 @ v).to(query.dtype)


@lru_cache(maxsize=1)
def define() -> torch.library.Library:
    """Register the operators, once per process."""
    library = torch.library.Library("penstock", "DEF")
    for schema, meaning, meta in (
        ("quantize_rows(Tensor x) -> (Tensor, Tensor)", quantize_rows, _meta_quantize_rows),
        (
            "int8_linear_dynamic(Tensor x, Tensor weight, Tensor scale, Tensor? bias) -> Tensor",
            int8_linear_dynamic,
            _meta_int8_linear_dynamic,
        ),
        (
            "int8_linear_static(Tensor x, Tensor weight, Tensor scale, Tensor? bias, Tensor x_scale, int x_zero) "
            "-> Tensor",
            int8_linear_static,
            _meta_int8_linear_static,
        ),
        (
            "int8_attention(Tensor query, Tensor key, Tensor value, Tensor? mask, float scale, "
            "float query_scale, float key_scale, float value_scale) -> Tensor",
            int8_attention,
            _meta_int8_attention,
        ),
        (
            "dequantize_int4(Tensor packed, Tensor scale, int block) -> Tensor",
            narrow.dequantize_int4,
            narrow.meta_dequantize_int4,
        ),
        (
            "fp8_linear(Tensor x, Tensor weight, Tensor scale, Tensor? bias, Tensor x_scale) -> Tensor",
            narrow.fp8_linear,
            narrow.meta_fp8_linear,
        ),
        (
            "nvfp4_linear(Tensor x, Tensor weight, Tensor block_scale, Tensor scale, Tensor? bias, Tensor x_scale) "
            "-> Tensor",
            narrow.nvfp4_linear,
            narrow.meta_nvfp4_linear,
        ),
    ):
        library.define(schema)
        name = schema.partition("(")[0]
        library.impl(name, meaning, "CompositeExplicitAutograd")
        library.impl(name, meta, "Meta")
    return library


def _meta_int8_attention(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


def _meta_int8_linear_static(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, x_scale: Tensor, x_zero: int
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _meta_quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


def _meta_int8_linear_dynamic(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
