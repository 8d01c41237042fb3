"""Inputs that are kind and unkind, and what it means that two sets of outputs agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ir import Graph, interpret
from ir.reexport import example_inputs
from passes.base import Tolerance

Tensors = Mapping[str, torch.Tensor]


def runs(graph: Graph, exact: bool = True) -> dict[str, Tensors]:
    """Inputs by name: three seeds, and floats that are zero, large, denormal, and NaN in one place.

    Args:
        graph: whose inputs to make.
        exact: large means nearly infinite, which only a bit-exact pass can be held to.
    """
    found: dict[str, Tensors] = {f"seed {seed}": example_inputs(graph, seed=seed) for seed in range(3)}
    large = 1e37 if exact else 1e4
    unkind: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "zeros": torch.zeros_like,
        "large": lambda x: x * large,
        "denormal": lambda x: x * 1e-40,
        "NaN": _with_nan,
    }
    for name, change in unkind.items():
        found[name] = {
            key: change(x) if x.dtype.is_floating_point else x for key, x in example_inputs(graph, seed=7).items()
        }
    return found


def _with_nan(x: torch.Tensor) -> torch.Tensor:
    spoiled = x.clone().reshape(-1)
    spoiled[:1] = float("nan")
    return spoiled.reshape(x.shape)


def outputs(graph: Graph, inputs: Tensors) -> dict[str, torch.Tensor]:
    """What a graph computes; random operators start from the same seed each time."""
    torch.manual_seed(1)
    return interpret(graph, inputs)


def disagreement(want: Tensors, got: Tensors, tolerance: Tolerance) -> str:
    """Why two sets of outputs do not agree; empty when they do."""
    if list(want) != list(got):
        return f"outputs {list(want)} became {list(got)}"
    for name in want:
        why = _differ(want[name], got[name], tolerance)
        if why:
            return f"{name}: {why}"
    return ""


def _differ(want: torch.Tensor, got: torch.Tensor, tolerance: Tolerance) -> str:
    if want.dtype != got.dtype or want.shape != got.shape:
        return f"{want.dtype} {list(want.shape)} became {got.dtype} {list(got.shape)}"
    if tolerance == Tolerance():
        return "" if identical(want, got) else f"not bit-exact:\n{want}\n{got}"
    if not want.dtype.is_floating_point:
        return ""  # an index may fall to the other side of a tie
    if (want.isnan() & ~got.isnan()).any():
        return "NaN was masked"
    clear = want.isfinite()
    x, y = want[clear].double(), got[clear].double()
    if want.isnan().any():
        return ""  # quantization may rightly spread a NaN further
    if tolerance.cosine is None:
        near = (y - x).abs() <= tolerance.atol + tolerance.rtol * x.abs()
        return "" if bool(near.all()) else f"moved by {float((y - x).abs().max()):g}, promised {tolerance}"
    if float(x.norm()) < 1e-30 or x.numel() < 2:
        return ""
    cosine = float(x @ y / (x.norm() * y.norm()).clamp_min(1e-300))
    return "" if cosine >= tolerance.cosine else f"cosine {cosine:g}, promised {tolerance}"


def identical(want: torch.Tensor, got: torch.Tensor) -> bool:
    """Equal in type and in every element; NaN is equal to NaN."""
    if want.dtype != got.dtype or want.shape != got.shape or want.layout != got.layout:
        return False
    if want.layout is not torch.strided:
        want, got = want.to_dense(), got.to_dense()
    if want.is_complex():
        want, got = torch.view_as_real(want.resolve_conj()), torch.view_as_real(got.resolve_conj())
    return bool(((want == got) | (want.isnan() & got.isnan())).all())
