"""A byte-level language model small enough to train in minutes: RoPE, RMSNorm, SwiGLU, grouped queries.

Only torch is needed to train it (``python -m examples.train_tinylm``); ``penstock compile examples/tinylm.py``
calls `model`. Its shallow exits, read through the shared norm and head, are trained too (LayerSkip, 2404.16710).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor, nn

from examples.trained import FOLDER, read_checkpoint

if TYPE_CHECKING:
    import penstock
    from compiler.artifact.generation import Layout

Cached = tuple[Tensor, Tensor]
"""Keys and values of one layer, [batch, kv heads, positions, head width]."""

CHECKPOINT = FOLDER / "tinylm.safetensors"
FORMAT = "tinylm 1"
LARGEST = {"layers": 256, "heads": 256, "kv_heads": 256}
"""Sizes that a checkpoint may ask for; the others may be up to 65,536."""


@dataclass(frozen=True)
class Config:
    """Sizes of the model; the defaults make 3.9 million parameters."""

    vocabulary: int = 256
    layers: int = 12
    width: int = 192
    heads: int = 6
    kv_heads: int = 2
    hidden: int = 384
    context: int = 512
    rope_base: float = 10_000.0
    eps: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse sizes of which no model can be made.

        Raises:
            ValueError: says which.
        """
        for name, value in asdict(self).items():
            kind, largest = (float, math.inf) if name in ("rope_base", "eps") else (int, LARGEST.get(name, 1 << 16))
            if type(value) is not kind or not 0 < value <= largest:
                raise ValueError(f"{name} is {value!r}; it must be one {kind.__name__} above 0, {largest} at most")
        if self.width % self.heads or self.head_width % 2:
            raise ValueError(f"width {self.width} is not an even number for each of {self.heads} heads")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} heads of keys and values")

    @property
    def head_width(self) -> int:
        """Channels of one head."""
        return self.width // self.heads


class Attention(nn.Module):
    """Causal attention with rotary positions; groups of query heads share keys and values."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.shape = (-1, config.head_width)
        kept = config.kv_heads * config.head_width
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, kept, bias=False)
        self.v_proj = nn.Linear(config.width, kept, bias=False)
        self.o_proj = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> Tensor:
        """[batch, seq, width] -> the same; cos and sin [seq, head width]; causal when there is no mask."""
        return self.cached(x, cos, sin, mask, None)[0]

    def cached(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, past: Cached | None
    ) -> tuple[Tensor, Cached]:
        """As ``forward``, looking at the keys and values of earlier tokens too; gives back all of them."""
        q, k, v = (p(x).unflatten(-1, self.shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), (k, v)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.up_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and around a skip connection."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, config.eps)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.width, config.eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.cached(x, cos, sin, mask, None)[0]

    def cached(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, past: Cached | None
    ) -> tuple[Tensor, Cached]:
        mixed, now = self.attention.cached(self.attention_norm(x), cos, sin, mask, past)
        x = x + mixed
        return x + self.feed_forward(self.feed_forward_norm(x)), now


class TinyLM(nn.Module):
    """Bytes in, logits of the next byte out."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, config.eps)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        cos, sin = rotations(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [batch, seq] -> logits [batch, seq, vocabulary]; seq is at most the context."""
        seq = tokens.shape[1]
        cos, sin = self.cos[:seq], self.sin[:seq]
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.logits(x)

    def logits(self, x: Tensor) -> Tensor:
        """Read a hidden state of any depth through the shared norm and head."""
        return self.head(self.norm(x))

    def cache_layout(self) -> Layout:
        """Sizes of the cache, for generation (``compiler.generate.step.StepModel``)."""
        from compiler.artifact.generation import Layout

        c = self.config
        text = "bytes" if c.vocabulary == 256 else ""
        return Layout(c.layers, c.kv_heads, c.head_width, c.context, c.vocabulary, text=text)

    def hidden(
        self, tokens: Tensor, positions: Tensor, mask: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The first ``len(keys)`` blocks on new tokens [batch, seq]; caches are [batch, kv heads, past, head width]."""
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        x = self.embed(tokens)
        grown: list[Cached] = []
        for layer, cached in zip(self.layers, zip(keys, values, strict=True), strict=False):
            x, now = layer.cached(x, cos, sin, mask, cached)
            grown.append(now)
        return x, [k for k, _ in grown], [v for _, v in grown]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (2104.09864), the two halves of a head being the pairs: x [batch, heads, seq, head width]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def rotations(config: Config) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, float32 [context, head width]."""
    steps = torch.arange(0, config.head_width, 2, dtype=torch.float64) / config.head_width
    angles = torch.outer(torch.arange(config.context, dtype=torch.float64), config.rope_base**-steps)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().float(), angles.sin().float()


# --- checkpoints ----------------------------------------------------------------------------------


def pack_tinylm(model: TinyLM, notes: dict[str, str]) -> bytes:
    """A safetensors file of the weights in float16, its metadata holding the sizes and the notes."""
    from safetensors.torch import save

    weights = {name: w.detach().half().cpu().contiguous() for name, w in model.state_dict().items()}
    return save(weights, {"format": FORMAT, "config": json.dumps(asdict(model.config)), **notes})


def load_tinylm(path: Path | str = CHECKPOINT) -> TinyLM:
    """The model of a checkpoint, in float32 and eval mode.

    Raises:
        ir.errors.UsageError: there is no such file.
        ir.errors.UntrustedError: it is no safetensors file, none of this model, or its weights are not
            exactly those that its sizes ask for.
    """
    metadata, weights = read_checkpoint(Path(path), FORMAT, _wanted, "python -m examples.train_tinylm")
    network = TinyLM(_read_config(metadata))
    network.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return network.eval()


def _wanted(metadata: Mapping[str, str]) -> dict[str, Tensor]:
    config = _read_config(metadata)
    with torch.device("meta"):
        return TinyLM(config).half().state_dict()


def _read_config(metadata: Mapping[str, str]) -> Config:
    sizes = json.loads(metadata.get("config", ""))
    names = {field.name for field in fields(Config)}
    if not isinstance(sizes, dict) or set(sizes) != names:
        raise ValueError(f"its sizes must be exactly {', '.join(sorted(names))}")
    return Config(**sizes)


# --- for the compiler -----------------------------------------------------------------------------


def model() -> penstock.ModelSpec:
    """The committed model with dynamic batch and length, and what it is calibrated on and judged by."""
    import penstock
    from examples.tinylm_data import read_corpus, windows

    network = load_tinylm()
    length = network.config.context
    corpus = read_corpus()
    fit, held_out = windows(corpus.fit, length, 32), windows(corpus.held_out, length, 32)
    return penstock.ModelSpec(
        model=network,
        example_inputs={"tokens": fit[:4, :-1]},
        dynamic_shapes={"tokens": {0: penstock.Dim("batch", 1, 64), 1: penstock.Dim("seq", 2, length)}},
        calibration=[{"tokens": rows[:, :-1]} for rows in fit.split(4)],
        metric=NextByte(held_out.split(4)),
        name="tinylm",
    )


class NextByte:
    """The metric: minus the bits per byte on held-out sources, 0 if every byte was foreseen."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self._batches = batches

    @torch.no_grad()
    def __call__(self, engine: object) -> float:
        """Run the engine on windows [batch, seq + 1]; higher is better."""
        assert callable(engine)
        losses = [
            F.cross_entropy(_only(engine(tokens=rows[:, :-1])).float().flatten(0, 1), rows[:, 1:].flatten())
            for rows in self._batches
        ]
        return -torch.stack(losses).mean().item() / math.log(2)


def _only(answer: object) -> Tensor:
    return next(iter(answer.values())) if isinstance(answer, dict) else answer  # type: ignore[return-value]
