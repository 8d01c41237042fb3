"""A short notation for calls of operators, and the graph that holds many of them.

``"f32[n,4]"`` is an input (sizes ``n`` and ``m`` are dynamic), ``"%f32[4]"`` a weight; ``"i64[n]<5"`` holds 0..4,
``"i64[n]~"`` -3..2, ``"f32[n]+"`` what is positive, ``"f32[n]!"`` also NaN and infinities; ``"$0"`` is the first
tensor of the call again, ``"size:n"`` a size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from backends import backend
from ir import Arg, DimRange, Graph, Output, TensorType, Value, op, symbol
from ir.types import DTYPES
from ir.weights import save

_TENSOR = re.compile(r"^(%?)(f64|f32|f16|bf16|i64|i32|i16|i8|u8|bool)\[([\w, ]*)\](<-?\d+|[+!~])?$")
_STATISTICS = ("max_pool2d_with_indices", "native_group_norm", "batch_norm", "adaptive_max")
SIZES = ({"n": 5, "m": 3}, {"n": 1, "m": 7})


class Call:
    """An operator with its arguments in the short notation."""

    def __init__(self, name: str, *args: Any, **kwargs: Any) -> None:
        self.name = name if name.count(".") == 2 else f"aten.{name}" if "." in name else f"aten.{name}.default"
        self.args, self.kwargs = args, kwargs

    def __repr__(self) -> str:
        short = self.name.removeprefix("aten.").removesuffix(".default")
        given = [*map(str, self.args), *(f"{k}={v}" for k, v in self.kwargs.items())]
        return f"{short}({', '.join(given)})".replace("torch.", "").replace(" ", "")


class Built:
    """The graph of some calls, and how to fill its inputs."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.graph = Graph("case", {"n": DimRange(1, 64), "m": DimRange(1, 64)})
        self._kinds: dict[str, str] = {}
        results: list[Value] = []
        outputs: list[Output] = []
        for call in calls:
            own: list[Value] = []
            args = tuple(self._arg(a, own) for a in call.args)
            node = self.graph.insert(
                op(call.name), *args, kwargs={k: self._arg(a, own) for k, a in call.kwargs.items()}
            )
            kept = [v for v in node.results if isinstance(v.type, TensorType)]
            if any(word in call.name for word in _STATISTICS):
                kept = kept[:1]
            results += kept
            outputs += [Output("output", f"{call}.{i}") for i in range(len(kept))]
        self.graph.returns(*results, outputs=outputs)

    def _arg(self, arg: Any, own: list[Value]) -> Arg:
        if isinstance(arg, (list, tuple)):
            return tuple(self._arg(a, own) for a in arg)
        if not isinstance(arg, str):
            return arg  # type: ignore[no-any-return]
        if arg.startswith("$"):
            return own[int(arg[1:])]
        if arg.startswith("size:"):
            value = next(v for v in own if symbol(arg[5:]) in v.tensor.shape)
            axis = value.tensor.shape.index(symbol(arg[5:]))
            return self.graph.insert(op("aten.sym_size.int"), value, axis).result
        found = _TENSOR.match(arg)
        if not found:
            return arg
        constant, dtype, shape, kind = found.groups()
        dims = tuple(int(d) if d.isdigit() else symbol(d) for d in shape.replace(" ", "").split(",") if d)
        number = len(self.graph.inputs)
        if constant:
            tensor = filled(DTYPES[dtype], [int(d) for d in dims], kind or "", number)
            value = self.graph.add_param(f"p{number}", tensor)
        else:
            value = self.graph.add_input("input", f"x{number}", TensorType(DTYPES[dtype], dims))
            self._kinds[f"x{number}"] = kind or ""
        own.append(value)
        return value

    def inputs(self, sizes: Mapping[str, int], seed: int = 0) -> dict[str, torch.Tensor]:
        """Random inputs for some sizes."""
        made = {}
        for index, (name, value) in enumerate(self.graph.arguments("input")):
            shape = [d if isinstance(d, int) else sizes[d.name] for d in value.tensor.shape]
            made[name] = filled(value.tensor.dtype, shape, self._kinds[name], seed + index)
        return made


def filled(dtype: torch.dtype, shape: Sequence[int], kind: str, seed: int) -> torch.Tensor:
    """A tensor of random content; ``kind`` is the suffix of the notation."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator).to(dtype)

    if kind.startswith("<"):
        return integers(0, int(kind[1:]))
    if kind == "~":
        return integers(-3, 3)
    if dtype == torch.bool:
        return integers(0, 2)
    if not dtype.is_floating_point:
        return integers(1 if kind == "+" else 0 if dtype == torch.uint8 else -9, 10)
    made = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "+":
        made = made.abs() * 0.7 + 0.05
    if kind == "!":
        flat = made.reshape(-1)
        for place, odd in enumerate((float("nan"), float("inf"), float("-inf"), 0.0)):
            flat[place::7][:1] = odd
    return made.to(dtype)


def engine_of(name: str, graph: Graph, folder: Path) -> Any:
    """Build and load, one thread."""
    save(graph.weights, folder / "weights.safetensors")
    chosen = backend(name)
    chosen.build(graph, folder)
    return chosen.load(folder, 1)
