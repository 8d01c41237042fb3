"""A short notation for calls of operators, and the graph that holds many of them.

``"f32[n,4]"`` is an input (sizes ``n`` and ``m`` are dynamic), ``"%f32[4]"`` a weight; ``"i64[n]<5"`` holds 0..4,
``"i64[n]~"`` -3..2, ``"f32[n]+"`` what is positive, ``"f32[n]#"`` no number twice, ``"f32[n]!"`` also infinities
and other extremes, ``"f32[n]?"`` also NaN, ``"i64[n]^"`` numbers of 30 bits; ``"$0"`` is the first tensor of the call
again, ``"size:n"`` a size.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from backends import backend
from ir import Arg, DimRange, Graph, Origin, Output, TensorType, Value, op, symbol
from ir.types import DTYPES
from ir.weights import save

_TENSOR = re.compile(r"^(%?)(f64|f32|f16|bf16|f8e4m3|i64|i32|i16|i8|u8|bool)\[([\w, ]*)\](<-?\d+|[+!?~#^])?$")
_FLOATS = ("f64", "f32", "f16", "bf16")
_STATISTICS = ("max_pool2d_with_indices", "native_group_norm", "batch_norm", "adaptive_max")
ODD = (float("inf"), -0.0, 1e-40, float("-inf"), 1e12, 0.0, -3e11, 1e-30, 90.0, -104.0)
"""Of float32; one is denormal. Cubes of the large ones are still numbers."""
EXTREMES = (2**31, -(2**31) - 1, 2**40 + 1, 2**53 + 1, -(2**62))
SIZES = ({"n": 5, "m": 3}, {"n": 1, "m": 7})


class Call:
    """An operator with its arguments in the short notation."""

    def __init__(self, name: str, *args: Any, **kwargs: Any) -> None:
        full = name.count(".") == 2 or name.startswith("sym.")
        self.name = name if full else f"aten.{name}" if "." in name else f"aten.{name}.default"
        self.args, self.kwargs = args, kwargs

    def __repr__(self) -> str:
        short = self.name.removeprefix("aten.").removesuffix(".default")
        given = [*map(str, self.args), *(f"{k}={v}" for k, v in self.kwargs.items())]
        return f"{short}({', '.join(given)})".replace("torch.", "").replace(" ", "")

    @property
    def lead(self) -> str:
        """Element type of the first float tensor, else of the first tensor; empty when there is none."""
        found = [m[2] for m in map(_TENSOR.match, _texts((*self.args, *self.kwargs.values()))) if m]
        return next((d for d in found if d in _FLOATS), found[0] if found else "")

    @property
    def form(self) -> str:
        """The call with ``T`` for its leading element type."""
        return repr(self.at("T")) if self.lead else repr(self)

    def at(self, dtype: str, kind: str = "") -> Call:
        """The same call on another element type; plain content becomes that of ``kind``."""
        lead = self.lead

        def changed(arg: Any) -> Any:
            if isinstance(arg, (list, tuple)):
                return [changed(a) for a in arg]
            found = _TENSOR.match(arg) if isinstance(arg, str) else None
            if not found or found[2] != lead:
                return arg
            return f"{found[1]}{dtype}[{found[3]}]{found[4] or kind}"

        return Call(self.name, *map(changed, self.args), **{k: changed(a) for k, a in self.kwargs.items()})


def _texts(arg: Any) -> Iterator[str]:
    if isinstance(arg, str):
        yield arg
    elif isinstance(arg, (list, tuple)):
        for part in arg:
            yield from _texts(part)


class Built:
    """The graph of some calls, and how to fill its inputs. Nodes of call ``i`` come from ``call.i``."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.graph = Graph("case", {"n": DimRange(1, 64), "m": DimRange(1, 64)})
        self._fills: dict[str, tuple[str, int]] = {}
        self._origin, self._seed = Origin(), 0
        self.owners: dict[str, int] = {}
        """Which call an input or output belongs to."""
        results: list[Value] = []
        outputs: list[Output] = []
        for index, call in enumerate(calls):
            self._origin, self._seed = Origin(f"call.{index}"), zlib.crc32(repr(call).encode())
            own: list[Value] = []
            args = tuple(self._arg(a, own) for a in call.args)
            kwargs = {k: self._arg(a, own) for k, a in call.kwargs.items()}
            node = self.graph.insert(op(call.name), *args, kwargs=kwargs, origin=self._origin)
            kept = [self._tensor(v) for v in node.results]
            if any(word in call.name for word in _STATISTICS):
                kept = kept[:1]
            results += kept
            outputs += [Output("output", f"{call}.{index}.{i}") for i in range(len(kept))]
            self.owners |= dict.fromkeys((o.name for o in outputs[len(outputs) - len(kept) :]), index)
        self.graph.returns(*results, outputs=outputs)

    def _tensor(self, value: Value) -> Value:
        """Numbers made while the model runs are looked at as tensors."""
        if isinstance(value.type, TensorType):
            return value
        return self.graph.insert(op("aten.scalar_tensor.default"), value, origin=self._origin).result

    def _arg(self, arg: Any, own: list[Value]) -> Arg:
        if isinstance(arg, (list, tuple)):
            return tuple(self._arg(a, own) for a in arg)
        if not isinstance(arg, str):
            return arg  # type: ignore[no-any-return]
        if arg.startswith("$"):
            return own[int(arg[1:])]
        if arg.startswith("size:"):
            if not any(symbol(arg[5:]) in v.tensor.shape for v in own):
                self._arg(f"f32[{arg[5:]}]", own)
            value = next(v for v in own if symbol(arg[5:]) in v.tensor.shape)
            axis = value.tensor.shape.index(symbol(arg[5:]))
            return self.graph.insert(op("aten.sym_size.int"), value, axis, origin=self._origin).result
        found = _TENSOR.match(arg)
        if not found:
            return arg
        constant, dtype, shape, kind = found.groups()
        dims = tuple(int(d) if d.isdigit() else symbol(d) for d in shape.replace(" ", "").split(",") if d)
        number = len(self.graph.inputs)
        owner, seed = int(self._origin.path.partition(".")[2]), self._seed + len(own)  # the same in every company
        if constant:
            tensor = filled(DTYPES[dtype], [int(d) for d in dims], kind or "", seed)
            value = self.graph.add_param(f"p{number}", tensor)
            self.owners[f"p{number}"] = owner
        else:
            value = self.graph.add_input("input", f"x{number}", TensorType(DTYPES[dtype], dims))
            self._fills[f"x{number}"] = (kind or "", seed)
            self.owners[f"x{number}"] = owner
        own.append(value)
        return value

    def inputs(self, sizes: Mapping[str, int], seed: int = 0) -> dict[str, torch.Tensor]:
        """Random inputs for some sizes."""
        made = {}
        for name, value in self.graph.arguments("input"):
            shape = [d if isinstance(d, int) else sizes[d.name] for d in value.tensor.shape]
            kind, own = self._fills[name]
            made[name] = filled(value.tensor.dtype, shape, kind, own + 1000 * seed)
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
    if kind == "#":
        count = torch.Size(shape).numel()
        return (torch.randperm(count, generator=generator) - count // 2).reshape(shape).to(dtype)
    if dtype == torch.bool:
        return integers(0, 2)
    if kind == "^":
        return integers(2**28, 2**30)
    if not dtype.is_floating_point and kind == "!":
        return _strewn(integers(-9, 10), EXTREMES, seed)
    if not dtype.is_floating_point:
        return integers(1 if kind == "+" else 0 if dtype == torch.uint8 else -9, 10)
    made = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "+":
        made = made.abs() * 0.7 + 0.05
    odd = {"!": ODD, "?": (float("nan"), 0.5)}.get(kind)
    return (made if odd is None else _strewn(made, odd, seed)).to(dtype)


def _strewn(plain: torch.Tensor, odd: Sequence[float], seed: int) -> torch.Tensor:
    """Two of three elements replaced, in an order that differs between seeds."""
    flat = plain.reshape(-1)
    for place in range(flat.numel()):
        if place % 3:
            flat[place] = odd[(place * (1 + seed % 5) + seed) % len(odd)]
    return plain


def engine_of(name: str, graph: Graph, folder: Path) -> Any:
    """Build and load, one thread."""
    save(graph.weights, folder / "weights.safetensors")
    chosen = backend(name)
    chosen.build(graph, folder)
    return chosen.load(folder, 1)
