"""What each layer of a network computes, in torch. Written from TensorRT's documentation, not from our emission."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor

from backends.tensorrt.library import torch_type

Rule = Callable[[Any, Any, Sequence[Any]], Any]
"""``(package, layer, inputs)`` to one tensor or a list of them; an input that is not given is ``None``."""


def _axes(mask: int) -> list[int]:
    return [i for i in range(32) if mask >> i & 1]


def _word(member: Any) -> str:
    return str(member).rpartition(".")[2]


def _elementwise(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    a, b = inputs
    assert a.dim() == b.dim() and a.dtype == b.dtype, f"{layer.name}: {a.dtype}{a.shape} against {b.dtype}{b.shape}"
    whole = not a.dtype.is_floating_point
    rules: Mapping[str, Callable[[], Tensor]] = {
        "SUM": lambda: a + b, "SUB": lambda: a - b, "PROD": lambda: a * b,
        "DIV": lambda: torch.div(a, b, rounding_mode="trunc") if whole else a / b,
        "FLOOR_DIV": lambda: torch.div(a, b, rounding_mode="floor"),
        "MAX": lambda: torch.maximum(a, b) if whole else torch.fmax(a, b),
        "MIN": lambda: torch.minimum(a, b) if whole else torch.fmin(a, b),
        "POW": lambda: torch.pow(a, b), "AND": lambda: a & b, "OR": lambda: a | b, "XOR": lambda: a ^ b,
        "EQUAL": lambda: a == b, "LESS": lambda: a < b, "GREATER": lambda: a > b,
    }  # fmt: skip
    return rules[_word(layer.op)]()


_UNARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "ABS": torch.abs, "ACOS": torch.acos, "ACOSH": torch.acosh, "ASIN": torch.asin, "ASINH": torch.asinh,
    "ATAN": torch.atan, "ATANH": torch.atanh, "CEIL": torch.ceil, "COS": torch.cos, "COSH": torch.cosh,
    "ERF": torch.erf, "EXP": torch.exp, "FLOOR": torch.floor, "ISINF": torch.isinf, "ISNAN": torch.isnan,
    "LOG": torch.log, "NEG": torch.neg, "NOT": torch.logical_not, "RECIP": torch.reciprocal, "ROUND": torch.round,
    "SIGN": torch.sign, "SIN": torch.sin, "SINH": torch.sinh, "SQRT": torch.sqrt, "TAN": torch.tan,
}  # fmt: skip


def _unary(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    return _UNARY[_word(layer.op)](inputs[0])


def _activation(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    x, alpha, beta = inputs[0], layer.alpha, layer.beta
    rules: Mapping[str, Callable[[], Tensor]] = {
        "RELU": lambda: torch.relu(x), "SIGMOID": lambda: torch.sigmoid(x), "TANH": lambda: torch.tanh(x),
        "ELU": lambda: torch.where(x >= 0, x, alpha * torch.expm1(x)),
        "SELU": lambda: torch.where(x >= 0, beta * x, beta * alpha * torch.expm1(x)),
        "LEAKY_RELU": lambda: torch.where(x >= 0, x, alpha * x),
        "SOFTPLUS": lambda: alpha * F.softplus(beta * x, threshold=80.0),
        "HARD_SIGMOID": lambda: (alpha * x + beta).clamp(0, 1),
        "GELU_ERF": lambda: F.gelu(x), "GELU_TANH": lambda: F.gelu(x, approximate="tanh"),
        "CLIP": lambda: x.clamp(alpha, beta),
    }  # fmt: skip
    return rules[_word(layer.type)]()


def _reduce(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    x, axes, keep = inputs[0], _axes(layer.axes), layer.keep_dims
    kind = _word(layer.op)
    if kind == "PROD":
        for axis in sorted(axes, reverse=True):
            x = x.prod(axis, keepdim=keep, dtype=x.dtype)
        return x
    if kind in ("MAX", "MIN"):
        return x.amax(axes, keepdim=keep) if kind == "MAX" else x.amin(axes, keepdim=keep)
    total = x.sum(axes, keepdim=keep, dtype=x.dtype)
    return total if kind == "SUM" else total / math.prod(x.shape[a] for a in axes)


def _matmul(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    sides = []
    for x, how in zip(inputs, (layer.op0, layer.op1), strict=True):
        sides.append(x.transpose(-1, -2) if _word(how) == "TRANSPOSE" else x)
    assert sides[0].dim() == sides[1].dim() and sides[0].dtype == sides[1].dtype, layer.name
    return sides[0] @ sides[1]


def _shuffle(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    x = inputs[0]
    want: list[int] | None
    order = list(layer.first_transpose)[: x.dim()]
    x = x.permute(order) if order and order != list(range(x.dim())) else x
    if len(inputs) > 1 and inputs[1] is not None:
        want = [int(v) for v in inputs[1]]
    else:
        want = _dims(layer.reshape_dims)
    if want is not None:
        if layer.zero_is_placeholder:
            want = [x.shape[i] if d == 0 else d for i, d in enumerate(want)]
        x = x.reshape(want)
    order = list(layer.second_transpose)[: x.dim()]
    return x.permute(order) if order and order != list(range(x.dim())) else x


def _dims(dims: Any) -> list[int] | None:
    """``None`` for dims that were never set."""
    return None if dims is None else [int(d) for d in dims]


def _slice(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    x = inputs[0]
    given = [*inputs, *[None] * (6 - len(inputs))]
    plain = [layer.start, layer.shape, layer.stride]
    start, size, stride = ([int(v) for v in (given[i + 1] if given[i + 1] is not None else plain[i])] for i in range(3))
    mode = _word(layer.mode)
    outside = torch.zeros((), dtype=torch.bool)
    for axis, (begin, count, step) in enumerate(zip(start, size, stride, strict=True)):
        have = x.shape[axis]
        if (begin, count, step) == (0, have, 1):
            continue
        places = begin + step * torch.arange(count)
        if mode == "STRICT_BOUNDS":
            assert not count or (int(places.min()) >= 0 and int(places.max()) < have), f"{layer.name}: out of bounds"
        elif mode == "WRAP":
            places = places % have
        elif mode == "CLAMP":
            places = places.clamp(0, have - 1)
        elif mode == "REFLECT":
            period = max(2 * (have - 1), 1)
            places = places % period
            places = torch.where(places >= have, period - places, places)
        else:
            beyond = (places < 0) | (places >= have)
            outside = outside | beyond.reshape([-1] + [1] * (x.dim() - axis - 1))
            places = places.clamp(0, max(have - 1, 0))
        x = x.index_select(axis, places)
    if mode == "FILL" and bool(outside.any()):
        x = torch.where(outside, torch.zeros((), dtype=x.dtype) if given[4] is None else given[4], x)
    return x


def _concat(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    assert len({t.dtype for t in inputs}) == 1, layer.name
    return torch.cat(list(inputs), layer.axis)


def _select(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    condition, a, b = inputs
    assert condition.dtype == torch.bool and a.dtype == b.dtype and condition.dim() == a.dim() == b.dim(), layer.name
    return torch.where(condition, a, b)


def _gather(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    x, places = inputs
    assert not places.numel() or int(places.min()) >= 0, f"{layer.name}: negative index"
    mode, axis, places = _word(layer.mode), layer.axis, places.long()
    if mode == "ELEMENT":
        return x.gather(axis, places)
    if mode == "ND":
        return x[tuple(places.unbind(-1))]
    return x.index_select(axis, places.reshape(-1)).reshape((*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]))


def _scatter(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    x, places, updates = inputs
    assert x.dtype == updates.dtype, layer.name
    if _word(layer.mode) == "ELEMENT":
        return x.scatter(layer.axis, places.long(), updates)
    return x.index_put(tuple(places.long().unbind(-1)), updates)


def _topk(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    count = int(inputs[1]) if len(inputs) > 1 and inputs[1] is not None else layer.k
    (axis,) = _axes(layer.axes)
    values, places = torch.sort(inputs[0], dim=axis, descending=_word(layer.op) == "MAX", stable=True)
    return [values.narrow(axis, 0, count), places.narrow(axis, 0, count).to(torch.int32)]


def _fill(trt: Any, layer: Any, inputs: Sequence[Any]) -> Tensor:
    shape = [int(v) for v in inputs[0]]
    (count,) = shape
    numbers = torch.arange(count, dtype=torch.float64 if inputs[1].dtype.is_floating_point else torch.int64)
    return (numbers * inputs[2].to(numbers.dtype) + inputs[1].to(numbers.dtype)).to(inputs[1].dtype)


def _convolution(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    x, weight = inputs[:2]
    bias = inputs[2] if len(inputs) > 2 else None
    before, after = list(layer.pre_padding), list(layer.post_padding)
    pads = [p for b, a in zip(reversed(before), reversed(after), strict=True) for p in (b, a)]
    run = {2: F.conv2d, 3: F.conv3d}[weight.dim() - 2]
    return run(F.pad(x, pads), weight, bias, stride=tuple(layer.stride_nd), dilation=tuple(layer.dilation_nd),
               groups=layer.num_groups)  # fmt: skip


def _deconvolution(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    x, weight = inputs[:2]
    run = {2: F.conv_transpose2d, 3: F.conv_transpose3d}[weight.dim() - 2]
    made = run(x, weight, None, stride=tuple(layer.stride_nd), dilation=tuple(layer.dilation_nd),
               groups=layer.num_groups)  # fmt: skip
    for axis, (before, after) in enumerate(zip(layer.pre_padding, layer.post_padding, strict=True)):
        made = made.narrow(axis + 2, before, made.shape[axis + 2] - before - after)
    if len(inputs) > 2:
        made = made + inputs[2].reshape(1, -1, *[1] * (made.dim() - 2))
    return made


def _pooling(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    x, window, stride = inputs[0], list(layer.window_size_nd), list(layer.stride_nd)
    before, after = list(layer.pre_padding), list(layer.post_padding)
    assert before == after, layer.name
    up = _word(layer.padding_mode) == "EXPLICIT_ROUND_UP"
    flat = {2: (F.max_pool2d, F.avg_pool2d), 3: (F.max_pool3d, F.avg_pool3d)}[len(window)]
    if _word(layer.type) == "MAX":
        return flat[0](x, window, stride, before, ceil_mode=up)
    return flat[1](x, window, stride, before, up, not layer.average_count_excludes_padding)


def _resize(trt: Any, layer: Any, inputs: Sequence[Any]) -> Tensor:
    """Each dim by itself: source places from the documented formulas, then a gather or a weighted sum."""
    x = inputs[0]
    if len(inputs) > 1 and inputs[1] is not None:
        sizes = [int(v) for v in inputs[1]]
        scales = [n / o for n, o in zip(sizes, x.shape, strict=True)]
    elif layer.scales:
        scales = [float(v) for v in layer.scales]
        sizes = [math.floor(d * f) for d, f in zip(x.shape, scales, strict=True)]
    else:
        sizes = list(layer.shape)
        scales = [n / o for n, o in zip(sizes, x.shape, strict=True)]
    how, mode = _word(layer.coordinate_transformation), _word(layer.resize_mode)
    rounding = _word(layer.nearest_rounding)
    for axis, (new, factor) in enumerate(zip(sizes, scales, strict=True)):
        old = x.shape[axis]
        if old == new:
            continue
        out = torch.arange(new, dtype=torch.float64)
        if how == "ALIGN_CORNERS":
            at = out * ((old - 1) / (new - 1) if new > 1 else 0.0)
        else:
            at = (out + 0.5) / factor - 0.5 if how == "HALF_PIXEL" else out / factor
        x = _sampled(x, axis, at, mode, rounding, layer.cubic_coeff)
    return x


def _sampled(x: Tensor, axis: int, at: Tensor, mode: str, rounding: str, coefficient: float) -> Tensor:
    old = x.shape[axis]
    spread = [-1] + [1] * (x.dim() - axis - 1)
    if mode == "NEAREST":
        places = {"FLOOR": at.floor(), "CEIL": at.ceil(), "HALF_UP": (at + 0.5).floor(),
                  "HALF_DOWN": (at - 0.5).ceil()}[rounding]  # fmt: skip
        return x.index_select(axis, places.long().clamp(0, old - 1))
    if mode == "LINEAR":
        at = at.clamp(0, old - 1)
        offsets, low = [0, 1], at.floor()
        part = at - low
        weights = [1 - part, part]
    else:
        offsets, low = [-1, 0, 1, 2], at.floor()
        part, a = at - low, coefficient

        def near(t: Tensor) -> Tensor:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1

        def far(t: Tensor) -> Tensor:
            return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a

        weights = [far(part + 1), near(part), near(1 - part), far(2 - part)]
    made = torch.zeros((), dtype=x.dtype)
    for offset, weight in zip(offsets, weights, strict=True):
        taken = x.index_select(axis, (low.long() + offset).clamp(0, old - 1))
        made = made + taken * weight.to(x.dtype).reshape(spread)
    return made


def _normalization(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    x, scale, shift = inputs
    axes = _axes(layer.axes)
    assert layer.num_groups == 1 and scale.dim() == shift.dim() == x.dim(), layer.name
    wide = x.float()
    gap = wide - wide.mean(axes, keepdim=True)
    made = gap * torch.rsqrt((gap * gap).mean(axes, keepdim=True) + layer.epsilon)
    return (made * scale.float() + shift.float()).to(x.dtype)


def _softmax(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    (axis,) = _axes(layer.axes)
    return torch.softmax(inputs[0], axis)


def _cumulative(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    assert not layer.exclusive and not layer.reverse
    return torch.cumsum(inputs[0], int(inputs[1]), dtype=inputs[0].dtype)


def _cast(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0].to(torch_type(trt, layer.to_type))


def _squeeze(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0].squeeze([int(v) for v in inputs[1]])


def _unsqueeze(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    made = inputs[0]
    total = made.dim() + len(inputs[1])
    for axis in sorted(int(v) % total for v in inputs[1]):
        made = made.unsqueeze(axis)
    return made


RULES: Mapping[str, Rule] = {
    "ELEMENTWISE": _elementwise,
    "UNARY": _unary,
    "ACTIVATION": _activation,
    "REDUCE": _reduce,
    "MATRIX_MULTIPLY": _matmul,
    "SHUFFLE": _shuffle,
    "SLICE": _slice,
    "CONCATENATION": _concat,
    "SELECT": _select,
    "GATHER": _gather,
    "SCATTER": _scatter,
    "TOPK": _topk,
    "FILL": _fill,
    "CONVOLUTION": _convolution,
    "DECONVOLUTION": _deconvolution,
    "POOLING": _pooling,
    "RESIZE": _resize,
    "NORMALIZATION": _normalization,
    "SOFTMAX": _softmax,
    "CUMULATIVE": _cumulative,
    "CAST": _cast,
    "SQUEEZE": _squeeze,
    "UNSQUEEZE": _unsqueeze,
    "IDENTITY": lambda trt, layer, inputs: inputs[0],
    "SHAPE": lambda trt, layer, inputs: torch.tensor(inputs[0].shape, dtype=torch.int64),
    "EINSUM": lambda trt, layer, inputs: torch.einsum(layer.equation, *inputs),
}
