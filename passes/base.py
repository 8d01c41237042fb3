"""The contract every pass signs: what it needs, gives and breaks, and how far numbers may move."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ir import Fact, Graph, Node

Samples = Sequence[Mapping[str, torch.Tensor]]
"""Calibration inputs: one mapping per call, a tensor per graph input."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far outputs may move: ``|got - want| <= atol + rtol * |want|``, and their cosine at least ``cosine``.

    The default is bit-exact: a pass that is not must say so.
    """

    rtol: float = 0.0
    atol: float = 0.0
    cosine: float | None = None

    def __str__(self) -> str:
        if self.cosine is not None:
            return f"cosine >= {self.cosine:g}"
        return "bit-exact" if not (self.rtol or self.atol) else f"rtol {self.rtol:g}, atol {self.atol:g}"


@dataclass(frozen=True, slots=True)
class Remark:
    """One decision: a match rewritten, or declined and why.

    Attributes:
        at: operator and origin of the matched node, as text: it outlives the node.
        applied: whether the match was rewritten.
        why: the reason, in the user's words.
    """

    at: str
    applied: bool
    why: str


def remark(node: Node, applied: bool, why: str) -> Remark:
    """A remark about a node."""
    origin = str(node.origin)
    return Remark(f"{node.op.name}{' at ' + origin if origin else ''}", applied, why)


class Pass(ABC):
    """One named rewrite. Subclasses are frozen dataclasses whose fields are their options."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for ``penstock passes``: before -> after."""
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.WELL_FORMED, Fact.TYPED})
    gives: ClassVar[frozenset[Fact]] = frozenset()
    breaks: ClassVar[frozenset[Fact]] = frozenset()
    tolerance: ClassVar[Tolerance] = Tolerance()

    @abstractmethod
    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        """Rewrite ``graph`` in place until nothing more applies; account for every match.

        Args:
            graph: rewritten in place, through its verbs.
            samples: calibration inputs; a pass that needs them and gets none declines, and says so.
        """
