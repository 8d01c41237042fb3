"""linear(x, w, b)  ->  a product in e4m3 or NVFP4, weights and activations

    format=fp8     fp8_linear(x, q, scale, b, x_scale)             a scale per output channel, one for the activation
    format=nvfp4   nvfp4_linear(x, q, block_scale, scale, b, x_scale)  a scale per 16 weights, and per 16 activations

Scales of fp8 activations are calibrated (FP8 Formats for Deep Learning, 2209.05433, section 4); those of NVFP4 blocks
are measured at run time under one calibrated scale. NVFP4 weights make up for the rounding of those before them
(``compensate``, as in ``quantize-weights``); the mean of what a product loses goes into its bias.

Sound: up to rounding; what the format holds comes out exactly.
Profitable: twice (fp8) or four times (NVFP4) the work of float16, on matrix units that have the format.
Declines without samples, small weights (``min-weights``), inputs that are no multiple of 16, paths in ``skip``, the
``keep`` most sensitive ones, and those whose own output moves by more than ``max-error``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import linear

from ir import Graph, Node, Value
from ir.narrow import E2M1_MAX, E4M3_MAX, NVFP4_BLOCK, nvfp4_rows, nvfp4_values, to_e4m3
from passes.base import Pass, Remark, Samples, Tolerance, remark
from passes.linears import TINY, Linear, Observed, find, observe, readers, relative_error, settle
from passes.narrow_weights import Fp8Weight, Nvfp4Weight, compensation, to_fp8, to_nvfp4

FP8 = "penstock.fp8_linear.default"
NVFP4 = "penstock.nvfp4_linear.default"
_FORMATS = ("fp8", "nvfp4")
_ROWS = 1024  # to compensate by
_PLACES = (1.0, 2.0, 1.41, 0.71, 0.5)  # of the scale of fp8, times the one where the largest becomes 448


@dataclass(frozen=True)
class _Form:
    """``shift [N]``: mean of what the product loses; ``error``: of the output on calibration rows, after the shift."""

    weight: Fp8Weight | Nvfp4Weight
    x_scale: torch.Tensor
    shift: torch.Tensor
    error: float


@dataclass(frozen=True)
class QuantizeFloats(Pass):
    """Turns linears into products of narrow floats."""

    name: ClassVar[str] = "quantize-floats"
    summary: ClassVar[str] = "linear(x, w) -> weights and activations in fp8 (e4m3) or NVFP4"
    tolerance: ClassVar[Tolerance] = Tolerance(cosine=0.9)
    format: str = "fp8"
    compensate: bool = True
    skip: tuple[str, ...] = ()
    keep: int = 0
    max_error: float = 0.2
    min_weights: int = 4096

    def __post_init__(self) -> None:
        """Refuse an unknown format."""
        if self.format not in _FORMATS:
            raise ValueError(f"format is one of {', '.join(_FORMATS)}, not {self.format!r}")

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        """See the module."""
        linears, said = find(graph, self.skip, self.min_weights)
        for node in [n for n, found in linears.items() if found.matrix.shape[1] % NVFP4_BLOCK]:
            inputs = linears.pop(node).matrix.shape[1]
            said.append(remark(node, False, f"{inputs} inputs are no multiple of {NVFP4_BLOCK}"))
        if not samples:
            return said + [remark(node, False, "scales of activations need samples") for node in linears]
        seen = observe(graph, linears, samples, _ROWS)
        said += [remark(n, False, "no sample came by here") for n, found in linears.items() if found.x not in seen]
        made: dict[Node, _Form] = {}
        for x, group in readers(linears).items():
            if x in seen:
                matrices = [found.matrix for found in group]
                forms = _fp8(seen[x], matrices) if self.format == "fp8" else _nvfp4(seen[x], matrices, self.compensate)
                made.update({found.node: form for found, form in zip(group, forms, strict=True)})
        steps: dict[Value, Value] = {}
        return said + settle(
            {node: form.error for node, form in made.items()}, self.keep, self.max_error,
            lambda node, place: self._replace(graph, linears[node], made[node], steps, place),
        )  # fmt: skip

    def _replace(self, graph: Graph, found: Linear, form: _Form, steps: dict[Value, Value], place: str) -> Remark:
        scale = graph.add_param(f"{found.name}.scale", form.weight.scale)
        x_scale = found.step_param(graph, steps, form.x_scale)
        bias = found.shifted_bias(graph, form.shift, torch.float32)
        if isinstance(form.weight, Fp8Weight):
            q = graph.add_param(f"{found.name}.fp8", form.weight.q)
            made = found.replace(graph, FP8, found.x, q, scale, bias, x_scale)
        else:
            packed = graph.add_param(f"{found.name}.nvfp4", form.weight.packed)
            blocks = graph.add_param(f"{found.name}.block_scale", form.weight.block_scale)
            made = found.replace(graph, NVFP4, found.x, packed, blocks, scale, bias, x_scale)
        return remark(made, True, f"{place}, in {self.format}")


def _fp8(seen: Observed, matrices: Sequence[torch.Tensor]) -> list[_Form]:
    weights = [to_fp8(matrix) for matrix in matrices]
    rows, top = torch.cat(seen.rows), (seen.reach.amax() / E4M3_MAX).clamp_min(TINY)
    tries = []
    for step in (top * place for place in _PLACES):
        tries.append(_forms(rows, matrices, weights, step, to_e4m3(rows / step).float() * step))
    return min(tries, key=lambda forms: sum(form.error for form in forms))


def _nvfp4(seen: Observed, matrices: Sequence[torch.Tensor], compensate: bool) -> list[_Form]:
    rows = torch.cat(seen.rows)
    factor = compensation(rows) if compensate else None
    weights = [to_nvfp4(matrix, factor) for matrix in matrices]
    step = (seen.reach.amax() / (E2M1_MAX * E4M3_MAX)).clamp_min(TINY)
    return _forms(rows, matrices, weights, step, nvfp4_values(*nvfp4_rows(rows, step)) * step)


def _forms(
    rows: torch.Tensor, matrices: Sequence[torch.Tensor], weights: Sequence[Fp8Weight | Nvfp4Weight],
    step: torch.Tensor, left: torch.Tensor,
) -> list[_Form]:  # fmt: skip
    made = []
    for matrix, weight in zip(matrices, weights, strict=True):
        want, got = linear(rows, matrix), linear(left, weight.float())
        shift = (want - got).mean(0)
        made.append(_Form(weight, step, shift, relative_error(got + shift, want)))
    return made
