"""A short notation for one call of an operator, and the graph that holds it.

``"f32[n,4]"`` is an input (sizes ``n`` and ``m`` are dynamic); ``"i64[n]<5"`` holds 0..4, ``"f32[n]+"`` what is
positive, ``"f32[n]!"`` also NaN and infinities; ``"$0"`` is the first input again, ``"size:n"`` a size.
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

_INPUT = re.compile(r"^(%?)(f64|f32|f16|bf16|i64|i32|i16|i8|u8|bool)\[([\w,+* ]*)\](<-?\d+|[+!~])?$")
SIZES = ({"n": 5, "m": 3}, {"n": 1, "m": 7})


class Call:
    """An operator with its arguments in the short notation."""

    def __init__(self, name: str, *args: Any, **kwargs: Any) -> None:
        self.name = name if name.count(".") else f"aten.{name}.default"
        if self.name.count(".") == 1 and not self.name.startswith("sym."):
            self.name = f"aten.{self.name}"
        self.args, self.kwargs = args, kwargs

    def __repr__(self) -> str:
        short = self.name.removeprefix("aten.").removesuffix(".default")
        given = [*map(str, self.args), *(f"{k}={v}" for k, v in self.kwargs.items())]
        return f"{short}({', '.join(given)})".replace("torch.", "").replace(" ", "")


class Built:
    """The graph of a call, and how to fill its inputs."""

    def __init__(self, call: Call) -> None:
        self.graph = Graph("case", {"n": DimRange(1, 64), "m": DimRange(1, 64)})
        self.kinds: dict[str, str] = {}
        self._values: list[Value] = []
        args = tuple(self._arg(a) for a in call.args)
        kwargs = {k: self._arg(a) for k, a in call.kwargs.items()}
        node = self.graph.insert(op(call.name), *args, kwargs=kwargs)
        kept = [v for v in node.results if isinstance(v.type, TensorType)]
        if call.name in ("aten.max_pool2d_with_indices.default", "aten.native_group_norm.default") or (
            "batch_norm" in call.name or "adaptive_max" in call.name
        ):
            kept = kept[:1]
        self.graph.returns(*kept, outputs=[Output("output", f"y{i}") for i in range(len(kept))])

    def _arg(self, arg: Any) -> Arg:
        if isinstance(arg, (list, tuple)):
            return tuple(self._arg(a) for a in arg)
        if not isinstance(arg, str):
            return arg  # type: ignore[no-any-return]
        if arg.startswith("$"):
            return self._values[int(arg[1:])]
        if arg.startswith("size:"):
            value = next(v for v in self._values if symbol(arg[5:]) in v.tensor.shape)
            axis = value.tensor.shape.index(symbol(arg[5:]))
            return self.graph.insert(op("aten.sym_size.int"), value, axis).result
        found = _INPUT.match(arg)
        if not found:
            return arg
        constant, dtype, shape, kind = found.groups()
        dims = tuple(int(d) if d.strip().isdigit() else symbol(d.strip()) for d in shape.split(",") if d.strip())
        if constant:
            tensor = filled(DTYPES[dtype], [int(d) for d in dims], kind or "", len(self._values))
            value = self.graph.add_param(f"p{len(self._values)}", tensor)
        else:
            name = f"x{len(self._values)}"
            value = self.graph.add_input("input", name, TensorType(DTYPES[dtype], dims))
            self.kinds[name] = kind or ""
        self._values.append(value)
        return value

    def inputs(self, sizes: Mapping[str, int], seed: int = 0) -> dict[str, torch.Tensor]:
        """Random inputs for some sizes."""
        made = {}
        for index, (name, value) in enumerate(self.graph.arguments("input")):
            shape = [d if isinstance(d, int) else sizes[d.name] for d in value.tensor.shape]
            made[name] = filled(value.tensor.dtype, shape, self.kinds[name], seed + index)
        return made


def filled(dtype: torch.dtype, shape: Sequence[int], kind: str, seed: int) -> torch.Tensor:
    """A tensor of random content; ``kind`` is the suffix of the notation."""
    generator = torch.Generator().manual_seed(seed)
    if kind.startswith("<"):
        return torch.randint(0, int(kind[1:]), shape, generator=generator).to(dtype)
    if kind == "~":
        return torch.randint(-3, 3, shape, generator=generator).to(dtype)
    if not dtype.is_floating_point:
        if dtype == torch.bool:
            return torch.randint(0, 2, shape, generator=generator).to(dtype)
        low = 1 if kind == "+" else 0 if dtype == torch.uint8 else -9
        return torch.randint(low, 10, shape, generator=generator).to(dtype)
    made = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "+":
        made = made.abs() * 0.7 + 0.05
    if kind == "!":
        flat = made.reshape(-1)
        for place, odd in enumerate((float("nan"), float("inf"), float("-inf"), 0.0)):
            flat[place :: max(7, 1)][:1] = odd
    return made.to(dtype)


def engine_of(name: str, graph: Graph, folder: Path) -> Any:
    """Build and load, one thread."""
    save(graph.weights, folder / "weights.safetensors")
    chosen = backend(name)
    chosen.build(graph, folder)
    return chosen.load(folder, 1)
