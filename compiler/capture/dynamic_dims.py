"""The user's dims against what torch makes of them: names, derived dims, ranges, refusals."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch

from compiler.capture.inputs import BoundInputs
from compiler.spec import Dim
from ir import DimRange, Graph, Node, ScalarType, Value
from ir.errors import UnsupportedError

log = logging.getLogger(__name__)

_REFUSED = "the model does not allow the dynamic dims that were asked for:\n"
_SUGGESTION = re.compile(r"^\s*(\w+) = (.+)$", re.MULTILINE)
_DERIVED = re.compile(r"^(?:(\d+)\*)?(_\w+)(?: ([+-]) (\d+))?$")


def _suggestions(message: str) -> dict[str, str]:
    """Torch's ``name = ...`` lines after "Suggested fixes"."""
    return dict(_SUGGESTION.findall(message.partition("Suggested fixes:")[2]))


def derived_dims(message: str, bound: BoundInputs) -> dict[str, Any]:
    """Dims with torch's suggestions of the form ``height = 2*_height + 1`` followed; empty if there is none."""
    made = {name: torch.export.Dim(name, min=dim.min, max=dim.max) for name, dim in bound.dims.items()}
    found = False
    for name, text in _suggestions(message).items():
        form = _DERIVED.match(text)
        if form is None or name not in bound.dims:
            continue
        factor, base = int(form[1] or 1), form[2]
        offset = int((form[3] or "+") + (form[4] or "0"))
        if base not in made:
            bounds = _base_range(bound.dims[name], factor, offset)
            made[base] = torch.export.Dim(base, min=bounds.min, max=bounds.max)
        made[name] = factor * made[base] + offset if offset else factor * made[base]
        found = True
    return made if found else {}


def linear(size: Any) -> tuple[str, int, int]:
    """``(name, factor, offset)`` of an input's size ``factor*name + offset``."""
    (free,) = size.free_symbols
    offset = int(size.subs(free, 0))
    return free.name, int(size.subs(free, 1)) - offset, offset


def _base_range(dim: Dim, factor: int, offset: int) -> DimRange:
    """Bounds of ``n`` where ``factor*n + offset`` has the bounds of ``dim``."""
    low = max(-(-(dim.min - offset) // factor), 0)
    return DimRange(low, None if dim.max is None else (dim.max - offset) // factor)


def narrowed(message: str, bound: BoundInputs) -> UnsupportedError:
    """One entry per dim that torch cannot keep as the user asked."""
    suggested = _suggestions(message)
    entries = []
    for leaf in bound.leaves:
        for axis, dim in leaf.dims.items():
            place = f"input {leaf.label} axis {axis}, dim {dim.name!r}"
            reasons = _reasons(message, dim.name)
            fix = suggested.pop(dim.name, None)
            if fix is None and not reasons:
                continue
            entries.append(f"  - {place}: {_verdict(dim, fix)}" + "".join(f"\n    torch: {r}" for r in reasons))
            entries[-1] += f"\n    hint: {_advice(dim, fix)}"
    return UnsupportedError(_REFUSED + ("\n".join(entries) or message.partition("\n\n")[0]))


def _reasons(message: str, name: str) -> list[str]:
    lines = message.partition("Suggested fixes:")[0].splitlines()
    lines = [line.partition(" If you're using")[0] for line in lines]  # advice about calls the user did not make
    return [line.strip(" -") for line in lines if line.startswith("  - ") and re.search(rf"\b{name}\b", line)][:3]


def _verdict(dim: Dim, fix: str | None) -> str:
    if fix is None:
        return "cannot be kept dynamic"
    if fix.isdigit():
        return f"the model makes it the constant {fix}"
    if fix.startswith("Dim("):
        return f"the model takes only {fix.removeprefix('Dim(')[:-1].partition(', ')[2] or 'other sizes'}"
    return f"the model needs {dim.name} = {fix}"


def _advice(dim: Dim, fix: str | None) -> str:
    if fix is not None and fix.startswith("Dim("):
        bounds = dict(re.findall(r"(min|max)=(\d+)", fix))
        low, high = bounds.get("min", str(dim.min)), bounds.get("max", dim.max)
        return f'Dim("{dim.name}", min={low}' + (f", max={high})" if high is not None else ")")
    if fix is not None and fix.isidentifier():
        return f"use the one Dim {fix!r} for both"
    if fix is not None and not fix.isdigit():
        return f"make the other dim the one that is named: {dim.name} follows from it"
    return f"leave {dim.name!r} out of dynamic_shapes, or keep Python loops and reshapes free of that size"


def dim_names(shapes: Mapping[str, Sequence[Any]], bound: BoundInputs) -> dict[str, str]:
    """The user's name for each of torch's symbols.

    Raises:
        UnsupportedError: torch made a dynamic axis a constant, or two dims one.
    """
    names: dict[str, str] = {}
    later: list[tuple[str, sympy.Expr]] = []
    faults = []
    for leaf in bound.leaves:
        for axis, dim in leaf.dims.items():
            size = shapes[leaf.name][axis]
            place = f"  - input {leaf.label} axis {axis}, dim {dim.name!r}: "
            if isinstance(size, int):
                faults.append(f"{place}torch.export made it the constant {size}\n    hint: {_advice(dim, str(size))}")
                continue
            expression = size.node.expr
            if not expression.is_Symbol:
                later.append((dim.name, expression))
            elif names.setdefault(expression.name, dim.name) != dim.name:
                other = names[expression.name]
                faults.append(f"{place}always equals {other!r}\n    hint: {_advice(dim, other)}")
    if faults:
        raise UnsupportedError(_REFUSED + "\n".join(faults))
    for name, expression in later:
        for free in expression.free_symbols:
            if names.setdefault(free.name, f"_{name}") == f"_{name}":
                log.warning("dim %s must be %s", name, expression.subs(free, sympy.Symbol(f"_{name}")))
    return names


def keep_ranges(graph: Graph, bound: BoundInputs) -> None:
    """Give each dim the range that the user asked for; torch writes 2 where it means "not a constant".

    Raises:
        UnsupportedError: torch found that the model takes less than that.
    """
    wanted = _wanted(graph, bound)
    faults = []
    for name, (want, place) in wanted.items():
        got = graph.dims[name]
        low, high = max(want.min, 2), want.max
        if got.min > low or (got.max is not None and (high is None or got.max < high)):
            faults.append(
                f"  - {place}: the model takes only {got} of the {want} asked for\n"
                f'    hint: Dim("{name}", min={max(got.min, want.min)}, max={got.max})'
            )
    if faults:
        raise UnsupportedError(_REFUSED + "\n".join(faults))
    others = {name: bounds for name, bounds in graph.dims.items() if name not in wanted}
    graph.dims.clear()
    graph.dims.update({name: want for name, (want, _) in wanted.items()} | others)


def _wanted(graph: Graph, bound: BoundInputs) -> dict[str, tuple[DimRange, str]]:
    """Range and place of each symbol of the inputs, in the order of the inputs."""
    values = {name: v for kind in ("input", "state") for name, v in graph.arguments(kind)}
    wanted: dict[str, tuple[DimRange, str]] = {}
    for leaf in bound.leaves:
        for axis, dim in leaf.dims.items():
            name, factor, offset = linear(values[leaf.name].tensor.shape[axis])
            wanted.setdefault(
                name, (_base_range(dim, factor, offset), f"input {leaf.label} axis {axis}, dim {dim.name!r}")
            )
    return wanted


def drop_size_asserts(graph: Graph) -> None:
    """Erase torch's own ``assert batch >= 2`` where the range of the dim allows less.

    Tracing into ``torch.cond`` leaves them: torch takes every size for at least 2. Whether the graph holds
    at 0 and 1 is checked by running it there, see ``compiler.capture.eager.check_smallest``.
    """
    for node in graph:
        if node.op.name != "aten._assert_scalar.default" or not isinstance(node.args[0], Value):
            continue
        test = node.args[0].producer
        if test is None or test.op.name != "sym.ge" or not isinstance(test.args[0], Value):
            continue
        size, least = test.args[0].type, test.args[1]
        name = str(size.expr) if isinstance(size, ScalarType) else ""
        if isinstance(least, int) and least <= 2 and name in graph.dims and graph.dims[name].min < least:
            graph.erase(node)
            _erase_unused(graph, test)


def _erase_unused(graph: Graph, node: Node) -> None:
    if node.pure and not any(v.uses for v in node.results):
        operands = node.operands
        graph.erase(node)
        for value in operands:
            if value.producer is not None and value.producer.block is not None:
                _erase_unused(graph, value.producer)
