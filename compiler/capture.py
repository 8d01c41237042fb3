"""A torch model becomes a graph: export, name the dims, make state explicit, import.

``torch.export`` does the tracing. What is added here: the user's own names and ranges of dims, refusal of
everything that torch would narrow or freeze without a word, state as inputs and outputs, and one list
of everything in the model that cannot be carried.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from compiler.inputs import BoundInputs, bind_inputs, leaf_names
from compiler.refusals import collect_faults, unsupported
from compiler.spec import Dim, ModelSpec
from ir import DimRange, Graph, evaluate, interpret
from ir.errors import PenstockError, UnsupportedError, UntrustedError, UsageError
from ir.exported import import_program

log = logging.getLogger(__name__)

_SUGGESTION = re.compile(r"^\s*(\w+) = (.+)$", re.MULTILINE)
_DERIVED = re.compile(r"^(?:(\d+)\*)?(_\w+)(?: ([+-]) (\d+))?$")
_TORCH_LOGS = ("torch.fx.experimental.symbolic_shapes", "torch.export._draft_export", "torch._export.non_strict_utils")


def capture(
    model: nn.Module | ModelSpec,
    example_inputs: Any = None,
    *,
    dynamic_shapes: Mapping[str, Any] | None = None,
    name: str = "",
) -> Graph:
    """The graph of a model.

    Args:
        model: a module with its weights on the CPU, or a ``ModelSpec`` that says everything. It is traced in
            eval mode; its own mode and state are as before afterwards.
        example_inputs: a tensor (or nested list or dict of tensors) per argument of ``forward``, by name, or
            a sequence of them by position.
        dynamic_shapes: argument name -> axis -> ``Dim``; nested where the argument is. Axes given for a list
            of tensors hold for each of them.
        name: of the graph; the class name of the model when empty.

    Raises:
        UsageError: the model, inputs or dims do not fit together.
        UnsupportedError: lists every construct that cannot be carried, or every dim that cannot be dynamic.
    """
    if isinstance(model, ModelSpec):
        spec = model
        return capture(
            spec.model, spec.example_inputs, dynamic_shapes=spec.dynamic_shapes, name=name or spec.name
        )
    if not isinstance(model, nn.Module):
        raise UsageError(f"a model is a torch.nn.Module, not {type(model).__name__}")
    if example_inputs is None:
        raise UsageError("capture needs example inputs", hint='capture(model, {"input_ids": tensor})')
    bound = bind_inputs(model, example_inputs, dynamic_shapes)
    _check_device(model, bound)
    with _evaluating(model), torch.no_grad(), _quiet():
        program, derived = _export(model, bound)
        program = _functional(program, model, bound)
        dim_names = _dim_names(program, bound, derived)
        names = dict(zip(_user_placeholders(program), leaf_names(program.call_spec.in_spec, bound), strict=True))
        graph = import_program(program, name or type(model).__name__, dim_names, names)
        _keep_ranges(graph, bound, derived)
        _check_smallest(graph, model, bound, derived)
    return graph
