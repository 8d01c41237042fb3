"""Runs passes in order while instruments watch. Knows no pass, backend or cost model by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TypeAlias

from ir import Fact, Graph
from ir.copy import copy_graph, restore
from ir.errors import PenstockError, UsageError, VerificationError, nearest
from passes import Pass, Remark, Samples, show_pass

Columns: TypeAlias = dict[str, int | float | str]
Instrument: TypeAlias = Callable[[Pass, Graph, Columns], AbstractContextManager[None]]
"""Entered before a pass, left after it; writes its columns of the report, or raises."""


@dataclass(frozen=True, slots=True)
class PassRecord:
    """What one pass did: a row of the report.

    Attributes:
        name: pass with its options, as text.
        changes: number of changes that it left in the graph; 0 when it was rolled back.
        remarks: every match, applied or declined.
        columns: what the instruments wrote (``ms``, ``nodes``, ``cost``, ``saved``, ``moved``).
        dropped: why the pass was rolled back; empty when it stayed.
    """

    name: str
    changes: int
    remarks: tuple[Remark, ...] = ()
    columns: Mapping[str, int | float | str] = field(default_factory=dict)
    dropped: str = ""

    @property
    def applied(self) -> int:
        """Number of matches that were rewritten."""
        return 0 if self.dropped else sum(r.applied for r in self.remarks)

    @property
    def declined(self) -> int:
        """Number of matches that were left alone."""
        return sum(not r.applied for r in self.remarks)

    def lines(self) -> list[str]:
        """A line of text per remark."""
        return [f"{self.name}: {'applied' if r.applied else 'declined'}: {r.at}: {r.why}" for r in self.remarks]


class Pipeline:
    """Passes in order: their needs are checked when it is built, their promises when it runs."""

    def __init__(self, *passes: Pass, given: frozenset[Fact] = frozenset({Fact.WELL_FORMED, Fact.TYPED})) -> None:
        """Check that each pass finds what it requires.

        Raises:
            UsageError: names the pass and what no earlier pass gives.
        """
        facts = given
        for position, pass_ in enumerate(passes, 1):
            if missing := pass_.requires - facts:
                names = ", ".join(sorted(fact.name for fact in missing))
                raise UsageError(
                    f"pass {position}, {pass_.name}, needs {names}, which no earlier pass gives",
                    hint=f"put a pass that gives {names} before it (penstock passes lists them)",
                )
            facts = (facts - pass_.breaks) | pass_.gives
        self.passes = passes
        self.facts = facts

    def __str__(self) -> str:
        return ", ".join(map(show_pass, self.passes))

    def run(
        self, graph: Graph, watch: Sequence[Instrument] = (), samples: Samples = (), rollback: bool = False
    ) -> list[PassRecord]:
        """Run every pass on the graph, in place.

        Args:
            graph: rewritten in place.
            watch: instruments; the last one stands nearest to the pass, so give timing last.
            samples: calibration inputs for the passes.
            rollback: undo a pass that breaks its numeric promise and go on, instead of raising.
        """
        return [self._step(i, p, graph, watch, samples, rollback) for i, p in enumerate(self.passes, 1)]

    def _step(
        self, position: int, pass_: Pass, graph: Graph, watch: Sequence[Instrument], samples: Samples, rollback: bool
    ) -> PassRecord:
        columns: Columns = {}
        version = graph.version
        kept = copy_graph(graph) if rollback else None
        remarks: tuple[Remark, ...] = ()
        try:
            with ExitStack() as stack:
                for instrument in watch:
                    stack.enter_context(instrument(pass_, graph, columns))
                remarks = tuple(pass_.run(graph, samples))
        except VerificationError as error:
            if kept is None:
                error.add_note(f"in pass {position} of {len(self.passes)}: {pass_.name}")
                raise
            restore(graph, kept)
            return PassRecord(show_pass(pass_), 0, remarks, columns, dropped=error.what)
        except (PenstockError, ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
            error.add_note(f"in pass {position} of {len(self.passes)}: {pass_.name}")
            raise
        return PassRecord(show_pass(pass_), graph.version - version, remarks, columns)


def check_runs(name: str, *pipelines: Pipeline) -> None:
    """Check that a pass of this name is run.

    Raises:
        UsageError: it is not; the nearest name is suggested.
    """
    names = list(dict.fromkeys(p.name for pipeline in pipelines for p in pipeline.passes))
    if name not in names:
        raise UsageError(f"no pass {name!r} is run", hint=nearest(name, names) if names else "no pass is run at all")
