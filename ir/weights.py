"""The weights of a graph: named, kept once, never copied by a pass."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

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


_SAFE_NAMES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}
_ALIGNMENT = 64


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's elements, little endian, row-major; no copy when it is contiguous already."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel() == 0:
        return memoryview(b"")
    return memoryview(flat.view(torch.uint8).numpy()).cast("B")


def layout(weights: Mapping[str, torch.Tensor]) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """Header of the safetensors file of these weights, and each one's ``(offset, length)`` in the file."""
    entries, at, spans = {}, 0, {}
    # widest elements first: every tensor is then aligned to its element
    order = sorted(weights, key=lambda name: -weights[name].element_size())
    for name in order:
        tensor = weights[name]
        if tensor.dtype not in _SAFE_NAMES:
            raise IRError(f"weight {name!r} is {tensor.dtype}, which safetensors has no name for")
        length = tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _SAFE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + length],
        }
        spans[name] = (at, length)
        at += length
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: (len(header) + start, length) for name, (start, length) in spans.items()}


def save(weights: Mapping[str, torch.Tensor], path: Path) -> dict[str, tuple[int, int]]:
    """Write a safetensors file, one tensor at a time: never more than one copied tensor in memory.

    Returns:
        ``(offset, length)`` of each tensor in the file.
    """
    header, spans = layout(weights)
    with path.open("wb") as file:
        file.write(header)
        for name in spans:
            file.write(raw_bytes(weights[name]))
    return spans


def spans(path: Path) -> dict[str, tuple[int, int]]:
    """``(offset, length)`` of each tensor in a safetensors file that ``save`` wrote."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
    found = {name: entry["data_offsets"] for name, entry in entries.items()}
    return {name: (8 + length + start, end - start) for name, (start, end) in found.items()}


def load(path: Path) -> Weights:
    """Memory-mapped weights of a safetensors file."""
    from safetensors import safe_open

    found = Weights()
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (not a dict)
            found.add(name, file.get_tensor(name))
    return found
