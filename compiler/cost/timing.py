"""Seconds of one kernel of a plan: which formula, which parameters, what bounds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from compiler.cost.calibration import Calibration, Trust
from compiler.cost.kernels import Machine, attention_seconds, gemm_seconds, quantize_seconds
from compiler.cost.plan import Kernel
from compiler.cost.targets import Target
from ir import Dim
from ir.price import Attention, Gemm, Price

Size = Callable[[Dim], int]
_FORMATS = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8",
    torch.float8_e5m2: "fp8",
    torch.float4_e2m1fn_x2: "fp4",
    torch.int8: "int8",
    torch.uint8: "int8",
}  # all others run as fp32: torch multiplies f32 without TF32 unless it is asked to


@dataclass(frozen=True, slots=True)
class Timing:
    """One kernel at one size.

    Attributes:
        seconds: predicted, never below ``floor``.
        floor: roofline of the datasheet.
        bound: ``compute``, ``memory`` or ``launch``.
        flops, bytes: done and moved.
        trust: provenance of ``seconds``.
        note: what was assumed, or empty.
    """

    seconds: float
    floor: float
    bound: str
    flops: int
    bytes: int
    trust: Trust
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Load:
    """What a kernel does at one size: operations of matrix units and of lanes, bytes."""

    flops: int
    lanes: int
    moved: int


def time_kernel(kernel: Kernel, target: Target, known: Calibration, size: Size) -> Timing:
    """Time one kernel; ``size`` evaluates a dim."""
    product = kernel.product
    moved = sum(max(map(size, sizes)) for sizes in kernel.reads) + sum(map(size, kernel.writes))
    load = _Load(
        flops=size(product.flops) if product else 0,
        lanes=sum(size(p.flops) for p in kernel.prices if p is not product),
        moved=moved + sum(size(p.scratch) for p in kernel.prices),
    )
    wanted = _FORMATS.get(product.compute, "fp32") if product else "fp32"
    format_ = wanted if wanted in target.peak else "fp32"
    note = "" if format_ == wanted else f"no hardware path for {wanted}: priced as fp32"
    machine = Machine(target.peak[format_], target.bandwidth, target.units)
    compute = load.flops / machine.rate + load.lanes / target.peak["fp32"]
    memory = load.moved / machine.bandwidth
    floor = max(load.flops / machine.rate, load.lanes / target.peak["fp32"], memory)
    found = None
    if product is not None and load.flops:
        if isinstance(product.work, Gemm):
            found = _gemm(product, product.work, known, target, format_, machine, load, size)
        elif isinstance(product.work, Attention):
            found = _attention(product.work, known, target, format_, machine, load, size)
    seconds, t0, trust = found or _plain(kernel, known, target, format_, machine, load)
    seconds = max(seconds, floor)
    bound = "launch" if t0 > seconds / 2 else "compute" if compute >= memory else "memory"
    return Timing(seconds, floor, bound, load.flops + load.lanes, load.moved, trust, note)


def _gemm(
    price: Price,
    work: Gemm,
    known: Calibration,
    target: Target,
    format_: str,
    machine: Machine,
    load: _Load,
    size: Size,
) -> tuple[float, float, Trust] | None:
    found = known.for_gemm(target, format_, work.quantizes)
    if found is None:
        return None
    fit, trust = found
    batch, m, n, k = (size(d) for d in (work.batch, work.m, work.n, work.k))
    staged = 0
    if work.quantizes:  # range and rounding pass over the input; the product reads what they wrote
        staged = size(price.reads[0]) + batch * m * k
    seconds = float(gemm_seconds(fit, machine, batch, m, n, k, max(load.moved - staged, 0)))
    seconds += float(quantize_seconds(fit, machine, m, k, staged))
    # a convolution is a product in form only; its kernels were not timed
    return seconds, fit.t0, known.borrowed(trust) if price.kind == "conv" else trust


def _attention(
    work: Attention,
    known: Calibration,
    target: Target,
    format_: str,
    machine: Machine,
    load: _Load,
    size: Size,
) -> tuple[float, float, Trust] | None:
    queries = size(work.queries)
    found = known.for_attention(target, format_, decode=queries == 1)
    if found is None:
        return None
    fit, trust = found
    batch, keys = size(work.batch), size(work.keys)
    seconds = float(attention_seconds(fit, machine, batch, queries, keys, load.flops, load.moved))
    # the timed kernels were causal
    return seconds, fit.t0, trust if work.causal or queries == 1 else known.borrowed(trust)


def _plain(
    kernel: Kernel, known: Calibration, target: Target, format_: str, machine: Machine, load: _Load
) -> tuple[float, float, Trust]:
    """``t0 + max(operations, bytes)``, each at the rate that such kernels reach."""
    if kernel.product is None:
        fit, trust = known.for_memory(target, kernel.prices[0].kind)
        t0, share = fit.t0, fit.memory
    else:
        t0, share, trust = target.t0, target.efficiency["bw"], known.unmeasured(target)
    t0 *= kernel.launches
    compute = load.flops / (machine.rate * target.achieved(format_)) + load.lanes / target.peak["fp32"]
    return t0 + max(compute, load.moved / (share * machine.bandwidth)), t0, trust
