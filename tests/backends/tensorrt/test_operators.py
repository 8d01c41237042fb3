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
REASONS = (
    "no float64", "uint8 at the inputs", "no form of Bitwise", "a product of whole numbers", "a dilated max pool",
    "which TensorRT divides otherwise", "a shape that the data decides", "a scatter that reduces",
)  # fmt: skip
"""What TensorRT cannot do, as the refusals say it. A new reason must be written down here."""
MOST_REFUSED = 32


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


def test_refusals_say_why_and_are_few() -> None:
    told = {call: why for calls in FAMILIES.values() for call in calls if (why := _refused(call))}
    assert not [f"{call}: {why}" for call, why in told.items() if not any(r in why for r in REASONS)]
    assert 0 < len(told) <= MOST_REFUSED


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
