"""What ``rows`` and other picks by a mask are predicted to cost: the part that is alive."""

from __future__ import annotations

import pytest

from compiler.cost.cost import Flow, estimate
from compiler.cost.targets import target
from ir import evaluate, parse
from ir.price import price
from tests.corpus import load
from tests.row_regions import rows_of, the_rows

LINEAR = "%r: f32[u0, 3, 4] = aten.linear.default(%a, %c)"


def test_a_price_takes_every_row_for_alive_and_counts_what_is_moved() -> None:
    found = price(the_rows(rows_of(LINEAR)))
    rows, beside = 8 * 3 * 4 * 4, 8 * 3 * 3 * 4
    assert found.flops == 2 * 3 * 4 * 4 * the_rows(rows_of(LINEAR)).results[0].tensor.shape[0]
    # the mask; gather x and m; the region reads x and w; scatter reads the new rows and x whole
    assert evaluate(found.bytes_read, {"n": 8}) == 8 + rows + beside + rows + 4 * 4 * 4 + rows
    assert evaluate(found.bytes_written, {"n": 8}) == rows + beside + rows + rows


@pytest.mark.parametrize(("live", "rows"), [(None, 8), (1.0, 8), (0.5, 4), (0.3, 3), (0.0, 0)])
def test_an_estimate_takes_the_part_that_it_is_told(live: float | None, rows: int) -> None:
    found = estimate(rows_of(LINEAR), target("l4"), {"n": 8}, Flow(live=live))
    assert found.flops == 2 * 3 * 4 * 4 * rows
    assert ("rows: every row is taken to be alive" in found.notes) == (live is None)


def test_each_rows_may_have_its_own_part() -> None:
    graph = rows_of(LINEAR)
    assert estimate(graph, target("l4"), {"n": 8}, Flow(per_node={the_rows(graph): 0.25})).flops == 2 * 3 * 4 * 4 * 2


def test_rows_of_rows_are_parts_of_parts() -> None:
    graph = load("rows_nested")
    full, half = (estimate(graph, target("cpu"), {"n": 16}, Flow(live=part)).flops for part in (1.0, 0.5))
    assert half < full / 2 + 16 * 6 + 16


def test_a_pick_by_a_mask_is_priced_with_all_of_it() -> None:
    text = """penstock-ir 1
graph "g"
input %x: f32[64] "x"
%i: i64[u0, 1] = aten.nonzero.default(%x)
return "i" %i
"""
    sizes = [(Flow(), {}), (Flow(live=0.25), {}), (Flow(), {"u0": 5})]
    found = [estimate(parse(text), target("l4"), given, flow).bytes for flow, given in sizes]
    assert found == [4 * 64 + 8 * 64, 4 * 64 + 8 * 16, 4 * 64 + 8 * 5]
