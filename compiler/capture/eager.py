"""The model itself, run as the user would, and the graph held against it at its smallest sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from compiler.capture.dynamic_dims import linear
from compiler.capture.inputs import BoundInputs, Leaf
from compiler.capture.refusals import first_line
from ir import Graph, evaluate, interpret
from ir.errors import UnsupportedError

_RTOL, _ATOL = 1e-4, 1e-5


def run_eager(model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The model's own answer; it works on copies of its buffers and of the inputs."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    args, kwargs = pytree.tree_map(
        lambda x: x.clone() if isinstance(x, torch.Tensor) else x, (tuple(args), dict(kwargs))
    )
    with torch.no_grad():
        return torch.func.functional_call(model, buffers, args, kwargs)


def check_smallest(graph: Graph, model: torch.nn.Module, bound: BoundInputs) -> None:
    """Whether the graph is the model also at sizes of 0 and 1, where the ranges allow them.

    Torch traces with larger sizes and takes each branch as if a size were never 0 or 1. Here the sample inputs
    are cut to those sizes, one dim at a time and all together, and both are run.

    Raises:
        UnsupportedError: names the dim and the size.
    """
    values = {name: v for kind in ("input", "state") for name, v in graph.arguments(kind)}
    shapes = {leaf.name: values[leaf.name].tensor.shape for leaf in bound.leaves}
    sample = _sample_sizes(bound, shapes)
    small = {n: graph.dims[n].min for n in sample if n in graph.dims and graph.dims[n].min < 2}
    for sizes in _cuts(small):
        cut = {leaf.name: _cut(leaf, shapes[leaf.name], sample | sizes) for leaf in bound.leaves}
        fault = _difference(graph, model, bound, cut)
        if fault:
            told = ", ".join(f"{name} = {size}" for name, size in sizes.items())
            hints = ", ".join(f'Dim("{name}", min=2)' for name in sizes)
            raise UnsupportedError(f"at {told} {fault}", hint=f"leave that size out: {hints}")


def _sample_sizes(bound: BoundInputs, shapes: Mapping[str, tuple[Any, ...]]) -> dict[str, int]:
    sizes = {}
    for leaf in bound.leaves:
        for axis in leaf.dims:
            name, factor, offset = linear(shapes[leaf.name][axis])
            sizes[name] = (leaf.tensor.shape[axis] - offset) // factor
    return sizes


def _cuts(small: Mapping[str, int]) -> Iterator[dict[str, int]]:
    for name, size in small.items():
        yield {name: size}
    if len(small) > 1:
        yield dict(small)


def _cut(leaf: Leaf, shape: tuple[Any, ...], sizes: Mapping[str, int]) -> torch.Tensor:
    tensor = leaf.tensor
    for axis in leaf.dims:
        tensor = tensor.narrow(axis, 0, evaluate(shape[axis], sizes))
    return tensor.clone(memory_format=torch.contiguous_format)  # strides as a caller's own tensor has them


def _difference(graph: Graph, model: torch.nn.Module, bound: BoundInputs, inputs: Mapping[str, torch.Tensor]) -> str:
    """What is wrong at these inputs; empty when nothing is."""
    tensors = iter([inputs[leaf.name] for leaf in bound.leaves])
    args, kwargs = pytree.tree_map(
        lambda x: next(tensors) if isinstance(x, torch.Tensor) else x, (bound.args, dict(bound.kwargs))
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        try:
            answer = run_eager(model, args, kwargs)
        except Exception as error:  # noqa: BLE001  (the user's model: anything can come out)
            return f"the model itself fails: {type(error).__name__}: {first_line(str(error))}"
        torch.manual_seed(0)
        try:
            results = interpret(graph, {**graph.initial, **inputs})
        except Exception as error:  # noqa: BLE001  (any failure means that the size does not work)
            return f"the captured graph fails: {first_line(str(error))}"
    want = [x for x in pytree.tree_leaves(answer) if isinstance(x, torch.Tensor)]
    got = [results[o.name] for o in graph.outputs if o.kind == "output"]
    for output, x, y in zip(graph.outputs, want, [x for x in got if isinstance(x, torch.Tensor)], strict=False):
        if x.shape != y.shape or x.dtype != y.dtype:
            return f"output {output.name!r} is {list(x.shape)}, but {list(y.shape)} as captured"
        if not torch.allclose(x, y, _RTOL, _ATOL, equal_nan=True):
            return f"output {output.name!r} differs from what was captured"
    return ""
