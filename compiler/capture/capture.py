"""A torch model becomes a graph: export, name the dims, make state explicit, import.

``torch.export`` does the tracing. What is added here: the user's own names and ranges of dims, refusal of
everything that torch would narrow or freeze without a word, state as inputs and outputs, and one list
of everything in the model that cannot be carried.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from compiler.capture.dynamic_dims import derived_dims, dim_names, drop_size_asserts, keep_ranges, narrowed
from compiler.capture.eager import check_smallest, run_eager
from compiler.capture.functional import functional
from compiler.capture.inputs import BoundInputs, bind_inputs, leaf_names
from compiler.capture.refusals import collect_faults, first_line, place_of, unsupported
from compiler.spec import ModelSpec
from ir import Graph
from ir.errors import PenstockError, UnsupportedError, UntrustedError, UsageError
from ir.exported import import_program


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
        return capture(spec.model, spec.example_inputs, dynamic_shapes=spec.dynamic_shapes, name=name or spec.name)
    if not isinstance(model, nn.Module):
        raise UsageError(f"a model is a torch.nn.Module, not {type(model).__name__}")
    if example_inputs is None:
        raise UsageError("capture needs example inputs", hint='capture(model, {"input_ids": tensor})')
    bound = bind_inputs(model, example_inputs, dynamic_shapes)
    _check_device(model, bound)
    with _evaluating(model), torch.no_grad(), _quiet():
        program = functional(_export(model, bound))
        placeholders = _user_placeholders(program)
        input_names = dict(zip(placeholders, leaf_names(program.call_spec.in_spec, bound), strict=True))
        sizes = {input_names[p]: shape for p, shape in placeholders.items()}
        symbols = dim_names(sizes, bound)
        graph = import_program(program, name or type(model).__name__, symbols, input_names)
        keep_ranges(graph, bound)
        drop_size_asserts(graph)
        check_smallest(graph, model, bound)
    return graph


def capture_file(path: str | Path, *, trust_pickle: bool = False, name: str = "") -> Graph:
    """The graph of a ``.pt2`` file that ``torch.export.save`` wrote.

    Args:
        path: the file.
        trust_pickle: the caller knows where the file comes from. ``torch.export.load`` runs code that the file
            holds: a pickle of sample inputs, and sizes that are evaluated as text.
        name: of the graph; the file's name when empty.

    Raises:
        UntrustedError: the file is not trusted, or torch cannot read it.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"no such file: {file}")
    if not trust_pickle:
        raise UntrustedError(
            f"{file} is a torch.export file, and reading one can run code that it holds "
            "(torch.export.load unpickles, and evaluates sizes as text)",
            hint="compile the Python model instead, or say --trust-pickle if you know where the file comes from",
        )
    try:
        program = torch.export.load(file)
    except Exception as error:  # (a foreign file can fail in any way)
        raise UntrustedError(f"torch.export cannot read {file}: {error}") from error
    with torch.no_grad(), _quiet():
        return import_program(functional(program), name or file.stem)


# --- export ---------------------------------------------------------------------------------------


def _export(model: nn.Module, bound: BoundInputs) -> ExportedProgram:
    """The program with every dim as dynamic as asked for; or an error that says which is not, and why."""
    dims = {name: torch.export.Dim(name, min=dim.min, max=dim.max) for name, dim in bound.dims.items()}
    try:
        return _trace(model, bound, dims)
    except Exception as error:  # export runs the user's model: anything can come out
        if not _about_dims(error):
            raise _refusal(model, bound, dims, error) from error
        refused = str(error)
        cause = error
    derived = derived_dims(refused, bound)
    attempts = [(derived, False), (dims, True), (derived, True)] if derived else [(dims, True)]
    for made, deferred in attempts:
        with contextlib.suppress(Exception):  # the first error is the one that explains
            return _trace(model, bound, made, deferred)
    raise narrowed(refused, bound) from cause


def _trace(model: nn.Module, bound: BoundInputs, dims: Mapping[str, Any], deferred: bool = False) -> ExportedProgram:
    with contextlib.redirect_stderr(cast(TextIO, _WithoutGraphs(sys.stderr))):
        return torch.export.export(
            model,
            bound.args,
            dict(bound.kwargs),
            dynamic_shapes=bound.torch_shapes(dims) if bound.dims else None,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=deferred,
        )


def _about_dims(error: Exception) -> bool:
    return "Constraints violated" in str(error) or "constraint" in str(getattr(error, "error_type", "")).lower()


def _refusal(model: nn.Module, bound: BoundInputs, dims: Mapping[str, Any], error: Exception) -> PenstockError:
    """Why a model cannot be exported: its own fault on these inputs, or all that torch.export cannot follow."""
    try:
        run_eager(model, bound.args, bound.kwargs)
    except Exception as own:  # noqa: BLE001  (the user's model: anything can come out)
        if not type(own).__module__.startswith("torch._dynamo"):  # which refuses torch.cond also when not exporting
            return UnsupportedError(
                f"the model itself fails on the example inputs: {type(own).__name__}: {first_line(str(own))}",
                where=str(place_of(own)),
                hint="model(**example_inputs) must work before it can be captured",
            )
    return unsupported(collect_faults(model, lambda: _trace(model, bound, dims), error))


# --- around it ------------------------------------------------------------------------------------


def _user_placeholders(program: ExportedProgram) -> dict[str, Sequence[Any]]:
    """Shape of each user input's placeholder (empty for a constant), in order."""
    values = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    return {
        spec.arg.name: getattr(values.get(spec.arg.name), "shape", ())
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT
    }


def _check_device(model: nn.Module, bound: BoundInputs) -> None:
    tensors = {f"weight {n}": t for n, t in [*model.named_parameters(), *model.named_buffers()]}
    tensors |= {f"input {leaf.label}": leaf.tensor for leaf in bound.leaves}
    empty = [n for n, t in tensors.items() if t.is_meta]
    if empty:
        raise UsageError(f"without data (meta device): {_some(empty)}", hint="load the weights first")
    away = [n for n, t in tensors.items() if t.device.type != "cpu"]
    if away:
        raise UsageError(f"not on the CPU: {_some(away)}", hint='model.to("cpu"), and the example inputs too')


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and each module's own mode again afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's own running commentary: what matters comes back as one error."""
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if _is_torchs(name)]
    handlers = {handler for logger in loggers for handler in logger.handlers}
    for handler in handlers:
        handler.addFilter(_not_torchs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(_not_torchs)


class _WithoutGraphs:
    """A stream that drops the graph which a failing export prints, and passes everything else on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._dropped = False

    def write(self, text: str) -> int:
        drop = "def forward(self" in text or (self._dropped and text == "\n")  # print ends with a write of its own
        self._dropped = drop
        return len(text) if drop else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_torchs(logger: str) -> bool:
    return logger.partition(".")[0] == "torch" and logger != "torch.__trace"  # that one only goes where it is asked to


def _not_torchs(record: logging.LogRecord) -> bool:
    return not _is_torchs(record.name)
