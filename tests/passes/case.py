"""One row of a pass test: text before, text after, what was said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import dedent

import pytest
import torch

from ir import Graph, parse, show, verify
from passes import Pass, Remark

HEAD = 'penstock-ir 1\ngraph "case"\n'


@dataclass(frozen=True)
class Case:
    """``says``: the ``why`` of every remark, ``+`` applied or ``-`` declined in front, in order."""

    name: str
    before: str
    after: str
    says: tuple[str, ...] = ()


def read(text: str, weights: Mapping[str, torch.Tensor] | None = None) -> Graph:
    graph = parse(HEAD + dedent(text).strip() + "\n", weights)
    verify(graph)
    return graph


def check(pass_: Pass, case: Case, weights: Mapping[str, torch.Tensor] | None = None) -> Graph:
    graph = read(case.before, weights)
    said = pass_.run(graph)
    verify(graph)
    # names of values do not matter: both sides are numbered anew
    assert numbered(graph) == numbered(read(case.after)), show(graph)
    assert told(said) == case.says
    return graph


def told(said: list[Remark]) -> tuple[str, ...]:
    return tuple(f"{'+' if r.applied else '-'} {r.why}" for r in said)


def numbered(graph: Graph) -> str:
    for count, value in enumerate([*graph.body.args, *(v for n in graph.walk() for v in n.results)]):
        value.name = f"v{count}"
    for region in (r for n in graph.walk() for r in n.regions):
        for count, value in enumerate(region.args):
            value.name = f"r{count}"
    return "\n".join(line.partition("  # ")[0] for line in show(graph).splitlines())


def cases(*rows: Case) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", rows, ids=[row.name for row in rows])
