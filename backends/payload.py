"""The file that both ONNX engines load: written in one place, with the errors a full disk deserves."""

from __future__ import annotations

from pathlib import Path

from backends.base import WEIGHTS_FILE
from ir import Graph
from ir.errors import ResourceError
from ir.weights import spans

RENAMED = "output:"
"""Stands before the name of an output that is the name of an input too, which ONNX forbids."""


def original_name(name: str) -> str:
    """The name as the graph has it."""
    return name.removeprefix(RENAMED)


def payload(folder: Path, stem: str) -> Path:
    """The file itself."""
    return folder / f"{stem}.onnx"


def write(graph: Graph, folder: Path, flavor: str, stem: str) -> None:
    """Emit a graph into ``STEM.onnx``; the weights stay in their file, which may hold more than this graph's.

    Raises:
        UnsupportedError: lists every operator without an ONNX form.
        ResourceError: no space, no permission.
    """
    from backends.onnx_emit import emit

    model = emit(graph, spans(folder / WEIGHTS_FILE), flavor, WEIGHTS_FILE)
    path = payload(folder, stem)
    try:
        path.write_bytes(model.SerializeToString())
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from error
