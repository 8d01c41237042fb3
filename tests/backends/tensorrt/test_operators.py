"""Each operator: the emitted network, simulated, against the interpreter; or refused for a known reason."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from backends.base import Device
from backends.tensorrt.builder import build
from backends.tensorrt.emit import emit, emit_all, profile_of
from backends.tensorrt.simulate import Simulation
from ir import interpret
from tests.backends.cases import SIZES, Built, Call
from tests.backends.operators import FAMILIES

L4 = Device("l4", "cuda", 89)
_TOGETHER = 32
MOST_REFUSED = 0.2


@cache
def _refused(call: Call) -> str:
    return "; ".join(str(fault) for fault in emit_all(Built([call]).graph, L4)[1])


def _kept(calls: list[Call]) -> list[Call]:
    return [call for call in calls if not _refused(call)]


def _difference(want: torch.Tensor, got: torch.Tensor) -> str:
    half = want.dtype in (torch.float16, torch.bfloat16)
    try:
        torch.testing.assert_close(
            got, want, rtol=2e-2 if half else 2e-5, atol=2e-2 if half else 2e-6, equal_nan=True
        )  # fmt: skip
    except AssertionError as error:
        return " ".join(str(error).split())[:200]
    return ""


@pytest.mark.slow  # the conformance suite judges a share of this in every run
@pytest.mark.parametrize("family", FAMILIES)
def test_emitted_networks_equal_the_interpreter(family: str) -> None:
    calls, faults = _kept(FAMILIES[family]), []
    for start in range(0, len(calls), _TOGETHER):
        built = Built(calls[start : start + _TOGETHER])
        run = Simulation(emit(built.graph, L4))
        for seed, sizes in enumerate(SIZES):
            inputs = built.inputs(sizes, seed)
            want, got = interpret(built.graph, inputs), run(inputs)
            assert list(got) == list(want)
            faults += [f"{name} at {sizes}: {why}" for name in want if (why := _difference(want[name], got[name]))]
    assert not faults, "\n".join(faults)


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
