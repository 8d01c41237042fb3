"""``match-rows`` finds work on live rows in each form that torch writes it; ``lower-rows`` writes it out."""

from __future__ import annotations

import pytest
import torch

from compiler.capture.capture import capture
from compiler.spec import Dim, ModelSpec
from ir import ROWS, Graph, interpret, verify
from ir.copy import copy_graph
from ir.errors import UsageError
from passes import PASSES, LowerRows, MatchRows, parse_passes
from tests.corpus import load
from tests.passes.case import Case, cases, check, read, told
from tests.row_regions import LIVE, rows_of, some_inputs
from tests.zoo import captured
from tests.zoo_modules import Compaction

HEAD = """
dim n [1, 64]
input %live: bool[n] "live"
input %x: f32[n, 4] "x"
input %m: f32[n, 4] "m"
param %w: f32[4, 4] "w"
"""
PLACES = """
%z: i64[u0, 1] = aten.nonzero.default(%live)
%i: i64[u0] = aten.squeeze.dim(%z, 1)
"""
AFTER = f"""{HEAD}
%y: f32[n, 4] = rows(%live, [%x], [], [%w]) do
region(%a: f32[u0, 4], %b: f32[4, 4])
  %r: f32[u0, 4] = aten.linear.default(%a, %b)
  return %r
end
return "y" %y
"""
ONE = "+ 1 operation(s) run on the live rows only"


@cases(
    Case(
        "places",
        f"""{HEAD}{PLACES}
        %a: f32[u0, 4] = aten.index_select.default(%x, 0, %i)
        %r: f32[u0, 4] = aten.linear.default(%a, %w)
        %y: f32[n, 4] = aten.index_copy.default(%x, 0, %i, %r)
        return "y" %y""",
        AFTER,
        (ONE,),
    ),
    Case(
        "a mask",
        f"""{HEAD}
        %a: f32[u0, 4] = aten.index.Tensor(%x, [%live])
        %r: f32[u0, 4] = aten.linear.default(%a, %w)
        %y: f32[n, 4] = aten.index_put.default(%x, [%live], %r)
        return "y" %y""",
        AFTER,
        (ONE,),
    ),
    Case(
        "places in a tuple",
        f"""{HEAD}
        %i: i64[u0] = aten.where.default(%live)
        %a: f32[u0, 4] = aten.index.Tensor(%x, [%i])
        %r: f32[u0, 4] = aten.linear.default(%a, %w)
        %y: f32[n, 4] = aten.index_put.default(%x, [%i], %r)
        return "y" %y""",
        AFTER,
        (ONE,),
    ),
    Case(
        "asserts of the count",
        f"""{HEAD}{PLACES}
        %k: int<u0> = aten.sym_size.int(%z, 0)
        %low: bool = sym.ge(%k, 0)
        aten._assert_scalar.default(%low, "u0 >= 0")
        %high: bool = sym.le(%k, 64)
        aten._assert_scalar.default(%high, "u0 <= 64")
        %a: f32[u0, 4] = aten.index_select.default(%x, 0, %i)
        %r: f32[u0, 4] = aten.linear.default(%a, %w)
        %y: f32[n, 4] = aten.index_copy.default(%x, 0, %i, %r)
        return "y" %y""",
        AFTER,
        (*["+ a count of rows lies between none and all"] * 2, ONE),
    ),
    Case(
        "an assert that may fail stays, and so does the count",
        f"""{HEAD}{PLACES}
        %k: int<u0> = aten.sym_size.int(%i, 0)
        %high: bool = sym.le(%k, 8)
        aten._assert_scalar.default(%high, "u0 <= 8")
        return "y" %x""",
        f"""{HEAD}{PLACES}
        %k: int<u0> = aten.sym_size.int(%i, 0)
        %high: bool = sym.le(%k, 8)
        aten._assert_scalar.default(%high, "u0 <= 8")
        return "y" %x""",
    ),
    Case(
        "rows beside, and the number of rows",
        f"""{HEAD}{PLACES}
        %k: int<u0> = aten.sym_size.int(%i, 0)
        %a: f32[u0, 4] = aten.index_select.default(%x, 0, %i)
        %b: f32[u0, 4] = aten.index_select.default(%m, 0, %i)
        %s: f32[u0, 4] = aten.add.Tensor(%a, %b)
        %t: f32[u0, 2, 2] = aten.reshape.default(%s, [%k, 2, 2])
        %r: f32[u0, 4] = aten.reshape.default(%t, [%k, 4])
        %y: f32[n, 4] = aten.index_copy.default(%x, 0, %i, %r)
        return "y" %y""",
        f"""{HEAD}
        %y: f32[n, 4] = rows(%live, [%x], [%m], []) do
        region(%a: f32[u0, 4], %b: f32[u0, 4])
          %k: int<u0> = aten.sym_size.int(%a, 0)
          %s: f32[u0, 4] = aten.add.Tensor(%a, %b)
          %t: f32[u0, 2, 2] = aten.reshape.default(%s, [%k, 2, 2])
          %r: f32[u0, 4] = aten.reshape.default(%t, [%k, 4])
          return %r
        end
        return "y" %y""",
        ("+ 3 operation(s) run on the live rows only",),
    ),
    Case(
        "two that come back of one body",
        f"""{HEAD}{PLACES}
        %a: f32[u0, 4] = aten.index_select.default(%x, 0, %i)
        %s: f32[u0, 4] = aten.linear.default(%a, %w)
        %r: f32[u0, 4] = aten.relu.default(%s)
        %y: f32[n, 4] = aten.index_copy.default(%x, 0, %i, %r)
        %o: f32[n, 4] = aten.index_copy.default(%m, 0, %i, %s)
        return "y" %y, "o" %o""",
        f"""{HEAD}
        %y: f32[n, 4], %o: f32[n, 4] = rows(%live, [%x, %m], [], [%w]) do
        region(%a: f32[u0, 4], %b: f32[u0, 4], %c: f32[4, 4])
          %s: f32[u0, 4] = aten.linear.default(%a, %c)
          %r: f32[u0, 4] = aten.relu.default(%s)
          return %r, %s
        end
        return "y" %y, "o" %o""",
        ("+ 2 operation(s) run on the live rows only",),
    ),
)
def test_match(case: Case) -> None:
    check(MatchRows(), case)


DECLINED = {
    "a body that mixes rows": (
        "%a: f32[u0, 4] = aten.index_select.default(%x, 0, %i)\n%r: f32[u0, 4] = aten.softmax.int(%a, 0)",
        "- aten.softmax.int works along the axis of the rows",
    ),
    "a live row that something else reads": (
        "%a: f32[u0, 4] = aten.index_select.default(%x, 0, %i)\n%r: f32[u0, 4] = aten.relu.default(%a)\n"
        "%t: f32[] = aten.sum.default(%r)\n%x2: f32[n, 4] = aten.add.Tensor(%x, %t)",
        "- aten.sum.default reads a value of the live rows",
    ),
    "the places of the rows": (
        "%a: f32[u0, 4] = aten.index_select.default(%x, 0, %i)\n%f: f32[u0, 1] = aten.to.dtype(%z, !f32)\n"
        "%r: f32[u0, 4] = aten.add.Tensor(%a, %f)",
        "- its body reads the positions of the live rows",
    ),
    "nothing to do": (
        "%r: f32[u0, 4] = aten.index_select.default(%m, 0, %i)",
        "- nothing runs on the live rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DECLINED)
def test_match_declines(name: str) -> None:
    body, why = DECLINED[name]
    end = '%y: f32[n, 4] = aten.index_copy.default(%x, 0, %i, %r)\nreturn "y" %y'
    if "%x2" in body:
        end = end.replace('"y" %y', '"y" %y, "x" %x2')
    text = HEAD + PLACES + body + "\n" + end
    check(MatchRows(), Case(name, text, text, (why,)))


def test_what_is_needed_too_late_is_declined() -> None:
    text = f"""{HEAD}{PLACES}
    %a: f32[u0, 4] = aten.index_select.default(%x, 0, %i)
    %s: f32[u0, 4] = aten.relu.default(%a)
    %y: f32[n, 4] = aten.index_copy.default(%x, 0, %i, %s)
    %r: f32[u0, 4] = aten.linear.default(%s, %w)
    %o: f32[n, 4] = aten.index_copy.default(%y, 0, %i, %r)
    return "o" %o"""
    says = (
        "- aten.linear.default reads a value of the live rows",
        "- what its body needs is made only after the rows are put back",
    )
    check(MatchRows(), Case("late", text, text, says))


def test_an_assignment_that_adds_up_is_no_scatter() -> None:
    text = f"""{HEAD}
    %a: f32[u0, 4] = aten.index.Tensor(%x, [%live])
    %r: f32[u0, 4] = aten.relu.default(%a)
    %y: f32[n, 4] = aten.index_put.default(%x, [%live], %r, True)
    return "y" %y"""
    check(MatchRows(), Case("adds", text, text))


def test_lower_declines_to_mask_what_mixes_rows_and_gathers_it_all_the_same() -> None:
    graph = rows_of("%r: f32[u0, 3, 4] = aten.softmax.int(%a, 0)")
    want = interpret(graph, some_inputs(8, LIVE["some"]))
    said = LowerRows().run(graph)
    assert told(said) == ("- not masked: aten.softmax.int works along the axis of the rows",)
    assert told(LowerRows("compacted").run(graph)) == ("+ compacted: live rows are gathered (1 operations)",)
    torch.testing.assert_close(interpret(graph, some_inputs(8, LIVE["some"])), want)


def test_lower_says_which_form_it_took() -> None:
    graph = load("rows_nested")
    assert told(LowerRows().run(graph)) == (
        "+ masked: every row is computed, the live ones are kept (8 operations)",
        "+ masked: every row is computed, the live ones are kept (3 operations)",
    )
    verify(graph)


def test_a_mode_that_does_not_exist_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="mode is one of compacted, masked"):
        parse_passes('lower-rows{mode="fast"}', PASSES)


@pytest.fixture(scope="module")
def compaction() -> Graph:
    return captured("compaction")[1]


@pytest.mark.parametrize("mode", ["masked", "compacted"])
def test_the_zoo_model_keeps_its_numbers(compaction: Graph, mode: str) -> None:
    matched = copy_graph(compaction)
    MatchRows().run(matched)
    assert [n.op for n in matched if n.regions] == [ROWS]
    assert not any(n.op.name == "aten.nonzero.default" or n.op.effects for n in matched if n is not matched.body.last)
    made = copy_graph(matched)
    LowerRows(mode).run(made)
    verify(made)
    for batch in (1, 8):
        inputs = {"x": torch.randn(batch, 5, 8)}
        want = interpret(compaction, inputs)["output"]
        torch.testing.assert_close(interpret(matched, inputs)["output"], want, rtol=0, atol=0)
        torch.testing.assert_close(interpret(made, inputs)["output"], want, rtol=1e-5, atol=1e-6)


class _ByMask(Compaction):
    """The same with a mask, as people write it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, 1).clone()
        live = self.gate(rows).squeeze(-1) > 0
        rows[live] = self.expensive(rows[live])
        return rows.reshape(x.shape)


def test_a_captured_mask_is_found() -> None:
    torch.manual_seed(0)
    graph = capture(ModelSpec(_ByMask().eval(), {"x": torch.randn(2, 6, 8)}, {"x": {0: Dim("batch", 1, 64)}}))
    want = interpret(graph, {"x": torch.ones(3, 6, 8)})
    MatchRows().run(graph)
    assert sum(n.op is ROWS for n in graph) == 1
    torch.testing.assert_close(interpret(graph, {"x": torch.ones(3, 6, 8)}), want)


def test_reading_is_text() -> None:
    assert [n.op for n in read(AFTER) if n.regions] == [ROWS]
