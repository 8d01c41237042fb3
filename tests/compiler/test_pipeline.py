"""Pipelines and instruments: needs checked before, promises after, and a wrong pass is caught and named."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from compiler.pipeline.instruments import comparing, counting, dumping, pricing, timing, verifying
from compiler.pipeline.pipeline import Pipeline, check_runs
from ir import Fact, Graph, Node, interpret, parse, show, verify
from ir.errors import IRError, ResourceError, UsageError, VerificationError
from ir.ops import op
from passes import DropDeadNodes, FoldConstants, Pass, Remark, Samples, Tolerance, remark
from tests.compiler.command import IR

SAMPLE = {"x": torch.linspace(-1, 1, 12).reshape(3, 4)}


@pytest.fixture
def graph() -> Graph:
    return parse(IR, {"w": torch.arange(16.0).reshape(4, 4)})


@dataclass(frozen=True)
class Planted(Pass):
    """Base of passes that are wrong on purpose: the relu becomes another operator."""

    name: ClassVar[str] = "planted"
    summary: ClassVar[str] = "wrong on purpose"
    into: ClassVar[str] = "aten.relu.default"

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        node = next(n for n in graph.walk() if n.op.name == "aten.relu.default")
        said = remark(node, True, "as planted")
        self.change(graph, node)
        return [said]

    def change(self, graph: Graph, node: Node) -> None:
        made = graph.insert(op(self.into), node.args[0], before=node)
        graph.replace(node.result, made.result)
        graph.erase(node)


class Wrong(Planted):
    """Forgets the relu's other half."""

    name: ClassVar[str] = "forget-half"
    into: ClassVar[str] = "aten.neg.default"


class Inexact(Planted):
    """Moves numbers by a little, and says so."""

    name: ClassVar[str] = "move-little"
    tolerance: ClassVar[Tolerance] = Tolerance(atol=0.5)
    into: ClassVar[str] = "aten.leaky_relu.default"


class GivesNan(Planted):
    name: ClassVar[str] = "give-nan"
    tolerance: ClassVar[Tolerance] = Tolerance(cosine=0.5)
    into: ClassVar[str] = "aten.sqrt.default"


class Tears(Planted):
    """Leaves a graph whose use lists lie."""

    name: ClassVar[str] = "tear"

    def change(self, graph: Graph, node: Node) -> None:
        node.operands[0].uses.clear()
        graph.version += 1


class Crashes(Planted):
    name: ClassVar[str] = "crash"

    def change(self, graph: Graph, node: Node) -> None:
        raise KeyError("perm")


class NeedsViews(Planted):
    name: ClassVar[str] = "need-views"
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL_VIEWS})


class GivesViews(Planted):
    name: ClassVar[str] = "give-views"
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL_VIEWS})


class BreaksViews(Planted):
    name: ClassVar[str] = "break-views"
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL_VIEWS})


class ClaimsNoDeadNodes(Planted):
    """Promises what it does not do."""

    name: ClassVar[str] = "claim"
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.NO_DEAD_NODES})


# --- needs and promises --------------------------------------------------------------------------------


def test_needs_are_checked_when_it_is_built() -> None:
    with pytest.raises(UsageError, match="pass 2, need-views, needs CANONICAL_VIEWS, which no earlier pass gives"):
        Pipeline(DropDeadNodes(), NeedsViews())
    assert Fact.CANONICAL_VIEWS in Pipeline(GivesViews(), NeedsViews()).facts
    with pytest.raises(UsageError, match="pass 3, need-views"):
        Pipeline(GivesViews(), BreaksViews(), NeedsViews())
    Pipeline(NeedsViews(), given=frozenset({Fact.CANONICAL_VIEWS}))


def test_promised_facts_are_verified_after_the_pass(graph: Graph) -> None:
    with pytest.raises(IRError) as caught:
        Pipeline(ClaimsNoDeadNodes()).run(graph, [verifying(Fact.WELL_FORMED)])
    assert caught.value.__notes__ == ["in pass 1 of 1: claim"]


def test_a_torn_graph_is_found_after_the_pass_that_tore_it(graph: Graph) -> None:
    with pytest.raises(IRError, match="use list") as caught:
        Pipeline(FoldConstants(), Tears(), DropDeadNodes()).run(graph, [verifying(Fact.WELL_FORMED)])
    assert caught.value.__notes__ == ["in pass 2 of 3: tear"]


def test_a_pass_that_crashes_is_named(graph: Graph) -> None:
    with pytest.raises(KeyError) as caught:
        Pipeline(DropDeadNodes(), Crashes()).run(graph, [timing], rollback=True)
    assert caught.value.__notes__ == ["in pass 2 of 2: crash"]


# --- numbers -------------------------------------------------------------------------------------------


def test_a_wrong_pass_is_caught_and_named(graph: Graph) -> None:
    with pytest.raises(VerificationError, match=r"forget-half moved the outputs by .* it promises bit-exact") as caught:
        Pipeline(Wrong()).run(graph, [comparing([SAMPLE])])
    assert caught.value.__notes__ == ["in pass 1 of 1: forget-half"]


def test_a_wrong_pass_is_rolled_back_and_the_next_ones_run(graph: Graph) -> None:
    want = interpret(graph, SAMPLE)
    before = show(graph)
    records = Pipeline(Wrong(), DropDeadNodes()).run(
        graph, [counting, comparing([SAMPLE]), verifying(Fact.WELL_FORMED, Fact.TYPED), timing], rollback=True
    )
    first, second = records
    assert first.dropped.startswith("forget-half moved the outputs by 80")
    assert (first.changes, first.applied, len(first.remarks)) == (0, 0, 1)
    assert first.columns["moved"] > 1  # type: ignore[operator]
    assert (second.applied, second.dropped) == (1, "")
    assert "aten.neg" not in show(graph)
    assert "aten.neg" in before
    verify(graph)
    assert torch.equal(interpret(graph, SAMPLE)["y"], want["y"])


def test_each_pass_is_held_against_what_stood_before_it(graph: Graph) -> None:
    pipeline = Pipeline(Wrong(), DropDeadNodes(), Inexact(), FoldConstants())
    records = pipeline.run(graph, [comparing([SAMPLE])], rollback=True)
    assert [bool(r.dropped) for r in records] == [True, False, False, False]
    assert records[1].columns["moved"] == 0
    assert 0 < float(records[2].columns["moved"]) < 0.5
    assert "moved" not in records[3].columns  # it changed nothing


def test_a_pass_within_its_word_stays(graph: Graph) -> None:
    (record,) = Pipeline(Inexact()).run(graph, [comparing([SAMPLE])], rollback=True)
    assert record.dropped == ""
    assert "leaky_relu" in show(graph)


def test_nan_where_none_was_is_never_within(graph: Graph) -> None:
    (record,) = Pipeline(GivesNan()).run(graph, [comparing([SAMPLE])], rollback=True)
    assert "give-nan moved the outputs by inf" in record.dropped


# --- other instruments ---------------------------------------------------------------------------------


def test_what_the_instruments_write(graph: Graph) -> None:
    cost: Callable[[Graph], float] = lambda g: float(len(g))  # noqa: E731
    (record,) = Pipeline(DropDeadNodes()).run(graph, [counting, pricing(cost), comparing([SAMPLE]), timing])
    assert record.columns["saved"] == 1
    assert record.columns["nodes"] == record.columns["cost"]
    assert (record.columns["moved"], record.columns["cosine"]) == (0, 1)
    assert math.isfinite(float(record.columns["ms"]))
    assert record.lines()[0].startswith("drop-dead-nodes: applied: aten.neg.default")


def test_dumps_are_numbered_by_pass(graph: Graph, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").touch()
    Pipeline(FoldConstants(), DropDeadNodes(), Inexact()).run(graph, [dumping(tmp_path)])
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["02_drop-dead-nodes.ir", "03_move-little.ir", "kept.txt"]
    assert (tmp_path / "03_move-little.ir").read_text() == show(graph)


def test_the_ir_after_one_pass(graph: Graph) -> None:
    said: list[str] = []
    Pipeline(DropDeadNodes(), Inexact()).run(graph, [dumping(Path(), "drop-dead-nodes", said.append)])
    assert len(said) == 1
    assert "aten.relu" in said[0]
    assert "aten.neg" not in said[0]


def test_a_folder_for_dumps_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="not a folder"):
            dumping(place)
    with pytest.raises(ResourceError):
        dumping(Path("/proc/dumps"))


def test_a_pass_that_is_not_run_cannot_be_watched() -> None:
    pipelines = Pipeline(DropDeadNodes()), Pipeline(FoldConstants())
    check_runs("fold-constants", *pipelines)
    with pytest.raises(UsageError, match='did you mean "fold-constants"'):
        check_runs("fold-constant", *pipelines)
    with pytest.raises(UsageError, match="no pass is run at all"):
        check_runs("fold-constants", Pipeline())
