"""Result types by torch's own meta kernels, over symbolic shapes.

Every symbol of the graph becomes a size of one private torch ``ShapeEnv``; fake tensors of the operand
types go through the operator, and the shapes that come out are read back as expressions. Results are
remembered per operator and operand types, so that forty equal layers cost as much as one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from ir.dims import Dim, DimRange, show_dim, simplify, symbol
from ir.errors import IRError
from ir.ops import REGIONS, RETURN, ROWS, WHILE
from ir.types import NoneType, ScalarType, TensorType, Type

if TYPE_CHECKING:
    from ir.core import Arg, Block, Node

# Sizes that stand for symbols while shapes are derived: primes, so that no accident looks like a law.
_PRIMES = (37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113, 127)


class Typer:
    """Derives result types for one graph; built lazily, because a ``ShapeEnv`` is not free."""

    def __init__(self, dims: Mapping[str, DimRange]) -> None:
        self._dims = dims
        self._known: dict[str, tuple[DimRange, sympy.Symbol, int]] = {}
        self._memo: dict[object, tuple[Type, ...]] = {}
        self._env: ShapeEnv | None = None
        self._mode: Any = None
        self._names: dict[sympy.Symbol, str] = {}
        self._fresh = itertools.count()

    def infer(self, node: Node) -> tuple[Type, ...]:
        """Types of the results of a node.

        Raises:
            IRError: torch does not accept these operands.
        """
        if node.op is RETURN:
            return ()
        if node.op.name in REGIONS:
            return _region_types(node)
        key = _node_key(node)
        if key not in self._memo:
            self._memo[key] = self._derive(node)
        return self._memo[key]

    def remember(self, node: Node) -> None:
        """Take the result types of a node as derived: torch.export ran the same meta kernels."""
        self._memo.setdefault(_node_key(node), tuple(v.type for v in node.results))

    def _derive(self, node: Node) -> tuple[Type, ...]:
        self._prepare()
        assert self._env is not None and node.op.target is not None
        before = dict(self._env.replacements)
        try:
            # with the Python dispatcher, as torch.export: some C++ kernels would fix symbols to their hints
            with self._mode, torch.no_grad(), enable_python_dispatcher():
                args = [self._fake(a) for a in node.args]
                kwargs = {k: self._fake(v) for k, v in node.kwargs.items()}
                results = node.op.target(*args, **kwargs)
        except Exception as error:
            self._env = None  # it may remember what it took for granted on the way
            raise IRError(
                f"{node.op.name} does not accept {', '.join(map(_describe, node.args))}: {_first_line(error)}",
                where=str(node.origin),
            ) from error
        fixed = {s: e for s, e in self._env.replacements.items() if s not in before and s in self._names}
        if fixed:
            told = ", ".join(f"{self._names[s]} = {show_dim(self._named(e))}" for s, e in fixed.items())
            self._env = None  # it must not remember the accident
            raise IRError(f"{node.op.name} holds only for {told}", where=str(node.origin))
        if results is None and node.op.target is not None:
            schema = getattr(node.op.target, "_schema", None)
            if schema is not None and not schema.returns:
                return ()
        # a float or bool is stood for by one value: an int that was made of it is not known
        known = all(v.type.kind == "int" for v in node.operands if isinstance(v.type, ScalarType))
        if isinstance(results, (tuple, list)):
            return tuple(self._read(r, known) for r in results)
        return (self._read(results, known),)

    def _prepare(self) -> None:
        if self._env is None:
            self._known, self._names = {}, {}
            self._env = ShapeEnv(specialize_zero_one=False, duck_shape=False)
            self._mode = FakeTensorMode(shape_env=self._env, allow_non_fake_inputs=True)
        for name, bounds in self._dims.items():
            if name not in self._known:
                self._declare(name, bounds)

    def _declare(self, name: str, bounds: DimRange) -> None:
        assert self._env is not None
        hint = _PRIMES[len(self._known) % len(_PRIMES)]
        if hint not in bounds:
            middle = (bounds.min + bounds.max) // 2 if bounds.max is not None else bounds.min + hint
            hint = max(middle, bounds.min)
        made = self._env.create_symbol(
            hint,
            ConstantSource(f"__dim_{name}"),
            dynamic_dim=DimDynamic.DYNAMIC,
            constraint_dim=None,
            do_not_specialize_zero_one=True,
        )
        upper = int_oo if bounds.max is None else bounds.max
        # sizes of one are legal at run time, but shape rules are the same from two on
        self._env.var_to_range[made] = ValueRanges(min(max(bounds.min, 2), hint), upper)
        self._known[name] = (bounds, made, hint)
        self._names[made] = name

    def _to_env(self, dim: Dim) -> Any:
        assert self._env is not None
        if isinstance(dim, int):
            return dim
        for free in dim.free_symbols:
            if free.name not in self._known:
                self._declare(free.name, DimRange(0, None))
        table = {free: self._known[free.name][1] for free in dim.free_symbols}
        hints = {free: sympy.Integer(self._known[free.name][2]) for free in dim.free_symbols}
        return self._env.create_symintnode(dim.xreplace(table), hint=int(dim.xreplace(hints)))

    def _from_env(self, size: Any) -> Dim:
        if isinstance(size, int):
            return size
        return self._named(size.node.expr)

    def _named(self, expression: sympy.Expr) -> Dim:
        """An expression over the symbols of the env, over our own."""
        table = {}
        for free in expression.free_symbols:
            if free not in self._names:  # made by the operator: a size that depends on the data
                self._names[free] = f"u{next(self._fresh)}"
            table[free] = symbol(self._names[free])
        return simplify(expression.xreplace(table))

    def _fake(self, arg: Arg) -> Any:
        from ir.core import Value

        if isinstance(arg, Value):
            return self._fake_type(arg.type)
        if isinstance(arg, tuple):
            return [self._fake(a) for a in arg]
        return arg

    def _fake_type(self, type_: Type) -> Any:
        if isinstance(type_, TensorType):
            return torch.empty([self._to_env(d) for d in type_.shape], dtype=type_.dtype)
        if isinstance(type_, ScalarType):
            if type_.kind == "int":
                return self._to_env(type_.expr if type_.expr is not None else symbol("u_any"))
            return 1.5 if type_.kind == "float" else True
        return None

    def _read(self, result: Any, known: bool) -> Type:
        if isinstance(result, torch.Tensor):
            return TensorType(result.dtype, tuple(self._from_env(d) for d in result.shape))
        if isinstance(result, (bool, torch.SymBool)):
            return ScalarType("bool")
        if isinstance(result, (int, torch.SymInt)):
            return ScalarType("int", self._from_env(result) if known else None)
        if isinstance(result, (float, torch.SymFloat)):
            return ScalarType("float")
        if result is None:
            return NoneType()
        raise IRError(f"an operator returned {type(result).__name__}, which the IR has no type for")


def _region_types(node: Node) -> tuple[Type, ...]:
    if node.op is WHILE or node.op is ROWS:
        carried = node.args[0 if node.op is WHILE else 1]
        assert isinstance(carried, tuple)
        return tuple(v.type for v in _values(carried))
    first: Block = node.regions[0]
    return tuple(v.type for v in _values(first.returned.args))


def _values(args: tuple[Arg, ...]) -> list[Any]:
    from ir.core import Value

    for arg in args:
        if not isinstance(arg, Value):
            raise IRError(f"a region must return values, not {arg!r}")
    return list(args)


def _node_key(node: Node) -> object:
    return (node.op, _key(node.args), tuple((k, _key(v)) for k, v in sorted(node.kwargs.items())))


def _key(arg: Arg) -> object:
    from ir.core import Value

    if isinstance(arg, Value):
        return arg.type
    if isinstance(arg, tuple):
        return tuple(_key(a) for a in arg)
    return (type(arg), repr(arg))  # 1, 1.0 and True are different arguments


def _describe(arg: Arg) -> str:
    from ir.core import Value

    if isinstance(arg, Value):
        return repr(arg.type)
    if isinstance(arg, tuple):
        return f"({', '.join(map(_describe, arg))})"
    return repr(arg)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
