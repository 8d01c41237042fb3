"""Reading a model from whatever names it, and telling what is in it."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import torch

from backends import BACKENDS, WEIGHTS_FILE, Backend
from backends.segments import refusals
from compiler.artifact import AFTER, open_artifact
from compiler.capture.capture import capture, capture_file
from compiler.capture.model_file import load_spec
from compiler.cost.targets import Target, load_targets, this_cpu
from compiler.files import read_ir, read_text
from compiler.pipeline.recipe import recipe as read_recipe
from compiler.runtime.trial import usual_size
from ir import Graph, Value
from ir import weights as weight_files
from ir.copy import copy_graph
from ir.errors import UsageError, nearest
from passes import PASSES


def read_graph(reference: str, trust_pickle: bool = False) -> Graph:
    """The graph of a model script, an artifact, an IR text or (trusted) a ``.pt2`` file."""
    path = Path(reference)
    if path.suffix == ".pt2":
        return capture_file(path, trust_pickle=trust_pickle)
    if path.suffix == ".ir":
        return read_ir(read_text(path))
    if path.suffix == ".penstock" or path.is_dir():
        opened = open_artifact(path)
        return read_ir(opened.read(AFTER).decode(), weight_files.load(opened.folder / WEIGHTS_FILE))
    return capture(load_spec(reference))


def exits_of(reference: str) -> Mapping[str, Any] | None:
    """Section ``depth`` of an artifact; ``None`` where there is none, or no artifact."""
    path = Path(reference)
    if path.suffix != ".penstock" and not path.is_dir():
        return None
    return open_artifact(path).manifest.depth


def _with_weights(graph: Graph) -> Graph:
    """A copy with zeros for the weights that IR text does not hold; no memory is taken by what is never read."""
    made = copy_graph(graph)
    for value, spec in made.inputs.items():
        if spec.kind == "param" and spec.name not in made.weights:
            shape = [size for size in value.tensor.shape if isinstance(size, int)]
            made.weights.add(spec.name, torch.zeros(shape, dtype=value.tensor.dtype))
    return made


def optimised(graph: Graph, recipe: str) -> Graph:
    """A copy of a graph after the first variant of a recipe; ``none`` leaves it as it is."""
    made = copy_graph(graph)
    if recipe != "none":
        found = read_recipe(recipe)
        next(iter(found.pipelines().values())).run(made)
    return made


def sizes_to_price(
    graph: Graph, name: str, asked: Sequence[int], sizes: Mapping[str, int], usual: int
) -> Sequence[int]:
    """Sizes of a dim for an estimate: those asked for, else the usual one if the model has such a dim at all."""
    if asked and name in sizes:
        raise UsageError(f"--size {name}={sizes[name]} and --{name} say the same", hint="leave out one of them")
    if asked or name not in graph.dims or name in sizes:
        return asked
    return (usual_size(graph.dims[name], usual),)


def describe(graph: Graph) -> dict[str, Any]:
    """What a graph is, as plain data."""
    ports = [
        {"name": spec.name, "kind": spec.kind, "type": repr(value.type)}
        for value, spec in graph.inputs.items()
        if spec.kind != "param"
    ]
    returned = graph.body.returned.args
    params = [value for _, value in graph.arguments("param")]
    bytes_ = sum(_bytes(value) for value in params)
    whole = _with_weights(graph)
    engines = {b.name: [str(u) for u in refusals(whole, b)[1]] for b in BACKENDS if b.version() is not None}
    return {
        "name": graph.name,
        "nodes": len(graph),
        "inputs": ports,
        "outputs": [
            {"name": o.name, "kind": o.kind, "type": repr(v.type) if isinstance(v, Value) else repr(v)}
            for o, v in zip(graph.outputs, returned, strict=True)
        ],
        "dims": {name: str(bounds) for name, bounds in graph.dims.items()},
        "weights": len(params),
        "weight_mb": bytes_ / 1e6,
        "operators": dict(Counter(node.op.name for node in graph.walk() if node.op.name != "return").most_common()),
        "engines": engines,
    }


def _bytes(value: Value) -> int:
    size = value.tensor.numel
    return int(size) * int(value.tensor.dtype.itemsize)


def describe_passes() -> list[dict[str, Any]]:
    """A row per pass."""
    return [
        {
            "name": p.name,
            "summary": p.summary,
            "options": {f.name.replace("_", "-"): _default(f) for f in fields(p)},  # type: ignore[arg-type]
            "tolerance": str(p.tolerance),
            "requires": sorted(fact.name for fact in p.requires),
            "gives": sorted(fact.name for fact in p.gives),
            "breaks": sorted(fact.name for fact in p.breaks),
        }
        for p in PASSES
    ]


def _default(option: Field[Any]) -> Any:
    return option.default_factory() if option.default_factory is not MISSING else option.default


def explain_pass(name: str) -> dict[str, Any]:
    """The row of one pass, and its own words."""
    table = {p.name: p for p in PASSES}
    if name not in table:
        raise UsageError(f"there is no pass {name!r}", hint=nearest(name, list(table)))
    row = next(r for r in describe_passes() if r["name"] == name)
    words = inspect.getdoc(sys.modules[table[name].__module__]) or ""
    options = "\n".join(f"  {k} = {v!r}" for k, v in row["options"].items()) or "  none"
    facts = "\n".join(f"{kind:<10} {', '.join(row[kind]) or 'nothing'}" for kind in ("requires", "gives", "breaks"))
    row["text"] = f"{name}\n\n{words}\n\noptions\n{options}\nnumbers    {row['tolerance']}\n{facts}"
    return row


def _engines(machine: Target) -> str:
    """Who builds for a machine here; in brackets who leaves a kit to be finished there."""
    if machine.kind == "cpu" and machine.name != "cpu":
        return "plan only"
    found = [b.name for b in BACKENDS if not b.why_not(machine.device)]
    kits = machine.device.kind == "cuda"
    found += [f"({b.name})" for b in BACKENDS if kits and b.why_not(machine.device) and type(b).kit is not Backend.kit]
    return ", ".join(found) or "plan only"


def describe_targets() -> list[dict[str, Any]]:
    """A row per target, this machine first."""
    rows = []
    for machine in [this_cpu(), *(t for t in load_targets().values() if t.name != "cpu")]:
        best = machine.peak.get("bf16") or machine.peak.get("fp16") or machine.peak.get("fp32", 0.0)
        rows.append(
            {
                "name": machine.name,
                "kind": machine.kind,
                "cc": machine.cc,
                "memory_gb": round(machine.memory / 1e9),
                "gb_s": round(machine.bandwidth / 1e9),
                "tflops": round(best / 1e12, 1),
                "int8_tops": round(machine.peak.get("int8", 0.0) / 1e12, 1),
                "tier": machine.provenance,
                "engines": _engines(machine),
            }
        )
    return rows
