"""linear(x, w, b)  ->  int8_linear_dynamic(x, q, scale, b): int8 weights, activations quantized as they come

Weights: symmetric int8, one scale per output channel (LLM.int8, 2208.07339, section 2.1), each clipped where
its squared error is least. Activations: uint8, one scale per tensor, measured at run time: no calibration.

Sound: up to rounding; the integer product is exact.
Profitable: an int8 dot product does four times the work of float32 (VNNI), eight with AMX; weights take a
quarter of the bytes.
Declines small weights (``min-weights``), paths in ``skip``, the ``keep`` most sensitive ones, and those whose own
output moves by more than ``max-error``. Sensitivity is the relative error of a linear's own output on the
calibration inputs; without inputs, that of its weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, ClassVar

import torch

from ir import Graph, Node, Value, interpret, op
from passes.base import Pass, Remark, Samples, Tolerance, remark
from passes.rewrite import forward

INT8_LINEAR = "penstock.int8_linear_dynamic.default"
_CLIPS = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85)


@dataclass(frozen=True)
class Quantize(Pass):
    """Turns linears into real int8 products."""

    name: ClassVar[str] = "quantize"
    summary: ClassVar[str] = "linear(x, w) -> int8 weights per channel, activations quantized at run time"
    tolerance: ClassVar[Tolerance] = Tolerance(cosine=0.95)
    skip: tuple[str, ...] = ()
    keep: int = 0
    max_error: float = 0.2
    min_weights: int = 4096

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        """See the module."""
        said: list[Remark] = []
        chosen: dict[Node, tuple[torch.Tensor, torch.Tensor]] = {}
        params = graph.params()
        for node in graph:
            if node.op.name not in _LAYOUTS:
                continue
            why_not = self._why_not(graph, node, params)
            if why_not:
                said.append(remark(node, False, why_not))
            else:
                chosen[node] = quantize_weight(_matrix(graph, node, params))
        errors = _sensitivity(graph, chosen, samples, params)
        order = sorted(chosen, key=lambda n: -errors[n])  # stable: equal errors keep graph order
        for rank, node in enumerate(order):
            place = f"sensitivity {rank + 1} of {len(order)}, own error {errors[node]:.1%}"
            if rank < self.keep:
                said.append(remark(node, False, f"{place}: kept in float (keep={self.keep})"))
            elif not errors[node] <= self.max_error:
                said.append(remark(node, False, f"{place}: more than max-error {self.max_error:.1%}"))
            else:
                said.append(_replace(graph, node, *chosen[node], place, params))
        return said

    def _why_not(self, graph: Graph, node: Node, params: dict[Value, str]) -> str:
        position, _ = _LAYOUTS[node.op.name]
        weight = node.args[position]
        if not isinstance(weight, Value) or weight not in params:
            return "its second factor is no weight"
        if params[weight] not in graph.weights:
            return "its weight is not at hand"
        if weight.tensor.rank != 2 or weight.tensor.dtype is not torch.float32:
            return f"its weight is {weight.type}, not a float32 matrix"
        if node.kwargs:
            return "it scales its operands"
        if any(fnmatch(node.origin.path, p) or fnmatch(params[weight], p) for p in self.skip):
            return "its path is in skip"
        if graph.weights[params[weight]].numel() < self.min_weights:
            return f"fewer than {self.min_weights} weights: the overhead would not pay"
        if node.op.name == "aten.addmm.default" and (not isinstance(node.args[0], Value) or node.args[0].tensor.rank != 1):
            return "its bias is no vector"
        return ""


# operator -> (position of the weight, whether it lies as [in, out])
_LAYOUTS = {
    "aten.linear.default": (1, False),
    "aten.addmm.default": (2, True),
    "aten.mm.default": (1, True),
    "aten.matmul.default": (1, True),
}


def _matrix(graph: Graph, node: Node, params: dict[Value, str]) -> torch.Tensor:
    """The weight of a node as [out, in]."""
    position, turned = _LAYOUTS[node.op.name]
    value = node.args[position]
    assert isinstance(value, Value)
    weight = graph.weights[params[value]]
    return weight.t() if turned else weight


def quantize_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8 per row: ``(q [N, K] int8, scale [N] f32)`` of ``weight [N, K]``.

    Each row is clipped at that fraction of its largest magnitude where the squared error is least.
    """
    top = weight.abs().amax(1).clamp_min(1e-12)
    best = torch.full_like(top, float("inf"))
    scale = top / 127.0
    for clip in _CLIPS:
        step = (top * clip / 127.0)[:, None]
        error = ((weight / step).round().clamp(-127, 127) * step - weight).square().sum(1)
        better = error < best
        best = torch.where(better, error, best)
        scale = torch.where(better, step[:, 0], scale)
    q = (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    return q.contiguous(), scale


def _sensitivity(
    graph: Graph, chosen: dict[Node, tuple[torch.Tensor, torch.Tensor]], samples: Samples, params: dict[Value, str]
) -> dict[Node, float]:
    """Relative error of each linear's own output; of its weight when there are no inputs."""
    if not samples:
        found = {}
        for node, (q, scale) in chosen.items():
            weight = _matrix(graph, node, params)
            found[node] = float((q * scale[:, None] - weight).norm() / weight.norm().clamp_min(1e-12))
        return found
    wrong = dict.fromkeys(chosen, 0.0)
    total = dict.fromkeys(chosen, 0.0)

    def watch(node: Node, args: Sequence[Any], results: Sequence[Any]) -> None:
        if node not in chosen:
            return
        q, scale = chosen[node]
        position, _ = _LAYOUTS[node.op.name]
        x = args[position - 1]
        bias = args[0] if node.op.name == "aten.addmm.default" else args[2] if len(args) > 2 else None
        got = torch.nn.functional.linear(_rounded(x), q * scale[:, None], bias)
        wrong[node] += float((got - results[0]).double().square().sum())
        total[node] += float(results[0].double().square().sum())

    for sample in samples:
        interpret(graph, sample, watch)
    return {node: (wrong[node] / max(total[node], 1e-30)) ** 0.5 for node in chosen}


def _rounded(x: torch.Tensor) -> torch.Tensor:
    """What is left of an activation after uint8 quantization."""
    low, high = x.amin().clamp_max(0.0), x.amax().clamp_min(0.0)
    step = ((high - low) / 255.0).clamp_min(1e-30)
    zero = (-low / step).round()
    return (((x / step).round() + zero).clamp(0, 255) - zero) * step


def _replace(
    graph: Graph, node: Node, q: torch.Tensor, scale: torch.Tensor, place: str, params: dict[Value, str]
) -> Remark:
    position, _ = _LAYOUTS[node.op.name]
    weight = node.args[position]
    assert isinstance(weight, Value)
    name = params[weight]
    bias = node.args[0] if node.op.name == "aten.addmm.default" else node.arg(2, "bias")
    made = graph.insert(
        op(INT8_LINEAR), node.args[position - 1], graph.add_param(f"{name}.int8", q),
        graph.add_param(f"{name}.scale", scale), bias, before=node, types=(node.result.type,), name=node.result.name,
    )  # fmt: skip
    forward(graph, node, made.result)
    if not weight.uses:
        graph.drop_argument(weight)
        del params[weight]
    return remark(made, True, place)
