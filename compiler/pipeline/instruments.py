"""What can be watched while a pass runs. Each is a context manager of a few lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from compiler.artifact import storage_errors
from compiler.pipeline.pipeline import Columns, Instrument
from compiler.select.compare import Distance, distance
from compiler.select.settled import without_traces
from ir import Fact, Graph, interpret, show, verify
from ir.errors import ResourceError, UsageError, VerificationError
from passes import Pass, Samples, Tolerance


@contextmanager
def timing(pass_: Pass, graph: Graph, columns: Columns) -> Generator[None]:
    """``ms``: time of the pass alone."""
    start = time.perf_counter()
    yield
    columns["ms"] = round((time.perf_counter() - start) * 1e3, 3)


@contextmanager
def counting(pass_: Pass, graph: Graph, columns: Columns) -> Generator[None]:
    """``nodes``: how many are left."""
    yield
    columns["nodes"] = len(graph)


def verifying(*facts: Fact) -> Instrument:
    """Hold the graph to these facts, and to those that the pass gives, after every pass."""

    @contextmanager
    def watch(pass_: Pass, graph: Graph, columns: Columns) -> Generator[None]:
        version = graph.version
        yield
        if graph.version != version:
            verify(graph, *dict.fromkeys((*facts, *sorted(pass_.gives, key=lambda f: f.name))))

    return watch


def pricing(cost: Callable[[Graph], float], target: str = "") -> Instrument:
    """``cost`` in predicted seconds after the pass, ``saved`` by it; ``cost:NAME`` and ``saved:NAME`` of a target."""
    mark = f":{target}" if target else ""

    @contextmanager
    def watch(pass_: Pass, graph: Graph, columns: Columns) -> Generator[None]:
        version, before = graph.version, cost(graph)
        yield
        columns[f"cost{mark}"] = after = cost(graph) if graph.version != version else before
        columns[f"saved{mark}"] = before - after

    return watch


def comparing(samples: Samples) -> Instrument:
    """``moved``: how far the outputs moved on samples; raises when further than the pass declares.

    A run of the graph is kept from pass to pass, so each pass that changes something costs one run.
    """
    known: dict[int, list[dict[str, torch.Tensor]]] = {}

    def outputs(graph: Graph) -> list[dict[str, torch.Tensor]]:
        if graph.version not in known:
            known.clear()
            known[graph.version] = [without_traces(interpret(graph, sample)) for sample in samples]
        return known[graph.version]

    @contextmanager
    def watch(pass_: Pass, graph: Graph, columns: Columns) -> Generator[None]:
        version, want = graph.version, outputs(graph)
        yield
        if graph.version == version:
            return
        found = [distance(w, g) for w, g in zip(want, outputs(graph), strict=True)]
        worst = max(found, key=lambda d: d.max_abs, default=Distance())
        columns["moved"] = worst.max_abs
        columns["cosine"] = min((d.cosine for d in found), default=1.0)
        if not all(within(pass_.tolerance, w, g) for w, g in zip(want, outputs(graph), strict=True)):
            known.clear()
            raise VerificationError(
                f"{pass_.name} moved the outputs by {worst.max_abs:.3g} (cosine {columns['cosine']:.6f}); "
                f"it promises {pass_.tolerance}"
            )

    return watch


def within(allow: Tolerance, want: dict[str, torch.Tensor], got: dict[str, torch.Tensor]) -> bool:
    """Whether outputs agree as far as a tolerance says; a NaN agrees with a NaN only."""
    if allow.cosine is not None:
        return distance(want, got).cosine >= allow.cosine
    return all(
        torch.equal(torch.isnan(w), torch.isnan(got[n]))
        and bool(torch.all(torch.isnan(w) | (w == got[n]) | ((got[n] - w).abs() <= allow.atol + allow.rtol * w.abs())))
        if w.dtype.is_floating_point
        else torch.equal(w, got[n])
        for n, w in want.items()
    )


def dumping(folder: Path, only: str = "", echo: Callable[[str], None] | None = None) -> Instrument:
    """Write ``03_fold-constants.ir`` after each pass that changed something; never deletes a file.

    ``only`` with ``echo`` prints the IR after that pass instead.

    Raises:
        UsageError: ``folder`` is something else than a folder.
        ResourceError: no space, no permission.
    """
    count = 0
    if echo is None:
        _make(folder)

    @contextmanager
    def watch(pass_: Pass, graph: Graph, columns: Columns) -> Generator[None]:
        nonlocal count
        count += 1
        version = graph.version
        yield
        if echo is not None and pass_.name == only:
            echo(show(graph))
        elif echo is None and graph.version != version:
            file = folder / f"{count:02d}_{pass_.name}.ir"
            with storage_errors(file):
                file.write_text(show(graph))

    return watch


def _make(folder: Path) -> None:
    try:
        with storage_errors(folder / "ir"):
            folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{folder} is not a folder", hint="name another one for the dumps") from error
    except OSError as error:
        raise ResourceError(f"cannot make {folder}: {error.strerror}", hint="name another folder") from error
