"""One Relax module from one graph. Neutral: nothing here knows the target; ``Forms`` brings its kernels.

Weights are never baked in. The function ``main`` takes, in order, the graph's inputs and states, the weights that
something reads as they are (in ``weights.safetensors``), and weights rearranged for a kernel (``Emitted.packed``, which
the backend writes into ``STEM.packed.safetensors``); ``Emitted.arguments`` names them all. Whoever loads the library
binds the weights once. The module's results are one tuple, in the order of ``Graph.outputs``.

Each region of a ``cond`` is a private function, called from a branch of ``relax.If``: only the side taken runs. Its
arguments are those of the region, then its packed weights, then the sizes. There is no loop in Relax; recursion
overflows the stack, so ``while`` is refused: the host drives loops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from backends.arguments import IGNORED, SCALARS, Refused, kept_as, positional
from backends.base import Unsupported
from backends.parts import key_of, parts_of
from backends.tvm.dtypes import name_of
from backends.tvm.scope import Emission, Forms, Scope, Tensor, needed_symbols
from backends.tvm.table import EMITTERS
from ir import COND, RETURN, WHILE, Arg, Block, Dim, Graph, Node, NoneType, ScalarType, TensorType, Value
from ir.errors import UnsupportedError

LOOPS = "loops are driven by the host (segments)"
_LARGEST = 4096  # elements of a constant that a decomposition may bring


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of ``main``: ``kind`` is input, state, param or packed."""

    kind: str
    name: str


@dataclass(frozen=True)
class Emitted:
    """A module with its calling convention.

    Attributes:
        module: an ``IRModule`` with ``main``.
        arguments: of ``main``, in order.
        packed: rearranged weights, by name.
        branches: how many ``cond`` became ``relax.If``.
    """

    module: Any
    arguments: tuple[Argument, ...]
    packed: Mapping[str, torch.Tensor]
    branches: int


def module_of(graph: Graph, forms: Forms | None = None) -> Emitted:
    """The Relax module of a graph.

    Args:
        graph: any verified graph, its weights at hand.
        forms: kernels of the target, in the place of the neutral ones.

    Raises:
        UnsupportedError: lists everything that has no form here.
    """
    writer = _Writer(graph, forms or Forms())
    made = writer.module()
    if writer.faults:
        listing = "\n".join(f"  - {fault}" for fault in writer.faults)
        raise UnsupportedError(f"{len(writer.faults)} operator(s) have no TVM form:\n{listing}")
    assert made is not None
    return made


def unsupported(graph: Graph, forms: Forms | None = None) -> list[Unsupported]:
    """Everything in a graph that has no form here."""
    writer = _Writer(graph, forms or Forms())
    writer.module()
    return writer.faults


@dataclass(frozen=True)
class _Region:
    """A region as a function: what it takes after the region's own arguments."""

    function: Any
    packed: tuple[str, ...]
    symbols: tuple[str, ...]


class _Writer:
    def __init__(self, graph: Graph, forms: Forms) -> None:
        from tvm import relax

        self._graph = graph
        self._emission = Emission(graph, forms, relax.BlockBuilder())
        self._emitters = {**EMITTERS, **forms.emitters}
        self._regions: dict[Block, _Region] = {}
        self._inside = False
        self._branches = 0
        self.faults: list[Unsupported] = []

    def module(self) -> Emitted | None:
        graph = self._graph
        params = graph.params()
        self._prepare(graph.body, params)
        scope, variables = self._start(graph.body, params)
        unbound = {n for v in graph.inputs for n in needed_symbols([v])} - set(scope.symbols)
        if unbound:
            self._refuse("input", "", f"no input has a dim of size {', '.join(sorted(unbound))} by itself")
            return None
        given = [v for v in graph.body.args if v in variables]
        with self._emission.builder.function("main"):
            results = self._block(scope, graph.body)
            made = self._returned(scope, results, fresh=True)
            taken = [variables[v] for v in given] + [t.expr for t in scope.extra.values()]
            self._emission.builder.emit_func_output(made, taken)
        if self.faults:
            return None
        arguments = [Argument(graph.inputs[v].kind, graph.inputs[v].name) for v in given]
        arguments += [Argument("packed", name) for name in scope.extra]
        module, arguments = _without_unread(self._emission.builder.finalize(), arguments)
        return Emitted(module, tuple(arguments), self._emission.packed, self._branches)

    # --- functions -----------------------------------------------------------------------------

    def _start(self, block: Block, params: Mapping[Value, str]) -> tuple[Scope, dict[Value, Any]]:
        """A scope with the arguments of a block, and their Relax variables."""
        from tvm import relax, tirx

        symbols: dict[str, Any] = {}
        for value in block.args:
            for dim in value.type.shape if isinstance(value.type, TensorType) else ():
                if not isinstance(dim, int) and dim.is_Symbol and dim.name not in symbols:
                    symbols[dim.name] = tirx.Var(dim.name, "int64")
        scope = Scope(self._emission, symbols)
        variables: dict[Value, Any] = {}
        for number, value in enumerate(block.args):
            type_ = value.type
            if isinstance(type_, ScalarType) and type_.expr is not None:
                scope.values[value] = type_.expr
                continue
            dtype, shape = kept_as(type_)
            try:
                made = relax.TensorType(scope.shape_of(shape), name_of(dtype))
            except Refused as refused:
                self._refuse("input", value.name, str(refused))
                made = relax.TensorType([1], "float32")
            variables[value] = relax.Var(f"a{number}", made)
            scope.values[value] = Tensor(variables[value], dtype, shape, True, params.get(value, ""))
        return scope, variables

    def _prepare(self, block: Block, params: Mapping[Value, str]) -> None:
        """Make a function of every region below a block, inner ones first; params keep their names inside."""
        for node in block:
            if node.op is not COND:
                continue
            operands = node.args[1]
            assert isinstance(operands, tuple)
            for number, region in enumerate(node.regions):
                inner = {
                    arg: params[value]
                    for arg, value in zip(region.args, operands, strict=True)
                    if isinstance(value, Value) and value in params
                }
                self._prepare(region, inner)
                self._regions[region] = self._function(region, inner, "no" if number else "yes")

    def _function(self, region: Block, params: Mapping[Value, str], name: str) -> _Region:
        from tvm import relax

        scope, variables = self._start(region, params)
        symbols = sorted(needed_symbols(region.args))
        sizes = _sizes(scope, symbols)
        builder = self._emission.builder
        self._emission.functions += 1
        with builder.function(f"branch{self._emission.functions}_{name}", private=True):
            results = self._block(scope, region)
            made = self._returned(scope, results, fresh=False)
            taken = [variables[v] for v in region.args if v in variables] + [t.expr for t in scope.extra.values()]
            if symbols:
                taken.append(relax.Var("sizes", sizes))
            function = builder.emit_func_output(made, taken)
        return _Region(function, tuple(scope.extra), tuple(symbols))

    def _returned(self, scope: Scope, results: Sequence[Tensor | Dim], fresh: bool) -> Any:
        """The tuple of results; what is an argument is copied, when it must be ``fresh``."""
        from tvm import relax

        made = []
        for result in results:
            tensor = result if isinstance(result, Tensor) else scope.tensor(result, torch.int64)
            if fresh and tensor.argument:
                tensor = scope.pointwise("copy", tensor.dtype, lambda x: x, [tensor])
            made.append(tensor.expr)
        return scope.emit(relax.Tuple(made))

    # --- nodes ---------------------------------------------------------------------------------

    def _block(self, scope: Scope, block: Block) -> list[Tensor | Dim]:
        for node in block:
            if node.op is RETURN:
                return [self._result(scope, a) for a in node.args]
            for value, made in zip(node.results, self._node(scope, node), strict=True):
                scope.values[value] = made
        raise AssertionError("verified blocks end with return")

    def _result(self, scope: Scope, arg: Arg) -> Tensor | Dim:
        if isinstance(arg, Value):
            return scope.values[arg]
        if isinstance(arg, (bool, int, float)):
            return scope.tensor(arg, SCALARS[type(arg).__name__])
        raise AssertionError("verified blocks return values and numbers")

    def _node(self, scope: Scope, node: Node) -> Sequence[Any]:
        count = len(node.results)
        if node in scope.ahead:
            return scope.ahead[node]
        if node.op.name in IGNORED:
            return [0] * count
        try:
            if node.op is COND:
                return self._conditional(scope, node)
            if node.op is WHILE:
                raise Refused(LOOPS)
            if node.op.name not in self._emitters:
                return self._decomposed(scope, node)
            made = self._emitters[node.op.name](scope, node, *positional(node))
            return made if isinstance(made, (list, tuple)) else [made]
        except Refused as refused:
            self._refuse(node.op.name, str(node.origin), str(refused))
            return [self._stand_in(scope, v) for v in node.results]

    def _refuse(self, name: str, origin: str, reason: str) -> None:
        self.faults.append(Unsupported(name, origin, reason))

    def _stand_in(self, scope: Scope, value: Value) -> Any:
        """Something of the right type, so that the rest of the graph is looked at too."""
        from tvm import relax, tirx

        if isinstance(value.type, NoneType):
            return 0
        for name in needed_symbols([value]):
            scope.symbols.setdefault(name, tirx.Var(name, "int64"))
        if isinstance(value.type, ScalarType) and value.type.expr is not None:
            return value.type.expr
        dtype, shape = kept_as(value.type)
        try:
            type_ = relax.TensorType(scope.shape_of(shape), name_of(dtype))
        except Refused:
            type_ = relax.TensorType([1], "float32")
        return Tensor(relax.Var("missing", type_), dtype, shape)

    def _conditional(self, scope: Scope, node: Node) -> list[Tensor | Dim]:
        """``relax.If`` between two calls; the predicate is a 0-d bool."""
        from tvm import relax

        predicate, operands = node.args
        assert isinstance(operands, tuple) and isinstance(predicate, Value)
        test = scope.reshape(scope.tensor(predicate, torch.bool), ())
        calls = []
        for region in node.regions:
            known = self._regions[region]
            args = []
            for arg, operand in zip(region.args, operands, strict=True):
                if not (isinstance(arg.type, ScalarType) and arg.type.expr is not None):
                    dtype, _ = kept_as(arg.type)
                    args.append(scope.tensor(operand, dtype).expr)
            args += [scope.pack(name, partial(self._emission.packed.__getitem__, name)).expr for name in known.packed]
            if known.symbols:
                args.append(scope.shape_of([_symbol(n) for n in known.symbols]))
            calls.append(relax.Call(known.function, args))
        made = scope.emit(relax.If(test.expr, *calls))
        self._branches += 1
        results: list[Tensor | Dim] = []
        for index, value in enumerate(node.results):
            dtype, shape = kept_as(value.type)
            item = scope.emit(relax.TupleGetItem(made, index))
            tensor = Tensor(scope.hold(item, dtype, shape), dtype, shape, argument=True)
            if isinstance(value.type, ScalarType) and value.type.expr is not None:
                scope.bind(value.type.expr, tensor)
                results.append(value.type.expr)
            else:
                results.append(tensor)
        return results

    def _decomposed(self, scope: Scope, node: Node) -> list[Tensor | Dim]:
        if self._inside:  # core operators are the end: what is left has parts no more
            raise Refused("no TVM form is known; write it with other operators")
        known = self._emission.parts
        key = key_of(node)
        if key not in known:
            known[key] = parts_of(node)
        graph = known[key]
        if isinstance(graph, str):
            raise Refused(graph)
        inner = Scope(self._emission, {})
        given = iter(dict.fromkeys(node.operands))
        for value, spec in graph.inputs.items():
            if spec.kind == "param":
                constant = graph.weights[spec.name]
                if constant.numel() > _LARGEST:
                    raise Refused("its parts hold a large constant")
                inner.values[value] = scope.constant(constant)
                continue
            tensor = scope[next(given)]
            inner.values[value] = tensor
            for dim, outer in zip(value.tensor.shape, tensor.shape, strict=True):
                if not isinstance(dim, int) and dim.is_Symbol:
                    inner.symbols.setdefault(dim.name, scope.prim(outer))
        return self._parts(scope, inner, graph, node)

    def _parts(self, scope: Scope, inner: Scope, graph: Graph, node: Node) -> list[Tensor | Dim]:
        """Emit a graph of parts in the place of a node; its sizes are those of the graph around it."""
        for value, found in list(inner.values.items()):
            if isinstance(found, Tensor) and value in graph.inputs and graph.inputs[value].kind != "param":
                shape = value.tensor.shape
                inner.values[value] = Tensor(
                    inner.hold(found.expr, found.dtype, shape), found.dtype, shape, found.argument
                )
        before, self._inside = len(self.faults), True
        try:
            results = self._block(inner, graph.body)
        finally:
            self._inside = False
        if len(self.faults) > before:  # told of the node that the user wrote, not of its parts
            parts = ", ".join(sorted({fault.op for fault in self.faults[before:]}))
            del self.faults[before:]
            raise Refused(f"no TVM form is known, nor of its parts {parts}")
        made: list[Tensor | Dim] = []
        for result, value in zip(results, node.results, strict=True):
            tensor = result if isinstance(result, Tensor) else inner.tensor(result, torch.int64)
            dtype, shape = kept_as(value.type)
            made.append(Tensor(scope.hold(tensor.expr, dtype, shape), dtype, shape, tensor.argument))
        return made


def _without_unread(module: Any, arguments: Sequence[Argument]) -> tuple[Any, list[Argument]]:
    """``main`` without the weights that nothing reads: those replaced by packed ones."""
    from tvm import relax

    module = relax.transform.DeadCodeElimination(["main"])(module)
    main = module["main"]
    read = set(relax.analysis.free_vars(main.body))
    kept = [
        (variable, argument)
        for variable, argument in zip(main.params, arguments, strict=True)
        if argument.kind in ("input", "state") or variable in read
    ]
    made = relax.Function([v for v, _ in kept], main.body, main.ret_ty, main.is_pure, main.attrs, main.span)
    module.update_func(module.get_global_var("main"), made)
    return module, [a for _, a in kept]


def _symbol(name: str) -> Dim:
    from ir import symbol

    return symbol(name)


def _sizes(scope: Scope, symbols: Sequence[str]) -> Any:
    """The type of the argument that brings the sizes to a function; symbols that no tensor has come by it."""
    from tvm import relax, tirx

    for name in symbols:
        scope.symbols.setdefault(name, tirx.Var(name, "int64"))
    return relax.ShapeType([scope.symbols[n] for n in symbols])
