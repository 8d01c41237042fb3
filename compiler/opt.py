"""Passes over IR text, for those who write passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.instruments import counting, dumping, timing, verifying
from compiler.pipeline import Instrument, PassRecord, Pipeline
from ir import Fact, parse, show, verify
from ir import weights as weight_files
from ir.errors import UntrustedError, UsageError
from passes import PASSES, parse_passes


@dataclass(frozen=True)
class OptResult:
    """The IR after the passes, and what each did."""

    text: str
    records: Sequence[PassRecord]

    def rows(self) -> list[dict[str, Any]]:
        """A row per pass, as plain data."""
        return [{"pass": r.name, "changes": r.changes, "applied": r.applied, "declined": r.declined} for r in self.records]

    def remarks(self) -> list[str]:
        """A line per remark."""
        return [
            f"{r.name}: {'applied' if said.applied else 'declined'}: {said.at}: {said.why}"
            for r in self.records
            for said in r.remarks
        ]


def optimise_text(
    file: Path, source: str | None, passes: str, weights: Path | None, dump: Path | None, print_after: str,
    echo: Callable[[str], object],
) -> OptResult:  # fmt: skip
    """Read IR text, verify it, run passes, verify after each.

    Raises:
        UsageError: the file or a pass does not exist.
        ParseError: the text is not IR.
    """
    pipeline = Pipeline(*parse_passes(passes, PASSES))
    graph = parse(source if source is not None else _text(file), _weights(weights))
    verify(graph)
    watch: list[Instrument] = [counting, verifying(Fact.WELL_FORMED, Fact.TYPED)]
    if dump is not None:
        watch.append(dumping(dump))
    if print_after:
        watch.append(dumping(Path(), print_after, echo))
    records = pipeline.run(graph, [*watch, timing])
    return OptResult(show(graph), records)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UntrustedError(f"{file} is not text") from error


def _weights(path: Path | None) -> weight_files.Weights | None:
    if path is None:
        return None
    from safetensors import SafetensorError

    try:
        return weight_files.load(path)
    except FileNotFoundError as error:
        raise UsageError(f"no such file: {path}") from error
    except SafetensorError as error:
        raise UntrustedError(f"{path} is not a safetensors file: {error}") from error
