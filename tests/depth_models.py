"""Small models of equal blocks, captured once per process: a language model, a classifier and an encoder."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from examples.tinylm import Config, TinyLM
from ir import Graph
from ir.copy import copy_graph
from passes import PASSES, parse_passes

BLOCKS = 5
_CLEAN = "canonicalize-views, remove-no-ops, fold-constants, merge-common-nodes, drop-dead-nodes"


class Pooled(nn.Module):
    """The mean state of the blocks: classes of it, or the state itself at length 1."""

    def __init__(self, body: TinyLM, classes: int) -> None:
        super().__init__()
        self.body, self.classify = body, nn.Linear(body.config.width, classes) if classes else None

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        x = self.body.embed(tokens)
        for layer in self.body.layers:
            x = layer(x, self.body.cos[: tokens.shape[1]], self.body.sin[: tokens.shape[1]])
        mean = self.body.norm(x).mean(dim=1)
        if self.classify is None:
            return {"embedding": nn.functional.normalize(mean, dim=-1)}
        return {"logits": self.classify(mean)}


def network(kind: str, blocks: int = BLOCKS, shared: bool = False) -> nn.Module:
    """``lm``, ``classes`` or ``embedding``; ``shared``: one block, run again and again."""
    torch.manual_seed(0)
    different = 1 if shared else blocks
    body = TinyLM(Config(vocabulary=64, width=32, layers=different, heads=4, kv_heads=2, hidden=48, context=32))
    for layer in body.layers:  # so that depth matters
        for weight in layer.parameters():
            weight.data *= 2.0
    if shared:
        body.layers = nn.ModuleList(list(body.layers) * blocks)
    return (body if kind == "lm" else Pooled(body, 7 if kind == "classes" else 0)).eval()


def graph_of(kind: str, blocks: int = BLOCKS, shared: bool = False, passes: str = _CLEAN) -> Graph:
    """A fresh copy of the graph after these passes."""
    graph = copy_graph(_captured(kind, blocks, shared))
    for pass_ in parse_passes(passes, PASSES):
        pass_.run(graph, [tokens(6, seed=1)])
    return graph


@cache
def _captured(kind: str, blocks: int, shared: bool) -> Graph:
    from compiler.capture.capture import capture
    from compiler.spec import Dim, ModelSpec

    dims = {"tokens": {0: Dim("batch", 1, 64), 1: Dim("seq", 2, 32)}}
    return capture(ModelSpec(network(kind, blocks, shared), tokens(3), dims, name=kind))


def tokens(batch: int, seq: int = 9, seed: int = 0) -> dict[str, Tensor]:
    """Inputs, int64 [batch, seq]."""
    return {"tokens": torch.randint(0, 64, (batch, seq), generator=torch.Generator().manual_seed(seed))}
