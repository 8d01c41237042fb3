"""Finds NaN and infinity in weights before they spread silently through a compiled model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from ir.errors import UsageError

_CHUNK = 1 << 20
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Nonfinite:
    """How many elements of one weight are no numbers."""

    name: str
    nan: int
    inf: int

    def __str__(self) -> str:
        counts = (f"{self.nan} NaN" if self.nan else "", f"{self.inf} inf" if self.inf else "")
        return f"{self.name} ({', '.join(filter(None, counts))})"


def find_nonfinite(weights: Mapping[str, torch.Tensor]) -> list[Nonfinite]:
    """The weights that hold NaN or infinity, in order; a few MB of memory beside them.

    A tensor of nothing but 0 and -inf is an attention mask, which many models keep among their buffers:
    it is meant so, and not reported.
    """
    found = []
    for name, tensor in weights.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        nan = inf = 0
        for chunk in _chunks(tensor):
            if not bool(torch.isfinite(chunk).all()):
                nan += int(torch.isnan(chunk).sum())
                inf += int(torch.isinf(chunk).sum())
        if nan or (inf and not _is_mask(tensor)):
            found.append(Nonfinite(name, nan, inf))
    return found


def check_weights(weights: Mapping[str, torch.Tensor], *, allow_nonfinite: bool = False) -> list[str]:
    """Names of the weights with NaN or infinity.

    Raises:
        UsageError: there are some, and they are not allowed. (The model is at fault, before any compiling.)
    """
    found = find_nonfinite(weights)
    if found and not allow_nonfinite:
        named = ", ".join(map(str, found[:_NAMED])) + (", ..." if len(found) > _NAMED else "")
        raise UsageError(
            f"{len(found)} of {len(weights)} weights hold NaN or infinity: {named}",
            hint="is this the right checkpoint? --allow-nonfinite compiles it as it is",
        )
    return [each.name for each in found]


def _is_mask(tensor: torch.Tensor) -> bool:
    if tensor.is_complex():
        return False
    return all(bool(((chunk == 0) | (chunk == -torch.inf)).all()) for chunk in _chunks(tensor))


def _chunks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The elements in pieces and any order, without a copy of the whole, in a type that has ``isfinite``."""
    tensor = tensor.detach()
    if tensor.dtype == torch.complex32:
        tensor = torch.view_as_real(tensor)
    if not tensor.is_contiguous():  # a transposed tensor is contiguous in another order
        tensor = tensor.permute(sorted(range(tensor.dim()), key=lambda axis: -tensor.stride(axis)))
    if tensor.is_contiguous():
        tensor = tensor.view(-1)
    yield from _split(tensor)


def _split(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    if tensor.numel() <= _CHUNK:
        yield tensor.float() if tensor.element_size() == 1 else tensor
        return
    for piece in tensor.split(max(1, _CHUNK * len(tensor) // tensor.numel())):
        yield from _split(piece if len(piece) > 1 else piece[0])
