"""From torch's ExportedProgram to the IR; ``ir.reexport`` goes back.

``import_program`` keeps torch's operators as they are: nothing is lowered, nothing is guessed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils import _pytree as pytree

from ir.core import Arg, Block, Graph, Origin, Output, Value
from ir.dims import DimRange, is_data_symbol, simplify, symbol
from ir.errors import UnsupportedError
from ir.ops import COND, WHILE, Op, op_of
from ir.types import NoneType, ScalarType, TensorType, Type

_TORCH = os.path.dirname(torch.__file__) + os.sep
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_REGION_OPS = {"cond": COND, "while_loop": WHILE}
_INPUT_KINDS = {InputKind.PARAMETER: "param", InputKind.BUFFER: "param", InputKind.CONSTANT_TENSOR: "param"}


def import_program(
    program: ExportedProgram,
    name: str,
    dim_names: Mapping[str, str] | None = None,
    input_names: Mapping[str, str] | None = None,
) -> Graph:
    """The graph of an exported program.

    Args:
        program: as ``torch.export.export`` made it; functional (see ``compiler.capture.capture``).
        name: name of the graph.
        dim_names: the user's name for each of torch's symbols.
        input_names: the user's name for each user input's placeholder; torch writes those in lower case.

    Raises:
        UnsupportedError: lists every construct that the IR cannot carry.
    """
    return _Importer(program, name, dim_names or {}, input_names or {}).graph()


class _Importer:
    def __init__(
        self, program: ExportedProgram, name: str, dim_names: Mapping[str, str], input_names: Mapping[str, str]
    ) -> None:
        self._program = program
        self._names = dim_names
        self._input_names = input_names
        self._faults: list[str] = []
        self._seen: dict[tuple[Any, ...], Value] = {}
        dims = {}
        for sym, bounds in program.range_constraints.items():
            if sym.is_Symbol and not is_data_symbol(str(sym)):  # a bound of 2*n follows from that of n
                upper = bounds.upper
                limit = int(upper) if getattr(upper, "is_Integer", False) else None
                if limit is not None and limit >= 2**62:
                    limit = None
                dims[self._name(str(sym))] = DimRange(max(int(bounds.lower), 0), limit)
        self._graph = Graph(name, dims)

    def _name(self, sym: str) -> str:
        return self._names.get(sym, sym)

    def graph(self) -> Graph:
        env: dict[fx.Node, Any] = {}
        mutated = {
            s.target
            for s in self._program.graph_signature.output_specs
            if s.kind in (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION)
        }
        placeholders = [n for n in self._program.graph.nodes if n.op == "placeholder"]
        for node, spec in zip(placeholders, self._program.graph_signature.input_specs, strict=True):
            self._argument(node, spec, mutated, env)
        self._block(self._program.graph_module, self._graph.body, env)
        if self._faults:
            faults = list(dict.fromkeys(self._faults))
            raise UnsupportedError(f"{len(faults)} construct(s) of the model cannot be carried:\n" + "\n".join(faults))
        return self._graph

    def _argument(self, node: fx.Node, spec: Any, mutated: set[Any], env: dict[fx.Node, Any]) -> None:
        if isinstance(spec.arg, ConstantArgument):
            env[node] = spec.arg.value
        elif spec.kind is InputKind.USER_INPUT:
            kind = "state" if spec.arg.name in mutated else "input"
            name = self._input_names.get(node.name, node.name)
            env[node] = self._graph.add_input(kind, name, self._type(node.meta["val"]))
        elif spec.kind in _INPUT_KINDS:
            source = self._program.state_dict
            if spec.target not in source:
                source = self._program.constants
            tensor = source[spec.target]
            if spec.target in mutated:
                env[node] = self._graph.add_input("state", spec.target, self._type(tensor), node.name)
                self._graph.initial[spec.target] = tensor.detach()
            else:
                env[node] = self._weight(spec.target, tensor)
        else:
            self._faults.append(
                f"  - {node.name}: a {spec.kind.name.lower()} input\n    hint: pass plain tensors into forward"
            )

    def _weight(self, target: str, tensor: torch.Tensor) -> Value:
        key = (tensor.data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in self._seen:  # tied weights stay one
            return self._seen[key]
        value = self._graph.add_param(target, tensor)
        self._seen[key] = value
        return value

    def _block(self, module: fx.GraphModule, block: Block, env: dict[fx.Node, Any]) -> None:
        for node in module.graph.nodes:
            if node.op == "call_function":
                self._call(module, node, block, env)
            elif node.op == "output":
                self._outputs(node, block, env)
            elif node.op == "get_attr" and not isinstance(getattr(module, node.target, None), fx.GraphModule):
                env[node] = self._attribute(module, node, block)

    def _attribute(self, module: fx.GraphModule, node: fx.Node, block: Block) -> Any:
        tensor = getattr(module, node.target)
        if block is self._graph.body and isinstance(tensor, torch.Tensor):
            return self._weight(str(node.target), tensor)
        self._faults.append(f"  - {node.target}: a constant inside a branch\n    hint: make it a buffer of the model")
        return None

    def _call(self, module: fx.GraphModule, node: fx.Node, block: Block, env: dict[fx.Node, Any]) -> None:
        target: Any = node.target
        if getattr(target, "__name__", "") == "getitem" and isinstance(node.args[0], fx.Node):
            source = env.get(node.args[0])
            if source is None or isinstance(source, tuple):  # None: a fault that was told already
                env[node] = None if source is None else source[node.args[1]]
                return
        origin = origin_of(node)
        kind = _REGION_OPS.get(target.name()) if isinstance(target, torch._ops.HigherOrderOperator) else None
        if kind is not None:
            env[node] = self._region_node(module, node, kind, block, env, origin)
            return
        try:
            operation = op_of(target)
        except (KeyError, AttributeError):
            self._fault(node, origin)
            env[node] = None
            return
        value = node.meta.get("val")
        if isinstance(value, (tuple, list)) and any(isinstance(v, (tuple, list)) for v in value):
            self._faults.append(
                f"  - {operation.name} at {origin}: a list among its results\n    hint: write it otherwise"
            )
            env[node] = None
            return
        args = [self._arg(a, env) for a in node.args]
        if operation.name == "aten._assert_scalar.default":  # its text speaks of torch's symbols
            args[1] = re.sub(r"\bs\d+\b", lambda m: self._name(m.group()), str(args[1]))
        made = self._graph.insert(
            operation,
            *args,
            block=block,
            origin=origin,
            types=self._types(operation, value),
            name=node.name,
            kwargs={k: self._arg(a, env) for k, a in node.kwargs.items()},
        )
        self._graph.typer.remember(made)
        many = isinstance(value, (tuple, list))
        env[node] = made.results if many else (made.results[0] if made.results else None)

    def _fault(self, node: fx.Node, origin: Origin) -> None:
        name = getattr(node.target, "__name__", str(node.target))
        hint = {
            "scan": "unroll it, or write it as torch while_loop",
            "map_impl": "write the loop as a batched operation",
            "wrap_with_autocast": "export the model outside of torch.autocast, or cast its weights",
        }.get(name, "rewrite this part with plain tensor operations, torch.cond or while_loop")
        self._faults.append(f"  - {name} at {origin}\n    hint: {hint}")

    def _region_node(
        self, module: fx.GraphModule, node: fx.Node, kind: Op, block: Block, env: dict[fx.Node, Any], origin: Origin
    ) -> tuple[Value, ...]:
        if kind is COND:
            predicate, *bodies, operands = node.args
            args = (self._arg(predicate, env), self._arg(operands, env))
        else:
            *bodies, carried, closed = node.args
            args = (self._arg(carried, env), self._arg(closed, env))
        regions = tuple(self._region(getattr(module, str(body.target))) for body in bodies)
        types = [self._type(v) for v in node.meta["val"]]
        made = self._graph.insert(kind, *args, block=block, origin=origin, regions=regions, types=types, name=node.name)
        return made.results

    def _region(self, module: fx.GraphModule) -> Block:
        env: dict[fx.Node, Any] = {}
        for node in module.graph.nodes:
            if node.op == "placeholder":
                env[node] = Value(self._type(node.meta["val"]), node.name)
        block = Block(list(env.values()))
        self._block(module, block, env)
        return block

    def _outputs(self, node: fx.Node, block: Block, env: dict[fx.Node, Any]) -> None:
        given: Any = node.args[0]
        values = [self._arg(a, env) for a in (given if isinstance(given, (tuple, list)) else (given,))]
        if block is not self._graph.body:
            self._graph.returns(*values, block=block)
            return
        specs = self._program.graph_signature.output_specs
        user_names = iter(_output_names(self._program, len(specs)))
        outputs = []
        for spec in specs:
            if spec.kind is OutputKind.USER_OUTPUT:
                outputs.append(Output("output", next(user_names)))
            elif spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION):
                target = str(spec.target)
                if spec.kind is OutputKind.USER_INPUT_MUTATION:
                    target = self._input_names.get(target, target)
                outputs.append(Output("state", target))
            else:
                self._faults.append(f"  - output of kind {spec.kind.name}\n    hint: return plain tensors")
                outputs.append(Output("output", next(user_names)))
        kept = [(o, v) for o, v in zip(outputs, values, strict=True) if v is not None]
        self._graph.returns(*(v for _, v in kept), outputs=[o for o, _ in kept])

    def _arg(self, arg: Any, env: Mapping[fx.Node, Any]) -> Arg:
        if isinstance(arg, fx.Node):
            value: Arg = env[arg]
            return value
        if isinstance(arg, (tuple, list)):
            return tuple(self._arg(a, env) for a in arg)
        return arg

    def _types(self, operation: Op, value: Any) -> list[Type]:
        if value is None:
            schema = getattr(operation.target, "_schema", None)
            return [] if schema is not None and not schema.returns else [NoneType()]
        if isinstance(value, (tuple, list)):
            return [self._type(v) for v in value]
        return [self._type(value)]

    def _type(self, value: Any) -> Type:
        if isinstance(value, torch.Tensor):
            return TensorType(value.dtype, tuple(self._dim(d) for d in value.shape))
        if isinstance(value, (bool, torch.SymBool)):
            return ScalarType("bool")
        if isinstance(value, (int, torch.SymInt)):
            return ScalarType("int", self._dim(value))
        if isinstance(value, (float, torch.SymFloat)):
            return ScalarType("float")
        return NoneType()

    def _dim(self, size: Any) -> Any:
        if isinstance(size, int):
            return size
        expression = size.node.expr
        return simplify(expression.xreplace({s: symbol(self._name(s.name)) for s in expression.free_symbols}))


def _output_names(program: ExportedProgram, at_most: int) -> list[str]:
    spec = program.call_spec.out_spec
    if spec is None:
        return [f"output_{i}" for i in range(at_most)]
    paths, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))
    names = []
    for path, _leaf in paths:
        parts = [str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", "")))) for k in path]
        name = ".".join(parts)
        names.append(f"output_{name}" if name.isdigit() else name or "output")
    return names


def origin_of(node: fx.Node) -> Origin:
    """Module path and innermost line outside of torch."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]) if stack else ""
    path = "" if path.startswith("_empty_nn_module_stack") else path
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if not frame[0].startswith((_TORCH, "torch/", "<"))]  # not torch's, not generated
    line = f"{short_path(own[-1][0])}:{own[-1][1]}" if own else ""
    return Origin(path, line)


def short_path(path: str) -> str:
    """A source path that tells a reader where to look, and a stranger nothing about the machine."""
    for marker in ("site-packages/", "dist-packages/"):
        if marker in path:
            return path.rpartition(marker)[2]
    relative = os.path.relpath(path)
    return os.path.basename(path) if relative.startswith("..") else relative
