"""Small artifacts for the tests: one linear layer with a state, run by the interpreter."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import safetensors.torch
import torch

from backends.base import CPU, DEFAULT, WEIGHTS_FILE, Backend, BuildOptions, Built, Device, Engine, Unsupported
from compiler.artifact import AFTER, BEFORE, MANIFEST, SEAL, STATES, EngineChoice, Manifest, ports, seal, staging
from compiler.cache.key import Components
from ir import Graph, interpret, parse, show
from ir.weights import load, save

TEXT = """penstock-ir 1
graph "tiny"
dim batch [1, 64]
dim seq [2, 512]
input %x: f32[batch, seq, 4] "x"
input %mask: i64[batch, seq] "mask"
state %sum: f32[4] "sum"
param %w: f32[4, 4] "w"
%y: f32[batch, seq, 4] = aten.linear.default(%x, %w)
%t: f32[4] = aten.add.Tensor(%sum, %sum)
return "y" %y, state "sum" %t
"""


def graph() -> Graph:
    made = parse(TEXT, {"w": torch.eye(4)})
    made.initial["sum"] = torch.ones(4)
    return made


def components(**changed: str) -> Components:
    usual = Components("ir", "weights", "auto", "cpu", "fake", "1.0", penstock="0.1", machine="here")
    return replace(usual, **changed)


def manifest(**changed: object) -> Manifest:
    made = graph()
    inputs, outputs = ports(made)
    usual = Manifest(
        "tiny", EngineChoice("fake", "1.0", 2), inputs, outputs, made.dims, target="cpu", recipe="auto",
        passes=({"name": "fold-constants", "changes": 3},), measurements={"loss": 1e-3, "speed-up": 1.31},
        made_from=components().record, created="2026-11-21T00:00:00Z",
    )  # fmt: skip
    return replace(usual, **changed)  # type: ignore[arg-type]


def write(folder: Path, **changed: object) -> str:
    """Fill a folder with an artifact; its id."""
    made = graph()
    (folder / BEFORE).write_text(show(made).replace("tiny", "before"))
    (folder / AFTER).write_text(show(made))
    save(made.weights, folder / WEIGHTS_FILE)
    safetensors.torch.save_file(made.initial, folder / STATES)
    (folder / "engine.onnx").write_bytes(bytes(range(256)))
    (folder / "report.html").write_text("<html></html>")
    return seal(folder, manifest(**changed))


def publish(path: Path, *, force: bool = False, **changed: object) -> Path:
    with staging(path, force=force) as folder:
        write(folder, **changed)
    return path


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test module that imports this does not wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class FakeEngine(Engine):
    def __init__(self, folder: Path) -> None:
        self._graph = parse((folder / AFTER).read_text(), load(folder / WEIGHTS_FILE))

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return interpret(self._graph, inputs)

    def facts(self) -> Mapping[str, int | str]:
        return {"nodes": len(self._graph)}


class FakeBackend(Backend):
    name: ClassVar[str] = "fake"
    install: ClassVar[str] = "pip install fake"

    def __init__(self, version: str | None = "1.0") -> None:
        self._version = version
        self.threads: int | None = None

    def version(self) -> str | None:
        return self._version

    def unsupported(self, graph: Graph, device: Device = CPU) -> list[Unsupported]:
        return []

    def build(self, graph: Graph, folder: Path, options: BuildOptions = DEFAULT) -> Built:
        (folder / "engine.onnx").write_bytes(b"payload")
        return Built()

    def load(self, folder: Path, threads: int | None = None, stem: str = "engine") -> Engine:
        self.threads = threads
        return FakeEngine(folder)


def reseal(folder: Path, change: Callable[[dict[str, Any]], None] | None = None, text: str | None = None) -> None:
    """What somebody does who rewrites the manifest and its digest."""
    if text is None:
        raw = json.loads((folder / MANIFEST).read_text())
        assert change is not None
        change(raw)
        text = json.dumps(raw)
    (folder / MANIFEST).write_text(text)
    (folder / SEAL).write_text(f"{hashlib.sha256(text.encode()).hexdigest()}  {MANIFEST}\n")
