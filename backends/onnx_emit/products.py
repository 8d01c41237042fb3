"""Matrix products. A weight in torch's orientation is transposed once, where the engine folds it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from backends.arguments import Refused, dtype_of, result_type
from backends.onnx_emit.pointwise import Emitter, wider
from backends.onnx_emit.quantized import transposed_weight
from backends.onnx_emit.scope import Scope
from ir import Arg, Node, Value


def linear(s: Scope, node: Node, x: Value, weight: Value, bias: Arg = None) -> str:
    """``x @ weight.T + bias``."""
    if weight.tensor.rank != 2:
        raise Refused("linear with a vector as weight")
    dtype = result_type(node)
    if dtype == torch.float32 and s.flavor == "onnxruntime" and s.outer is not None and s.is_constant(s[weight]):
        return _gemm(s, x, weight, bias)
    if not dtype.is_floating_point:
        product = _product(s, s[x], s.transpose(s[weight], (1, 0)), dtype)
    else:
        product = s.op("MatMul", s[x], transposed_weight(s, weight))
    return product if bias is None else _add(s, product, s.tensor(bias, dtype), dtype)


def _gemm(s: Scope, x: Value, weight: Value, bias: Arg) -> str:
    """In a branch or loop, where ONNX Runtime folds no transpose of a weight and would run it at each call."""
    added = s.tensor(bias, torch.float32) if bias is not None else None
    if x.tensor.rank == 2:
        return s.op("Gemm", s[x], s[weight], added, transB=1)
    made = s.op("Gemm", s.op("Reshape", s[x], s.ints(-1, weight.tensor.shape[1])), s[weight], added, transB=1)
    sizes = [s.size_of(x, axis) for axis in range(x.tensor.rank - 1)]
    return s.op("Reshape", made, s.join([*sizes, s.size_of(weight, 0)]))


def _product(s: Scope, a: str, b: str, dtype: torch.dtype) -> str:
    """Matrices of narrow whole numbers are multiplied in int32, which wraps alike when narrowed."""
    wide = wider(dtype)
    return s.cast(s.op("MatMul", s.cast(a, dtype, wide), s.cast(b, dtype, wide)), wide, dtype)


def _add(s: Scope, a: str, b: str, dtype: torch.dtype) -> str:
    wide = wider(dtype)
    return s.cast(s.op("Add", s.cast(a, dtype, wide), s.cast(b, dtype, wide)), wide, dtype)


def matmul(s: Scope, node: Node, a: Value, b: Value, *_: Arg) -> str:
    """``matmul``, ``mm``, ``bmm``, ``mv``, ``dot``: ONNX broadcasts as torch does."""
    return _product(s, s[a], s[b], result_type(node))


def scaled_sum(s: Scope, node: Node, bias: Value, a: Value, b: Value, beta: Arg = 1, alpha: Arg = 1) -> str:
    """``beta * bias + alpha * (a @ b)``."""
    dtype = result_type(node)
    wide = wider(dtype)
    product = s.op("MatMul", s.cast(s[a], dtype, wide), s.cast(s[b], dtype, wide))
    if alpha != 1:
        product = s.op("Mul", product, s.tensor(alpha, wide))
    if beta == 0:
        return s.cast(product, wide, dtype)
    added = s.cast(s.tensor(bias, dtype), dtype, wide)
    if beta != 1:
        added = s.op("Mul", added, s.tensor(beta, wide))
    return s.cast(s.op("Add", product, added), wide, dtype)


def outer(s: Scope, node: Node, a: Value, b: Value) -> str:
    """``a[:, None] * b``."""
    dtype = result_type(node)
    wide = wider(dtype)
    column = s.op("Unsqueeze", s.cast(s.tensor(a, dtype), dtype, wide), s.ints(1))
    return s.cast(s.op("Mul", column, s.cast(s.tensor(b, dtype), dtype, wide)), wide, dtype)


def einsum(s: Scope, node: Node, equation: str, tensors: tuple[Value, ...], *_: Arg) -> str:
    """Einstein's notation; what is a plain product becomes one."""
    plain = equation.replace(" ", "")
    if len(tensors) == 2 and (made := _batched_product(s, plain, *tensors)) is not None:
        return made
    dtype = result_type(node)
    wide = dtype if dtype.is_floating_point else torch.int64
    made = s.op("Einsum", *(s.cast(s[t], t.tensor.dtype, wide) for t in tensors), equation=plain)
    return s.cast(made, wide, dtype)


def _batched_product(s: Scope, equation: str, a: Value, b: Value) -> str | None:
    """Two operands with one contracted letter: transposes around one MatMul."""
    if "->" not in equation or "." in equation:
        return None
    inputs, result = equation.split("->")
    left, right = inputs.split(",")
    letters = set(left + right)
    if any(word.count(c) > 1 for word in (left, right, result) for c in word) or not set(result) <= letters:
        return None
    shared = [c for c in left if c in right]
    batch = [c for c in shared if c in result]
    summed = [c for c in shared if c not in result]
    rows = [c for c in left if c not in right]
    columns = [c for c in right if c not in left]
    if len(summed) != 1 or len(rows) != 1 or len(columns) != 1 or len(set(result)) != len(batch) + 2:
        return None
    first = s.transpose(s[a], [left.index(c) for c in (*batch, *rows, *summed)])
    second = s.transpose(s[b], [right.index(c) for c in (*batch, *summed, *columns)])
    made = [*batch, *rows, *columns]
    return s.transpose(_product(s, first, second, a.tensor.dtype), [made.index(c) for c in result])


def bilinear(s: Scope, node: Node, a: Value, b: Value, weight: Value, bias: Arg = None) -> str:
    """``a @ W[n] @ b`` for each n."""
    dtype = result_type(node)
    wide = dtype if dtype.is_floating_point else torch.int64
    parts = (s.cast(s[v], dtype, wide) for v in (a, weight, b))
    product = s.cast(s.op("Einsum", *parts, equation="...i,nij,...j->...n"), wide, dtype)
    return product if bias is None else _add(s, product, s.tensor(bias, dtype), dtype)


def grouped(s: Scope, node: Node, *_: Arg) -> str:
    """One product per group of rows, groups of sizes that the data decides."""
    raise Refused("a grouped product; set the experts of the model to batched_mm")


def cosine_similarity(s: Scope, node: Node, a: Value, b: Value, dim: int = 1, eps: Arg = 1e-8) -> str:
    """``a . b / max(|a| |b|, eps)``, each norm clamped."""
    dtype = result_type(node)
    axes = s.ints(dim)
    x, y = s.cast(s[a], dtype_of(a), dtype), s.cast(s[b], dtype_of(b), dtype)
    least = s.tensor(eps, dtype)
    parts = [s.op("Div", v, s.op("Max", s.op("ReduceL2", v, axes, keepdims=1), least)) for v in (x, y)]
    return s.op("ReduceSum", s.op("Mul", *parts), axes, keepdims=0)


PRODUCTS: Mapping[str, Emitter] = {
    "aten.linear.default": linear,
    **{f"aten.{name}.default": matmul for name in ("matmul", "mm", "bmm", "mv", "dot", "vdot")},
    **{f"aten.{name}.default": scaled_sum for name in ("addmm", "baddbmm", "addmv")},
    **{f"aten.{name}.default": outer for name in ("outer", "ger")},
    "aten.einsum.default": einsum,
    "aten.bilinear.default": bilinear,
    "aten.cosine_similarity.default": cosine_similarity,
    **{f"{name}": grouped for name in ("aten._grouped_mm.default", "transformers.grouped_mm_fallback.default")},
}
