"""Number formats of eight bits and less, and the operators that compute with them; ``ir.own_ops`` registers these.

Elements of four bits lie two in a byte, the earlier one in the low half. int4 is two's complement, -8 to 7.
e2m1 (OCP Microscaling Formats 1.0, section 5.3.3) is a sign and one of 0, 0.5, 1, 1.5, 2, 3, 4, 6. e4m3 is torch's
``float8_e4m3fn``: up to 448, no infinity. NVFP4: e2m1 in blocks of 16 with e4m3 scales and one f32 scale over all.
Every rounding is to nearest, ties to even, and saturates; NaN stays NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
E2M1_MAX = 6.0
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""Value of each code of e2m1."""
NVFP4_BLOCK = 16


def pack_halves(codes: Tensor) -> Tensor:
    """Two codes of four bits per byte: integers ``[..., K]`` (the low four bits count) -> u8 ``[..., K/2]``."""
    low, high = (codes[..., i::2].to(torch.int16) & 15 for i in (0, 1))
    return (low | high << 4).to(torch.uint8)


def unpack_halves(packed: Tensor) -> Tensor:
    """The inverse: u8 ``[..., K/2]`` -> codes, int64 ``[..., K]``, 0 to 15."""
    wide = packed.to(torch.int64)
    return torch.stack((wide & 15, wide >> 4), -1).flatten(-2)


def to_e4m3(x: Tensor) -> Tensor:
    """Round float ``x`` to e4m3."""
    return x.float().clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)


def to_e2m1(x: Tensor) -> Tensor:
    """Round float ``x`` to the values of e2m1; the result is float32."""
    wide = x.float().clamp(-E2M1_MAX, E2M1_MAX)
    reach = wide.abs()
    step = torch.where(reach < 2.0, 0.5, torch.where(reach < 4.0, 1.0, 2.0))
    return torch.round(wide / step) * step


def e2m1_codes(values: Tensor) -> Tensor:
    """Codes, int64, of numbers that are values of e2m1; both zeros become code 0."""
    magnitudes = torch.tensor(E2M1[:8], device=values.device)
    return torch.bucketize(values.abs().contiguous(), magnitudes) + 8 * (values < 0)


def e2m1_values(packed: Tensor) -> Tensor:
    """u8 ``[..., K/2]`` -> float32 ``[..., K]``."""
    return torch.tensor(E2M1, device=packed.device)[unpack_halves(packed)]


def dequantize_int4(packed: Tensor, scale: Tensor, block: int) -> Tensor:
    """Weights of four bits with a scale per block of the last dim: ``q * scale`` in the type of ``scale``.

    ``packed``: u8 ``[..., K/2]``; ``scale``: f32, f16 or bf16 ``[..., K/block]``; result ``[..., K]``.
    """
    codes = unpack_halves(packed)
    q = torch.where(codes < 8, codes, codes - 16).to(scale.dtype)
    return (q.unflatten(-1, (-1, block)) * scale[..., None]).flatten(-2)


def fp8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, x_scale: Tensor) -> Tensor:
    """Linear of e4m3 weights and activations: ``y = (e4m3(x / x_scale) @ weight^T) * (x_scale * scale) + bias``.

    ``x``: float ``[..., K]``; ``weight``: e4m3 ``[N, K]``; ``scale``: f32 ``[N]``; ``bias``: float ``[N]``;
    ``x_scale``: f32 ``[]``, known when compiling. Sums and scales in float32; the result has the type of ``x``.
    FP8 Formats for Deep Learning, 2209.05433.
    """
    y = linear(to_e4m3(x.float() / x_scale).float(), weight.float()) * (x_scale * scale)
    return (y if bias is None else y + bias.float()).to(x.dtype)


def nvfp4_rows(x: Tensor, x_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize blocks of 16 of the last dim as NVFP4 does: ``x ~ q * block_scale * x_scale``.

    ``x``: float ``[..., K]``; ``q``: values of e2m1 in float32 ``[..., K]``; ``block_scale``: e4m3 ``[..., K/16]``,
    the largest magnitude of the block over 6. A block whose scale vanishes is zero.
    """
    blocks = (x.float() / x_scale).unflatten(-1, (-1, NVFP4_BLOCK))
    block_scale = to_e4m3(blocks.abs().amax(-1) / E2M1_MAX)
    step = block_scale.float()[..., None]
    q = torch.where(step == 0.0, 0.0, to_e2m1(blocks / step))
    return q.flatten(-2), block_scale


def nvfp4_values(q: Tensor, block_scale: Tensor) -> Tensor:
    """``q * block_scale`` in float32, where it is exact; the scale over all is left out."""
    return (q.unflatten(-1, (-1, NVFP4_BLOCK)) * block_scale.float()[..., None]).flatten(-2)


def nvfp4_linear(
    x: Tensor, weight: Tensor, block_scale: Tensor, scale: Tensor, bias: Tensor | None, x_scale: Tensor
) -> Tensor:
    """Linear of NVFP4 weights and activations; activations get their block scales while it runs.

    ``x``: float ``[..., K]``; ``weight``: u8 ``[N, K/2]`` of e2m1; ``block_scale``: e4m3 ``[N, K/16]``; ``scale``,
    ``x_scale``: f32 ``[]``, of all weights and of all activations; ``bias``: float ``[N]``. Sums in float32; the
    result has the type of ``x``. Pretraining LLMs with NVFP4, 2509.25149, section 2.
    """
    left = nvfp4_values(*nvfp4_rows(x, x_scale))
    right = nvfp4_values(e2m1_values(weight), block_scale)
    y = linear(left, right) * (x_scale * scale)
    return (y if bias is None else y + bias.float()).to(x.dtype)


def meta_dequantize_int4(packed: Tensor, scale: Tensor, block: int) -> Tensor:
    """Type of the result; refuses operands that do not belong together."""
    torch._check(packed.dtype == torch.uint8, lambda: f"packed int4 lies in u8, not {packed.dtype}")
    torch._check(block > 0 and block % 2 == 0, lambda: f"a block of {block} is not even and positive")
    torch._check(packed.shape[-1] * 2 == scale.shape[-1] * block, lambda: "scale does not have one entry per block")
    torch._check(packed.shape[:-1] == scale.shape[:-1], lambda: "packed and scale differ in their leading dims")
    return scale.new_empty((*packed.shape[:-1], packed.shape[-1] * 2))


def meta_fp8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, x_scale: Tensor) -> Tensor:
    """Type of the result; refuses operands that do not belong together."""
    torch._check(weight.dtype == E4M3, lambda: f"the weight is {weight.dtype}, not e4m3")
    torch._check(x.shape[-1] == weight.shape[-1], lambda: "x and weight differ in their last dim")
    torch._check(scale.shape == weight.shape[:1], lambda: "scale does not have one entry per row of the weight")
    torch._check(x_scale.ndim == 0, lambda: "x_scale is no single number")
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def meta_nvfp4_linear(
    x: Tensor, weight: Tensor, block_scale: Tensor, scale: Tensor, bias: Tensor | None, x_scale: Tensor
) -> Tensor:
    """Type of the result; refuses operands that do not belong together."""
    torch._check(weight.dtype == torch.uint8, lambda: f"packed e2m1 lies in u8, not {weight.dtype}")
    torch._check(block_scale.dtype == E4M3, lambda: f"block scales are {block_scale.dtype}, not e4m3")
    torch._check(x.shape[-1] == weight.shape[-1] * 2, lambda: "x and weight differ in their last dim")
    blocks = (weight.shape[0], block_scale.shape[-1])
    torch._check(block_scale.shape == blocks, lambda: "block_scale does not have one row per row of the weight")
    torch._check(blocks[1] * NVFP4_BLOCK == x.shape[-1], lambda: "block_scale does not have one entry per 16 elements")
    torch._check(scale.ndim == 0 and x_scale.ndim == 0, lambda: "scale or x_scale is no single number")
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
