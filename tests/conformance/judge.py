"""When two tensors agree, and how far they are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

TOLERANCE: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
)
"""Of a sum of some dozens of numbers near one; relative above one, absolute below. All else is exact or wrong."""


@dataclass(frozen=True)
class Verdict:
    """One cell.

    Attributes:
        kind: ``exact`` (bit for bit; any NaN is like any other), ``close`` (within the tolerance), ``refused`` (said
            before), ``differs`` (a deviation that the backend declares), ``mismatch`` or ``crash`` (never allowed).
        detail: the decade of the largest error, the reason, or the name of the deviation.
    """

    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind

    @property
    def rank(self) -> int:
        """The worse, the larger."""
        return KINDS.index(self.kind)


KINDS = ("exact", "close", "differs", "refused", "mismatch", "crash")
EXACT = Verdict("exact")


def worst(first: Verdict, second: Verdict) -> Verdict:
    """What two runs of one cell amount to."""
    if first.kind == second.kind == "close":
        return max(first, second, key=lambda v: float(v.detail))
    return max(first, second, key=lambda v: v.rank)


def compare(want: torch.Tensor, got: torch.Tensor, deviations: Mapping[str, str] = MappingProxyType({})) -> Verdict:
    """Judge one tensor.

    Args:
        want: the meaning.
        got: what the engine said.
        deviations: those that the backend declares, by name (see ``backends.base``).
    """
    if (want.dtype, want.shape) != (got.dtype, got.shape):
        return Verdict("mismatch", f"{got.dtype} {list(got.shape)} instead of {want.dtype} {list(want.shape)}")
    if not want.dtype.is_floating_point:
        return _compare_whole(want, got, deviations)
    both = want.isnan() & got.isnan()
    if bool(((want == got) & (want.signbit() == got.signbit()) | both).all()):
        return EXACT
    x, y = want.double(), got.double()
    error = torch.where((x == y) | both, 0.0, (x - y).abs() / x.abs().clamp_min(1.0))
    wrong = ~(error <= TOLERANCE.get(want.dtype, 0.0))
    if not bool(wrong.any()):
        largest = float(error.max())
        return Verdict("close", f"{10 ** math.ceil(math.log10(largest)):.0e}" if largest else "0")
    for name, allowed in (("nan", want.isnan()),):
        if name in deviations and bool(allowed[wrong].all()):
            return Verdict("differs", name)
    return Verdict("mismatch", _first(wrong, want, got))


def _compare_whole(want: torch.Tensor, got: torch.Tensor, deviations: Mapping[str, str]) -> Verdict:
    wrong = want != got
    if not bool(wrong.any()):
        return EXACT
    if "int64" in deviations and want.dtype == torch.int64 and bool((want[wrong].abs() >= 2**31).all()):
        return Verdict("differs", "int64")
    return Verdict("mismatch", _first(wrong, want, got))


def _first(wrong: torch.Tensor, want: torch.Tensor, got: torch.Tensor) -> str:
    at = int(wrong.reshape(-1).to(torch.uint8).argmax())
    return f"{int(wrong.sum())} of {wrong.numel()}, such as {got.reshape(-1)[at]} for {want.reshape(-1)[at]}"
