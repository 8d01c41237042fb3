"""rows(live, [x], [m], [w]) { f }  ->  where(live, f(x, m, w), x), or gather, f, scatter

Two lowerings of one meaning (``ir.rows``): *masked* computes every row and chooses at the end, in static shapes;
*compacted* computes the live rows only, in a size that depends on the data.

Sound: for a region that keeps rows apart; kernels may round a row otherwise in a batch of another size.
Profitable: compacted, where the engine has sizes that depend on data; masked saves nothing and runs everywhere.
Declines to mask a region that is not known to keep rows apart (``ir.rowwise``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ir import ROWS, Graph, Node
from ir.rows import MODES, lower
from ir.rowwise import mixing
from passes.base import Pass, Remark, Samples, Tolerance, remark
from passes.rewrite import rewrite


@dataclass(frozen=True)
class LowerRows(Pass):
    """Writes ``rows`` out in plain operators."""

    name: ClassVar[str] = "lower-rows"
    summary: ClassVar[str] = "rows { f } -> f on all rows and where, or gather, f, scatter (mode)"
    tolerance: ClassVar[Tolerance] = Tolerance(rtol=1e-4, atol=1e-5)
    mode: str = "masked"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is one of {', '.join(MODES)}, not {self.mode!r}")

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        """See the module."""
        return rewrite(graph, (self._lower,))

    def _lower(self, graph: Graph, node: Node) -> Remark | None:
        if node.op is not ROWS:
            return None
        if self.mode == "masked" and (why := mixing(node)):
            return remark(node, False, f"not masked: {why}")
        count = sum(1 for n in node.regions[0]) - 1
        lower(graph, node, self.mode)
        told = "every row is computed, the live ones are kept" if self.mode == "masked" else "live rows are gathered"
        return remark(node, True, f"{self.mode}: {told} ({count} operations)")
