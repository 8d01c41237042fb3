"""Trying out an artifact: random inputs, one run, timing and verification against the original."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from compiler.artifact import Manifest
from compiler.capture.capture import capture
from compiler.capture.inputs import flatten_inputs
from compiler.files import writing
from compiler.runtime.loaded import LoadedModel
from compiler.select.measure import interleave, torch_threads
from compiler.select.reference import Reference
from compiler.spec import ModelSpec
from ir import DimRange, evaluate
from ir import weights as weight_files
from ir.dims import parse_dim, symbols_of
from ir.errors import UsageError, nearest
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
        chosen[name] = sizes.get(name, usual_size(bounds, 16 if "seq" in name or name == "new" else 1))
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


def read_prompt(model: LoadedModel, prompt: str, options: Mapping[str, Any]) -> tuple[str | list[int], dict[str, Any]]:
    """A prompt from the command line, text or token numbers, and the options that go with it.

    Raises:
        UsageError: the numbers are none; the artifact does not generate.
    """
    layout = model.manifest.generate
    if layout is None:
        raise UsageError(f"{model.manifest.name} does not generate", hint="penstock compile MODEL --task generate")
    chosen = {"draft": True if layout.draft else None, **options}
    if layout.text:
        return prompt, chosen
    chosen["stop"] = [_numbers(stop, "--stop") for stop in options.get("stop", ())]
    return _numbers(prompt, "the prompt"), chosen


def _numbers(text: str, what: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(f"{what} {text[:60]!r} is no list of token numbers", hint="write 1,2,3: there is no tokenizer")
    return [int(part) for part in parts]


def shown_tokens(model: LoadedModel) -> Callable[[Sequence[int]], str]:
    """Shows tokens as they come: bytes as text, once a character is whole; a last call, of none, shows what is left."""
    layout = model.manifest.generate
    if layout is None or layout.text != "bytes":
        return lambda tokens: "".join(f" {token}" for token in tokens)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return lambda tokens: _visible(decoder.decode(bytes(tokens), final=not tokens))


def _visible(text: str) -> str:
    """Without control codes, which could forge what a terminal shows."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def usual_size(bounds: DimRange, wanted: int) -> int:
    """The size next to the wanted one that a dim may have."""
    size = max(wanted, bounds.min)
    return size if bounds.max is None else min(size, bounds.max)


def _size(text: str, sizes: Mapping[str, int]) -> int:
    dim = parse_dim(text)
    return evaluate(dim, {name: sizes.get(name, 1) for name in symbols_of(dim)})


def write_outputs(outputs: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file."""
    with writing(path) as file:
        weight_files.save(outputs, file)


def summary(tensors: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Name, type, mean and norm of each tensor."""
    return [
        {
            "name": name,
            "type": f"{DTYPE_NAMES[t.dtype]}{list(t.shape)}",
            "mean": float(_double(t).mean()) if t.numel() else 0.0,
            "norm": float(_double(t).norm()),
        }
        for name, t in tensors.items()
    ]


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor).double() if tensor.is_complex() else tensor.double()


def time_artifact(
    model: LoadedModel, spec: ModelSpec | None, sizes: Mapping[str, int], threads: int | None, seconds: float
) -> dict[str, Any]:
    """Time an artifact, and the original interleaved with it, on as many threads, when there is one."""
    threads = model.manifest.engine.threads if threads is None else threads
    if spec is not None and sizes:
        raise UsageError("--vs times on the model's own example inputs; it does not go with --size")
    calls: dict[str, Callable[[], object]]
    if spec is None:
        inputs = random_inputs(model.manifest, sizes, model.initial_state())
        calls = {"engine": lambda: model(**inputs)}
    else:
        graph = capture(spec)
        reference = Reference(spec, graph)
        _same_outputs(model, reference)
        inputs = dict(reference.example)
        calls = {"eager": reference.eager_call(), "engine": lambda: model(**inputs)}
    with torch_threads(threads) as used:
        found = interleave(calls, seconds)
    row: dict[str, Any] = {
        "name": model.manifest.name,
        "engine": model.manifest.engine.name,
        "threads": used,
        "rounds": found["engine"].rounds,
        "inputs": ", ".join(f"{r['name']} {r['type']}" for r in summary(inputs)),
        "times": {n: {"ms": t.median * 1e3, "low_ms": t.low * 1e3, "high_ms": t.high * 1e3} for n, t in found.items()},
    }
    if "eager" in found:
        row["speedup"] = found["eager"].median / found["engine"].median
    return row


def verify_artifact(model: LoadedModel, spec: ModelSpec) -> dict[str, Any]:
    """Loss of an artifact against the original."""
    reference = Reference(spec, capture(spec))
    _same_outputs(model, reference)
    found = reference.judge(lambda inputs: model(**flatten_inputs(inputs)))
    return {**asdict(found), "samples": len(reference.samples)}


def _same_outputs(model: LoadedModel, reference: Reference) -> None:
    missing = set(reference.answers[0]) - {port.name for port in model.manifest.outputs if port.kind == "output"}
    if missing:
        told = ", ".join(sorted(missing))
        raise UsageError(f"{model.manifest.name} was made from another model: it has no output {told}")
