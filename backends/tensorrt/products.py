"""Matrix products and convolutions, pools and resizing, normalisation."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from backends.arguments import Refused
from backends.tensorrt.layers import (
    alike,
    cast,
    constant,
    ew,
    heavy,
    matmul,
    rank,
    reduce,
    refuse_turing,
    reshape,
    scalar,
    squeeze,
    unary,
    unsqueeze,
)
from backends.tensorrt.network import Kind, NetworkScope

Attributes = Mapping[str, Any]
Names = Sequence[str]


def product(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``MatMul``; a transposed weight is read as it lies."""
    a, turned = s.read(names[0]), False
    source, order = s.permuted(names[1])
    if order is not None and s.is_constant(source) and list(order[-2:]) == [len(order) - 1, len(order) - 2]:
        turned = list(order[:-2]) == list(range(len(order) - 2))
    b = s.read(source if turned else names[1])
    if not s.type_of(a).is_floating_point:
        raise Refused("a product of whole numbers; cast to float32 before")
    vectors = rank(a) == 1, rank(b) == 1
    a = unsqueeze(s, a, [0]) if vectors[0] else a
    b = unsqueeze(s, b, [1]) if vectors[1] else b
    a, b = alike(s, a, b)
    made = matmul(s, a, b, turned)
    gone = [-2] * vectors[0] + [-1] * vectors[1]
    return squeeze(s, made, gone) if gone else made


def einsum(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``Einsum``: dots are spelled out."""
    tensors = [s.read(n) for n in names]
    left, _, result = attributes["equation"].partition("->")
    terms = left.split(",")
    dots = max(rank(t) - len(w.replace("...", "")) if "..." in w else 0 for t, w in zip(tensors, terms, strict=True))
    spare = [c for c in string.ascii_letters if c not in attributes["equation"]][:dots]
    spelled = []
    for tensor, term in zip(tensors, terms, strict=True):
        own = rank(tensor) - len(term.replace("...", ""))
        spelled.append(term.replace("...", "".join(spare[dots - own :])))
    if "->" in attributes["equation"]:
        result = result.replace("...", "".join(spare))
    else:
        letters = "".join(spelled)
        result = "".join(spare) + "".join(sorted(c for c in set(letters) if letters.count(c) == 1 and c not in spare))
    if any(len(set(term)) < len(term) for term in spelled):
        raise Refused("an einsum that takes a diagonal")
    refuse_turing(s, tensors[0])
    equation = ",".join(spelled) + "->" + result
    return heavy(s, s.network.definition.add_einsum(tensors, equation), "einsum")


def _planar(s: NetworkScope, x: Any, run: Callable[[Any], Any]) -> Any:
    """One spatial dim becomes two for the time: TensorRT convolves planes and volumes."""
    return squeeze(s, run(unsqueeze(s, x, [2])), [2]) if rank(x) == 3 else run(x)


def convolution(turned: bool) -> Kind:
    """``Conv``, ``ConvTranspose``."""

    def make(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
        x, weight = s.read(names[0]), s.read(names[1])
        flat = rank(x) == 3
        spread = [1] if flat else []
        weight = unsqueeze(s, weight, [2]) if flat else weight
        kernel = tuple(spread + list(attributes["kernel_shape"]))
        groups = attributes.get("group", 1)
        maps = weight.shape[1] * groups if turned else weight.shape[0]
        pads = list(attributes["pads"])
        half = len(pads) // 2
        no = [0] if flat else []
        extra = no + list(attributes.get("output_padding", [0] * half))

        def run(plane: Any) -> Any:
            definition = s.network.definition
            add = definition.add_deconvolution_nd if turned else definition.add_convolution_nd
            layer = add(plane, maps, kernel, s.trt.Weights(), s.trt.Weights())
            layer.set_input(1, weight)
            if len(names) > 2 and names[2]:
                layer.set_input(2, s.read(names[2]))
            layer.stride_nd = tuple(spread + list(attributes["strides"]))
            layer.dilation_nd = tuple(spread + list(attributes["dilations"]))
            layer.pre_padding = tuple(no + pads[:half])
            layer.post_padding = tuple(p - e for p, e in zip(no + pads[half:], extra, strict=True))
            layer.num_groups = groups
            return heavy(s, layer, "convolution")

        if turned and any(e > p for p, e in zip(no + pads[half:], extra, strict=True)):
            raise Refused("a transposed convolution with more output padding than padding")
        return _planar(s, x, run)

    return make


def pool(kind: str) -> Kind:
    """``MaxPool``, ``AveragePool``."""

    def make(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
        x = s.read(names[0])
        flat = rank(x) == 3
        one, no = ([1], [0]) if flat else ([], [])
        if any(d != 1 for d in attributes.get("dilations", ())):
            raise Refused("a dilated max pool")
        window = tuple(one + list(attributes["kernel_shape"]))
        pads = list(attributes.get("pads", [0] * (2 * (rank(x) - 2))))
        half = len(pads) // 2
        up = bool(attributes.get("ceil_mode"))
        if up and kind == "AVERAGE":
            raise Refused("an average pool with ceil_mode, which TensorRT divides otherwise")

        def run(plane: Any) -> Any:
            layer = s.network.definition.add_pooling_nd(plane, getattr(s.trt.PoolingType, kind), window)
            layer.stride_nd = tuple(one + list(attributes.get("strides", attributes["kernel_shape"])))
            layer.pre_padding, layer.post_padding = tuple(no + pads[:half]), tuple(no + pads[half:])
            modes = s.trt.PaddingMode
            layer.padding_mode = modes.EXPLICIT_ROUND_UP if up else modes.EXPLICIT_ROUND_DOWN
            if kind == "AVERAGE":
                layer.average_count_excludes_padding = not attributes.get("count_include_pad")
            return s.layer(layer)

        return _planar(s, x, run)

    return make


def resize(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``Resize`` by factors or to sizes."""
    x = s.read(names[0])
    layer = s.network.definition.add_resize(x)
    mode = attributes.get("mode", "nearest")
    layer.resize_mode = getattr(s.trt.InterpolationMode, mode.upper())
    transform = attributes.get("coordinate_transformation_mode", "half_pixel").upper()
    layer.coordinate_transformation = getattr(s.trt.ResizeCoordinateTransformation, transform)
    rounding = {"floor": "FLOOR", "round_prefer_ceil": "HALF_UP"}
    if mode == "nearest":
        layer.nearest_rounding = getattr(s.trt.ResizeRoundMode, rounding[attributes["nearest_mode"]])
    if mode == "cubic":
        layer.cubic_coeff = attributes.get("cubic_coeff_a", -0.75)
    if len(names) > 3 and names[3]:
        if s.is_constant(names[3]):
            layer.shape = tuple(s.literal(names[3]))
        else:
            layer.set_input(1, s.read(names[3]))
    else:
        layer.scales = [float(f) for f in s.network.constants[names[2]].tolist()]
    return s.layer(layer)


def layer_normalization(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``LayerNormalization`` over the last dims."""
    x, scale = s.read(names[0]), s.read(names[1])
    axis = attributes.get("axis", -1) % rank(x)
    if len(names) > 2 and names[2]:
        shift = s.read(names[2])
    else:
        shift = scalar(s, "PROD", scale, 0.0) if not s.is_constant(names[1]) else constant(
            s, torch.zeros(tuple(scale.shape)), s.type_of(scale))  # fmt: skip
    return normalize(s, x, scale, shift, range(axis, rank(x)), attributes.get("epsilon", 1e-5))


def normalize(s: NetworkScope, x: Any, scale: Any, shift: Any, axes: Sequence[int], eps: float) -> Any:
    """The native layer, which wants scale and shift of the rank of ``x``."""
    _, scale, shift = alike(s, x, scale, shift)
    definition = s.network.definition
    add = getattr(definition, "add_normalization_v2", None) or definition.add_normalization
    layer = add(x, scale, shift, sum(1 << a for a in axes))
    if layer is not None:
        layer.epsilon = eps
    return s.layer(layer)


def instance_normalization(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``InstanceNormalization`` from its parts; half precisions in f32."""
    x = s.read(names[0])
    dtype = s.type_of(x)
    axes = list(range(2, rank(x)))
    wide = cast(s, x, torch.float32)
    gap = ew(s, "SUB", wide, reduce(s, "AVG", wide, axes, True))
    variance = reduce(s, "AVG", ew(s, "PROD", gap, gap), axes, True)
    made = ew(s, "DIV", gap, unary(s, "SQRT", scalar(s, "SUM", variance, attributes.get("epsilon", 1e-5))))
    scale, shift = (
        cast(s, reshape(s, s.read(n), [-1, *[1] * (rank(x) - 2)]), torch.float32) for n in (names[1], names[2])
    )
    return cast(s, ew(s, "SUM", ew(s, "PROD", made, scale), shift), dtype)


def batch_normalization(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``BatchNormalization``: one factor and one term per channel, computed here when they are constants."""
    x = s.read(names[0])
    dtype, eps = s.type_of(x), attributes.get("epsilon", 1e-5)
    spread = [-1, *[1] * (rank(x) - 2)]
    found = s.small(*names[1:5])
    if found is not None:
        scale, shift, mean, variance = (t.double() for t in found)
        factor = scale / (variance + eps).sqrt()
        factors = (
            constant(s, factor.reshape(spread), dtype),
            constant(s, (shift - mean * factor).reshape(spread), dtype),
        )
        return ew(s, "SUM", ew(s, "PROD", x, factors[0]), factors[1])
    scale_, shift_, mean_, variance_ = (cast(s, reshape(s, s.read(n), spread), torch.float32) for n in names[1:5])
    factor_ = ew(s, "DIV", scale_, unary(s, "SQRT", scalar(s, "SUM", variance_, eps)))
    gap = ew(s, "SUB", cast(s, x, torch.float32), mean_)
    return cast(s, ew(s, "SUM", ew(s, "PROD", gap, factor_), shift_), dtype)


PRODUCTS: Mapping[str, Kind] = {
    "MatMul": product,
    "Einsum": einsum,
    "Conv": convolution(turned=False),
    "ConvTranspose": convolution(turned=True),
    "MaxPool": pool("MAX"),
    "AveragePool": pool("AVERAGE"),
    "Resize": resize,
    "LayerNormalization": layer_normalization,
    "InstanceNormalization": instance_normalization,
    "BatchNormalization": batch_normalization,
}
