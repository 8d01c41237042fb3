"""Example inputs of a model: bound to ``forward``, flattened, each axis with its dynamic dim."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from compiler.spec import Dim
from ir.dims import is_data_symbol
from ir.errors import UsageError, nearest

_CONSTANTS = (bool, int, float, str, type(None), torch.dtype, torch.device)


@dataclass(frozen=True)
class Leaf:
    """One tensor among the example inputs.

    Attributes:
        name: of the graph input: ``ks_0``.
        label: as the user would write it: ``ks[0]``.
        dims: the dynamic axes.
    """

    name: str
    label: str
    tensor: torch.Tensor
    dims: Mapping[int, Dim]


@dataclass(frozen=True)
class BoundInputs:
    """Example inputs as ``torch.export`` wants them: ``args`` only for positional-only parameters."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    named: Mapping[str, Any]
    leaves: tuple[Leaf, ...]
    rest: str | None
    """Name of the parameter that takes ``**`` arguments, and which arguments it takes."""
    in_rest: frozenset[str]

    @property
    def dims(self) -> dict[str, Dim]:
        """Every dynamic dim by name."""
        return {dim.name: dim for leaf in self.leaves for dim in leaf.dims.values()}

    def torch_shapes(self, made: Mapping[str, Any]) -> dict[str, Any]:
        """``dynamic_shapes`` of ``torch.export``, given torch's Dim (or expression) for each name."""
        axes = iter([{axis: made[dim.name] for axis, dim in leaf.dims.items()} or None for leaf in self.leaves])
        shapes: dict[str, Any] = {}
        for name, value in self.named.items():
            spec = pytree.tree_map(lambda x: next(axes) if isinstance(x, torch.Tensor) else None, value)
            if name in self.in_rest and self.rest is not None:
                shapes.setdefault(self.rest, {})[name] = spec
            else:
                shapes[name] = spec
        return shapes


def flatten_inputs(inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors of nested inputs by the name of their graph input: ``{"ks": [a, b]} -> {"ks_0": a, "ks_1": b}``."""
    return {"_".join(map(str, keys)): leaf for keys, leaf in _walk(inputs) if isinstance(leaf, torch.Tensor)}


def bind_inputs(
    model: torch.nn.Module, example_inputs: Any, dynamic_shapes: Mapping[str, Any] | None = None
) -> BoundInputs:
    """Fit example inputs and dynamic dims to the signature of ``model.forward``.

    Args:
        model: its ``forward`` names the arguments.
        example_inputs: a mapping by argument name, or a tensor or sequence by position.
        dynamic_shapes: argument name -> axis -> ``Dim``, nested as the argument is.

    Raises:
        UsageError: names every argument, axis or dim that does not fit.
    """
    parameters = inspect.signature(model.forward).parameters
    named = _named(parameters, example_inputs)
    shapes = dict(dynamic_shapes or {})
    _same_arguments(parameters, named, shapes)
    rest = next((p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD), None)
    ordered = {n: named[n] for n in parameters if n in named}
    extra = {n: v for n, v in named.items() if n not in ordered}
    ordered.update(extra)
    leaves = tuple(_leaves(ordered, shapes))
    _check_dims(leaves)
    only_positional = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_ONLY and n in ordered]
    return BoundInputs(
        args=tuple(ordered[n] for n in only_positional),
        kwargs={n: v for n, v in ordered.items() if n not in only_positional},
        named=ordered,
        leaves=leaves,
        rest=rest,
        in_rest=frozenset(extra),
    )


def leaf_names(in_spec: Any, bound: BoundInputs) -> list[str]:
    """The name of each input of an exported program, in its order."""
    count = in_spec.num_leaves
    args, kwargs = pytree.tree_unflatten(list(range(count)), in_spec)
    named = dict(zip(bound.named, args, strict=False)) | kwargs
    names = {leaf: "_".join(map(str, keys)) for keys, leaf in _walk(named)}
    return [names[i] for i in range(count)]


def _named(parameters: Mapping[str, inspect.Parameter], inputs: Any) -> dict[str, Any]:
    if isinstance(inputs, Mapping):
        return dict(inputs)
    values = [inputs] if isinstance(inputs, torch.Tensor) else inputs
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise UsageError(
            f"example inputs are {type(inputs).__name__}", hint='give a tensor per argument: {"input_ids": tensor}'
        )
    places = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(values) > len(places):
        raise UsageError(f"{len(values)} example inputs, but forward takes {len(places)}: {', '.join(places)}")
    return dict(zip(places, values, strict=False))


def _same_arguments(
    parameters: Mapping[str, inspect.Parameter], named: Mapping[str, Any], shapes: Mapping[str, Any]
) -> None:
    kinds = {p.kind for p in parameters.values()}
    known = [n for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = [n for n in known if parameters[n].default is inspect.Parameter.empty]
    faults = []
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        faults += [f"forward has no argument {n!r}; {nearest(n, known)}" for n in named if n not in known]
    faults += [f"no example input for argument {n!r} of forward" for n in required if n not in named]
    faults += [
        f"dynamic_shapes names {n!r}, which is no example input; {nearest(n, list(named))}"
        for n in shapes
        if n not in named
    ]
    if faults:
        raise UsageError("the inputs do not fit the model:\n" + "\n".join(f"  - {f}" for f in faults))


def _walk(tree: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    for path, leaf in pytree.tree_flatten_with_path(tree)[0]:
        yield tuple(getattr(k, "key", getattr(k, "idx", getattr(k, "name", ""))) for k in path), leaf


def _label(keys: Sequence[Any]) -> str:
    return str(keys[0]) + "".join(f"[{k!r}]" for k in keys[1:])


def _leaves(named: Mapping[str, Any], shapes: Mapping[str, Any]) -> Iterator[Leaf]:
    for argument, value in named.items():
        for keys, leaf in _walk({argument: value}):
            label = _label(keys)
            if isinstance(leaf, torch.Tensor):
                yield Leaf("_".join(map(str, keys)), label, leaf, _axes(shapes.get(argument), keys, label, leaf))
            elif not isinstance(leaf, _CONSTANTS):
                raise UsageError(
                    f"example input {label} is a {type(leaf).__name__}",
                    hint="pass tensors, lists or dicts of tensors; let a wrapper of the model build the rest",
                )


def _axes(spec: Any, keys: Sequence[Any], label: str, tensor: torch.Tensor) -> dict[int, Dim]:
    """Dims of one tensor. Axes given for a list or dict of tensors hold for each of them."""
    for key in keys[1:]:
        if spec is None or _is_axes(spec):
            break
        try:
            spec = spec[key]
        except (KeyError, IndexError, TypeError):
            spec = None if isinstance(spec, Mapping) else spec
    if spec is None:
        return {}
    if not _is_axes(spec):
        raise UsageError(
            f"dynamic_shapes of {label} is {spec!r}",
            hint='write {axis: penstock.Dim("name", min, max)}, nested as the input is',
        )
    faults = [axis for axis in spec if not -tensor.dim() <= axis < tensor.dim()]
    if faults:
        raise UsageError(f"dynamic_shapes of {label} names axis {faults[0]}, but its shape is {list(tensor.shape)}")
    return {axis % tensor.dim(): dim for axis, dim in spec.items() if dim is not None}


def _is_axes(spec: Any) -> bool:
    return isinstance(spec, Mapping) and all(
        isinstance(axis, int) and (dim is None or isinstance(dim, Dim)) for axis, dim in spec.items()
    )


def _check_dims(leaves: Sequence[Leaf]) -> None:
    """Every fault of the dims at once."""
    seen: dict[str, tuple[Dim, int, str]] = {}
    names = [leaf.name for leaf in leaves]
    faults = [f"two inputs would be named {n!r}" for n in dict.fromkeys(names) if names.count(n) > 1]
    for leaf in leaves:
        for axis, dim in leaf.dims.items():
            size, place = leaf.tensor.shape[axis], f"{leaf.label} axis {axis}"
            known, before, where = seen.setdefault(dim.name, (dim, size, place))
            if known != dim:
                faults.append(f"dim {dim.name!r} has two ranges: {known} and {dim}")
            elif before != size:
                faults.append(f"dim {dim.name!r} is {before} in {where}, but {size} in {place}")
            elif where == place:
                faults += _faults_of(dim, size, place)
    if faults:
        raise UsageError("the dynamic dims do not fit:\n" + "\n".join(f"  - {f}" for f in faults))


def _faults_of(dim: Dim, size: int, place: str) -> Iterator[str]:
    if not dim.name.isidentifier() or keyword.iskeyword(dim.name) or is_data_symbol(dim.name):
        yield f"{dim.name!r} cannot name a dim: use a word such as batch or seq (u0, u1, ... are taken)"
    if dim.min < 0 or (dim.max is not None and dim.max < max(dim.min, 2)):
        yield f"the range of dim {dim.name!r}, {dim.min} to {dim.max}, leaves it no room to move"
    elif size < 2:
        yield (
            f"{place} is dynamic ({dim.name!r}) but its sample size is {size}: "
            "pass a sample of 2 or more there, torch.export takes 0 and 1 for constants"
        )
    elif size < dim.min or (dim.max is not None and size > dim.max):
        yield f"the sample size of {place} is {size}, outside of dim {dim.name!r} ({dim.min} to {dim.max})"
