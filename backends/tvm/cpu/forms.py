"""What the processor does in its own way: which operators get which kernel, and what is fused into it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from backends.arguments import number, result_type
from backends.tvm import attention as neutral_attention
from backends.tvm import norms, products, reductions
from backends.tvm.cpu import attention as own_attention
from backends.tvm.cpu import convolution, gemm, int8_forms, rows, weight_only
from backends.tvm.cpu.functions import FastFunctions
from backends.tvm.cpu.fusion import epilogue_of
from backends.tvm.cpu.target import Cpu
from backends.tvm.dtypes import axis_of
from backends.tvm.scope import Forms, Scope, Tensor
from ir import Arg, Node, Value

_F32 = torch.float32


def forms_of(cpu: Cpu) -> Forms:
    """Kernels and functions for a processor."""
    emitters = {
        "aten.linear.default": _with(cpu, linear),
        "aten.addmm.default": _with(cpu, addmm),
        **{f"aten.{n}.default": _with(cpu, matmul) for n in ("mm", "matmul")},
        **{f"aten.conv{n}d.{o}": _with(cpu, convolution.convolution) for n in (1, 2) for o in ("default", "padding")},
        "aten.convolution.default": _with(cpu, convolution.any_convolution),
        "aten.layer_norm.default": _with(cpu, layer_norm),
        "aten.rms_norm.default": _with(cpu, rms_norm),
        **{f"aten.{n}": _with(cpu, softmax) for n in ("softmax.int", "_softmax.default")},
        "aten.scaled_dot_product_attention.default": _with(cpu, attention),
        "penstock.int8_linear_static.default": _with(cpu, int8_forms.linear_static),
        "penstock.int8_linear_dynamic.default": _with(cpu, int8_forms.linear_dynamic),
    }
    return Forms(emitters, FastFunctions())


def _with(cpu: Cpu, emit: Callable[..., Any]) -> Callable[..., Any]:
    return lambda s, node, *args: emit(s, cpu, node, *args)


def _fits(s: Scope, x: Arg, weight: Arg) -> bool:
    """Whether a product is one of float32 rows with a weight."""
    if not isinstance(x, Value) or not isinstance(weight, Value):
        return False
    known = s[weight]
    return bool(known.param) and known.dtype == _F32 and known.rank == 2 and s[x].dtype == _F32 and s[x].rank >= 1


def _product(s: Scope, cpu: Cpu, node: Node, x: Value, weight: Value, bias: Arg, transposed: bool) -> Tensor | None:
    added = s.weight(bias) if isinstance(bias, Value) else None
    if not _fits(s, x, weight) or (bias is not None and (added is None or added.ndim != 1 or added.dtype != _F32)):
        return None
    tensor = s[x] if s[x].rank > 1 else s.reshape(s[x], (1, *s[x].shape))
    epilogue, last = epilogue_of(s, node)
    content = s.emission.graph.weights[s[weight].param]
    name, matrix = (s[weight].param, content) if transposed else (f"{s[weight].param}:turned", content.t())
    made = gemm.linear(s, cpu, tensor, name, matrix, added, epilogue)
    made = s.reshape(made, node.results[0].tensor.shape)
    for ahead in last:
        s.ahead[ahead] = [made]
    return made


def linear(s: Scope, cpu: Cpu, node: Node, x: Value, weight: Value, bias: Arg = None) -> Tensor:
    """``aten.linear``."""
    made = _product(s, cpu, node, x, weight, bias, transposed=True)
    if made is None:
        made = _few_bits(s, cpu, node, x, weight, bias)
    return made if made is not None else products.linear(s, node, x, weight, bias)


def _few_bits(s: Scope, cpu: Cpu, node: Node, x: Value, weight: Value, bias: Arg) -> Tensor | None:
    """A linear whose weight is dequantized: the kernel reads it as it is stored."""
    maker, added = weight.producer, s.weight(bias) if isinstance(bias, Value) else None
    if maker is None or s[x].dtype != _F32 or weight.tensor.dtype != _F32 or s[x].rank < 1:
        return None
    if bias is not None and (added is None or added.dtype != _F32):
        return None
    operands = [v for v in maker.args if isinstance(v, Value)]
    if any(v not in s.values or not s[v].param for v in operands):
        return None
    tensor = s[x] if s[x].rank > 1 else s.reshape(s[x], (1, *s[x].shape))
    if maker.op.name == "penstock.dequantize_int4.default":
        block = maker.arg(2, "block")
        if not isinstance(block, int) or block % 2:
            return None
        epilogue, last = epilogue_of(s, node)
        made = weight_only.linear_int4(s, cpu, tensor, s[operands[0]], s[operands[1]], block, added, epilogue)
    elif maker.op.name == "quantized_decomposed.dequantize_per_channel.default":
        codes, zeros = s.weight(operands[0]), s.weight(operands[2]) if len(operands) > 2 else None
        if (
            maker.args[3] != 0
            or codes is None
            or codes.dtype != torch.int8
            or (zeros is not None and bool(zeros.any()))
        ):
            return None
        epilogue, last = epilogue_of(s, node)
        made = weight_only.linear_int8(s, cpu, tensor, s[operands[0]], s[operands[1]], added, epilogue)
    else:
        return None
    made = s.reshape(made, node.results[0].tensor.shape)
    for later in last:
        s.ahead[later] = [made]
    return made


def addmm(s: Scope, cpu: Cpu, node: Node, c: Value, a: Value, b: Value, beta: Arg = 1, alpha: Arg = 1) -> Tensor:
    """``aten.addmm``."""
    made = _product(s, cpu, node, a, b, c, transposed=False) if beta == alpha == 1 else None
    return made if made is not None else products.scaled_sum(s, node, c, a, b, beta, alpha)


def matmul(s: Scope, cpu: Cpu, node: Node, a: Value, b: Value) -> Tensor:
    """``aten.matmul`` and ``aten.mm``."""
    made = _product(s, cpu, node, a, b, None, transposed=False)
    return made if made is not None else products.matmul(s, node, a, b)


def layer_norm(
    s: Scope, cpu: Cpu, node: Node, x: Value, shape: tuple[Arg, ...], weight: Arg = None, bias: Arg = None,
    eps: float = 1e-5, *rest: Arg,
) -> Any:  # fmt: skip
    """``aten.layer_norm`` over one dim."""
    if _rows_fit(s, cpu, x, weight, bias) and len(shape) == 1:
        scale, shift = (None if v is None else s[v] for v in (weight, bias))
        return rows.layer_norm(s, cpu, s[x], scale, shift, eps)
    return norms.layer_norm(s, node, x, shape, weight, bias, eps, *rest)


def rms_norm(
    s: Scope, cpu: Cpu, node: Node, x: Value, shape: tuple[Arg, ...], weight: Arg = None, eps: Arg = None
) -> Tensor:
    """``aten.rms_norm`` over one dim."""
    if _rows_fit(s, cpu, x, weight) and len(shape) == 1:
        least = torch.finfo(_F32).eps if eps is None else number(eps)
        return rows.rms_norm(s, cpu, s[x], None if weight is None else s[weight], least)
    return norms.rms_norm(s, node, x, shape, weight, eps)


def _rows_fit(s: Scope, cpu: Cpu, x: Value, *others: Arg) -> bool:
    width = x.tensor.shape[-1] if x.tensor.rank else 0
    if x.tensor.dtype != _F32 or not isinstance(width, int) or not width or width % cpu.lanes:
        return False
    return all(v is None or s[v].dtype == _F32 for v in others)


def softmax(s: Scope, cpu: Cpu, node: Node, x: Value, dim: int, *rest: Arg) -> Tensor:
    """``aten.softmax`` over the last dim."""
    rank = x.tensor.rank
    if rank and result_type(node) == _F32 and axis_of(rank, dim) == rank - 1:
        return rows.softmax(s, cpu, s.tensor(x, _F32))
    made: Tensor = reductions.softmax()(s, node, x, dim, *rest)
    return made


def attention(
    s: Scope, cpu: Cpu, node: Node, q: Value, k: Value, v: Value, mask: Arg = None, dropout: Arg = 0.0,
    is_causal: Arg = False, scale: Arg = None, enable_gqa: Arg = False,
) -> Tensor:  # fmt: skip
    """``aten.scaled_dot_product_attention`` in one kernel, where heads are whole vectors wide."""
    by = neutral_attention.checked_scale(q, mask, dropout, is_causal, scale)
    added = s[mask] if isinstance(mask, Value) else None
    if not _attends(cpu, q, k, v, added, bool(enable_gqa)):
        return neutral_attention.attention(s, node, q, k, v, mask, dropout, is_causal, scale, enable_gqa)
    if added is not None and added.dtype == torch.bool:
        from tvm import tirx

        low, zero = tirx.const(-math.inf, "float32"), tirx.const(0, "float32")
        added = s.pointwise("mask", _F32, lambda m: tirx.Select(m, zero, low), [added], torch.bool)
    if added is not None and added.rank < 4:
        added = s.reshape(added, (*[1] * (4 - added.rank), *added.shape))
    turned = _turning_user(node)
    query, key, value = (_heads(s, t) for t in (q, k, v))
    made = own_attention.attention(s, cpu, query, key, value, added, by, bool(is_causal), turned is not None)
    if turned is None:
        return made
    s.ahead[turned] = [made]
    return made  # read by nobody: its only reader is ahead


def _attends(cpu: Cpu, q: Value, k: Value, v: Value, mask: Tensor | None, grouped: bool) -> bool:
    if any(t.tensor.rank != 4 or t.tensor.dtype != _F32 for t in (q, k, v)):
        return False
    heads, shared, depth, wide = (t.tensor.shape[i] for t, i in ((q, 1), (k, 1), (q, 3), (v, 3)))
    if not all(isinstance(d, int) for d in (heads, shared, depth, wide)) or v.tensor.shape[1] != shared:
        return False
    if (heads != shared and not grouped) or int(wide) % cpu.lanes:
        return False
    if q.tensor.shape[0] != k.tensor.shape[0] or k.tensor.shape[0] != v.tensor.shape[0]:
        return False
    return mask is None or mask.dtype in (torch.bool, _F32)


def _turns(node: Node | None) -> bool:
    """Whether a node swaps heads and rows."""
    if node is None:
        return False
    if node.op.name == "aten.permute.default":
        return tuple(node.args[1]) == (0, 2, 1, 3)  # type: ignore[arg-type]
    return node.op.name == "aten.transpose.int" and {int(a) % 4 for a in node.args[1:3]} == {1, 2}  # type: ignore[arg-type]


def _heads(s: Scope, value: Value) -> own_attention.Heads:
    node = value.producer
    if node is not None and _turns(node) and isinstance(node.args[0], Value) and node.args[0] in s.values:
        return own_attention.Heads(s[node.args[0]], True)
    return own_attention.Heads(s[value], False)


def _turning_user(node: Node) -> Node | None:
    users = list(node.result.uses)
    if len(users) == 1 and users[0].block is node.block and _turns(users[0]):
        return users[0]
    return None
