"""Each operator builds, or is refused for a known reason; the conformance suite compares its numbers, simulated."""

from __future__ import annotations

from functools import cache

import pytest

from backends.base import Device
from backends.tensorrt.builder import build
from backends.tensorrt.emit import emit, emit_all, profile_of
from tests.backends.cases import Built, Call
from tests.backends.operators import FAMILIES

L4 = Device("l4", "cuda", 89)
MOST_REFUSED = 0.2


@cache
def _refused(call: Call) -> str:
    return "; ".join(str(fault) for fault in emit_all(Built([call]).graph, L4)[1])


def _kept(calls: list[Call]) -> list[Call]:
    return [call for call in calls if not _refused(call)]


@pytest.mark.slow
def test_refusals_are_ours_and_few() -> None:
    """Known from the graph and the target, not from what the package happens to say."""
    calls = [call for family in FAMILIES.values() for call in family]
    told = {call: why for call in calls if (why := _refused(call))}
    assert not [f"{call}: {why}" for call, why in told.items() if "TensorRT does not take it" in why]
    assert 0 < len(told) <= MOST_REFUSED * len(calls)


def test_refusals_say_what_is_missing() -> None:
    for call, words in (
        (Call("nonzero", "f32[n,4]<2"), "a shape that the data decides"), (Call("sin", "f64[n]"), "no float64"),
        (Call("scatter_add", "f32[5,4]", 0, "i64[m,4]<5", "f32[m,4]"), "a scatter that reduces"),
        (Call("mm", "i64[n,4]", "i64[4,3]"), "a product of whole numbers"),
    ):  # fmt: skip
        assert words in _refused(call)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_operators_build(family: str) -> None:
    """Each by itself: what one network builds says nothing of its parts."""
    faults = []
    for call in _kept(FAMILIES[family]):
        graph = Built([call]).graph
        try:
            build(emit(graph, L4), profile_of(graph, 64)[0], L4)
        except Exception as error:  # noqa: BLE001  (all are told together)
            faults.append(f"{call}: {error}")
    assert not faults, "\n".join(faults)
