"""linear(x, w, b)  ->  an int8 product: int8 weights per output channel, 8-bit activations

    int8_linear_static(x, q, scale, b, x_scale, zero)   activations calibrated on samples, smoothed (SmoothQuant)
    int8_linear_dynamic(x, q, scale, b)                 activations measured at run time: no calibration

Weights: symmetric int8, one scale per output channel (LLM.int8, 2208.07339, section 2.1), each clipped where
its squared error is least. ``activations=auto`` is static with samples, dynamic without. ``symmetric`` makes static
activations symmetric (their zero is 128), as GPU matrix units and TensorRT want them; they are then clipped too.

Sound: up to rounding; the integer product is exact.
Profitable: an int8 dot product does four times the work of float32 (VNNI), and weights take a quarter of the bytes.
Declines small weights (``min-weights``), paths in ``skip``, the ``keep`` most sensitive ones, and those whose own
output moves by more than ``max-error``. Sensitivity is the relative error of a linear's own output on calibration
rows; without samples, that of its weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ir import Graph, Node, Value
from passes.base import Pass, Remark, Samples, Tolerance, remark
from passes.calibrate_int8 import Int8Linear, calibrate, dynamic_error
from passes.linears import Linear, Observed, find, observe, readers, settle
from passes.narrow_weights import Int8Weight, to_int8

DYNAMIC = "penstock.int8_linear_dynamic.default"
STATIC = "penstock.int8_linear_static.default"
_MODES = ("auto", "dynamic", "static")
_F32 = torch.float32


@dataclass(frozen=True)
class Quantize(Pass):
    """Turns linears into real int8 products."""

    name: ClassVar[str] = "quantize"
    summary: ClassVar[str] = "linear(x, w) -> int8 weights per channel, int8 activations (static or dynamic)"
    tolerance: ClassVar[Tolerance] = Tolerance(cosine=0.95)
    activations: str = "auto"
    symmetric: bool = False
    skip: tuple[str, ...] = ()
    keep: int = 0
    max_error: float = 0.2
    min_weights: int = 4096

    def __post_init__(self) -> None:
        """Refuse an unknown mode, and symmetric activations that are measured at run time."""
        if self.activations not in _MODES:
            raise ValueError(f"activations is one of {', '.join(_MODES)}, not {self.activations!r}")
        if self.symmetric and self.activations == "dynamic":
            raise ValueError("dynamic activations are asymmetric; symmetric ones are static")

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        """See the module."""
        linears, said = find(graph, self.skip, self.min_weights)
        if (self.activations == "static" or self.symmetric) and not samples:
            kind = "symmetric" if self.symmetric else "static"
            return said + [remark(node, False, f"{kind} activations need samples") for node in linears]
        seen = observe(graph, linears, samples)
        made = self._make(linears, seen, static=bool(samples) and self.activations != "dynamic")
        if self.symmetric:
            unseen = [node for node in linears if node not in made]
            said += [remark(node, False, "no sample came by here") for node in unseen]
        errors, steps = {node: error for node, (_, error) in made.items()}, dict[Value, Value]()
        return said + settle(
            errors, self.keep, self.max_error,
            lambda node, place: _replace(graph, linears[node], made[node][0], steps, place),
        )  # fmt: skip

    def _make(
        self, linears: dict[Node, Linear], seen: dict[Value, Observed], static: bool
    ) -> dict[Node, tuple[Int8Linear | Int8Weight, float]]:
        made: dict[Node, tuple[Int8Linear | Int8Weight, float]] = {}
        if static:
            for x, group in readers(linears).items():
                if x in seen:
                    forms = calibrate(seen.pop(x), [g.matrix for g in group], self.symmetric)
                    made.update({g.node: (form, form.error) for g, form in zip(group, forms, strict=True)})
        for node, found in linears.items():
            if node not in made and not self.symmetric:  # no samples, or none that came by here
                weight = to_int8(found.matrix)
                rows = torch.cat(seen[found.x].rows) if found.x in seen else None
                made[node] = (weight, dynamic_error(rows, found.matrix, weight))
        return made


def _replace(
    graph: Graph, found: Linear, form: Int8Linear | Int8Weight, steps: dict[Value, Value], place: str
) -> Remark:
    weight = form.weight if isinstance(form, Int8Linear) else form
    q = graph.add_param(f"{found.name}.int8", weight.q)
    scale = graph.add_param(f"{found.name}.scale", weight.scale)
    if isinstance(form, Int8Linear):
        bias = found.shifted_bias(graph, form.shift, _F32)
        x_scale = found.step_param(graph, steps, form.x_scale)
        made = found.replace(graph, STATIC, found.x, q, scale, bias, x_scale, form.x_zero)
    else:
        made = found.replace(graph, DYNAMIC, found.x, q, scale, found.shifted_bias(graph, None, _F32))
    return remark(made, True, f"{place}, {'static' if isinstance(form, Int8Linear) else 'dynamic'} activations")
