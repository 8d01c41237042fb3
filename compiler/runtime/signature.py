"""Checks the tensors of a call against the manifest: name, type, device, dtype, rank, each size.

All that can be known beforehand is worked out once: for each axis whether its size is fixed, is a free
symbol, or follows from other symbols. A call then compares numbers, and words are made only for errors.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from compiler.artifact import Manifest, Port
from ir import Dim, DimRange, evaluate, show_dim, symbols_of
from ir.dims import parse_dim
from ir.errors import UsageError, nearest
from ir.types import DTYPE_NAMES, DTYPES

_STATE = "state:"


class InputError(UsageError):
    """A tensor given to a loaded model is not what the model takes; names the input."""


@dataclass(frozen=True, slots=True)
class _Linear:
    """``scale * size == constant + sum of factor * symbol``, all integers."""

    scale: int
    constant: int
    factors: tuple[tuple[str, int], ...]

    def solve(self, size: int, unknown: str, sizes: Mapping[str, int]) -> int | None:
        """Size of the one symbol that is not known; None if no integer fits."""
        rest, factor = self.scale * size - self.constant, 1
        for name, times in self.factors:
            if name == unknown:
                factor = times
            else:
                rest -= times * sizes[name]
        return rest // factor if rest % factor == 0 else None


@dataclass(frozen=True, slots=True)
class _Slot:
    """One input, and what to compare of each axis.

    Attributes:
        fixed: axis, size.
        free: axis, symbol, smallest, largest.
        solved: axis, symbol that it determines, how.
        derived: axis, expression over symbols that are known by then.
    """

    port: Port
    name: str
    dtype: torch.dtype
    rank: int
    fixed: tuple[tuple[int, int], ...]
    free: tuple[tuple[int, str, int, int], ...]
    solved: tuple[tuple[int, str, _Linear], ...]
    derived: tuple[tuple[int, Dim], ...]


class Signature:
    """What a model takes. Immutable after it is made: threads may share it."""

    def __init__(self, manifest: Manifest, defaults: Mapping[str, torch.Tensor] = MappingProxyType({})) -> None:
        """Of a manifest; ``defaults`` are the inputs that a call may leave out."""
        self._defaults = dict(defaults)
        self._dims = manifest.dims
        self._slots = _slots(manifest.inputs, manifest.dims)
        self._names = tuple(slot.name for slot in self._slots)
        self._late = tuple(slot for slot in self._slots if slot.solved or slot.derived)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The tensors of a call by name: checked, on the CPU, contiguous, without autograd.

        Raises:
            InputError: names the first offending input, what was expected and what was given.
        """
        if args or len(kwargs) != len(self._names):
            kwargs = self._named(args, kwargs)
        ready: dict[str, torch.Tensor] = {}
        sizes: dict[str, int] = {}
        for slot in self._slots:
            tensor = kwargs.get(slot.name)
            if tensor is None:
                kwargs = self._named((), kwargs)
                tensor = kwargs[slot.name]
            if not isinstance(tensor, torch.Tensor):
                tensor = _tensor(slot, tensor, self._dims)
            if (
                tensor.dtype is not slot.dtype
                or tensor.layout is not torch.strided
                or not tensor.is_cpu
                or tensor.is_nested
                or tensor.dim() != slot.rank
            ):
                raise self._fault(slot, tensor, _why_not(slot, tensor))
            shape = tensor.shape
            for axis, size in slot.fixed:
                if shape[axis] != size:
                    raise self._fault(slot, tensor, f"dim {axis} is {shape[axis]}, not {size}")
            for axis, name, low, high in slot.free:
                size = shape[axis]
                if not low <= size <= high:
                    raise self._fault(slot, tensor, self._out_of_range(name, size))
                if sizes.setdefault(name, size) != size:
                    first = self._first(name)
                    raise self._fault(slot, tensor, f"{name} is {size} here and {sizes[name]} in {first}")
            if tensor.requires_grad or not tensor.is_contiguous():
                tensor = tensor.detach().contiguous()
            ready[slot.name] = tensor
        if self._late:
            self._check_late(ready, sizes)
        return ready

    def _check_late(self, ready: Mapping[str, torch.Tensor], sizes: dict[str, int]) -> None:
        for slot in self._late:
            for axis, unknown, form in slot.solved:
                size = ready[slot.name].shape[axis]
                solution = form.solve(size, unknown, sizes)
                if solution is None or solution < 0:
                    what = f"no {unknown} makes {slot.port.shape[axis]} = {size}"
                    raise self._fault(slot, ready[slot.name], what)
                if solution not in self._dims[unknown]:
                    raise self._fault(slot, ready[slot.name], self._out_of_range(unknown, solution))
                sizes[unknown] = solution
        for slot in self._late:
            for axis, dim in slot.derived:
                size = ready[slot.name].shape[axis]
                want = _evaluate(dim, tuple(sorted((name, sizes[name]) for name in symbols_of(dim))))
                if want != size:
                    known = ", ".join(f"{name} = {sizes[name]}" for name in sorted(symbols_of(dim)))
                    what = f"dim {axis} is {size}, not {slot.port.shape[axis]} = {want} ({known})"
                    raise self._fault(slot, ready[slot.name], what)

    def _named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Every input by its own name, from arguments by position, by name, or by ``state:NAME``."""
        names = list(self._names)
        if len(args) > len(names):
            raise InputError(f"{len(args)} inputs were given, the model takes {len(names)}: {', '.join(names)}")
        given: dict[str, Any] = dict(zip(names, args, strict=False))
        states = {slot.name for slot in self._slots if slot.port.kind == "state"}
        for key, value in kwargs.items():
            name = key.removeprefix(_STATE) if key.removeprefix(_STATE) in states else key
            if name not in names:
                raise InputError(f'there is no input "{key}"', hint=nearest(key, names))
            if name in given:
                raise InputError(f'input "{name}" was given twice')
            given[name] = value
        given = {**self._defaults, **{name: value for name, value in given.items() if value is not None}}
        missing = [slot for slot in self._slots if given.get(slot.name) is None]
        if missing:
            wanted = "; ".join(f'input "{s.name}": expected {_expected(s, self._dims)}' for s in missing)
            hint = "model.initial_state() has first states" if missing[0].port.kind == "state" else ""
            raise InputError(f"missing {wanted}", hint=hint)
        return given

    def _fault(self, slot: _Slot, tensor: torch.Tensor, why: str) -> InputError:
        got = f"{_dtype_name(tensor.dtype)}{_shape_text(tensor)}"
        hint = ""
        if tensor.dtype != slot.dtype:
            hint = f"convert it: {slot.name}.to({slot.dtype})"
        elif not tensor.is_cpu:
            hint = f"move it: {slot.name}.cpu()"
        expected = _expected(slot, self._dims)
        return InputError(f'input "{slot.name}": expected {expected}; got {got}: {why}', hint=hint)

    def _out_of_range(self, name: str, size: int) -> str:
        return f"{name} = {size} is not within {self._dims[name]}"

    def _first(self, name: str) -> str:
        return next(f'input "{slot.name}"' for slot in self._slots if any(name == free[1] for free in slot.free))


def _slots(ports: Sequence[Port], dims: Mapping[str, DimRange]) -> tuple[_Slot, ...]:
    shapes = [[parse_dim(text) for text in port.shape] for port in ports]
    known = {show_dim(dim) for shape in shapes for dim in shape if not isinstance(dim, int) and dim.is_Symbol}
    solved: dict[tuple[int, int], tuple[str, _Linear]] = {}
    for index, shape in enumerate(shapes):
        for axis, dim in enumerate(shape):
            unknown = symbols_of(dim) - known
            form = _linear(dim) if len(unknown) == 1 else None
            if form is not None:
                (name,) = unknown
                solved[index, axis] = (name, form)
                known.add(name)
    return tuple(
        _slot(port, shape, dims, known, {axis: how for (i, axis), how in solved.items() if i == index})
        for index, (port, shape) in enumerate(zip(ports, shapes, strict=True))
    )


def _slot(
    port: Port,
    shape: Sequence[Dim],
    dims: Mapping[str, DimRange],
    known: set[str],
    solved: Mapping[int, tuple[str, _Linear]],
) -> _Slot:
    fixed, free, derived = [], [], []
    for axis, dim in enumerate(shape):
        if isinstance(dim, int):
            fixed.append((axis, dim))
        elif dim.is_Symbol:
            bounds = dims[dim.name]
            free.append((axis, dim.name, bounds.min, sys.maxsize if bounds.max is None else bounds.max))
        elif axis in solved:
            pass
        elif symbols_of(dim) <= known:
            derived.append((axis, dim))
        else:  # nothing tells its symbols (n//2 alone, say): all that is left is that equals be equal
            free.append((axis, show_dim(dim), 0, sys.maxsize))
    return _Slot(
        port, port.name, DTYPES[port.dtype], len(shape), tuple(fixed), tuple(free),
        tuple((axis, *how) for axis, how in solved.items()), tuple(derived),
    )  # fmt: skip


def _linear(dim: Dim) -> _Linear | None:
    """The dim as a linear form, if it is one."""
    if isinstance(dim, int):
        return None
    terms = dim.expand().as_coefficients_dict()
    if any(not factor.is_Rational or not (term.is_Symbol or term == 1) for term, factor in terms.items()):
        return None
    scale = math.lcm(*(int(factor.q) for factor in terms.values()))
    whole = {term: int(factor * scale) for term, factor in terms.items()}
    factors = tuple((term.name, factor) for term, factor in whole.items() if term.is_Symbol)
    return _Linear(scale, sum(factor for term, factor in whole.items() if not term.is_Symbol), factors)


@lru_cache(maxsize=4096)
def _evaluate(dim: Dim, sizes: tuple[tuple[str, int], ...]) -> int | None:
    """The size that a dim must have; None where it has none (a division by zero, say)."""
    try:
        return evaluate(dim, dict(sizes))
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def _tensor(slot: _Slot, given: Any, dims: Mapping[str, DimRange]) -> torch.Tensor:
    """A tensor that shares memory with a numpy array where it can."""
    if isinstance(given, (np.ndarray, np.generic)):
        array = np.asarray(given)
        try:
            # torch takes neither read-only, nor negative strides, nor foreign byte order
            native = array.astype(array.dtype.newbyteorder("="), order="C", copy=not array.flags.writeable)
            return torch.from_numpy(native)
        except (TypeError, ValueError):
            got = f"a numpy array of {array.dtype}"
    else:
        got = type(given).__name__
    hint = f"make one: torch.tensor(..., dtype={slot.dtype})"
    raise InputError(f'input "{slot.name}": expected a tensor, {_expected(slot, dims)}; got {got}', hint=hint)


def _expected(slot: _Slot, dims: Mapping[str, DimRange]) -> str:
    names = dict.fromkeys(name for text in slot.port.shape for name in sorted(symbols_of(parse_dim(text))))
    ranges = ", ".join(f"{name} in {dims[name]}" for name in names)
    return f"{slot.port}{' with ' + ranges if ranges else ''}"


def _why_not(slot: _Slot, tensor: torch.Tensor) -> str:
    if tensor.is_nested or tensor.layout is not torch.strided:
        return "it is not a dense tensor"
    if not tensor.is_cpu:
        return f"it is on {tensor.device}, not on the CPU"
    if tensor.dtype is not slot.dtype:
        return f"the dtype is {_dtype_name(tensor.dtype)}, not {slot.port.dtype}"
    return f"it has {tensor.dim()} dims, not {slot.rank}"


def _dtype_name(dtype: torch.dtype) -> str:
    return DTYPE_NAMES.get(dtype, str(dtype))


def _shape_text(tensor: torch.Tensor) -> str:
    return "[?]" if tensor.is_nested else str(list(tensor.shape))
