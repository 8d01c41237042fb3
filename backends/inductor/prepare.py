"""The graph that AOTInductor takes: predicates and results are tensors, narrow floats only where they are computed in.

A predicate made of sizes (``n > 2``) would reach the generated C++ as an undeclared symbol, or be decided while
compiling. It is rebuilt from tensors, so that nothing is decided before the input is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from backends.base import Unsupported
from backends.inductor.forms import SHIFTED, has_form, row_sums
from backends.widen import widened
from ir import Arg, Graph, Node, ScalarType, TensorType, Value, op, symbols_of
from ir.copy import copy_graph
from ir.dims import is_data_symbol
from ir.ops import COND, RETURN, WHILE

_COMPARED = {f"sym.{name}": f"aten.{name}.Tensor" for name in ("lt", "le", "gt", "ge", "eq", "ne")}
_LOGICAL = {"sym.and": "aten.logical_and.default", "sym.or": "aten.logical_or.default"}
_ITEMS = frozenset({"aten.item.default", "aten._local_scalar_dense.default"})
_KNOWN = ("aten", "prims", "quantized_decomposed")
_DTYPES: Mapping[str, torch.dtype] = {"int": torch.int64, "float": torch.float64, "bool": torch.bool}
_CHECKS = frozenset({
    "aten._assert_tensor_metadata.default", "aten._assert_async.msg", "aten._assert_async.default",
    "aten._functional_assert_async.msg",
})  # fmt: skip
"""They compute nothing. Checks of scalars stay: torch.export learns bounds of data-dependent sizes from them."""


def refused(graph: Graph) -> Iterator[Unsupported]:
    """What AOTInductor cannot carry."""
    for node in graph.walk():
        if why := _fault(node):
            yield Unsupported(node.op.name, str(node.origin), why)
    for value in graph.body.returned.operands:
        if isinstance(value.type, ScalarType) and (why := _scalar_fault(value)):
            yield Unsupported("return", str(value.origin), why)


def _fault(node: Node) -> str:
    if node.op is COND:
        return _predicate_fault(node.args[0]) or _region_fault(node)
    if node.op is WHILE:
        return _predicate_fault(node.regions[0].returned.args[0]) or _region_fault(node)
    if node.op is RETURN or node.op.name.startswith("sym."):
        return ""
    if node.op.random and not _still(node):
        return "its random numbers would differ from torch's"
    if any(_is_logic(value) for value in node.operands):
        return "a truth value made of several about sizes becomes a tensor; compare tensors instead"
    if node.op.name == "aten.narrow.Tensor":
        return "where it begins is a tensor, which torch.export cannot take back; use index_select"
    if node.op.name.startswith("aten.upsample_bilinear") and node.result.tensor.dtype == torch.uint8:
        return "torch rounds bytes in a way of its own here; interpolate floats"
    if node.op.name == "aten.lstm.input" and node.results[0].tensor.dtype == torch.bfloat16:
        return "oneDNN gives float32, or nothing at all on some processors; compute it in float32"
    if node.op.name == "quantized_decomposed.dequantize_per_channel.default" and node.arg(2, "zero_points") is None:
        return "torch's compiler cannot dequantize channels without zero points; give zeros"
    domain = node.op.name.partition(".")[0]
    if domain == "penstock":
        return "" if has_form(node.op.name) else "no form for AOTInductor is known"
    if domain not in _KNOWN:
        return "an operator of another package, which the compiled library could not call; write it with torch's own"
    return ""


def _is_logic(value: Value) -> bool:
    """Whether a number is ``a and b`` of sizes, which inductor 2.13 cannot index with."""
    return value.producer is not None and value.producer.op.name in ("sym.and", "sym.or", "sym.not")


def _still(node: Node) -> bool:
    """Whether an operator that may drop elements at random drops none."""
    schema = getattr(node.op.target, "_schema", None)
    named = {a.name: node.arg(i, a.name, a.default_value) for i, a in enumerate(schema.arguments)} if schema else {}
    return any(named.get(name) == 0 for name in ("dropout_p", "dropout", "p", "train", "training") if name in named)


def _region_fault(node: Node) -> str:
    """What a region node hands on must have a size that is known where it is handed on."""
    if any(not isinstance(v.type, TensorType) for v in node.results):
        return "a number that is no tensor leaves it; carry it as a tensor"
    own = {name for v in node.results for d in v.tensor.shape for name in symbols_of(d) if is_data_symbol(name)}
    known = {
        name for v in node.operands if isinstance(v.type, TensorType) for d in v.tensor.shape for name in symbols_of(d)
    }
    if own - known:
        return "the size of what leaves it depends on the branch that is taken; pad it to one size"
    return ""


def _predicate_fault(arg: Arg) -> str:
    if not isinstance(arg, Value) or isinstance(arg.type, TensorType):
        return ""
    made = arg.producer
    if made is not None and made.op.name in _ITEMS:
        return ""
    if made is not None and (made.op.name in _LOGICAL or made.op.name == "sym.not"):
        return next(filter(None, map(_predicate_fault, made.operands)), "")
    if made is not None and made.op.name in _COMPARED:
        return next(filter(None, map(_scalar_fault, made.operands)), "")
    return "its predicate is a number that AOTInductor cannot compute; make it a tensor"


def _scalar_fault(value: Value) -> str:
    if not isinstance(value.type, ScalarType) or value.type.kind == "int":
        return ""
    if value.producer is not None and value.producer.op.name in _ITEMS:
        return ""
    return _predicate_fault(value) if value.type.kind == "bool" else "a float number that is no tensor"


SUMS = "row sums of "
"""Before the name of an int8 weight: the name of its row sums, which are made of it when an engine is loaded."""


def prepared(graph: Graph, kind: str, narrow: bool) -> Graph:
    """A copy in which all predicates and results are tensors.

    Args:
        graph: without anything ``refused``.
        kind: of the device.
        narrow: whether the device multiplies bf16 and f16; widened otherwise.
    """
    made = copy_graph(graph if narrow else widened(graph))
    for node in list(made.walk()):
        if node.block is not None and node.op.name in _CHECKS:  # the caller checks inputs
            made.erase(node)
    for node in list(made.walk()):
        if node.op is COND:
            _give(made, node, (_truth(made, node.args[0], node), *node.args[1:]))
        elif node.op is WHILE:
            last = node.regions[0].returned
            _give(made, last, (_truth(made, last.args[0], last),))
    if kind == "cpu":
        _add_sums(made)
    last = made.body.returned
    _give(made, last, tuple(_tensor(made, a, last) for a in last.args))
    return made


def _add_sums(graph: Graph) -> None:
    sums: dict[str, Value] = {}
    for node in graph:
        if node.op.name in SHIFTED:
            weight = node.args[1]
            name = graph.param_of(weight) if isinstance(weight, Value) else None
            if name is not None:
                if name not in sums:
                    sums[name] = graph.add_param(SUMS + name, row_sums(graph.weights[name]))
                graph.set_arguments(node, node.args, {**node.kwargs, "row_sums": sums[name]})


def _give(graph: Graph, node: Node, args: tuple[Arg, ...]) -> None:
    before = node.operands
    if args != node.args:
        graph.set_arguments(node, args)
    for value in before:
        _drop(graph, value)


def _drop(graph: Graph, value: Value) -> None:
    """Erase what made a value that nothing reads any more: it would be computed, and guarded, all the same."""
    node = value.producer
    if node is None or node.block is None or not node.pure or any(v.uses for v in node.results):
        return
    graph.erase(node)
    for operand in node.operands:
        _drop(graph, operand)


def _truth(graph: Graph, arg: Arg, before: Node) -> Arg:
    """A predicate as ``bool[]``."""
    if not isinstance(arg, Value):
        return _call(graph, "aten.scalar_tensor.default", before, bool(arg), dtype=torch.bool)
    if isinstance(arg.type, TensorType):
        flat = arg if not arg.type.shape else _call(graph, "aten.reshape.default", before, arg, ())
        return flat if arg.type.dtype == torch.bool else _call(graph, "aten.ne.Scalar", before, flat, 0)
    made = arg.producer
    assert made is not None
    name = made.op.name
    if name in _ITEMS:
        return _truth(graph, made.args[0], before)
    if name == "sym.not":
        return _call(graph, "aten.logical_not.default", before, _truth(graph, made.args[0], before))
    if name in _LOGICAL:
        return _call(graph, _LOGICAL[name], before, *(_truth(graph, a, before) for a in made.args))
    return _call(graph, _COMPARED[name], before, *(_tensor(graph, a, before) for a in made.args))


def _tensor(graph: Graph, arg: Arg, before: Node) -> Arg:
    """A number as a tensor of rank 0; tensors as they are."""
    if isinstance(arg, Value):
        if isinstance(arg.type, TensorType):
            return arg
        made = arg.producer
        if made is not None and made.op.name in _ITEMS:
            source = made.args[0]
            assert isinstance(source, Value)
            return _call(graph, "aten.reshape.default", before, source, ()) if source.tensor.shape else source
        assert isinstance(arg.type, ScalarType)
        if arg.type.kind == "bool":
            return _truth(graph, arg, before)
        return _call(graph, "aten.scalar_tensor.default", before, arg, dtype=_DTYPES[arg.type.kind])
    kind = type(arg).__name__
    return _call(graph, "aten.scalar_tensor.default", before, arg, dtype=_DTYPES[kind])


def _call(graph: Graph, name: str, before: Node, *args: Arg, **kwargs: Arg) -> Value:
    return graph.insert(op(name), *args, before=before, kwargs=kwargs).result
