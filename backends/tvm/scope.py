"""Where calls are put: one scope per Relax function, and short words to make kernels.

Every tensor carries the shape that the IR knows, and every kernel is written over exactly those shapes: no shape
rule of Relax is relied upon.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from backends.arguments import SCALARS, Refused
from backends.tvm.dtypes import cast, literal, name_of, prim, wide
from backends.tvm.scalars import Functions
from ir import Arg, Dim, Graph, Node, ScalarType, TensorType, Value, symbol, symbols_of

_OPAQUE = 8  # TVM's number of a kernel that is fused with no other
Build: TypeAlias = Callable[..., Any]
Emitter: TypeAlias = Callable[..., Any]
"""Emits one node: ``(scope, node, *arguments in the order of the schema)`` gives a Tensor, a Dim, or several."""


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A Relax variable with what the IR knows of it.

    Attributes:
        argument: whether it is, or is a view of, an argument of the model: then it may not be returned as it is.
        param: name of the weight that it is, if it is one.
    """

    expr: Any
    dtype: torch.dtype
    shape: tuple[Dim, ...]
    argument: bool = False
    param: str = ""

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)


Operand: TypeAlias = "Tensor | Arg | Dim"


@dataclass(frozen=True)
class Forms:
    """What a target does in its own way.

    Attributes:
        emitters: operators that get other kernels than the neutral ones.
        functions: how exp, erf and their like are computed.
    """

    emitters: Mapping[str, Emitter] = field(default_factory=dict)
    functions: Functions = field(default_factory=Functions)


@dataclass
class Emission:
    """What all functions of one module share.

    Attributes:
        builder: Relax's block builder.
        packed: weights rearranged for kernels, made when the module is emitted: name -> tensor.
        parts: what operators without a form were taken apart into, or why they were not.
    """

    graph: Graph
    forms: Forms
    builder: Any
    packed: dict[str, torch.Tensor] = field(default_factory=dict)
    parts: dict[str, Graph | str] = field(default_factory=dict)
    functions: int = 0


class Kernel:
    """The variables of one PrimFunc: its own, as Relax wants them."""

    def __init__(self) -> None:
        self.variables: dict[str, Any] = {}

    def variable(self, name: str) -> Any:
        """The variable of a symbol."""
        from tvm import tirx

        return self.variables.setdefault(name, tirx.Var(name, "int64"))

    def dim(self, dim: Dim) -> Any:
        """A size inside the kernel."""
        return prim(dim, self.variable)

    def shape(self, dims: Sequence[Dim]) -> list[Any]:
        """A shape inside the kernel."""
        return [self.dim(d) for d in dims]


class Scope:
    """The calls of one Relax function."""

    def __init__(self, emission: Emission, symbols: Mapping[str, Any]) -> None:
        self.emission = emission
        self.symbols = dict(symbols)
        self.values: dict[Value, Tensor | Dim] = {}
        self.extra: dict[str, Tensor] = {}
        self.ahead: dict[Node, Sequence[Tensor]] = {}  # computed with an earlier node
        self._made: dict[object, Any] = {}

    @property
    def math(self) -> Functions:
        """exp, erf and their like, as the target computes them."""
        return self.emission.forms.functions

    # --- reading -------------------------------------------------------------------------------

    def get(self, arg: Operand) -> Tensor | Dim:
        """A tensor, or a size; a literal becomes a 0-d tensor."""
        if isinstance(arg, Tensor):
            return arg
        if isinstance(arg, Value):
            return self.values[arg]
        raise Refused(f"cannot read {arg!r}")

    def __getitem__(self, arg: Operand) -> Tensor:
        """The tensor that an operand is; a size becomes a 0-d tensor."""
        found = self.get(arg)
        return found if isinstance(found, Tensor) else self.tensor(found, torch.int64)

    def tensor(self, arg: Operand, dtype: torch.dtype) -> Tensor:
        """An operand in a type; a number becomes a 0-d tensor."""
        have = self.values[arg] if isinstance(arg, Value) else arg
        if isinstance(have, Tensor) and have.dtype == dtype:
            return have
        key = ("tensor", id(have) if isinstance(have, Tensor) else repr((type(have), have)), dtype)
        if key not in self._made:
            self._made[key] = (self.pointwise("cast", dtype, lambda x: x, [have]), have)
        return self._made[key][0]

    def kept(self, key: object, make: Callable[[], Any]) -> Any:
        """What was made before under a key, or is made now."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def size(self, arg: Arg) -> Dim:
        """A size that is a function of the symbols, or a number."""
        if isinstance(arg, Value):
            found = self.values[arg]
            if isinstance(found, Tensor):
                raise Refused("a size that the data decides")
            return found
        if isinstance(arg, int):
            return int(arg)
        raise Refused(f"{arg!r} is no size")

    # --- kernels -------------------------------------------------------------------------------

    def compute(
        self,
        name: str,
        shape: Sequence[Dim],
        dtype: torch.dtype,
        body: Callable[..., Any],
        *inputs: Tensor,
    ) -> Tensor:
        """One element at a time: ``body(kernel, index, *te tensors)`` gives the element at an index."""
        from tvm import te

        def build(k: Kernel, *tensors: Any) -> Any:
            if not shape:
                return te.compute((), lambda: body(k, (), *tensors), name=name)
            return te.compute(k.shape(shape), lambda *index: body(k, index, *tensors), name=name)

        return self.te(name, build, inputs, [(dtype, tuple(shape))])[0]

    def te(
        self,
        name: str,
        build: Build,
        inputs: Sequence[Tensor],
        results: Sequence[tuple[torch.dtype, tuple[Dim, ...]]],
    ) -> list[Tensor]:
        """A kernel of tensor expressions: ``build(kernel, *te tensors)`` gives one, or a list of them."""
        from tvm import te

        k = Kernel()
        inputs = list(dict.fromkeys(inputs)) if len(set(inputs)) == len(inputs) else list(inputs)
        holders = [te.placeholder(k.shape(t.shape), dtype=name_of(t.dtype), name=f"x{i}") for i, t in enumerate(inputs)]
        made = build(k, *holders)
        outputs = list(made) if isinstance(made, (list, tuple)) else [made]
        loose = self._loose(k, inputs)
        function = te.create_prim_func([*holders, *(k.variables[n] for n in loose), *outputs], "int64")
        if any(t.dtype == torch.bfloat16 for t in inputs):
            if named_bfloat16(function):
                return self.te(name, build, [self._widened(t) for t in inputs], results)
            function = function.with_attr("op_pattern", _OPAQUE)
        elif self.math.binds and any(dtype == torch.bfloat16 for dtype, _ in results):
            # rounding reads what it rounds several times; fused with a let, that would bind its name twice
            function = function.with_attr("op_pattern", _OPAQUE)
        return self._call(name, function, inputs, loose, results)

    def _widened(self, x: Tensor) -> Tensor:
        """A bf16 tensor in float32, by a kernel of its own."""
        return self.tensor(x, torch.float32) if x.dtype == torch.bfloat16 else x

    def kernel(
        self,
        name: str,
        build: Callable[..., None],
        inputs: Sequence[Tensor],
        results: Sequence[tuple[torch.dtype, tuple[Dim, ...]]],
        sizes: Sequence[Dim] = (),
    ) -> list[Tensor]:
        """A kernel of statements: ``build(kernel, *buffers)`` writes the loops; ``sizes`` names more sizes it reads."""
        from tvm.script.ir_builder import IRBuilder
        from tvm.tirx.script.builder import ir as I  # noqa: N812

        k = Kernel()
        tensors = [(t.dtype, t.shape) for t in inputs]
        for dims in (*(shape for _, shape in (*tensors, *results)), sizes):
            k.shape(dims)
        loose = self._loose(k, inputs)
        with IRBuilder() as builder:
            with I.prim_func(private=True):
                I.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
                buffers = [
                    I.arg(f"x{i}", I.buffer(k.shape(shape), name_of(dtype))) for i, (dtype, shape) in enumerate(tensors)
                ]
                for symbol_name in loose:
                    I.arg(symbol_name, k.variables[symbol_name])
                buffers += [
                    I.arg(f"y{i}", I.buffer(k.shape(shape), name_of(dtype))) for i, (dtype, shape) in enumerate(results)
                ]
                build(k, *buffers)
            function = builder.get()
        return self._call(name, function, inputs, loose, results)

    def _loose(self, k: Kernel, inputs: Sequence[Tensor]) -> list[str]:
        """Symbols of a kernel that no shape of its inputs says."""
        bound = {d.name for t in inputs for d in t.shape if not isinstance(d, int) and d.is_Symbol}
        return sorted(set(k.variables) - bound)

    def _call(
        self,
        name: str,
        function: Any,
        inputs: Sequence[Tensor],
        loose: Sequence[str],
        results: Sequence[tuple[torch.dtype, tuple[Dim, ...]]],
    ) -> list[Tensor]:
        from tvm import relax

        where = self.emission.builder.add_func(function.without_attr("global_symbol"), name)
        types = [relax.TensorType(self.shape_of(shape), name_of(dtype)) for dtype, shape in results]
        args = [t.expr for t in inputs] + [self.prim(symbol(n)) for n in loose]
        made = self.emit(relax.call_tir(where, args, types if len(types) > 1 else types[0]))
        if len(types) == 1:
            return [Tensor(made, *results[0])]
        return [Tensor(self.emit(relax.TupleGetItem(made, i)), *result) for i, result in enumerate(results)]

    # --- Relax ---------------------------------------------------------------------------------

    def emit(self, expr: Any) -> Any:
        """Bind an expression."""
        return self.emission.builder.emit(expr)

    def prim(self, dim: Dim) -> Any:
        """A size in this function."""
        return prim(dim, self._variable)

    def shape_of(self, dims: Sequence[Dim]) -> Any:
        """A shape in this function."""
        from tvm import relax

        return relax.ShapeExpr([self.prim(d) for d in dims])

    def _variable(self, name: str) -> Any:
        if name not in self.symbols:
            raise Refused(f"the size {name}, which is known only when it runs")
        return self.symbols[name]

    def raw(self, expr: Any, dtype: torch.dtype, shape: Sequence[Dim]) -> Tensor:
        """The result of a Relax operator, held to a type."""
        return Tensor(self.hold(self.emit(expr), dtype, shape), dtype, tuple(shape))

    def hold(self, expr: Any, dtype: torch.dtype, shape: Sequence[Dim]) -> Any:
        """Say the type of an expression, where Relax says another."""
        import tvm_ffi
        from tvm import relax

        want = relax.TensorType(self.shape_of(shape), name_of(dtype))
        if tvm_ffi.structural_equal(expr.ty, want):
            return expr
        return self.emission.builder.match_cast(expr, want)

    def reshape(self, x: Tensor, shape: Sequence[Dim]) -> Tensor:
        """The same elements in another shape: a view."""
        from tvm import relax

        if tuple(shape) == x.shape:
            return x
        if 0 in shape:  # which Relax takes for "as it was"
            return self.pointwise("empty", x.dtype, lambda v: v, [0], shape=shape)
        made = self.emit(relax.op.reshape(x.expr, self.shape_of(shape)))
        return Tensor(self.hold(made, x.dtype, shape), x.dtype, tuple(shape), x.argument)

    def bind(self, dim: Dim, x: Tensor) -> None:
        """Let a symbol that the data decides be the number in a 0-d int64 tensor."""
        from tvm import relax, tirx

        if isinstance(dim, int) or not dim.is_Symbol:
            raise Refused("a size that the data decides in a roundabout way")
        vector = self.reshape(x, (1,))
        found = self.emit(
            relax.call_pure_packed("vm.builtin.tensor_to_shape", vector.expr, ty_args=[relax.ShapeType(ndim=1)])
        )
        # a symbol that is known already must be that number: checked when it runs
        variable = self.symbols.setdefault(dim.name, tirx.Var(dim.name, "int64"))
        self.emission.builder.match_cast(found, relax.ShapeType([variable]))

    def constant(self, tensor: torch.Tensor) -> Tensor:
        """A small constant tensor, part of the module."""
        from tvm import relax

        dtype = tensor.dtype
        if dtype not in SCALARS.values() and dtype not in (torch.float32, torch.int32):
            raise Refused(f"a constant of {dtype}")
        made = relax.const(tensor.contiguous().numpy(), name_of(dtype))
        return Tensor(made, dtype, tuple(tensor.shape), argument=True)

    def pack(self, name: str, make: Callable[[], torch.Tensor]) -> Tensor:
        """A weight rearranged for a kernel: made once, kept in a file of its own, an argument of the function."""
        from tvm import relax

        packed = self.emission.packed
        if name not in packed:
            packed[name] = make().contiguous()
        if name not in self.extra:
            tensor = packed[name]
            shape = tuple(int(d) for d in tensor.shape)
            variable = relax.Var(f"packed{len(self.extra)}", relax.TensorType(shape, name_of(tensor.dtype)))
            self.extra[name] = Tensor(variable, tensor.dtype, shape, argument=True)
        return self.extra[name]

    def weight(self, x: Operand) -> torch.Tensor | None:
        """The content of a tensor that is a weight; ``None`` when it is none."""
        found = self.get(x)
        if not isinstance(found, Tensor) or not found.param:
            return None
        return self.emission.graph.weights[found.param]

    # --- elements ------------------------------------------------------------------------------

    def pointwise(
        self,
        name: str,
        dtype: torch.dtype,
        f: Callable[..., Any],
        args: Sequence[Operand],
        within: torch.dtype | Sequence[torch.dtype] | None = None,
        shape: Sequence[Dim] | None = None,
    ) -> Tensor:
        """``f`` of broadcast elements.

        Args:
            name: of the kernel.
            dtype: of the result.
            f: over TIR expressions.
            args: tensors, sizes and numbers.
            within: type that each operand is converted to; the half precisions are widened. ``None``: the result's.
            shape: of the result, when it is not that of the operands broadcast.
        """
        types = [within or dtype] * len(args) if not isinstance(within, (list, tuple)) else list(within)
        given = [self.values[a] if isinstance(a, Value) else a for a in args]
        tensors = list(dict.fromkeys(a for a in given if isinstance(a, Tensor)))
        out = tuple(shape) if shape is not None else broadcast([t.shape for t in tensors])

        def body(k: Kernel, index: Sequence[Any], *holders: Any) -> Any:
            read = dict(zip(tensors, holders, strict=True))
            values = []
            for arg, type_ in zip(given, types, strict=True):
                if isinstance(arg, Tensor):
                    value = cast(read[arg](*aligned(arg.shape, index)), wide(type_))
                elif isinstance(arg, (bool, int, float)):
                    value = literal(arg, wide(type_))
                else:
                    value = cast(k.dim(arg), wide(type_))
                values.append(value)
            return cast(f(*values), dtype)

        for arg in given:
            if not isinstance(arg, (Tensor, bool, int, float)) and not hasattr(arg, "free_symbols"):
                raise Refused(f"cannot compute with {arg!r}")
        return self.compute(name, out, dtype, body, *tensors)


def named_bfloat16(function: Any) -> bool:
    """Whether a kernel gives a name (a let) to something made of a bf16 element.

    TVM 0.27 forgets those when it takes bf16 apart, and reads their bits as whole numbers. Kernels that read bf16 are
    not fused either: another one might bring the name.
    """
    import tvm_ffi
    from tvm import tirx

    found: list[bool] = []

    def inside(node: Any) -> None:
        found.append(str(getattr(getattr(node, "ty", None), "dtype", "")).startswith("bfloat16"))

    def visit(node: Any) -> None:
        if isinstance(node, (tirx.Let, tirx.Bind)):
            tvm_ffi.structural_walk(node.value, (object, inside), order="post")

    tvm_ffi.structural_walk(function.body, (object, visit), order="post")
    return any(found)


def aligned(shape: Sequence[Dim], index: Sequence[Any]) -> list[Any]:
    """The index of a broadcast operand for an index of the result."""
    tail = index[len(index) - len(shape) :] if shape else ()
    return [0 if d == 1 else i for d, i in zip(shape, tail, strict=True)]


def broadcast(shapes: Sequence[tuple[Dim, ...]]) -> tuple[Dim, ...]:
    """The shape that shapes broadcast to."""
    rank = max((len(s) for s in shapes), default=0)
    out: list[Dim] = [1] * rank
    for shape in shapes:
        for offset, dim in enumerate(reversed(shape)):
            if out[rank - 1 - offset] == 1:
                out[rank - 1 - offset] = dim
    return tuple(out)


def needed_symbols(values: Sequence[Value]) -> set[str]:
    """Names of the symbols in the types of values."""
    found: set[str] = set()
    for value in values:
        if isinstance(value.type, TensorType):
            for dim in value.type.shape:
                found |= symbols_of(dim)
        elif isinstance(value.type, ScalarType) and value.type.expr is not None:
            found |= symbols_of(value.type.expr)
    return found
