"""Prices by family of operators. ``ir.price`` is the door; the conventions are told there.

A ``Call`` is a node without identity: its operator, its literals and the types of its values. Equal calls
have equal prices, so a graph of thousands of nodes is priced by its few dozen different calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from ir.dims import Dim
from ir.einsum import contraction, subscripts
from ir.ops import Op
from ir.types import TensorType, Type


@dataclass(frozen=True, slots=True)
class Gemm:
    """``batch`` products of ``[m, k]`` by ``[k, n]``; ``quantizes`` its activations first when set."""

    batch: Dim
    m: Dim
    n: Dim
    k: Dim
    quantizes: bool = False


@dataclass(frozen=True, slots=True)
class Attention:
    """Softmax attention without a written score matrix; ``batch`` counts the query heads too."""

    batch: Dim
    queries: Dim
    keys: Dim
    head_dim: Dim
    causal: bool


@dataclass(frozen=True, slots=True)
class Price:
    """What one node must do.

    Attributes:
        kind: matmul, conv, attention, norm, reduction, pointwise, gather, copy, quantize; view and size
            (nothing runs); region (sum over blocks); unknown (bytes only, the operations are not known).
        flops: operations; of matrix units for matmul, conv and attention, else of vector lanes.
        reads: bytes read, one entry per operand of the node; 0 for an operand that stood there before.
        writes: bytes written, one entry per result.
        scratch: bytes that kernels of this node hand to each other through memory.
        compute: element type that the operations are done in.
        kernels: launches that an engine without fusion needs.
        work: the shape of the product, for models that know tiles.
    """

    kind: str
    flops: Dim
    reads: tuple[Dim, ...]
    writes: tuple[Dim, ...]
    compute: torch.dtype
    scratch: Dim = 0
    kernels: int = 1
    work: Gemm | Attention | None = None

    @property
    def bytes_read(self) -> Dim:
        """Bytes from memory, scratch included by half."""
        return total_of(self.reads) + _half(self.scratch)

    @property
    def bytes_written(self) -> Dim:
        """Bytes to memory, scratch included by half."""
        return total_of(self.writes) + self.scratch - _half(self.scratch)

    @property
    def free(self) -> bool:
        """Whether nothing runs."""
        return self.kind in ("view", "size")


@dataclass(frozen=True, slots=True)
class Call:
    """A node without identity: equal calls have equal prices, so each is priced once.

    Attributes:
        args: arguments by name, types in the place of values.
        operands: type of each operand.
        sources: type that each operand is really read in; ``None`` when it is not read (again).
        absorbed: a dequantize that every reader takes over.
    """

    op: Op
    args: tuple[tuple[str, object], ...]
    operands: tuple[Type, ...]
    sources: tuple[TensorType | None, ...]
    results: tuple[Type, ...]
    absorbed: bool = False

    @property
    def packet(self) -> str:
        """Name of the operator without namespace and overload."""
        return self.op.name.split(".")[1]

    def arg(self, name: str, default: object = None) -> object:
        """An argument by its name in the schema."""
        return next((value for key, value in self.args if key == name), default)

    def tensor(self, position: int) -> TensorType:
        """Type of an operand, which must be a tensor."""
        found = self.operands[position]
        assert isinstance(found, TensorType), f"{self.op.name}: operand {position} is no tensor"
        return found

    @property
    def out(self) -> TensorType:
        """Type of the first tensor result."""
        return next(r for r in self.results if isinstance(r, TensorType))

    @property
    def reads(self) -> tuple[Dim, ...]:
        """Bytes of each operand as it is read."""
        return tuple(0 if s is None else _bytes(s) for s in self.sources)

    @property
    def writes(self) -> tuple[Dim, ...]:
        """Bytes of each result."""
        return tuple(bytes_of(r) for r in self.results)


# --- arithmetic on dims --------------------------------------------------------------------------


def bytes_of(type_: Type) -> Dim:
    """Bytes that a value occupies; 0 for scalars, which live on the host."""
    return _bytes(type_) if isinstance(type_, TensorType) else 0


@lru_cache(maxsize=65536)
def _bytes(type_: TensorType) -> Dim:
    return type_.numel * type_.dtype.itemsize


def _product(dims: Sequence[Dim]) -> Dim:
    total: Dim = 1
    for dim in dims:
        total = total * dim
    return total


def total_of(dims: Sequence[Dim]) -> Dim:
    """Sum that stays an int as long as it can."""
    total: Dim = 0
    for dim in dims:
        total = total + dim
    return total


def _half(dim: Dim) -> Dim:
    return dim // 2 if isinstance(dim, int) else dim / 2  # scratch is written once and read once: even


# --- families ---------------------------------------------------------------------------------


@lru_cache(maxsize=65536)
def price_call(call: Call) -> Price:
    """The price of a call without regions."""
    if not any(isinstance(r, TensorType) for r in call.results):
        return Price("size", 0, (0,) * len(call.operands), (0,) * len(call.results), torch.int64, kernels=0)
    family = _FAMILIES.get(call.packet)
    if family is not None:
        return family(call)
    if call.packet in _VIEWS or _aliases(call.op):
        return _view(call)
    tags = getattr(call.op.target, "tags", ())
    if torch.Tag.pointwise in tags:
        return _moved(call, "pointwise", call.out.numel)
    if torch.Tag.reduction in tags:
        return _reduction(call)
    return _moved(call, "unknown", 0)


def _aliases(op: Op) -> bool:
    schema = getattr(op.target, "_schema", None)
    if schema is None or not schema.arguments:
        return False
    alias = schema.arguments[0].alias_info
    return alias is not None and not alias.is_write


def _view(call: Call) -> Price:
    return Price("view", 0, (0,) * len(call.operands), (0,) * len(call.results), call.out.dtype, kernels=0)


def _moved(call: Call, kind: str, flops: Dim) -> Price:
    return Price(kind, flops, call.reads, call.writes, call.out.dtype)


def _copy(call: Call) -> Price:
    return _moved(call, "copy", 0)


def _create(call: Call) -> Price:
    """Made from nothing: an operand gives its shape only."""
    return Price("copy", 0, (0,) * len(call.operands), call.writes, call.out.dtype)


def _cast(call: Call) -> Price:
    same = call.operands[0] == call.results[0]
    return _view(call) if same and call.packet == "to" else _copy(call)


def _dropout(call: Call) -> Price:
    return _moved(call, "pointwise", call.out.numel) if call.arg("train") else _view(call)


def _pointwise(call: Call) -> Price:
    return _moved(call, "pointwise", call.out.numel)


def _quantize(call: Call) -> Price:
    return _view(call) if call.absorbed else _moved(call, "quantize", call.out.numel)


def _reduction(call: Call) -> Price:
    return _moved(call, "reduction", call.tensor(0).numel)


def _softmax(call: Call) -> Price:
    return _moved(call, "reduction", 5 * call.out.numel)  # max, subtract, exp, add, divide


def _norm(call: Call) -> Price:
    per_element = 4 if call.packet == "rms_norm" else 7  # square, add, scale, weight; also mean, subtract, bias
    return _moved(call, "norm", per_element * call.out.numel)


def _pool(call: Call) -> Price:
    window = call.arg("kernel_size")
    if not isinstance(window, tuple) or not all(isinstance(w, int) for w in window):
        return _reduction(call)
    rank = int(call.packet[-2]) if call.packet[-2].isdigit() else len(window)
    area = _product(window) if len(window) == rank else window[0] ** rank
    return _moved(call, "reduction", call.out.numel * area)


def _gather(call: Call) -> Price:
    """Rows are read where they are asked for: as many bytes of the table as come out."""
    table = _bytes(TensorType(call.tensor(0).dtype, call.out.shape))
    return Price("gather", 0, (table, *call.reads[1:]), call.writes, call.out.dtype)


def _gemm(call: Call, flops: Dim, work: Gemm | Attention | None, a: int, b: int, kind: str = "matmul") -> Price:
    one, two = call.sources[a], call.sources[b]
    eight = (torch.int8, torch.uint8)
    compute = call.tensor(a).dtype
    if one is not None and (two is None or two.dtype in eight) and one.dtype in eight:
        compute = torch.int8
    return Price(kind, flops, call.reads, call.writes, compute, work=work)


def _linear(call: Call) -> Price:
    x, w = call.tensor(0), call.tensor(1)
    n = w.shape[0] if w.rank == 2 else 1
    work = Gemm(1, _product(x.shape[:-1]), n, x.shape[-1])
    return _gemm(call, 2 * call.out.numel * x.shape[-1], work, 0, 1)


def _matmul(call: Call) -> Price:
    first = 1 if call.packet.startswith(("add", "baddbmm")) else 0
    a, b = call.tensor(first), call.tensor(first + 1)
    k = a.shape[-1]
    if b.rank <= 2:
        work = Gemm(1, _product(a.shape[:-1]), b.shape[1] if b.rank == 2 else 1, k)
    else:
        m = a.shape[-2] if a.rank > 1 else 1
        work = Gemm(_product(call.out.shape[:-2] if a.rank > 1 else call.out.shape[:-1]), m, b.shape[-1], k)
    return _gemm(call, 2 * _product((work.batch, work.m, work.n, k)), work, first, first + 1)


def _int8_linear(call: Call) -> Price:
    """The quantized copy of the activations, and the product: two kernels and a hand-over."""
    x = call.tensor(0)
    n, k = call.tensor(1).shape
    reads = call.reads
    if call.packet.endswith("dynamic"):
        reads = (2 * reads[0], *reads[1:])  # once for the range, once to quantize
    work = Gemm(1, _product(x.shape[:-1]), n, k, quantizes=True)
    flops = 2 * x.numel * n
    return Price("matmul", flops, reads, call.writes, torch.int8, scratch=2 * x.numel, kernels=2, work=work)


def _narrow_linear(call: Call) -> Price:
    """One kernel: elements are rounded as they are loaded, by a scale that is known or by their own block's."""
    x, n = call.tensor(0), call.tensor(1).shape[0]
    work = Gemm(1, _product(x.shape[:-1]), n, x.shape[-1])
    compute = torch.float8_e4m3fn if call.packet == "fp8_linear" else torch.float4_e2m1fn_x2
    return Price("matmul", 2 * x.numel * n, call.reads, call.writes, compute, work=work)


def _einsum(call: Call) -> Price:
    shapes = [call.tensor(i).shape for i in range(len(call.operands))]
    letters, out = subscripts(str(call.arg("equation")), [len(s) for s in shapes])
    sizes = {c: d for term, s in zip(letters, shapes, strict=True) for c, d in zip(term, s, strict=True) if d != 1}
    if len(letters) == 1:
        return _moved(call, "reduction", call.tensor(0).numel)
    held, flops = letters[0], 0
    for index, term in enumerate(letters[1:], 1):  # left to right; torch may find a cheaper order
        every = dict.fromkeys(held + term)
        flops = flops + 2 * _product([sizes.get(c, 1) for c in every])
        held = "".join(c for c in every if c in out or any(c in t for t in letters[index + 1 :]))
    if len(letters) == 2:
        one, two = letters
        return _gemm(call, flops, Gemm(*contraction(one, two, out, sizes)), 0, 1)
    return Price("matmul", flops, call.reads, call.writes, call.out.dtype, kernels=len(letters) - 1)


def _conv(call: Call) -> Price:
    """A product per group: output places by filters by window; transposed, input places by window."""
    x, w = call.tensor(0), call.tensor(1)
    groups = call.arg("groups", 1)
    assert isinstance(groups, int)
    spatial = w.rank - 2
    if call.arg("transposed", False) or "transpose" in call.packet:
        places = _product(x.shape[-spatial:]) * (x.shape[0] if x.rank == w.rank else 1)
        work = Gemm(groups, places, _product(w.shape[1:]), w.shape[0] // groups)
    else:
        out = call.out
        places = _product(out.shape[-spatial:]) * (out.shape[0] if out.rank == w.rank else 1)
        work = Gemm(groups, places, w.shape[0] // groups, _product(w.shape[1:]))
    flops = 2 * groups * _product((work.m, work.n, work.k))
    depthwise = groups > 1 and w.shape[1] == 1
    return _gemm(call, flops, None if depthwise else work, 0, 1, "conv")


def _attention(call: Call) -> Price:
    q, k, v = (call.tensor(i) for i in range(3))
    batch, (queries, width) = _product(q.shape[:-2]), q.shape[-2:]
    keys, causal = k.shape[-2], call.arg("is_causal", False) is True
    full = 2 * batch * queries * keys * (width + v.shape[-1])  # both products
    flops = batch * queries * keys * (width + v.shape[-1]) if causal else full
    return _gemm(call, flops, Attention(batch, queries, keys, width, causal), 0, 1, "attention")


_MATMULS = ("mm", "bmm", "matmul", "addmm", "baddbmm", "mv", "addmv", "dot", "_int_mm", "_scaled_mm")
_CONVS = ("convolution", *(f"{kind}{rank}d" for kind in ("conv", "conv_transpose") for rank in (1, 2, 3)))
_ATTENTIONS = (
    "scaled_dot_product_attention",
    *(f"_scaled_dot_product_{kind}_attention" for kind in ("flash", "efficient", "cudnn")),
    "_scaled_dot_product_flash_attention_for_cpu",
)
PRODUCTS = frozenset(("linear", "einsum", *_MATMULS, *_CONVS, *_ATTENTIONS))
_VIEWS = frozenset(("_unsafe_view",))  # views whose schema does not say so
_RESHAPES = ("view", "reshape", "transpose", "permute", "t", "unsqueeze", "squeeze", "flatten", "unflatten")
SAME_ELEMENTS = _VIEWS | frozenset((*_RESHAPES, "detach", "alias"))
_TABLE: Sequence[tuple[Callable[[Call], Price], str]] = (
    (_norm, "layer_norm native_layer_norm rms_norm batch_norm _native_batch_norm_legit_no_training"),
    (_norm, "group_norm native_group_norm instance_norm"),
    (_softmax, "softmax _softmax log_softmax _log_softmax logsumexp"),
    (_reduction, "sum mean max min amax amin argmax argmin any all prod var std var_mean std_mean norm"),
    (_reduction, "linalg_vector_norm cumsum cumprod topk sort argsort nonzero bincount median cummax"),
    (_reduction, "adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d"),
    (_pool, "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d"),
    (_gather, "embedding gather index index_select take take_along_dim"),
    (_cast, "to _to_copy type_as contiguous clone"),
    (_copy, "cat stack concat pad constant_pad_nd repeat repeat_interleave tile roll flip tril triu copy"),
    (_copy, "lift_fresh_copy slice_scatter select_scatter scatter scatter_add index_put index_copy one_hot"),
    (_copy, "hstack vstack dstack column_stack diag_embed pixel_shuffle pixel_unshuffle channel_shuffle"),
    (_copy, "meshgrid replication_pad2d reflection_pad2d masked_select im2col upsample_nearest2d"),
    (_create, "arange full zeros ones empty scalar_tensor eye linspace new_zeros new_ones new_full"),
    (_create, "new_empty zeros_like ones_like full_like empty_like tril_indices triu_indices"),
    (_create, "rand randn rand_like randn_like"),
    (_dropout, "dropout feature_dropout alpha_dropout"),
    (_pointwise, "__and__ __or__ __xor__ where masked_fill glu softplus log_sigmoid floor_divide clip"),
    (_pointwise, "square bernoulli isfinite isinf relu6 silu gelu rsub hardswish prelu divide multiply"),
    (_pointwise, "subtract negative absolute greater less not_equal outer ger special_expm1 polar"),
    (_pointwise, "masked_scatter complex bucketize"),
    (_quantize, "quantize_per_tensor quantize_per_channel quantize_per_token quantize_rows choose_qparams"),
    (_quantize, "dequantize_per_tensor dequantize_per_channel dequantize_per_token dequantize_int4"),
    (_int8_linear, "int8_linear_dynamic int8_linear_static"),
    (_narrow_linear, "fp8_linear nvfp4_linear"),
    (_linear, "linear"),
    (_einsum, "einsum"),
    (_matmul, " ".join(_MATMULS)),
    (_conv, " ".join(_CONVS)),
    (_attention, " ".join(_ATTENTIONS)),
)
_FAMILIES = {packet: family for family, packets in _TABLE for packet in packets.split()}
