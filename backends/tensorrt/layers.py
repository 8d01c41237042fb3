"""Short words for layers on tensors: ranks made equal, numbers made constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from backends.arguments import Refused
from backends.tensorrt.network import NetworkScope

_TURING = 75


def constant(s: NetworkScope, value: Any, dtype: torch.dtype) -> Any:
    """A literal as a tensor."""
    return s.read(s.const(value, dtype))


def ints(s: NetworkScope, *values: int) -> Any:
    """A vector of int64."""
    return constant(s, torch.tensor(values, dtype=torch.int64), torch.int64)


def rank(tensor: Any) -> int:
    """Number of dims."""
    return len(tensor.shape)


def unsqueeze(s: NetworkScope, tensor: Any, axes: Sequence[int]) -> Any:
    """New dims of one, by their places in the result."""
    if not axes:
        return tensor
    total = rank(tensor) + len(axes)
    places = sorted(a % total for a in axes)
    shape = list(tensor.shape)
    for place in places:
        shape.insert(place, 1)
    if sum(d < 0 for d in shape) <= 1:
        return reshape(s, tensor, shape)
    return s.layer(s.network.definition.add_unsqueeze(tensor, ints(s, *places)))


def squeeze(s: NetworkScope, tensor: Any, axes: Sequence[int]) -> Any:
    """Without dims of one."""
    gone = {a % rank(tensor) for a in axes}
    if not gone:
        return tensor
    shape = [d for i, d in enumerate(tensor.shape) if i not in gone]
    if sum(d < 0 for d in shape) <= 1:
        return reshape(s, tensor, shape)
    return s.layer(s.network.definition.add_squeeze(tensor, ints(s, *sorted(gone))))


def reshape(s: NetworkScope, tensor: Any, shape: Sequence[int], zero_keeps: bool = False) -> Any:
    """Another shape, known but for one -1."""
    layer = s.network.definition.add_shuffle(tensor)
    layer.zero_is_placeholder = zero_keeps
    layer.reshape_dims = tuple(shape)
    return s.layer(layer)


def reshape_to(s: NetworkScope, tensor: Any, shape: Any, zero_keeps: bool = False) -> Any:
    """Another shape, given by a vector of the network."""
    layer = s.network.definition.add_shuffle(tensor)
    layer.zero_is_placeholder = zero_keeps
    layer.set_input(1, shape)
    return s.layer(layer)


def permute(s: NetworkScope, tensor: Any, order: Sequence[int]) -> Any:
    """Dims in another order."""
    layer = s.network.definition.add_shuffle(tensor)
    layer.first_transpose = tuple(order)
    return s.layer(layer)


def alike(s: NetworkScope, *tensors: Any) -> list[Any]:
    """The same tensors with dims of one in front, all of the rank of the largest."""
    most = max(map(rank, tensors))
    return [unsqueeze(s, t, range(most - rank(t))) for t in tensors]


def ew(s: NetworkScope, operation: str, a: Any, b: Any) -> Any:
    """An elementwise layer; ranks are made equal first."""
    a, b = alike(s, a, b)
    return s.layer(s.network.definition.add_elementwise(a, b, getattr(s.trt.ElementWiseOperation, operation)))


def scalar(s: NetworkScope, operation: str, a: Any, number: float) -> Any:
    """An elementwise layer with a number of the same type on the right."""
    return ew(s, operation, a, constant(s, torch.full([1] * rank(a), number), s.type_of(a)))


def unary(s: NetworkScope, operation: str, x: Any) -> Any:
    """A unary layer."""
    return s.layer(s.network.definition.add_unary(x, getattr(s.trt.UnaryOperation, operation)))


def activation(s: NetworkScope, kind: str, x: Any, alpha: float | None = None, beta: float | None = None) -> Any:
    """An activation layer."""
    layer = s.network.definition.add_activation(x, getattr(s.trt.ActivationType, kind))
    if layer is not None and alpha is not None:
        layer.alpha = alpha
    if layer is not None and beta is not None:
        layer.beta = beta
    return s.layer(layer)


def select(s: NetworkScope, condition: Any, a: Any, b: Any) -> Any:
    """``a`` where the condition holds, else ``b``."""
    condition, a, b = alike(s, condition, a, b)
    return s.layer(s.network.definition.add_select(condition, a, b))


def cast(s: NetworkScope, x: Any, want: torch.dtype) -> Any:
    """Convert elements, when they differ."""
    from backends.tensorrt.library import data_type

    type_ = data_type(s.trt, want)
    return x if x.dtype == type_ else s.layer(s.network.definition.add_cast(x, type_))


def reduce(s: NetworkScope, kind: str, x: Any, axes: Sequence[int], keep: bool) -> Any:
    """A reduction over some dims."""
    mask = sum(1 << (a % rank(x)) for a in set(axes))
    return s.layer(s.network.definition.add_reduce(x, getattr(s.trt.ReduceOperation, kind), mask, keep))


def matmul(s: NetworkScope, a: Any, b: Any, turn_b: bool = False) -> Any:
    """``a @ b`` of equal batch ranks; ``turn_b`` reads ``b`` transposed."""
    refuse_turing(s, a)
    kinds = s.trt.MatrixOperation
    layer = s.network.definition.add_matrix_multiply(a, kinds.NONE, b, kinds.TRANSPOSE if turn_b else kinds.NONE)
    return heavy(s, layer, "matmul")


def refuse_turing(s: NetworkScope, x: Any) -> None:
    """Products of float32 are not built for compute capability 7.5.

    Raises:
        Refused: this is one.
    """
    if s.network.device.capability == _TURING and s.type_of(x) == torch.float32:
        raise Refused(f"{s.network.device.name} has no float32 products in TensorRT; build in float16")


def heavy(s: NetworkScope, layer: Any, word: str) -> Any:
    """The output of a layer that costs, under a name by which it is found in the built plan."""
    if layer is not None:
        layer.name = s.emission.fresh(word)
        s.network.products.append((layer.name, s.within))
    return s.layer(layer)


def shape(s: NetworkScope, x: Any) -> Any:
    """The shape as a vector of int64."""
    if all(d >= 0 for d in x.shape):
        return ints(s, *x.shape)
    return s.layer(s.network.definition.add_shape(x))


def pick(s: NetworkScope, vector: Any, places: Sequence[int]) -> Any:
    """Some elements of a vector."""
    return s.layer(s.network.definition.add_gather(vector, ints(s, *places), 0))


def join(s: NetworkScope, parts: Sequence[Any], axis: int = 0) -> Any:
    """Concatenate."""
    if len(parts) == 1:
        return parts[0]
    layer = s.network.definition.add_concatenation(list(parts))
    layer.axis = axis
    return s.layer(layer)


def cut(
    s: NetworkScope, x: Any, start: Any, size: Any, stride: Any, mode: str = "STRICT_BOUNDS", fill: Any = None
) -> Any:
    """A slice layer; each of start, size, stride is a list of numbers or a vector of the network."""
    given = [start, size, stride]
    plain = [tuple(v) if isinstance(v, (list, tuple)) else (0,) * rank(x) for v in given]
    layer = s.network.definition.add_slice(x, *plain)
    layer.mode = getattr(s.trt.SampleMode, mode)
    for place, value in enumerate(given):
        if not isinstance(value, (list, tuple)):
            layer.set_input(place + 1, value)
    if fill is not None:
        layer.set_input(4, fill)
    return s.layer(layer)
