"""When two tensors agree, and how far they are apart."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

TOLERANCE: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 8e-3, torch.bfloat16: 6e-2}
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


def refusal(reason: str) -> Verdict:
    """Refused; the reason without names of layers, places in foreign sources and numbers of the input."""
    plain = re.sub(r"\((?:\(Unnamed Layer\* \d+\) \[(\w+)\]|([a-z]+?)(?:_\d+)?): ", r"(\1\2: ", reason)
    plain = re.sub(r" In \w+ at /_src.*", "", re.sub(r"'x\d+'", "x", plain))
    return Verdict("refused", re.sub(r"-?\d{10,}", "N", plain))


KINDS = ("exact", "close", "differs", "refused", "mismatch", "crash")
EXACT = Verdict("exact")


def worst(first: Verdict, second: Verdict) -> Verdict:
    """What two runs of one cell amount to."""
    if first.kind == second.kind == "close":
        return max(first, second, key=lambda v: float(v.detail))
    return max(first, second, key=lambda v: v.rank)


def compare(
    want: torch.Tensor,
    got: torch.Tensor,
    deviations: Collection[str] = (),
    flushed: torch.Tensor | None = None,
    has_nan: bool = False,
    tolerance: float | None = None,
) -> Verdict:
    """Judge one tensor.

    Args:
        want: the meaning.
        got: what the engine said.
        deviations: those that the backend declares, by name (see ``backends.base``).
        flushed: the meaning where denormal numbers count as zero.
        has_nan: whether NaN went in.
        tolerance: instead of the element type's.
    """
    if (want.dtype, want.shape) != (got.dtype, got.shape):
        return Verdict("mismatch", f"{got.dtype} {list(got.shape)} instead of {want.dtype} {list(want.shape)}")
    allowed = TOLERANCE.get(want.dtype, 0.0) if tolerance is None else tolerance
    wrong, error = _apart(want, got, allowed)
    if not bool(wrong.any()):
        return _right(want, got, error)
    used = []
    if "denormal" in deviations and flushed is not None:
        still = wrong & _apart(flushed, got, allowed)[0]
        used += ["denormal"] if bool((still != wrong).any()) else []
        wrong = still
    for name, excused in (
        ("nan", want.isnan() | has_nan | (want if flushed is None else flushed).isnan()),
        ("int64", (want.dtype == torch.int64) & ((_size(want) >= 2**31) | (_size(got) >= 2**31))),
    ):
        if name in deviations and bool((wrong & excused).any()):
            used.append(name)
            wrong = wrong & ~torch.as_tensor(excused)
    if bool(wrong.any()):
        return Verdict("mismatch", _first(wrong, want, got))
    return Verdict("differs", ", ".join(used))


def _apart(want: torch.Tensor, got: torch.Tensor, tolerance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Where two tensors do not agree, and by how much they differ."""
    if not want.dtype.is_floating_point:
        return want != got, torch.zeros(())
    x, y = want.double(), got.double()
    error = torch.where((x == y) | (x.isnan() & y.isnan()), 0.0, (x - y).abs() / x.abs().clamp_min(1.0))
    return ~(error <= tolerance), error


def _right(want: torch.Tensor, got: torch.Tensor, error: torch.Tensor) -> Verdict:
    if not want.dtype.is_floating_point or bool(
        ((want == got) & (want.signbit() == got.signbit()) | want.isnan()).all()
    ):
        return EXACT
    largest = float(error.max())
    return Verdict("close", f"{10 ** math.ceil(math.log10(largest)):.0e}" if largest else "0")


def _size(x: torch.Tensor) -> torch.Tensor:
    return x.double().abs()


def _first(wrong: torch.Tensor, want: torch.Tensor, got: torch.Tensor) -> str:
    at = int(wrong.reshape(-1).to(torch.uint8).argmax())
    return f"{int(wrong.sum())} of {wrong.numel()}, such as {got.reshape(-1)[at]} for {want.reshape(-1)[at]}"
