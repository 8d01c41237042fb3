"""What the passes that quantize linears share: which nodes, what flows into them, which stay in float."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import torch
from torch.nn.functional import linear

from ir import Arg, Graph, Node, TensorType, Value, interpret, op
from passes.base import Remark, Samples, remark
from passes.canonicalize_scalars import CAST
from passes.rewrite import forward, producer

# operator -> (position of the weight, whether it lies as [in, out])
_LAYOUTS = {
    "aten.linear.default": (1, False),
    "aten.addmm.default": (2, True),
    "aten.mm.default": (1, True),
    "aten.matmul.default": (1, True),
}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_ROWS = 384  # enough rows to rank four smoothings; more moved MiniLM's loss by less than 1e-4
TINY = 1e-12


class Linear:
    """A node that can be quantized: its activation, its weight, its bias.

    Attributes:
        matrix: the weight as float32 ``[out, in]``.
        name: of the weight.
        dtype: what the node computes in.
        bias_tensor: the bias where it is known.
        place: position of the activation among the arguments.
    """

    def __init__(self, graph: Graph, node: Node, params: Mapping[Value, str]) -> None:
        position, turned = _LAYOUTS[node.op.name]
        x = node.args[position - 1]
        bias = node.args[0] if node.op.name == "aten.addmm.default" else node.arg(2, "bias")
        assert isinstance(x, Value)
        self.node, self.x, self.place = node, x, position - 1
        self.bias = bias if isinstance(bias, Value) else None
        self.name = params[_stored(node.args[position])]
        self.dtype = node.result.tensor.dtype
        stored = graph.weights[self.name].float()
        self.matrix = stored.t() if turned else stored
        known = params.get(_stored(bias), "") if isinstance(bias, Value) else ""
        self.bias_tensor = graph.weights[known].float() if known in graph.weights else None

    def shifted_bias(self, graph: Graph, shift: torch.Tensor | None, dtype: torch.dtype) -> Value | None:
        """The bias in ``dtype``, plus ``shift [out]``; of a bias that is computed the shift is left out."""
        bias, known = self.bias, self.bias_tensor
        if bias is not None and known is None:
            return bias if bias.tensor.dtype is dtype else _cast(graph, bias, dtype, self.node)
        if shift is None or not shift.any():
            if bias is None or known is None or bias.tensor.dtype is dtype:
                return bias
            return graph.add_param(f"{self.name}.bias", known.to(dtype))
        return graph.add_param(f"{self.name}.bias", (shift if known is None else known + shift).to(dtype))

    def step_param(self, graph: Graph, steps: dict[Value, Value], step: torch.Tensor) -> Value:
        """The scale of the activation, kept once for all that read it: engines then quantize it once."""
        if self.x not in steps:
            steps[self.x] = graph.add_param(f"{self.name}.x_scale", step)
        return steps[self.x]

    def replace(self, graph: Graph, operator: str, *args: Arg) -> Node:
        """Put another operator in the node's place; weights that nothing reads any more are forgotten."""
        node = self.node
        made = graph.insert(op(operator), *args, before=node, types=(node.result.type,), name=node.result.name)
        read = node.operands
        forward(graph, node, made.result)
        for old in dict.fromkeys(read):
            cast = producer(old, CAST)
            if cast is not None and not old.uses and cast.args[0] in graph.inputs:
                old = cast.operands[0]
                graph.erase(cast)
            if not old.uses and old in graph.inputs and graph.inputs[old].kind == "param":
                graph.drop_argument(old)
        return made


def _cast(graph: Graph, value: Value, dtype: torch.dtype, before: Node) -> Value:
    to = TensorType(dtype, value.tensor.shape)
    return graph.insert(op(CAST), value, dtype, before=before, types=(to,)).result


def _stored(arg: Arg) -> Value:
    """The param itself, where a cast stands between: its other readers want it wide."""
    cast = producer(arg, CAST)
    found = cast.args[0] if cast is not None else arg
    assert isinstance(found, Value)
    return found


def find(graph: Graph, skip: Sequence[str], min_weights: int) -> tuple[dict[Node, Linear], list[Remark]]:
    """Linears that can be quantized, and why others cannot."""
    said: list[Remark] = []
    found: dict[Node, Linear] = {}
    params = graph.params()
    for node in graph:
        if node.op.name in _LAYOUTS:
            why_not = _why_not(graph, node, params, skip, min_weights)
            if why_not:
                said.append(remark(node, False, why_not))
            else:
                found[node] = Linear(graph, node, params)
    return found, said


def _why_not(graph: Graph, node: Node, params: Mapping[Value, str], skip: Sequence[str], min_weights: int) -> str:
    position, _ = _LAYOUTS[node.op.name]
    weight = node.args[position]
    if not isinstance(weight, Value) or _stored(weight) not in params:
        return "its second factor is no weight"
    name = params[_stored(weight)]
    if name not in graph.weights:
        return "its weight is not at hand"
    if weight.tensor.rank != 2 or weight.tensor.dtype not in _FLOATS:
        return f"its weight is {weight.type}, not a matrix of floats"
    if node.kwargs:
        return "it scales its operands"
    if any(fnmatch(node.origin.path, p) or fnmatch(name, p) for p in skip):
        return "its path is in skip"
    if graph.weights[name].numel() < min_weights:
        return f"fewer than {min_weights} weights: the overhead would not pay"
    if node.op.name == "aten.addmm.default" and not (isinstance(node.args[0], Value) and node.args[0].tensor.rank == 1):
        return "its bias is no vector"
    return ""


@dataclass
class Observed:
    """What calibration saw of one activation: range per channel, and some of its rows."""

    low: torch.Tensor | None = None
    high: torch.Tensor | None = None
    rows: list[torch.Tensor] = field(default_factory=list)

    def see(self, x: torch.Tensor, share: int) -> None:
        """Take in an activation ``[..., K]``; keep up to ``share`` of its rows, evenly spaced."""
        flat = x.detach().float().reshape(-1, x.shape[-1])
        if flat.shape[0] == 0:
            return
        low, high = flat.amin(0), flat.amax(0)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        step = max(1, flat.shape[0] // share)
        self.rows.append(flat[::step][:share].clone())

    @property
    def reach(self) -> torch.Tensor:
        """Largest magnitude per channel."""
        assert self.low is not None and self.high is not None
        return torch.maximum(self.low.abs(), self.high.abs())

    @staticmethod
    def share(samples: int, rows: int = _ROWS) -> int:
        """Rows to keep of each of so many samples."""
        return max(8, rows // max(samples, 1))


def observe(graph: Graph, linears: Mapping[Node, Linear], samples: Samples, rows: int = _ROWS) -> dict[Value, Observed]:
    """Run the graph on the samples and look at what flows into the linears, about so many rows of each.

    What no sample reaches is left out.
    """
    seen: dict[Value, Observed] = {}
    looked: set[Value] = set()
    share = Observed.share(len(samples), rows)

    def watch(node: Node, args: Sequence[Any], results: Sequence[Any]) -> None:
        found = linears.get(node)
        if found is not None and found.x not in looked:  # q, k and v read the same activation
            looked.add(found.x)
            seen.setdefault(found.x, Observed()).see(args[found.place], share)

    if linears:
        for sample in samples:
            looked.clear()
            interpret(graph, sample, watch)
    return {x: found for x, found in seen.items() if found.rows}


def readers(linears: Mapping[Node, Linear]) -> dict[Value, list[Linear]]:
    """The linears by the activation that they read: its scale is one for all of them."""
    groups: dict[Value, list[Linear]] = {}
    for found in linears.values():
        groups.setdefault(found.x, []).append(found)
    return groups


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is wanted."""
    return float((got - want).norm() / want.norm().clamp_min(TINY))


def weight_error(seen: Observed | None, weight: torch.Tensor, approximate: torch.Tensor) -> float:
    """Relative error of the output on calibration rows, after ``mean_loss``; of the weight itself without rows."""
    if seen is None:
        return relative_error(approximate, weight)
    rows = torch.cat(seen.rows)
    return relative_error(linear(rows, approximate) + mean_loss(seen, weight - approximate), linear(rows, weight))


def mean_loss(seen: Observed, lost: torch.Tensor) -> torch.Tensor:
    """Mean over calibration rows of what the output ``[N]`` loses with ``lost [N, K]`` of a weight."""
    return lost @ torch.cat(seen.rows).mean(0)


def settle(
    errors: Mapping[Node, float], keep: int, max_error: float, replace: Callable[[Node, str], Remark]
) -> list[Remark]:
    """Replace all but the ``keep`` most sensitive and those beyond ``max_error``."""
    said: list[Remark] = []
    order = sorted(errors, key=lambda n: -errors[n])  # stable: equal errors keep graph order
    for rank, node in enumerate(order):
        place = f"sensitivity {rank + 1} of {len(order)}, own error {errors[node]:.1%}"
        if rank < keep:
            said.append(remark(node, False, f"{place}: kept in float (keep={keep})"))
        elif not errors[node] <= max_error:
            said.append(remark(node, False, f"{place}: more than max-error {max_error:.1%}"))
        else:
            said.append(replace(node, place))
    return said
