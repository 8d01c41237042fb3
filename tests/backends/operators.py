"""The table of calls that every engine must answer as torch does."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tests.backends.cases import Call

_F32, _F64, _I64, _I32, _BOOL, _F16 = (
    torch.float32, torch.float64, torch.int64, torch.int32, torch.bool, torch.float16,
)  # fmt: skip
C = Call
FLOAT = "f32[n,4]"
MASK4 = "bool[n,1,m,m]"

POINTWISE = [
    *(C(name, FLOAT) for name in (
        "abs", "neg", "sin", "cos", "tan", "atan", "sinh", "cosh", "tanh", "asinh", "erf", "sigmoid",
        "exp", "exp2", "expm1", "floor", "ceil", "round", "trunc", "sign", "relu", "relu6", "silu",
        "gelu", "elu", "selu", "celu", "softplus", "log_sigmoid", "mish", "hardtanh", "hardsigmoid",
        "hardswish", "leaky_relu", "square", "clone", "logical_not", "special_erfc", "softshrink",
        "hardshrink", "sinc", "detach", "alias",
    )),
    *(C(name, "f32[n,4]+") for name in ("sqrt", "rsqrt", "log", "log2", "log10", "log1p", "reciprocal")),
    *(C(name, "f32[n,12]") for name in ("isnan", "isinf", "isfinite")),
    *(C(name, "f64[n]") for name in ("sin", "exp", "tanh")),
    *(C(name, "i64[n,3]") for name in ("abs", "neg", "sin", "exp", "sigmoid", "sign", "logical_not", "bitwise_not")),
    C("asin", "f32[n,3]<1"), C("gelu", FLOAT, approximate="tanh"), C("leaky_relu", FLOAT, 0.2),
    C("softplus", FLOAT, 2.0, 1.5), C("elu", FLOAT, 1.5, 1.2, 0.7), C("prelu", "f32[n,3,4]", "f32[3]"),
    C("glu", "f32[n,6]", 1), C("hardtanh", FLOAT, -2, 0.5), C("threshold", FLOAT, 0.1, -5.0),
    C("logit", "f32[n,3]<1", 0.1), C("atan2", "f32[n,9]", "f32[n,9]"), C("dropout", FLOAT, 0.5, False),
    C("bitwise_not", "bool[n]"),
    *(C(f"{n}.Tensor", FLOAT, "f32[n,1]") for n in ("add", "sub", "mul", "div", "lt", "le", "gt", "ge", "eq", "ne")),
    *(C(f"{name}.Tensor", "f32[n,4]", "i64[4]+") for name in ("add", "sub", "mul", "div", "lt", "remainder")),
    *(C(f"{name}.Tensor", "i64[n,4]", 3) for name in ("add", "mul", "div")),
    *(C(f"{name}.Tensor", "i64[n,4]", 2.5) for name in ("add", "mul", "div")),
    *(C(f"{name}.Tensor", "bool[n]", "bool[n]") for name in ("add", "mul", "eq", "ne", "lt")),
    *(C(f"{n}.Scalar", "i64[n,4]", 2) for n in ("lt", "ge", "eq", "ne", "add", "sub", "mul", "remainder", "fmod")),
    *(C(f"{name}.Scalar", "i64[n,4]", 1.5) for name in ("lt", "ge", "eq", "add")),
    *(C(f"{name}.Scalar", FLOAT, -0.7) for name in ("lt", "remainder", "fmod", "mul", "div", "rsub")),
    C("add.Tensor", FLOAT, "f32[4]", alpha=2.5), C("sub.Tensor", FLOAT, 1, alpha=3),
    C("rsub.Scalar", "i64[n]", 3, 2), C("add.Tensor", "f32[n,4]", "f64[]"),
    C("add.Tensor", "i32[n]", "i64[n]"), C("mul.Tensor", "f32[n]", "bool[n]"),
    C("add.Tensor", "i64[n]", "size:n"),
    *(C("div.Tensor_mode", "i64[n,8]", "i64[8]+", rounding_mode=mode) for mode in ("floor", "trunc", None)),
    *(C("div.Tensor_mode", "i64[n,8]", -3, rounding_mode=mode) for mode in ("floor", "trunc")),
    *(C("div.Tensor_mode", "f32[n,8]", "f32[8]", rounding_mode=mode) for mode in ("floor", "trunc")),
    C("floor_divide", "f32[n,8]", 0.1), C("floor_divide", "i64[n,8]", -2),
    C("remainder.Tensor", "i64[n,8]", "i64[8]+"), C("remainder.Scalar", "i64[n,8]", -4),
    C("remainder.Tensor", "f32[n,8]", "f32[8]"), C("fmod.Tensor", "f32[n,8]", "f32[8]"),
    *(C("pow.Tensor_Scalar", "f32[n,4]+", e) for e in (2, 0.5, -0.5, 3, 1, -1, 1.7)),
    C("pow.Tensor_Scalar", FLOAT, 2), C("pow.Tensor_Tensor", "f32[n,4]+", "f32[4]"),
    C("pow.Scalar", 2.0, FLOAT), C("pow.Tensor_Scalar", "i64[n]", 2), C("maximum", FLOAT, "f32[4]"),
    C("minimum", FLOAT, "f32[4]"), C("mul.Tensor", "i64[n]^", "i64[n]^"), C("square", "i64[n]^"),
    C("bitwise_left_shift.Tensor_Scalar", "i64[n]^", 9), C("add.Tensor", "i64[n]^", "i64[n]^", alpha=5),
    C("max.other", "i64[n,4]", "i64[4]"), C("min.other", "i64[n,4]", "i64[4]"),
    C("clamp", FLOAT, -0.5, 0.5), C("clamp", FLOAT, 0.1), C("clamp", FLOAT, None, 0.1),
    C("clamp", "i64[n,4]", -2, 3),
    C("clamp.Tensor", FLOAT, "f32[4]", None), C("clamp_min", FLOAT, 0), C("clamp_max", FLOAT, 0),
    C("where.self", "bool[n,1]", FLOAT, "f32[4]"), C("where.ScalarOther", "bool[n,4]", FLOAT, -1.0),
    C("where.ScalarSelf", "bool[n,4]", 0.0, FLOAT), C("where.self", "bool[n,4]", "i64[n,4]", "f32[n,4]"),
    C("where.Scalar", "bool[n,4]", 1.0, 2.0), C("masked_fill.Scalar", FLOAT, "bool[n,1]", float("-inf")),
    C("masked_fill.Tensor", FLOAT, "bool[4]", "f32[]"),
    *(C(f"logical_{k}", FLOAT, "bool[4]") for k in ("and", "or", "xor")),
    *(C(f"bitwise_{k}.Tensor", "i64[n,4]", "i64[4]") for k in ("and", "or", "xor")),
    *(C(f"__{k}__.Tensor", "bool[n,4]", "bool[4]") for k in ("and", "or", "xor")),
    C("bitwise_and.Scalar", "i64[n]", 5), C("bitwise_left_shift.Tensor_Scalar", "i64[n]", 3),
    C("bitwise_right_shift.Tensor_Scalar", "i64[n]", 1),
    *(C("to.dtype", "f32[n,4]", t) for t in (_F64, _I64, _I32, _BOOL, _F16, torch.bfloat16)),
    *(C("_to_copy", "i64[n,4]", dtype=t) for t in (_F32, _BOOL, _I32, torch.uint8)),
    C("_to_copy", "bool[n]", dtype=_F32), C("to.dtype", "bool[n]", _I64), C("type_as", "i64[n]", "f32[n]"),
    C("to.dtype", "f32[n,4]<1", _BOOL), C("softmax.int", FLOAT, -1), C("softmax.int", "f32[n,4]", 0),
    C("_softmax", FLOAT, 1, False), C("log_softmax.int", FLOAT, 1), C("softmax.int", "f16[n,4]", -1, _F32),
    C("softmax.int", "i64[n,4]", -1, _F32),
]  # fmt: skip

VIEWS = [
    C("reshape", "f32[n,4,6]", ["size:n", -1]), C("view", "f32[n,12]", ["size:n", 3, -1]),
    C("reshape", "f32[n,m,4]", [-1, 4]), C("reshape", "f32[n,4,m]", ["size:n", "size:m", 4]),
    C("reshape", "f32[n,m,8]", ["size:n", "size:m", 2, 4]), C("reshape", "f32[4,m]", [2, 2, -1]),
    C("reshape", "f32[n,0]", [0, 7]), C("reshape", "f32[]", [1, 1]), C("reshape", "f32[1]", []),
    C("flatten.using_ints", "f32[n,m,4]", 1), C("flatten.using_ints", "f32[n,m,4]"),
    C("flatten.using_ints", "f32[]"), C("unflatten.int", "f32[n,m,8]", -1, [2, -1]),
    C("view_as", "f32[n,m,4]", "f32[n,m,2,2]"), C("unsqueeze", FLOAT, -1), C("unsqueeze", "f32[]", 0),
    C("squeeze.dim", "f32[n,1,4]", 1), C("squeeze", "f32[2,1,m,1]"), C("squeeze.dim", FLOAT, 1),
    C("squeeze.dims", "f32[1,m,1]", [0, -1]), C("permute", "f32[n,m,4]", [2, 0, -2]),
    C("transpose.int", "f32[n,m,4]", -1, 0), C("t", FLOAT), C("mT", "f32[n,m,4]"),
    C("movedim.int", "f32[n,m,4]", 0, 2), C("movedim.intlist", "f32[n,m,4]", [0, 2], [1, 0]),
    C("expand", "f32[n,1,4]", [-1, 3, -1]), C("expand", "f32[n,1]", ["size:n", 5]),
    C("expand", "f32[1,m]", [2, 3, "size:m"]), C("expand_as", "f32[1,4]", "f32[n,4]"),
    C("expand", FLOAT, [-1, -1]), C("expand", "f32[]", [2, 2]), C("slice.Tensor", FLOAT, 1, 1, 3),
    C("slice.Tensor", FLOAT, 0, -2), C("slice.Tensor", FLOAT, 0, 1, 100),
    C("slice.Tensor", FLOAT, 1, 0, 9223372036854775807, 2), C("slice.Tensor", "f32[9,m]", 0, 0, "size:m"),
    C("slice.Tensor", FLOAT, 1, 3, 1), C("slice.Tensor", FLOAT, -1, None, -1), C("narrow", FLOAT, 1, 1, 2),
    C("select.int", "f32[n,m,4]", 1, -1), C("select.int", FLOAT, 0, 0),
    C("split.Tensor", "f32[n,10]", 4, 1), C("split_with_sizes", "f32[n,10]", [3, 7], -1),
    C("chunk", "f32[n,10]", 3, 1), C("unbind.int", "f32[n,3]", 1), C("cat", ["f32[n,4]", "f32[n,2]"], 1),
    C("cat", ["f32[n,4]", "$0", "i64[m,4]"]), C("cat", ["f32[0]", "f32[n,4]"], 1),
    C("stack", ["f32[n,4]", "$0"], -1), C("stack", ["f32[]", "f32[]"]), C("repeat", FLOAT, [2, 1, 3]),
    C("tile", FLOAT, [2]), C("repeat", FLOAT, ["size:n", 1]), C("repeat_interleave.self_int", FLOAT, 3, 0),
    C("repeat_interleave.self_int", "f32[n,m,2]", 2, 1), C("repeat_interleave.self_int", FLOAT, 2),
    C("repeat_interleave.self_int", "f32[n,2,m]", 2, -2), C("flip", FLOAT, [0, 1]),
    C("roll", FLOAT, [1], [1]), C("roll", FLOAT, [1, -1], [0, 1]), C("roll", "f32[2,4]", [3]),
    C("pixel_shuffle", "f32[n,8,3,2]", 2), C("pixel_unshuffle", "f32[n,2,4,6]", 2),
    C("unfold", "f32[n,9]", 1, 3, 2), C("meshgrid", ["f32[n]", "f32[m]"]),
    C("meshgrid.indexing", ["f32[n]", "f32[m]", "f32[2]"], indexing="xy"), C("diagonal", "f32[4,4,n]"),
    C("diagonal", "f32[n,4,5]", 1, 1, 2),
]  # fmt: skip

CREATE = [
    C("zeros_like", FLOAT), C("ones_like", FLOAT, dtype=_I64), C("full_like", FLOAT, 2.5),
    C("full_like", "i64[n]", 3), C("new_zeros", FLOAT, ["size:n", 2]),
    C("new_ones", FLOAT, [], dtype=_BOOL), C("new_full", FLOAT, [2, 3], 7), C("fill.Scalar", FLOAT, 3),
    C("one_hot", "i64[n,3]<5", 6), C("tril", "f32[n,m]"), C("triu", "f32[2,m,m]", 1),
    C("tril", "i64[4,m]", -1), C("triu", "bool[m,m]", 1), C("arange.start_step", 3, 20, 4),
    C("arange", 100), C("arange.start_step", 0.0, 1.0, 0.1), C("arange", 5, dtype=_F32),
    C("linspace", 0, 1, 7), C("eye", 4), C("eye.m", 3, 5), C("scalar_tensor", 4.5),
    C("full", [2, 3], True, dtype=_BOOL), C("full", [], 3), C("zeros", [2, 0]),
]  # fmt: skip

PRODUCTS = [
    C("linear", "f32[n,m,4]", "%f32[6,4]", "%f32[6]"), C("linear", FLOAT, "%f32[6,4]"),
    C("linear", "f32[4]", "%f32[6,4]", "%f32[6]"), C("linear", FLOAT, "f32[6,4]", "f32[6]"),
    C("matmul", "f32[n,m,4]", "f32[4,3]"), C("matmul", "f32[4]", "f32[4]"),
    C("matmul", "f32[n,m,4]", "f32[4]"), C("matmul", "f32[4]", "f32[n,4,m]"), C("mm", FLOAT, "%f32[4,5]"),
    C("mv", FLOAT, "f32[4]"), C("bmm", "f32[n,m,4]", "f32[n,4,3]"),
    C("addmm", "f32[5]", FLOAT, "%f32[4,5]"), C("mm", "i64[n,4]", "i64[4,3]"),
    C("addmm", "f32[n,1]", FLOAT, "f32[4,5]", beta=0.5, alpha=2),
    C("baddbmm", "f32[n,m,3]", "f32[n,m,4]", "f32[n,4,3]", alpha=0.5), C("outer", "f32[n]", "f32[m]"),
    C("einsum", "bhid,bhjd->bhij", ["f32[n,2,m,4]", "f32[n,2,3,4]"]),
    C("einsum", "bij,jk->bki", ["f32[n,m,4]", "f32[4,3]"]), C("einsum", "i,j->ij", ["f32[n]", "f32[m]"]),
    C("einsum", "bid->bd", ["f32[n,m,4]"]), C("einsum", "bld,bd->bl", ["f32[n,m,4]", "f32[n,4]"]),
    C("einsum", "...ij,...jk->...ik", ["f32[n,2,m,4]", "f32[n,2,4,3]"]),
    C("bilinear", "f32[n,4]", "f32[n,3]", "%f32[5,4,3]", "%f32[5]"),
    C("cosine_similarity", FLOAT, "f32[n,4]", -1),
]  # fmt: skip

IMAGE = "f32[n,4,9,8]"
CONVOLUTIONS = [
    C("conv1d", "f32[n,4,11]", "%f32[6,4,3]", "%f32[6]"),
    C("conv1d", "f32[n,4,11]", "%f32[4,1,3]", None, [2], [1], [2], 4),
    C("conv2d", IMAGE, "%f32[6,4,3,2]", "%f32[6]", [2, 1], [1, 0]),
    C("conv2d", IMAGE, "%f32[6,2,3,3]", None, [1, 1], [1, 1], [1, 1], 2),
    C("conv2d.padding", IMAGE, "%f32[6,4,4,3]", None, [1, 1], "same"),
    C("conv2d.padding", IMAGE, "%f32[6,4,3,3]", None, [1, 1], "valid"),
    C("conv2d", "f32[4,9,8]", "%f32[6,4,3,3]"),
    C("conv3d", "f32[n,2,5,4,4]", "%f32[3,2,2,2,2]", None, [1, 1, 1], [1, 1, 1]),
    C("conv2d", "f32[n,4,m,8]", "%f32[6,4,1,3]"),
    C("convolution", IMAGE, "%f32[6,4,3,3]", None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
    C("conv_transpose1d", "f32[n,4,7]", "%f32[4,3,4]", "%f32[3]", [2], [1]),
    C("conv_transpose2d.input", IMAGE, "%f32[4,3,3,3]", None, [2, 2], [1, 1], [1, 1]),
    C("conv_transpose2d.input", IMAGE, "%f32[4,2,3,3]", "%f32[4]", [1, 1], [0, 0], [0, 0], 2, [2, 2]),
    C("max_pool2d", IMAGE, 3, 2, 1), C("max_pool2d", IMAGE, [2, 3], [], 0, 1, True),
    C("max_pool1d", "f32[n,4,9]", 2), C("max_pool2d", IMAGE, 2, 2, 0, 2),
    C("max_pool2d_with_indices", IMAGE, 2), C("max_pool2d", IMAGE, 3, 2, 1, 1, True),
    C("avg_pool2d", IMAGE, 3, 2, 1), C("avg_pool2d", IMAGE, 3, 2, 1, False, False),
    C("avg_pool1d", "f32[n,4,9]", 2), C("avg_pool2d", IMAGE, 2, 2, 0, True),
    C("avg_pool2d", IMAGE, 3, 2, 1, True, True), C("avg_pool2d", IMAGE, 3, 2, 1, True, False),
    C("adaptive_avg_pool2d", IMAGE, [1, 1]), C("adaptive_avg_pool2d", IMAGE, [3, 4]),
    C("adaptive_avg_pool2d", IMAGE, [4, 3]), C("adaptive_avg_pool1d", "f32[n,4,9]", [2]),
    C("adaptive_max_pool2d", IMAGE, [3, 2]), C("adaptive_max_pool2d", IMAGE, [1, 1]),
    C("upsample_nearest2d.vec", IMAGE, None, [2.0, 2.0]),
    C("upsample_nearest2d.vec", IMAGE, [13, 5], None),
    C("upsample_bilinear2d.vec", IMAGE, [13, 5], False, None),
    C("upsample_bilinear2d.vec", IMAGE, None, True, [2.0, 2.0]),
    C("upsample_bilinear2d.vec", IMAGE, [1, 16], False, None),
    C("upsample_bicubic2d.vec", IMAGE, [18, 16], False, None),
    C("_upsample_nearest_exact2d.vec", IMAGE, [13, 5], None),
    C("upsample_linear1d.vec", "f32[n,4,9]", [5], False, None),
    C("upsample_nearest1d.vec", "f32[n,4,m]", None, [3.0]), C("pad", FLOAT, [1, 2]),
    C("pad", FLOAT, [1, 0, 0, 2], "constant", 1.5), C("pad", FLOAT, [-1, 2]),
    C("constant_pad_nd", "i64[n,4]", [0, 1], 7), C("pad", "f32[n,2,5,5]", [1, 2, 2, 1], "reflect"),
    C("pad", "f32[n,2,5]", [1, 2], "replicate"), C("pad", "f32[n,2,5]", [1, 2], "circular"),
    C("pad", "bool[n,4]", [0, 1]), C("pad", "f32[n,4]", [0, "size:n"]),
]  # fmt: skip

Q, K = "f32[n,4,m,8]", "f32[n,2,m,8]"
ATTENTION = [
    C("scaled_dot_product_attention", Q, "f32[n,4,5,8]", "f32[n,4,5,6]"),
    C("scaled_dot_product_attention", Q, Q, Q, MASK4),
    C("scaled_dot_product_attention", Q, Q, Q, "f32[n,4,m,m]", scale=0.3),
    C("scaled_dot_product_attention", Q, Q, Q, "f32[m,m]"),
    C("scaled_dot_product_attention", Q, Q, Q, "bool[n,1,1,m]"),
    C("scaled_dot_product_attention", Q, Q, Q, None, 0.0, True),
    C("scaled_dot_product_attention", Q, "f32[n,4,5,8]", "$1", None, 0.0, True),
    C("scaled_dot_product_attention", Q, K, K, enable_gqa=True),
    C("scaled_dot_product_attention", Q, K, K, MASK4, enable_gqa=True),
    C("scaled_dot_product_attention", Q, K, K, "f32[n,4,m,m]", enable_gqa=True),
    C("scaled_dot_product_attention", Q, K, K, "f32[m,m]", enable_gqa=True),
    C("scaled_dot_product_attention", Q, K, K, None, 0.0, True, enable_gqa=True),
    C("scaled_dot_product_attention", "f32[n,m,8]", "f32[n,5,8]", "f32[n,5,8]"),
]  # fmt: skip

NORMS = [
    C("layer_norm", "f32[n,m,8]", [8], "%f32[8]", "%f32[8]", 1e-12), C("layer_norm", "f32[n,m,8]", [8]),
    C("layer_norm", "f32[n,4,8]", [4, 8], "%f32[4,8]"),
    C("native_layer_norm", "f32[n,8]", [8], "%f32[8]", "%f32[8]", 1e-5),
    C("rms_norm", "f32[n,m,8]", [8], "%f32[8]", 1e-6), C("rms_norm", "f32[n,8]", [8]),
    C("group_norm", "f32[n,8,5,m]", 4, "%f32[8]", "%f32[8]"),
    C("group_norm", "f32[n,8]", 2, None, None, 1e-3),
    C("native_group_norm", "f32[n,8,6]", "%f32[8]", None, "size:n", 8, 6, 2, 1e-5),
    C("batch_norm", "f32[n,4,5,m]", "%f32[4]", "%f32[4]", "%f32[4]", "%f32[4]+", False, 0.1, 1e-5, True),
    C("batch_norm", FLOAT, None, None, "%f32[4]", "%f32[4]+", False, 0.1, 1e-3, True),
    C("_native_batch_norm_legit_no_training", IMAGE, "%f32[4]", "%f32[4]", "%f32[4]", "%f32[4]+", 0.1, 1e-5),
    C("instance_norm", IMAGE, "%f32[4]", "%f32[4]", None, None, True, 0.1, 1e-5, True),
    C("instance_norm", IMAGE, None, None, None, None, True, 0.1, 1e-5, True),
]  # fmt: skip

REDUCTIONS = [
    C("sum", FLOAT), C("sum.dim_IntList", "f32[n,m,4]", [0, -1], True), C("sum.dim_IntList", FLOAT, None),
    C("sum.dim_IntList", "i32[n,4]", [1]), C("sum", "bool[n]"),
    C("sum.dim_IntList", FLOAT, [1], dtype=_F64), C("mean.dim", "f32[n,m,4]", [-1], True),
    C("mean", FLOAT), C("mean.dim", "i64[n,4]", [0], dtype=_F32), C("prod.dim_int", FLOAT, 1),
    C("prod", "i64[3,2]"), C("amax", FLOAT, [1]), C("amin", "f32[n,m,4]", [0, 2], True),
    C("max", "i64[n,4]"), C("min", FLOAT), C("max.dim", FLOAT, 1), C("min.dim", "i64[n,4]", 0, True),
    C("any", "bool[n,4]"), C("any.dim", FLOAT, 1), C("all.dim", "i64[n,4]<2", 0, True),
    C("all", "bool[n]"), C("any.dims", "bool[n,m,2]", [0, 1]), C("argmax", FLOAT),
    C("argmax", FLOAT, 1, True), C("argmin", "i64[n,9]<3", -1), C("argmax", "f32[n,m]", None, True),
    C("var.correction", "f32[3,4]", [1]), C("var.correction", "f32[n,4]", [1], correction=0, keepdim=True),
    C("std.correction", "f32[n,m,4]", [0, 2], correction=0.0), C("var.dim", FLOAT, [1], False),
    C("std.dim", FLOAT, [1], True, True), C("var", FLOAT, False),
    C("var_mean.correction", FLOAT, [1], correction=1),
    C("std_mean.correction", FLOAT, [1], correction=0, keepdim=True),
    C("var_mean.correction", FLOAT, None, correction=0),
    *(C("linalg_vector_norm", FLOAT, o, [1], True) for o in (2, 1, float("inf"), 3, 0)),
    C("linalg_vector_norm", FLOAT), C("norm.ScalarOpt_dim", FLOAT, 2, [-1], True),
    C("norm.Scalar", FLOAT, 2), C("logsumexp", FLOAT, [1]), C("cumsum", FLOAT, 1),
    C("cumsum", "i64[n,4]", 0), C("cumsum", "bool[n,4]", 1), C("topk", "f32[n,9]#", 3),
    C("topk", "f32[n,9]#", 4, 1, False), C("topk", "f32[n,9]#", 1, -1), C("sort", "f32[n,4]#"),
    C("sort", "f32[n,m]#", 0, True), C("sort.stable", "i64[n,20]<4", stable=True, dim=1),
    C("sort.stable", "i64[n,20]<4", stable=True, dim=1, descending=True),
    C("argsort.stable", "i64[n,9]<3", stable=True), C("argsort", "f32[n,9]#", 1, True),
    C("histc", "f32[50]", 6, -1, 2), C("histc", "f32[m]", 4, 0, 3), C("sum", "f32[]"),
    C("amax", "f32[]", []), C("sum", "i64[n,8]^"), C("cumsum", "i64[n,8]^", 1), C("prod.dim_int", "i64[n,2]^", 1),
]  # fmt: skip

INDEXING = [
    C("embedding", "%f32[10,4]", "i64[n,m]<10"), C("embedding", "f32[10,4]", "i32[n]<10", 0),
    C("gather", "f32[n,5]", 1, "i64[n,3]<5"), C("gather", "f32[n,9]", -1, "i64[n,2]<9"),
    C("index_select", "f32[n,5]", 1, "i64[m]<5"), C("index_select", "f32[5,n]", 0, "i64[]<5"),
    C("take", "f32[4,4]", "i64[n]<16"), C("index.Tensor", "f32[5,4]", ["i64[n]~"]),
    C("index.Tensor", "f32[n,5,4]", [None, "i64[m,2]<5"]),
    C("index.Tensor", "f32[5,4,m]", ["i64[n]~", "i64[n]~"]),
    C("index.Tensor", "f32[n,5,4]", [None, "i64[m]<5", "i64[m]<4"]),
    C("index.Tensor", "f32[5,n,4]", ["i64[m]<5", None, "i64[m]<4"]),
    C("index.Tensor", "bool[5,4]", ["i64[n,1]<5", "i64[1,m]<4"]),
    C("index.Tensor", "f32[n,4]", ["bool[n]"]), C("index.Tensor", "f32[n,4]", ["bool[n,4]"]),
    C("index.Tensor", "f32[n,4]", [None, "bool[4]"]), C("index_put", "f32[5,4]", ["i64[2]<1"], "f32[4]"),
    C("index_put", "f32[5,4]", ["i64[n]<5"], "f32[n,4]", True),
    C("index_put", "f32[n,4]", ["bool[n,4]"], "f32[]"),
    C("index_put", "f32[5,4]", ["i64[n]<5", "i64[n]<4"], "f32[n]", True),
    C("index_put", "f32[n,4]", [None, "i64[2]<1"], "f32[]"),
    C("index_put", "f32[n,4]", ["bool[n]"], "f32[1,4]"),
    C("scatter.src", "f32[n,5]", 1, "i64[n,1]<5", "f32[n,1]"),
    C("scatter.value", "f32[n,5]", 1, "i64[n,2]<5", 2.5),
    C("scatter_add", "f32[5,4]", 0, "i64[m,4]<5", "f32[m,4]"),
    C("scatter.src", "f32[n,5]", 1, "i64[n,1]<5", "f32[n,3]"),
    C("scatter_reduce.two", "f32[5,4]", 0, "i64[m,4]<5", "f32[m,4]", "amax"),
    C("scatter_reduce.two", "f32[5,4]", 0, "i64[m,4]<5", "f32[m,4]", "prod"),
    C("index_add", "f32[5,4]", 0, "i64[m]<5", "f32[m,4]"),
    C("index_add", "f32[n,5]", 1, "i64[m]<5", "f32[n,m]", alpha=2),
    C("index_copy", "f32[n,9,2]", 1, "i64[1]<9", "f32[n,1,2]"),
    C("index_fill.int_Scalar", "f32[n,5]", 1, "i64[m]<5", 3.0),
    C("select_scatter", "f32[n,4]", "f32[n]", 1, 2), C("select_scatter", "f32[n,4]", "f32[4]", 0, -1),
    C("slice_scatter", "f32[n,9]", "f32[n,3]", 1, 2, 5),
    C("slice_scatter", "f32[n,9]", "f32[n,4]", 1, 0, 8, 2), C("slice_scatter", FLOAT, FLOAT),
    C("nonzero", "f32[n,4]<2"), C("masked_select", FLOAT, "bool[n,4]"),
    C("masked_select", FLOAT, "bool[4]"), C("searchsorted.Tensor", "%f32[5]<1", "f32[n,3]"),
    C("bucketize.Tensor", "f32[n,3]", "%f32[4]<1", right=True),
]  # fmt: skip

_GRU = ["%f32[12,5]", "%f32[12,4]", "%f32[12]", "%f32[12]"]
_LSTM = ["%f32[16,5]", "%f32[16,4]", "%f32[16]", "%f32[16]"]
_LSTM2 = ["%f32[16,8]", "%f32[16,4]", "%f32[16]", "%f32[16]"]
RECURRENT = [
    C("gru.input", "f32[n,6,5]", "f32[1,n,4]", _GRU, True, 1, 0.0, False, False, True),
    C("gru.input", "f32[6,n,5]", "f32[2,n,4]", [*_GRU, *_GRU], True, 1, 0.0, False, True, False),
    C("lstm.input", "f32[n,6,5]", ["f32[1,n,4]", "f32[1,n,4]"], _LSTM[:2], False, 1, 0.0, False, False, True),
    C("lstm.input", "f32[n,6,5]", ["f32[4,n,4]", "f32[4,n,4]"], [*_LSTM, *_LSTM, *_LSTM2, *_LSTM2], True, 2, 0.0, False,
      True, True),
    C("rnn_tanh.input", "f32[n,6,5]", "f32[1,n,4]", ["%f32[4,5]", "%f32[4,4]"], False, 1, 0.0, False, False, True),
]  # fmt: skip

# without a form of their own: torch takes them apart
DECOMPOSED = [
    C("addcmul", FLOAT, "f32[4]", "f32[n,1]", value=0.5), C("lerp.Scalar", FLOAT, "f32[n,4]", 0.3),
    C("isin.Tensor_Tensor", "i64[n,4]", "i64[3]"),
]  # fmt: skip

FAMILIES = {
    "pointwise": POINTWISE, "views": VIEWS, "create": CREATE, "products": PRODUCTS, "convolutions": CONVOLUTIONS,
    "attention": ATTENTION, "norms": NORMS, "reductions": REDUCTIONS, "indexing": INDEXING,
    "recurrent": RECURRENT, "decomposed": DECOMPOSED,
}  # fmt: skip


_STABLE = "refused: OpenVINO's sort does not keep the order of equals"
_NOT_FINITE = "OpenVINO's kernels lose NaN or infinity"
NOT_ON: Mapping[tuple[str, str], str] = {
    **{("openvino", name): _STABLE for name in ("aten.sort.stable", "aten.argsort.stable")},
    **{
        ("openvino", call): _NOT_FINITE
        for call in (
            "relu(f32[n,12]!)", "exp(f32[n,12]!)", "minimum(f32[n,8]!,f32[8])", "maximum(f32[n,8]!,f32[8])",
            "clamp(f32[n,8]!,-1,1)", "sign(f32[n,12]!)",
        )
    },
    ("openvino", "avg_pool2d(f32[n,4,9,8],3,2,1,True,True)"): "refused: OpenVINO divides by another count",
}  # fmt: skip
