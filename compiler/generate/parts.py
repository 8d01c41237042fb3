"""The graphs of a language model with a cache: any number of new tokens, one token, the first layers on one token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from compiler.artifact.generation import DECODE, DRAFT, PREFILL, Layout
from compiler.generate.step import Step, step_of
from compiler.spec import Dim, ModelSpec
from ir import Graph
from ir.errors import UsageError

_BATCH = 256
_PAST, _NEW = 12, 4


@dataclass(frozen=True)
class Part:
    """One graph to be: its payload's name, how many layers, and the step with samples to capture it on."""

    stem: str
    depth: int
    spec: ModelSpec


def parts(spec: ModelSpec, layout: Layout, draft: int) -> list[Part]:
    """The parts of a model, with ``draft`` layers in the smallest; 0: no such part.

    Raises:
        UsageError: the depth of the draft is no depth, or there are no sample tokens.
    """
    if not 0 <= draft < layout.layers:
        raise UsageError(f"draft is {draft} layers; the model has {layout.layers}, so 0 to {layout.layers - 1}")
    tokens = sample_tokens(spec, layout)
    name = spec.name or type(spec.model).__name__
    made = [
        _part(PREFILL, step_of(spec.model, layout.layers), tokens, layout, name),
        _part(DECODE, step_of(spec.model, layout.layers), tokens, layout, name),
    ]
    return [*made, _part(DRAFT, step_of(spec.model, draft), tokens, layout, name)] if draft else made


def sample_tokens(spec: ModelSpec, layout: Layout) -> torch.Tensor:
    """Two rows of the model's own example tokens, int64 [2, 16 at most]."""
    found = [t for t in spec.example_inputs.values() if t.dtype == torch.int64 and t.dim() == 2 and t.numel()]
    if not found:
        raise UsageError(
            "the example inputs hold no tokens (int64 [batch, seq])", hint='example_inputs={"input_ids": tokens}'
        )
    length = min(_PAST + _NEW, layout.context)
    flat = found[0].flatten()
    if int(flat.min()) < 0 or int(flat.max()) >= layout.vocabulary:
        raise UsageError(f"the example tokens are not all within the vocabulary of {layout.vocabulary}")
    return flat.repeat(-(-2 * length // flat.numel()))[: 2 * length].reshape(2, length)


def texts(spec: ModelSpec, layout: Layout, most: int = 8) -> torch.Tensor:
    """Rows of the model's own tokens, int64 [rows, seq], spread over its calibration inputs; else its example."""
    found = [t for inputs in spec.calibration for t in inputs.values() if isinstance(t, torch.Tensor)]
    found = [t for t in found if t.dtype == torch.int64 and t.dim() == 2 and t.shape[1] > 1]
    if not found:
        return sample_tokens(spec, layout)
    width = min(max(t.shape[1] for t in found), layout.context)
    rows = torch.cat([t[:, :width] for t in found if t.shape[1] >= width])
    return rows[torch.arange(min(most, len(rows))) * len(rows) // min(most, len(rows))]


def _part(stem: str, step: Step, tokens: torch.Tensor, layout: Layout, name: str) -> Part:
    single = stem != PREFILL
    past = tokens.shape[1] - (1 if single else _NEW)
    example = _inputs(step, tokens, past, layout, single)
    if single:
        calibration = [example]
    else:  # judged on what it is used for: a prompt, and tokens after one
        calibration = [
            {**_inputs(step, tokens, past, layout, single), "logits_at": torch.arange(tokens.shape[1] - past)},
            {**_inputs(step, tokens, 0, layout, single), "logits_at": torch.arange(tokens.shape[1])},
        ]
    shapes = _shapes(example, layout, single)
    return Part(stem, step.depth, ModelSpec(step, example, shapes, calibration, None, name))


def _inputs(step: Step, tokens: torch.Tensor, past: int, layout: Layout, single: bool) -> dict[str, Any]:
    """Inputs of a step after ``past`` tokens, the first row having one token less: a padding on its left."""
    batch, length = tokens.shape
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[0, 0] = False
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    weights = {p.dtype for p in step.parameters() if p.is_floating_point()}
    dtype = weights.pop() if len(weights) == 1 else torch.float32
    empty = torch.zeros(batch, layout.kv_heads, 0, layout.head_width, dtype=dtype)
    cache: dict[str, Any] = {key: [empty] * step.depth for key in ("k", "v")}
    if past:
        with torch.no_grad():
            whole = step(tokens[:, :past], positions[:, :past], mask[:, :0], cache, mask[:, :past])
        cache = {key: [whole[f"cache_{key}_{i}"].contiguous() for i in range(step.depth)] for key in ("k", "v")}
    made = {
        "input_ids": tokens[:, past:].contiguous(), "position_ids": positions[:, past:].contiguous(),
        "past_mask": mask[:, :past].contiguous(), "cache": cache,
    }  # fmt: skip
    if single:
        return made
    # capture also tries one new token: position 0 is always there
    return {**made, "new_mask": mask[:, past:].contiguous(), "logits_at": torch.zeros(2, dtype=torch.int64)}


def _shapes(example: Mapping[str, Any], layout: Layout, single: bool) -> dict[str, Any]:
    # slots, not positions: rows of a batch are padded to the longest prompt
    batch, past = Dim("batch", 1, _BATCH), Dim("past", 0, 2 * layout.context - 1)
    new, wanted = Dim("new", 1, layout.context), Dim("wanted", 1, layout.context)
    tokens = {0: batch} if single else {0: batch, 1: new}
    layers = len(example["cache"]["k"])
    shapes: dict[str, Any] = {
        "input_ids": tokens, "position_ids": tokens, "past_mask": {0: batch, 1: past},
        "cache": {key: [{0: batch, 2: past}] * layers for key in ("k", "v")},
    }  # fmt: skip
    return shapes if single else {**shapes, "new_mask": {0: batch, 1: new}, "logits_at": {0: wanted}}


def share_weights(graphs: Mapping[str, Graph]) -> dict[str, torch.Tensor]:
    """One store for all graphs: equal tensors once; where two graphs mean other tensors by a name, one is renamed."""
    store: dict[str, torch.Tensor] = {}
    for stem, graph in graphs.items():
        for value, param in graph.params().items():
            tensor = graph.weights[param]
            if param in store and _equal(store[param], tensor):
                continue
            same = [n for n, kept in store.items() if n not in graph.weights and _equal(kept, tensor)]
            name = same[0] if same else param if param not in store else f"{stem}.{param}"
            if name != param:
                made = graph.add_param(name, tensor)
                graph.replace(value, made)
                graph.drop_argument(value)
                name = graph.params()[made]
            store[name] = tensor
    return store


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.data_ptr() == b.data_ptr() or torch.equal(a, b)
