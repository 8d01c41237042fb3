"""Cells of whole models: the zoo against eager torch, and what recipes make of some against the reference meaning."""

from __future__ import annotations

import torch
from torch.utils import _pytree as pytree

from compiler.pipeline.recipe import recipe
from compiler.spec import ModelSpec
from ir import Graph, interpret
from ir.copy import copy_graph
from tests.zoo import ZOO, captured

TOLERANCE = {"": 1e-4, "fp32": 1e-4, "bf16": 5e-2, "int8": 5e-2}
"""By recipe: narrow sums and roundings of activations fall differently on each engine."""
MODELS = (*ZOO, *(f"{name} {made}" for name in ("bert", "llama", "vit") for made in ("fp32", "bf16", "int8")))
Tensors = dict[str, torch.Tensor]


def case(name: str) -> tuple[Graph, list[tuple[Tensors, Tensors]], float]:
    """The graph of a model, inputs with what is expected of them, and the tolerance.

    Args:
        name: a model of the zoo, as it was captured, or ``MODEL RECIPE``.
    """
    model, _, made = name.partition(" ")
    spec, graph = captured(model)
    samples = [{**graph.initial, **_named(graph, inputs)} for inputs in (*spec.calibration, spec.example_inputs)]
    if not made:
        wanted = [_eager(spec, graph, inputs) for inputs in (*spec.calibration, spec.example_inputs)]
        return graph, list(zip(samples, wanted, strict=True)), TOLERANCE[made]
    graph = copy_graph(graph)
    recipe(made).pipelines()[made].run(graph, samples=samples)
    return graph, [(s, interpret(graph, s)) for s in samples], TOLERANCE[made]


def _eager(spec: ModelSpec, graph: Graph, inputs: object) -> Tensors:
    before = {k: v.clone() for k, v in spec.model.state_dict().items()}
    with torch.no_grad():
        leaves = pytree.tree_leaves(spec.model(**inputs))  # type: ignore[arg-type]
    spec.model.load_state_dict(before)
    names = [o.name for o in graph.outputs if o.kind == "output"]
    return dict(zip(names, [t for t in leaves if isinstance(t, torch.Tensor)], strict=True))


def _named(graph: Graph, inputs: object) -> Tensors:
    """Tensors of an example in the order of the graph's own inputs."""
    leaves = [t.clone() for t in pytree.tree_leaves(inputs) if isinstance(t, torch.Tensor)]
    names = [spec.name for spec in graph.inputs.values() if spec.kind != "param" and spec.name not in graph.initial]
    return dict(zip(names, leaves, strict=True))
