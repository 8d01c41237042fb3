"""A language model as one step with its cache in the open: what generation captures.

Two kinds of model have one: causal LMs of Hugging Face, and any module that follows ``StepModel``.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from compiler.artifact.generation import Layout
from ir.errors import UnsupportedError

Cache = Mapping[str, Sequence[Tensor]]
"""``k`` and ``v``: one tensor [batch, kv heads, past, head width] per layer, keys after their rotation."""


@runtime_checkable
class StepModel(Protocol):
    """What a module of your own needs in order to generate; ``examples/tinylm.py`` has it."""

    def cache_layout(self) -> Layout:
        """Sizes of its cache."""
        ...

    def hidden(
        self, tokens: Tensor, positions: Tensor, mask: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The first ``len(keys)`` layers on new tokens.

        Args:
            tokens: int64 [batch, new].
            positions: of the tokens, int64 [batch, new].
            mask: bool [batch, 1, new, past + new], true where a token may look.
            keys: of each layer, [batch, kv heads, past, head width].
            values: the same.

        Returns:
            Hidden state [batch, new, width], and keys and values grown by the new tokens.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """A hidden state of any layer, read through the last norm and the head."""
        ...


class Step(nn.Module):
    """New tokens and a cache in, logits and the grown cache out; the first ``depth`` layers of the model."""

    def __init__(self, model: nn.Module, depth: int) -> None:
        super().__init__()
        self.model = model
        self.depth = depth
        self.training = model.training  # who restores our mode after a run restores the model's with it

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, past_mask: Tensor, cache: Cache,
        new_mask: Tensor | None = None, logits_at: Tensor | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """One step.

        Args:
            input_ids: int64 [batch, new].
            position_ids: of the tokens, int64 [batch, new].
            past_mask: bool [batch, past], false where a row has padding.
            cache: see ``Cache``; past may be 0.
            new_mask: bool [batch, new], the same of the new tokens; ``None``: there is no padding.
            logits_at: int64 [wanted]: of which new tokens logits are asked for; ``None``: of all.
        """
        mask = look_back(past_mask, input_ids.shape[1], new_mask)
        logits, keys, values = self.run(input_ids, position_ids, mask, logits_at, cache["k"], cache["v"])
        grown = {f"cache_k_{i}": key for i, key in enumerate(keys)}  # as capture names the inputs
        return {"logits": logits, **grown, **{f"cache_v_{i}": value for i, value in enumerate(values)}}

    def run(
        self, tokens: Tensor, positions: Tensor, mask: Tensor, at: Tensor | None, keys: Sequence[Tensor],
        values: Sequence[Tensor],
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:  # fmt: skip
        """The model itself."""
        hidden, grown_keys, grown_values = self.model.hidden(tokens, positions, mask, keys, values)
        return self.model.logits(hidden if at is None else hidden[:, at]), grown_keys, grown_values


class HuggingFaceStep(Step):
    """A causal LM of Hugging Face."""

    def run(
        self, tokens: Tensor, positions: Tensor, mask: Tensor, at: Tensor | None, keys: Sequence[Tensor],
        values: Sequence[Tensor],
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:  # fmt: skip
        """The model itself."""
        from transformers import DynamicCache

        held = DynamicCache()
        for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
            held.update(key, value, layer)
        if self.model.config._attn_implementation == "eager":  # which adds its mask
            mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, torch.finfo(torch.float32).min)
        # its name in transformers 5.24 and before, and after
        name = "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"
        answer = self.model(
            input_ids=tokens, position_ids=positions, attention_mask=mask, use_cache=True,
            logits_to_keep=0 if at is None else at, **{name: held},
        )  # fmt: skip
        return answer.logits, [one.keys for one in held.layers], [one.values for one in held.layers]


def look_back(past_mask: Tensor, new: int, new_mask: Tensor | None) -> Tensor:
    """Causal mask, bool [batch, 1, new, past + new], of what is no padding, [batch, past] and [batch, new].

    Every token sees itself, also a padding: a row without anything to look at would be NaN.
    """
    past = past_mask[:, None, None, :].expand(-1, 1, new, -1)
    if new_mask is None:
        assert new == 1
        return torch.cat((past, past.new_ones(past.shape[0], 1, 1, 1)), dim=-1)
    slots = torch.arange(new, device=past_mask.device)
    earlier = (slots[None, :] < slots[:, None]) & new_mask[:, None, None, :]
    return torch.cat((past, earlier | (slots[None, :] == slots[:, None])), dim=-1)


def layout_of(model: nn.Module) -> Layout:
    """Sizes of a model's cache.

    Raises:
        UnsupportedError: it is neither a causal LM of Hugging Face nor a ``StepModel``.
    """
    if isinstance(model, StepModel):
        return model.cache_layout()
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "generate"):
        raise UnsupportedError(
            f"{type(model).__name__} cannot generate: it is no causal LM of Hugging Face and has no cached step",
            hint="give it the methods cache_layout, hidden and logits (compiler.generate.step.StepModel)",
        )
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "is_encoder_decoder", False):
        raise UnsupportedError(
            f"{type(model).__name__} keeps more than keys and values of full attention: {', '.join(sorted(kinds))}",
            hint="decoders with full attention can generate",
        )
    heads = config.num_attention_heads
    ends = config.eos_token_id
    return Layout(
        layers=config.num_hidden_layers,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        context=config.max_position_embeddings,
        vocabulary=config.vocab_size,
        ends=() if ends is None else tuple(ends) if isinstance(ends, (list, tuple)) else (ends,),
    )


def step_of(model: nn.Module, depth: int) -> Step:
    """The first ``depth`` layers of a model, then its last norm and head; the weights are the model's own."""
    if isinstance(model, StepModel):
        return Step(model, depth)
    layers = layout_of(model).layers
    return HuggingFaceStep(model if depth == layers else _shallow(model, layers, depth), depth)


def _shallow(model: nn.Module, layers: int, depth: int) -> nn.Module:
    """The model with its first layers only: modules on the way are copied, layers and weights are shared."""
    path = next(
        (name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == layers),
        None,
    )
    if path is None:
        raise UnsupportedError(f"no list of {layers} layers was found in {type(model).__name__}")
    *parents, last = path.split(".")
    made = copy.copy(model)
    made.config = copy.copy(model.config)
    made.config.num_hidden_layers = depth
    at = made
    at._modules = dict(at._modules)
    for name in parents:
        below = copy.copy(at._modules[name])
        assert below is not None
        below._modules = dict(below._modules)
        if hasattr(below, "config"):
            below.config = made.config
        at._modules[name] = below
        at = below
    whole = at._modules[last]
    assert isinstance(whole, nn.ModuleList)
    at._modules[last] = nn.ModuleList(list(whole)[:depth])
    return made
