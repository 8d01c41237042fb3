"""Matrix products, plain and as sums over indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from backends.arguments import Refused, number, result_type, shape_of
from backends.tvm.dtypes import cast, literal, wide
from backends.tvm.scope import Emitter, Kernel, Scope, Tensor, broadcast
from ir import Arg, Dim, Node, Value

_TRUTHS = "truth values are not multiplied; cast to int32 before"


def contract(
    s: Scope, name: str, inputs: Sequence[tuple[Tensor, str]], result: str, shape: Sequence[Dim], dtype: torch.dtype
) -> Tensor:
    """A sum of products by index letters, as in einsum; accumulated in f32 for the half precisions."""
    from tvm import te

    inner = wide(dtype)
    sizes: dict[str, Dim] = dict(zip(result, shape, strict=True))
    for tensor, letters in inputs:
        for letter, size in zip(letters, tensor.shape, strict=True):
            if sizes.get(letter, 1) == 1:
                sizes[letter] = size
    summed = [c for c in sizes if c not in result]
    unique = list(dict.fromkeys(t for t, _ in inputs))

    def build(k: Kernel, *held: Any) -> Any:
        read = dict(zip(unique, held, strict=True))
        loops = {c: te.reduce_axis((literal(0, torch.int64), k.dim(sizes[c])), name=f"r_{c}") for c in summed}

        def element(*index: Any) -> Any:
            at = {**dict(zip(result, index, strict=True)), **{c: loop.var for c, loop in loops.items()}}
            value = None
            for tensor, letters in inputs:
                places = [0 if d == 1 else at[c] for c, d in zip(letters, tensor.shape, strict=True)]
                factor = cast(read[tensor](*places), inner)
                value = factor if value is None else value * factor
            return te.sum(value, axis=list(loops.values())) if loops else value

        made = te.compute(k.shape(shape), element, name=name) if shape else te.compute((), lambda: element(), name=name)
        if inner == dtype:
            return made
        if not shape:
            return te.compute((), lambda: cast(made(), dtype), name="cast")
        return te.compute(k.shape(shape), lambda *i: cast(made(*i), dtype), name="cast")

    return s.te(name, build, unique, [(dtype, tuple(shape))])[0]


_BATCH = "abcdefgh"


def product(s: Scope, a: Tensor, b: Tensor, dtype: torch.dtype, transposed: bool = False) -> Tensor:
    """``a @ b`` of tensors of two dims and more, batch dims broadcast; ``b`` lies as [n, k] when transposed."""
    lead = broadcast([a.shape[:-2], b.shape[:-2]])
    columns = b.shape[-2] if transposed else b.shape[-1]
    letters = _BATCH[: len(lead)]
    left = letters[len(lead) - a.rank + 2 :] + "ik"
    right = letters[len(lead) - b.rank + 2 :] + ("jk" if transposed else "kj")
    return contract(s, "matmul", [(a, left), (b, right)], letters + "ij", (*lead, a.shape[-2], columns), dtype)


def matmul(s: Scope, node: Node, a: Value, b: Value, *_: Arg) -> Tensor:
    """``aten.matmul`` and its special cases."""
    x, y, dtype = s[a], s[b], result_type(node)
    if x.rank == 1:
        x = s.reshape(x, (1, *x.shape))
    if y.rank == 1:
        y = s.reshape(y, (*y.shape, 1))
    return s.reshape(product(s, x, y, dtype), shape_of(node))


def linear(s: Scope, node: Node, x: Value, weight: Value, bias: Arg = None) -> Tensor:
    """``x @ weight^T + bias``."""
    dtype, tensor = result_type(node), s[x]
    if tensor.rank == 1:
        tensor = s.reshape(tensor, (1, *tensor.shape))
    made = product(s, tensor, s[weight], dtype, transposed=True)
    if bias is not None:
        made = s.pointwise("add", dtype, lambda v, b: v + b, [made, bias])
    return s.reshape(made, shape_of(node))


def scaled_sum(s: Scope, node: Node, c: Value, a: Value, b: Value, beta: Arg = 1, alpha: Arg = 1) -> Tensor:
    """``beta * c + alpha * (a @ b)``."""
    dtype = result_type(node)
    made = matmul(s, node, a, b)
    if beta == 1 and alpha == 1:
        return s.pointwise("add", dtype, lambda v, w: v + w, [made, c])
    numbers = [number(v) if dtype.is_floating_point else v for v in (alpha, beta)]
    return s.pointwise("add", dtype, lambda v, w, p, q: v * p + w * q, [made, c, *numbers])


def outer(s: Scope, node: Node, a: Value, b: Value) -> Tensor:
    """``aten.outer``."""
    if result_type(node) == torch.bool:
        raise Refused(_TRUTHS)
    column = s.reshape(s[a], (*a.tensor.shape, 1))
    return s.pointwise("outer", result_type(node), lambda x, y: x * y, [column, b])


def einsum(s: Scope, node: Node, equation: str, tensors: tuple[Value, ...], *_: Arg) -> Tensor:
    """Einstein's notation."""
    plain = equation.replace(" ", "")
    if "->" not in plain:
        raise Refused("einsum without its result; write the arrow")
    sides, result = plain.split("->")
    words = sides.split(",")
    spare = [c for c in "ABCDEFGHIJKLMNOP" if c not in plain]
    longest = max((t.tensor.rank - len(w.replace("...", "")) for w, t in zip(words, tensors, strict=True)), default=0)
    letters = "".join(spare[:longest])

    def spelled(word: str, rank: int) -> str:
        count = rank - len(word.replace("...", ""))
        return word.replace("...", letters[len(letters) - count :])

    if result_type(node) == torch.bool:
        raise Refused(_TRUTHS)
    inputs = [(s[t], spelled(w, t.tensor.rank)) for w, t in zip(words, tensors, strict=True)]
    if any(word.count(c) > 1 for _, word in inputs for c in word):
        raise Refused("einsum of a diagonal")
    target = spelled(result, len(shape_of(node)))
    fast = _as_product(s, inputs, target, node)
    return fast if fast is not None else contract(s, "einsum", inputs, target, shape_of(node), result_type(node))


def _as_product(s: Scope, inputs: Sequence[tuple[Tensor, str]], result: str, node: Node) -> Tensor | None:
    """Two operands with one contracted letter: transposes around one product."""
    from backends.tvm.views import permuted

    if len(inputs) != 2:
        return None
    (x, left), (y, right) = inputs
    batch = [c for c in left if c in right and c in result]
    summed = [c for c in left if c in right and c not in result]
    rows, columns = [c for c in left if c not in right], [c for c in right if c not in left]
    if len(summed) != 1 or len(rows) != 1 or len(columns) != 1 or len(result) != len(batch) + 2:
        return None
    a = permuted(s, x, [left.index(c) for c in (*batch, *rows, *summed)])
    b = permuted(s, y, [right.index(c) for c in (*batch, *summed, *columns)])
    made = [*batch, *rows, *columns]
    return permuted(s, product(s, a, b, result_type(node)), [made.index(c) for c in result])


def bilinear(s: Scope, node: Node, a: Value, b: Value, weight: Value, bias: Arg = None) -> Tensor:
    """``a @ W[n] @ b`` for each n."""
    dtype, lead = result_type(node), _BATCH[: a.tensor.rank - 1]
    inputs = [(s[a], lead + "i"), (s[weight], "nij"), (s[b], lead + "j")]
    made = contract(s, "bilinear", inputs, lead + "n", shape_of(node), dtype)
    return made if bias is None else s.pointwise("add", dtype, lambda v, w: v + w, [made, bias])


def grouped(s: Scope, node: Node, *_: Arg) -> Tensor:
    """One product per group of rows, groups of sizes that the data decides."""
    raise Refused("a grouped product; set the experts of the model to batched_mm")


def cosine_similarity(s: Scope, node: Node, a: Value, b: Value, dim: int = 1, eps: Arg = 1e-8) -> Tensor:
    """``a . b / max(|a| |b|, eps)``, each norm clamped."""
    from tvm import tirx

    from backends.tvm.reductions import axes_of, fold

    dtype, least = result_type(node), number(eps)
    x, y = s.tensor(a, dtype), s.tensor(b, dtype)
    axes = axes_of(x.rank, dim)
    parts = []
    for v in (x, y):
        total = fold(s, "norm", v, axes, True, dtype, "sum", lambda e: e * e)
        parts.append(
            s.pointwise(
                "unit", dtype, lambda e, n: e / tirx.max(tirx.sqrt(n), tirx.const(least, n.ty.dtype)), [v, total]
            )
        )
    both = s.pointwise("mul", dtype, lambda p, q: p * q, parts)
    return fold(s, "sum", both, axes, False, dtype, "sum")


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
