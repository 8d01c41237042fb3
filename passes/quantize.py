"""linear(x, w, b)  ->  an int8 product: int8 weights per output channel, uint8 activations

    int8_linear_static(x, q, scale, b, x_scale, zero)   activations calibrated on samples, smoothed (SmoothQuant)
    int8_linear_dynamic(x, q, scale, b)                 activations measured at run time: no calibration

Weights: symmetric int8, one scale per output channel (LLM.int8, 2208.07339, section 2.1), each clipped where
its squared error is least. ``activations=auto`` is static with samples, dynamic without.

Sound: up to rounding; the integer product is exact.
Profitable: an int8 dot product does four times the work of float32 (VNNI), and weights take a quarter of the bytes.
Declines small weights (``min-weights``), paths in ``skip``, the ``keep`` most sensitive ones, and those whose own
output moves by more than ``max-error``. Sensitivity is the relative error of a linear's own output on calibration
rows; without samples, that of its weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, ClassVar

import torch

from ir import Graph, Node, Value, interpret, op
from passes.base import Pass, Remark, Samples, Tolerance, remark
from passes.calibrate_int8 import Int8Linear, Int8Weight, Observed, calibrate, dynamic_error, quantize_weight
from passes.rewrite import forward

DYNAMIC = "penstock.int8_linear_dynamic.default"
STATIC = "penstock.int8_linear_static.default"
_MODES = ("auto", "dynamic", "static")

# operator -> (position of the weight, whether it lies as [in, out])
_LAYOUTS = {
    "aten.linear.default": (1, False),
    "aten.addmm.default": (2, True),
    "aten.mm.default": (1, True),
    "aten.matmul.default": (1, True),
}


@dataclass(frozen=True)
class Quantize(Pass):
    """Turns linears into real int8 products."""

    name: ClassVar[str] = "quantize"
    summary: ClassVar[str] = "linear(x, w) -> int8 weights per channel, int8 activations (static or dynamic)"
    tolerance: ClassVar[Tolerance] = Tolerance(cosine=0.95)
    activations: str = "auto"
    skip: tuple[str, ...] = ()
    keep: int = 0
    max_error: float = 0.2
    min_weights: int = 4096

    def __post_init__(self) -> None:
        """Refuse an unknown mode."""
        if self.activations not in _MODES:
            raise ValueError(f"activations is one of {', '.join(_MODES)}, not {self.activations!r}")

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        """See the module."""
        said: list[Remark] = []
        linears: dict[Node, _Linear] = {}
        params = graph.params()
        for node in graph:
            if node.op.name not in _LAYOUTS:
                continue
            why_not = self._why_not(graph, node, params)
            if not why_not and self.activations == "static" and not samples:
                why_not = "static activations need samples"
            if why_not:
                said.append(remark(node, False, why_not))
            else:
                linears[node] = _Linear(graph, node, params)
        seen = _observe(graph, linears, samples)
        made = self._make(linears, seen, static=bool(samples) and self.activations != "dynamic")
        order = sorted(made, key=lambda n: -made[n][1])  # stable: equal errors keep graph order
        for rank, node in enumerate(order):
            form, error = made[node]
            place = f"sensitivity {rank + 1} of {len(order)}, own error {error:.1%}"
            if rank < self.keep:
                said.append(remark(node, False, f"{place}: kept in float (keep={self.keep})"))
            elif not error <= self.max_error:
                said.append(remark(node, False, f"{place}: more than max-error {self.max_error:.1%}"))
            else:
                said.append(_replace(graph, linears[node], form, place))
        return said

    def _make(
        self, linears: dict[Node, _Linear], seen: dict[Value, Observed], static: bool
    ) -> dict[Node, tuple[Int8Linear | Int8Weight, float]]:
        made: dict[Node, tuple[Int8Linear | Int8Weight, float]] = {}
        if static:
            groups: dict[Value, list[_Linear]] = {}
            for found in linears.values():
                groups.setdefault(found.x, []).append(found)
            for x, group in groups.items():
                if x not in seen or not seen[x].rows:
                    continue
                for found, form in zip(group, calibrate(seen.pop(x), [g.matrix for g in group]), strict=True):
                    made[found.node] = (form, form.error)
        for node, found in linears.items():
            if node not in made:  # no samples, or none that came by here
                weight = quantize_weight(found.matrix)
                rows = torch.cat(seen[found.x].rows) if found.x in seen and seen[found.x].rows else None
                made[node] = (weight, dynamic_error(rows, found.matrix, weight))
        return made

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
        if node.op.name == "aten.addmm.default" and not _vector(node.args[0]):
            return "its bias is no vector"
        return ""


def _vector(arg: object) -> bool:
    return isinstance(arg, Value) and arg.tensor.rank == 1


class _Linear:
    """A node that can be quantized: its activation, its weight as ``[out, in]``, its bias."""

    def __init__(self, graph: Graph, node: Node, params: dict[Value, str]) -> None:
        position, turned = _LAYOUTS[node.op.name]
        x, weight = node.args[position - 1], node.args[position]
        bias = node.args[0] if node.op.name == "aten.addmm.default" else node.arg(2, "bias")
        assert isinstance(x, Value) and isinstance(weight, Value)
        self.node, self.x, self.weight = node, x, weight
        self.bias = bias if isinstance(bias, Value) else None
        self.name = params[weight]
        stored = graph.weights[self.name]
        self.matrix = stored.t() if turned else stored
        self.place = position - 1
        self.bias_tensor = graph.weights[params[self.bias]] if self.bias is not None and self.bias in params else None


def _observe(graph: Graph, linears: dict[Node, _Linear], samples: Samples) -> dict[Value, Observed]:
    """Run the graph on the samples and look at what flows into the linears."""
    seen: dict[Value, Observed] = {}
    looked: set[Value] = set()
    share = Observed.share(len(samples))

    def watch(node: Node, args: Sequence[Any], results: Sequence[Any]) -> None:
        found = linears.get(node)
        if found is not None and found.x not in looked:  # q, k and v read the same activation
            looked.add(found.x)
            seen.setdefault(found.x, Observed()).see(args[found.place], share)

    if linears:
        for sample in samples:
            looked.clear()
            interpret(graph, sample, watch)
    return seen


def _replace(graph: Graph, found: _Linear, form: Int8Linear | Int8Weight, place: str) -> Remark:
    node = found.node
    weight = form.weight if isinstance(form, Int8Linear) else form
    q = graph.add_param(f"{found.name}.int8", weight.q)
    scale = graph.add_param(f"{found.name}.scale", weight.scale)
    if isinstance(form, Int8Linear):
        bias: Value | None = found.bias
        if found.bias is None or found.bias_tensor is not None:
            base = found.bias_tensor if found.bias_tensor is not None else torch.zeros_like(form.shift)
            bias = graph.add_param(f"{found.name}.bias.int8", base + form.shift)
        x_scale = graph.add_param(f"{found.name}.x_scale", form.x_scale)
        made = graph.insert(op(STATIC), found.x, q, scale, bias, x_scale, form.x_zero, before=node,
                            types=(node.result.type,), name=node.result.name)  # fmt: skip
    else:
        made = graph.insert(op(DYNAMIC), found.x, q, scale, found.bias, before=node,
                            types=(node.result.type,), name=node.result.name)  # fmt: skip
    forward(graph, node, made.result)
    for old in (found.weight, found.bias):
        if old is not None and not old.uses and old in graph.inputs:
            graph.drop_argument(old)
    return remark(made, True, f"{place}, {'static' if isinstance(form, Int8Linear) else 'dynamic'} activations")
