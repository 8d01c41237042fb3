"""The weights of a graph: named, kept once, never copied by a pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from ir.errors import IRError


class Weights(Mapping[str, torch.Tensor]):
    """Name -> tensor. Tensors are shared with whoever gave them (the model, a memory map)."""

    def __init__(self) -> None:
        self._tensors: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Keep a tensor under a new name; no copy."""
        if name in self._tensors:
            raise IRError(f"there is a weight named {name!r} already")
        self._tensors[name] = tensor.detach()

    def remove(self, name: str) -> None:
        """Forget a tensor."""
        del self._tensors[name]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(t.numel() * t.element_size() for t in self._tensors.values())
