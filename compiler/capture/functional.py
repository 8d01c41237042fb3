"""Mutation made explicit: a program that writes in place becomes one with states in and out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from compiler.capture.refusals import first_line, unsupported
from ir.errors import UnsupportedError
from ir.exported import origin_of


def functional(program: ExportedProgram) -> ExportedProgram:
    """The program without mutation: what it changed in place becomes extra outputs.

    Raises:
        UnsupportedError: it changes a tensor that it also reaches under another name; functionalised, the
            other name would keep the old content without a word.
    """
    changed = list(_mutated(program))
    if not changed and not _wrapped(program):
        return program
    kinds = {s.arg.name: s for s in program.graph_signature.input_specs}
    hidden = [
        f"  - a tensor that a plain Python object holds ({kinds[name].target}) is changed in place{where}\n"
        "    hint: register_buffer() it on the module and use it from there, or pass it to forward as an input"
        for name, where in dict(changed).items()
        if name in kinds and kinds[name].kind is InputKind.CONSTANT_TENSOR
    ]
    if hidden:
        raise unsupported(hidden)
    _refuse_shared(program, {str(kinds[name].target) for name, _ in changed if name in kinds})
    try:
        made = program.run_decompositions({})
    except Exception as error:
        raise UnsupportedError(
            f"the changes that the model makes in place cannot be made explicit: {first_line(str(error))}",
            hint="pass the changed tensors to forward as inputs, or return the new content",
        ) from error
    _refuse_clashes(made)
    return made


def _mutated(program: ExportedProgram) -> Iterator[tuple[str, str]]:
    """Placeholders that a node writes to (``*`` for anything else), each with the line."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            schema = getattr(node.target, "_schema", None)
            if node.op != "call_function" or schema is None or not schema.is_mutable:
                continue
            for formal, actual in zip(schema.arguments, node.args, strict=False):
                if formal.alias_info is not None and formal.alias_info.is_write and isinstance(actual, fx.Node):
                    base = _base(actual)
                    origin = str(origin_of(node))
                    yield (base.name if base.op == "placeholder" else "*", f" at {origin}" if origin else "")


def _base(node: fx.Node) -> fx.Node:
    """What a chain of views looks at."""
    while node.op == "call_function":
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.arguments or schema.arguments[0].alias_info is None:
            return node
        if not node.args or not isinstance(node.args[0], fx.Node):
            return node
        node = node.args[0]
    return node


def _wrapped(program: ExportedProgram) -> bool:
    """Whether autocast or grad-mode regions are left, which functionalising writes out as plain nodes."""
    return any(str(getattr(n.target, "__name__", "")).startswith("wrap_with_") for n in program.graph.nodes)


def _refuse_shared(program: ExportedProgram, changed: set[str]) -> None:
    """Two names of one memory, of which one is written to: the other would keep the old content."""
    tensors = {**program.state_dict, **program.constants}
    owners: dict[int, list[str]] = {}
    for spec in program.graph_signature.input_specs:
        tensor = tensors.get(spec.target) if spec.target else None
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            owners.setdefault(tensor.untyped_storage().data_ptr(), []).append(str(spec.target))
    shared = [
        f"  - {' and '.join(names)} share memory, and the model changes it in place\n"
        "    hint: keep one tensor under one name"
        for names in owners.values()
        if len(names) > 1 and set(names) & changed
    ]
    if shared:
        raise unsupported(shared)


def _refuse_clashes(program: ExportedProgram) -> None:
    """An input and a state of one name: callers pass both by name."""
    users = set(program.graph_signature.user_inputs)
    clashes = [
        f"  - {name} is both an input and a buffer that the model changes\n    hint: rename one of them"
        for name in program.graph_signature.buffers_to_mutate.values()
        if name in users
    ]
    if clashes:
        raise unsupported(clashes)
