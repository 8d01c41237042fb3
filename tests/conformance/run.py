"""Run cells on an engine: many in one graph, since building costs more than running; a graph that fails is halved."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from backends import CPU, Backend, Device, Unsupported, backend
from backends.rows import prepared
from backends.segments import build_segments, load_segments, simulated_segments, unsupported_segments
from ir import Graph, PenstockError, interpret
from ir.errors import UnsupportedError
from ir.weights import save
from tests.backends.cases import SIZES, Built
from tests.conformance import models, regions
from tests.conformance.judge import EXACT, Verdict, compare, refusal, worst
from tests.conformance.operators import COLUMNS, TOLERANCE, Cell, cells

GPU = Device("l4", "cuda", 89, 24e9, frozenset({"fp32", "tf32", "fp16", "bf16", "fp8", "int8"}))
LOWERINGS = ("native", "segments")
COMPILED = ("inductor", "tvm")
"""Engines that compile code for long (inductor: over an hour): CI asks them for less; 64 operators share a graph."""
Tensors = Mapping[str, torch.Tensor]
Job = tuple[Sequence[str], str, str]
"""Engines, section of the matrix, and its column or row."""
Found = list[tuple[str, str, str, str, str]]
"""Section, row, engine, column, verdict."""


def names(part: str) -> tuple[str, ...]:
    """What a part of the matrix is made of: columns of an operator family, or rows."""
    return tuple(regions.regions()) if part == "regions" else models.MODELS if part == "models" else COLUMNS


def judge(job: Job, chosen: Sequence[Cell] | None = None) -> Found:
    """One part of the matrix; of an operator family the chosen cells, or all that torch can compute."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)  # torch tells of every kernel that it does not have
    engines, part, name = job
    found: Found = []
    for engine in engines:
        if part == "regions":
            for lowering in LOWERINGS:
                found.append((part, name, engine, lowering, str(judge_region(engine, name, lowering))))
        elif part == "models":
            model, _, recipe = name.partition(" ")
            found.append((part, model, engine, recipe or "captured", str(judge_model(engine, name))))
        else:
            verdicts = judge_cells(engine, cells(part, name) if chosen is None else chosen)
            found += [(part, cell.form, engine, name, str(verdict)) for cell, verdict in verdicts.items()]
    return found


def judge_cells(engine: str, chosen: Sequence[Cell]) -> dict[Cell, Verdict]:
    """A verdict per cell."""
    found: dict[Cell, Verdict] = {}
    together = 64 if engine in COMPILED else 32
    for start in range(0, len(chosen), together):
        found |= _judge(backend(engine), chosen[start : start + together])
    return found


def _judge(chosen: Backend, cells: Sequence[Cell]) -> dict[Cell, Verdict]:
    if not cells:
        return {}
    built = Built([c.call for c in cells])
    refused = _refusals(_faults(chosen, built.graph), built, len(cells))
    if refused:
        found = {cells[i]: refusal(reason) for i, reason in refused.items()}
        return found | _judge(chosen, [c for c in cells if c not in found])
    try:
        verdicts = _run(chosen, built, len(cells), TOLERANCE.get(cells[0].family))
    except PenstockError as error:
        if len(cells) > 1:
            half = len(cells) // 2
            return _judge(chosen, cells[:half]) | _judge(chosen, cells[half:])
        return {cells[0]: _failed(error)}
    return dict(zip(cells, verdicts, strict=True))


def _refusals(faults: Sequence[Unsupported], built: Built, count: int) -> dict[int, str]:
    """Which call is refused, and why; a fault that names none of them refuses all."""
    found: dict[int, str] = {}
    for fault in faults:
        place, _, number = fault.origin.partition(" ")[0].partition(".")
        at = int(number) if place == "call" and number.isdigit() else built.owners.get(fault.origin)
        for index in range(count) if at is None else (at,):
            found.setdefault(index, fault.reason)
    return found


def _run(chosen: Backend, built: Built, count: int, tolerance: float | None) -> list[Verdict]:
    verdicts = [EXACT] * count
    with tempfile.TemporaryDirectory() as folder:
        engine = loaded(chosen, built.graph, Path(folder))
        for seed, sizes in enumerate(SIZES):
            inputs = built.inputs(sizes, seed)
            want, got = interpret(built.graph, inputs), engine(inputs)
            flushed = _flushed(built.graph, inputs) if "denormal" in chosen.deviations else {}
            has_nan = any(bool(t.isnan().any()) for t in inputs.values())
            for name, tensor in want.items():
                at = built.owners[name]
                verdict = compare(tensor, got[name], chosen.deviations, flushed.get(name), has_nan, tolerance)
                verdicts[at] = worst(verdicts[at], verdict)
    return verdicts


def _flushed(graph: Graph, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The meaning on a processor that takes denormal numbers for zero."""
    torch.set_flush_denormal(True)
    try:
        return interpret(graph, inputs)
    finally:
        torch.set_flush_denormal(False)


def loaded(chosen: Backend, graph: Graph, folder: Path) -> Any:
    """Build and load, one thread."""
    save(graph.weights, folder / "weights.safetensors")
    if simulates(chosen):
        from backends.tensorrt.simulate import simulated

        return simulated(graph, GPU)
    chosen.build(graph, folder)
    return chosen.load(folder, 1)


def simulates(chosen: Backend) -> bool:
    """Whether an engine cannot run here: what it emits is run in torch instead."""
    return bool(chosen.why_not(CPU))


def _segmented(chosen: Backend, graph: Graph, folder: Path) -> Any:
    if simulates(chosen):
        return simulated_segments(graph, chosen, GPU)
    save(graph.weights, folder / "weights.safetensors")
    build_segments(graph, folder, chosen)
    return load_segments(folder, chosen, 1)


def _faults(chosen: Backend, graph: Graph) -> list[Unsupported]:
    return chosen.unsupported(graph, _device(chosen))


def _faults_of_segments(chosen: Backend, graph: Graph) -> list[Unsupported]:
    return unsupported_segments(graph, chosen, _device(chosen))


def _device(chosen: Backend) -> Device:
    return GPU if simulates(chosen) else CPU


def judge_region(engine: str, name: str, lowering: str) -> Verdict:
    """A verdict on a piece of control flow; ``lowering`` is one of ``LOWERINGS``."""
    chosen, graph = backend(engine), regions.regions()[name]()
    runs = [(inputs, interpret(graph, inputs)) for inputs in regions.runs(graph)]
    return _judge_graph(chosen, graph, runs, segments=lowering == "segments")


def judge_model(engine: str, name: str) -> Verdict:
    """A verdict on a model of the zoo, see ``models.case``."""
    try:
        graph, runs, tolerance = models.case(name)
    except UnsupportedError as error:
        return refusal(f"capture: {error.what.splitlines()[0]}")
    return _judge_graph(backend(engine), graph, runs, tolerance)


def _judge_graph(
    chosen: Backend,
    graph: Graph,
    runs: Sequence[tuple[Tensors, Tensors]],
    tolerance: float | None = None,
    segments: bool = False,
) -> Verdict:
    """Inputs, and what is expected of them."""
    ready = prepared(graph, chosen)
    graph = ready.graph
    faults = [*ready.refused] or (_faults_of_segments if segments else _faults)(chosen, graph)
    if faults:
        return refusal("; ".join(sorted({f"{f.op}: {f.reason}" for f in faults})))
    try:
        with tempfile.TemporaryDirectory() as folder:
            run, verdict = (_segmented if segments else loaded)(chosen, graph, Path(folder)), EXACT
            for inputs, want in runs:
                got = run(inputs)
                for name, tensor in want.items():
                    verdict = worst(verdict, compare(tensor, got[name], chosen.deviations, tolerance=tolerance))
    except PenstockError as error:
        return _failed(error)
    return verdict


def _failed(error: PenstockError) -> Verdict:
    return refusal(error.what) if isinstance(error, UnsupportedError) else Verdict("crash", error.what)
