"""Passes over IR text, for those who write passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.files import read_ir, read_tensors
from compiler.pipeline.instruments import counting, dumping, timing, verifying
from compiler.pipeline.pipeline import Instrument, PassRecord, Pipeline, check_runs
from ir import Fact, show
from passes import PASSES, parse_passes


@dataclass(frozen=True)
class OptResult:
    """The IR after the passes, and what each did."""

    text: str
    records: Sequence[PassRecord]

    def rows(self) -> list[dict[str, Any]]:
        """A row per pass, as plain data."""
        return [
            {"pass": r.name, "changes": r.changes, "applied": r.applied, "declined": r.declined} for r in self.records
        ]

    def remarks(self) -> list[str]:
        """A line per remark."""
        return [line for record in self.records for line in record.lines()]


def optimise_text(
    source: str, passes: str, weights: Path | None, dump: Path | None, print_after: str,
    echo: Callable[[str], None],
) -> OptResult:  # fmt: skip
    """Read IR text, verify it, run passes, verify after each.

    Args:
        source: IR text.
        passes: as in a recipe; none when empty.
        weights: safetensors file of the params.
        dump: folder for the IR after each pass.
        print_after: name of a pass; the IR after it goes to ``echo``.
        echo: takes that text.

    Raises:
        UsageError: a file or a pass does not exist.
        ParseError: the text is not IR.
        UntrustedError: the graph or the file of weights is faulty.
    """
    pipeline = Pipeline(*parse_passes(passes, PASSES))
    if print_after:
        check_runs(print_after, pipeline)
    graph = read_ir(source, read_tensors(weights) if weights is not None else None)
    watch: list[Instrument] = [counting, verifying(Fact.WELL_FORMED, Fact.TYPED)]
    if dump is not None:
        watch.append(dumping(dump))
    if print_after:
        watch.append(dumping(Path(), print_after, echo))
    records = pipeline.run(graph, [*watch, timing])
    return OptResult(show(graph), records)
