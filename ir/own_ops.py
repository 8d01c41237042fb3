"""The few operators torch has no public name for, defined in torch's own terms.

They live in torch's registry under ``penstock::`` like any custom operator: meaning, meta kernel and
reference execution come from the same few lines of torch.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


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
    # integers below 2**24 are exact in float32; K * 255 * 127 needs float64 from K = 518 on
    product = torch.nn.functional.linear(quantized.double(), weight.double())
    y = product.float() * (step * scale)
    return (y if bias is None else y + bias).to(x.dtype)


@lru_cache(maxsize=1)
def define() -> torch.library.Library:
    """Register the operators, once per process."""
    library = torch.library.Library("penstock", "DEF")
    library.define("quantize_rows(Tensor x) -> (Tensor, Tensor)")
    library.impl("quantize_rows", quantize_rows, "CompositeExplicitAutograd")
    library.impl("quantize_rows", _meta_quantize_rows, "Meta")
    library.define("int8_linear_dynamic(Tensor x, Tensor weight, Tensor scale, Tensor? bias) -> Tensor")
    library.impl("int8_linear_dynamic", int8_linear_dynamic, "CompositeExplicitAutograd")
    library.impl("int8_linear_dynamic", _meta_int8_linear_dynamic, "Meta")
    return library


def _meta_quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


def _meta_int8_linear_dynamic(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
