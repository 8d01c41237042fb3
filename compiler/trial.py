"""Trying out an artifact: random inputs, one run, timing and verification against the original."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compiler.artifact import Manifest, storage_errors
from compiler.capture import capture
from compiler.inputs import flatten_inputs
from compiler.loaded import LoadedModel
from compiler.measure import interleave, torch_threads
from compiler.reference import Reference
from compiler.spec import ModelSpec
from ir import evaluate
from ir import weights as weight_files
from ir.dims import parse_dim, symbols_of
from ir.errors import UntrustedError, UsageError, nearest
from ir.types import DTYPE_NAMES, DTYPES


def random_inputs(
    manifest: Manifest, sizes: Mapping[str, int], states: Mapping[str, torch.Tensor] | None = None, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Seeded inputs of the right types; sizes not given are 1 or the smallest allowed, sequences 16.

    Raises:
        UsageError: a size names no dim, or is out of range.
    """
    for name, size in sizes.items():
        if name not in manifest.dims:
            raise UsageError(f"there is no dim {name!r}", hint=nearest(name, list(manifest.dims)))
        if size not in manifest.dims[name]:
            raise UsageError(f"{name}={size} is out of range: {name} is in {manifest.dims[name]}")
    chosen = {}
    for name, bounds in manifest.dims.items():
        usual = 16 if "seq" in name else 1
        top = bounds.max if bounds.max is not None else max(usual, bounds.min)
        chosen[name] = sizes.get(name, min(max(usual, bounds.min), top))
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for port in manifest.inputs:
        if port.kind == "state" and states and port.name in states:
            made[port.name] = states[port.name]
            continue
        shape = [_size(dim, chosen) for dim in port.shape]
        dtype = DTYPES[port.dtype]
        if dtype.is_floating_point or dtype.is_complex:
            made[port.name] = torch.randn(shape, generator=generator).to(dtype)
        else:  # zeros and ones are legal tokens, masks and positions of any model
            made[port.name] = torch.randint(0, 2, shape, generator=generator).to(dtype)
    return made


def _size(text: str, sizes: Mapping[str, int]) -> int:
    dim = parse_dim(text)
    return evaluate(dim, {name: sizes.get(name, 1) for name in symbols_of(dim)})


def read_inputs(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file.

    Raises:
        UsageError: no such file.
        UntrustedError: it is no safetensors file.
    """
    from safetensors import SafetensorError

    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    try:
        return dict(weight_files.load(path))
    except SafetensorError as error:
        raise UntrustedError(f"{path} is not a safetensors file: {error}") from error


def write_outputs(outputs: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file."""
    with storage_errors(path):
        weight_files.save(outputs, path)


def summary(tensors: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Name, type, mean and norm of each tensor."""
    return [
        {
            "name": name,
            "type": f"{DTYPE_NAMES[t.dtype]}{list(t.shape)}",
            "mean": float(t.double().mean()) if t.numel() else 0.0,
            "norm": float(t.double().norm()),
        }
        for name, t in tensors.items()
    ]


def time_artifact(
    model: LoadedModel, spec: ModelSpec | None, sizes: Mapping[str, int], threads: int | None, seconds: float
) -> dict[str, Any]:
    """Time an artifact, and the original interleaved with it when there is one."""
    if spec is not None and sizes:
        raise UsageError("--vs times on the model's own example inputs; it does not go with --size")
    if spec is None:
        inputs = random_inputs(model.manifest, sizes, model.initial_state())
        calls = {"engine": lambda: model(**inputs)}
    else:
        graph = capture(spec)
        reference = Reference(spec, graph)
        inputs = {n: t for n, t in reference.example.items() if any(p.name == n for p in model.manifest.inputs)}
        calls = {"eager": reference.eager_call(), "engine": lambda: model(**inputs)}
    with torch_threads(threads) as used:
        found = interleave(calls, seconds)
    row: dict[str, Any] = {
        "name": model.manifest.name,
        "engine": model.manifest.engine.name,
        "threads": used,
        "rounds": found["engine"].rounds,
        "inputs": ", ".join(f"{r['name']} {r['type']}" for r in summary(inputs)),
        "times": {
            n: {"ms": t.median * 1e3, "low_ms": t.low * 1e3, "high_ms": t.high * 1e3} for n, t in found.items()
        },
    }
    if "eager" in found:
        row["speedup"] = found["eager"].median / found["engine"].median
    return row


def verify_artifact(model: LoadedModel, spec: ModelSpec) -> dict[str, Any]:
    """Loss of an artifact against the original."""
    reference = Reference(spec, capture(spec))
    found = reference.judge(lambda inputs: model(**flatten_inputs(inputs)))
    return {
        "loss": found.loss, "cosine": found.cosine, "max_abs": found.max_abs, "metric": found.metric, "base": found.base,
        "samples": len(reference.samples),
    }  # fmt: skip
