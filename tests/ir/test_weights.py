"""Weights: kept once, shared with their owner, written and mapped without a copy of the whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from ir import IRError
from ir.types import DTYPES
from ir.weights import Weights, layout, load, raw_bytes, save
from tests.compare import identical

SAVED = [dtype for name, dtype in DTYPES.items() if name not in ("c32", "c128")]


def weights(**tensors: torch.Tensor) -> Weights:
    found = Weights()
    for name, tensor in tensors.items():
        found.add(name, tensor)
    return found


def as_bytes(tensor: torch.Tensor) -> bytes:
    return bytes(raw_bytes(tensor))


@pytest.mark.parametrize("dtype", SAVED, ids=str)
def test_every_type_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    numbers = torch.randint(0, 2, (3, 5), generator=torch.Generator().manual_seed(0)).to(dtype)
    save(weights(a=numbers, scalar=numbers[0, 0], none=numbers[:0]), tmp_path / "w")
    again = load(tmp_path / "w")
    assert set(again) == {"a", "scalar", "none"}
    for name, want in (("a", numbers), ("scalar", numbers[0, 0]), ("none", numbers[:0])):
        assert again[name].dtype is dtype
        assert again[name].shape == want.shape
        assert as_bytes(again[name]) == as_bytes(want)


@pytest.mark.parametrize("dtype", [torch.complex32, torch.complex128])
def test_a_type_that_the_file_has_no_name_for_is_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    with pytest.raises(IRError, match=r"weight 'a' is torch\.complex.*no name for"):
        save(weights(a=torch.zeros(2, dtype=torch.complex64).to(dtype)), tmp_path / "w")


def test_extremes_and_layouts_come_back_bit_for_bit(tmp_path: Path) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45, 3.4e38])
    grid = torch.arange(12.0).reshape(3, 4)
    given = weights(odd=odd, turned=grid.t(), strided=grid[:, ::2], expanded=grid[:1].expand(3, 4), tail=grid[2])
    save(given, tmp_path / "w")
    for name, tensor in load(tmp_path / "w").items():
        assert as_bytes(tensor) == as_bytes(given[name])
        assert tensor.is_contiguous()


def test_spans_say_where_each_tensor_lies(tmp_path: Path) -> None:
    given = weights(b=torch.ones(3, dtype=torch.int8), a=torch.arange(5.0), c=torch.zeros(2, dtype=torch.float64))
    spans = save(given, tmp_path / "w")
    data = (tmp_path / "w").read_bytes()
    assert list(spans) == ["c", "a", "b"]  # widest elements first
    for name, (offset, length) in spans.items():
        assert data[offset : offset + length] == as_bytes(given[name])
        assert offset % given[name].element_size() == 0
    assert sum(length for _, length in spans.values()) == given.nbytes
    header, again = layout(given)
    assert data.startswith(header)
    assert len(header) % 64 == 0
    assert again == spans
    assert set(json.loads(header[8:])) == {"a", "b", "c"}


def test_the_same_weights_make_the_same_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save(weights(a=torch.ones(3), b=torch.zeros(2)), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_no_weights_at_all(tmp_path: Path) -> None:
    save(Weights(), tmp_path / "w")
    assert dict(load(tmp_path / "w")) == {}


def test_loading_maps_the_file_instead_of_reading_it(tmp_path: Path) -> None:
    mebibytes = 64
    save(weights(big=torch.ones(mebibytes << 18)), tmp_path / "w")
    before = _resident()
    loaded = load(tmp_path / "w")
    assert loaded.nbytes == mebibytes << 20
    assert _resident() - before < mebibytes / 4
    assert float(loaded["big"][-1]) == 1.0


def _resident() -> float:
    """Mebibytes of anonymous memory that this process holds: a mapped file is not among them."""
    status = Path("/proc/self/status")
    if not status.exists() or os.name != "posix":
        pytest.skip("needs /proc")
    anonymous = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
    return int(anonymous.split()[1]) / 1024


def test_names_are_taken_once_and_tensors_are_shared() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    found = weights(a=parameter)
    assert found["a"].data_ptr() == parameter.data_ptr()
    assert not found["a"].requires_grad
    with pytest.raises(IRError, match="there is a weight named 'a' already"):
        found.add("a", torch.ones(1))
    found.remove("a")
    assert len(found) == 0
    assert "a" not in found
    found.add("a", torch.ones(1))
    assert identical(found["a"], torch.ones(1))


def test_bytes_of_a_contiguous_tensor_are_not_copied() -> None:
    tensor = torch.zeros(4)
    view = raw_bytes(tensor)
    tensor[0] = 1.0
    assert bytes(view)[:4] == b"\x00\x00\x80\x3f"
