"""Token after token, in three ways: plainly, by drafts that are verified, by exits that are made up for later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from backends.base import Engine
from compiler.artifact.generation import Generation
from compiler.runtime.kv import KeyValues
from compiler.runtime.rows import Row
from compiler.runtime.sampling import Sampling, draw

PREFILL, DECODE, DRAFT = "engine", "decode", "draft"
_DRAFTING, _ACCEPTING, _REPAIRING = 1, 2, 3
"""Streams of random numbers beside 0, that of plain sampling."""


@dataclass(frozen=True, slots=True)
class Drafting:
    """How many tokens to draft at most, and the probability below which a draft ends."""

    ahead: int
    floor: float = 0.0


FILLS = ("recompute", "copy")


@dataclass(frozen=True, slots=True)
class Exiting:
    """When the first layers answer alone, and what the others keep of such a token.

    Attributes:
        threshold: least probability of the likeliest token; above 1: never.
        fill: ``recompute``: the other layers run later, on all tokens they missed at once, with the next token that
            needs them; from then on the cache is what it would be without exits. ``copy``: they get the keys and
            values of the last layer that ran, and never see the token itself.
    """

    threshold: float
    fill: str = "recompute"


@dataclass
class Decoder:
    """The engines of one model, and how often each of them ran."""

    engines: Mapping[str, Engine]
    layout: Generation
    dtype: torch.dtype
    calls: Counter[str] = field(default_factory=Counter)

    def step(
        self, which: str, tokens: Tensor, kv: KeyValues, mask: Tensor | None = None, at: Tensor | None = None
    ) -> tuple[Tensor, KeyValues]:
        """Run new tokens, int64 [batch, new].

        Args:
            which: engine.
            tokens: int64 [batch, new]; new is 1 but for ``PREFILL``.
            kv: cache of as many layers as the engine has.
            mask: bool [batch, new], false for paddings; ``None``: there are none.
            at: int64 [wanted]: of which new tokens logits are wanted (``PREFILL`` only).

        Returns:
            Logits [batch, wanted, vocabulary], and the cache grown by the new tokens.
        """
        mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        inputs = {**kv.tensors, "input_ids": tokens, "past_mask": kv.mask}
        if which == PREFILL:
            offsets = (mask.cumsum(1) - 1).clamp_min(0)
            inputs |= {"position_ids": kv.positions[:, None] + offsets, "new_mask": mask, "logits_at": at}
        else:
            inputs["position_ids"] = kv.positions[:, None]
        self.calls[which] += 1
        found = self.engines[which](inputs)
        return found["logits"], kv.grown(found, mask)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, KeyValues]:
        """Logits [batch, vocabulary] after each prompt; shorter prompts are padded on their left."""
        longest = max(map(len, prompts))
        tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)
        mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = True
        empty = KeyValues.empty(len(prompts), self.layout, self.dtype)
        logits, kv = self.step(PREFILL, tokens, empty, mask, torch.tensor([longest - 1]))
        return logits[:, 0], kv


def decode_plainly(decoder: Decoder, rows: Sequence[Row], logits: Tensor, kv: KeyValues, sampling: Sampling) -> None:
    """Every row by one token per step; rows that are done leave the batch."""
    live = list(rows)
    while live:
        tokens = [sampling.choose(logits[i], row.request, row.step) for i, row in enumerate(live)]
        going = [i for i, row in enumerate(live) if row.take(tokens[i]) and _room(decoder, row, kv, i)]
        if not going:
            return
        if len(going) < len(live):
            kv = kv.select(torch.tensor(going))
            live = [live[i] for i in going]
        given = torch.tensor([[tokens[i]] for i in going])
        found, kv = decoder.step(DECODE, given, kv)
        logits = found[:, 0]


def decode_by_drafts(
    decoder: Decoder, row: Row, logits: Tensor, kv: KeyValues, sampling: Sampling, drafting: Drafting
) -> None:
    """One row: the first layers draft tokens, one run of all layers verifies them (LayerSkip, 2404.16710).

    A draft ends early at a token whose probability is below ``floor``: it would hardly stand. Greedy, the text is
    that of ``decode_plainly``; sampling, it has the same distribution (rejection, 2211.17192).
    """
    token = sampling.choose(logits[0], row.request, row.step)
    if not row.take(token):
        return
    while _room(decoder, row, kv, 0):
        # a verified run gives one token more than was drafted
        most = min(drafting.ahead, row.left - 1, decoder.layout.context - 1 - int(kv.positions[0]))
        drafted, laws = _draft(decoder, row, token, kv, sampling, replace(drafting, ahead=most))
        given = torch.tensor([[token, *drafted]])
        found, grown = decoder.step(PREFILL, given, kv, at=torch.arange(given.shape[1]))
        accepted, token = verify_drafts(row, drafted, laws, found[0], sampling)
        kv = grown.crop(kv.slots + accepted + 1)
        for one in (*drafted[:accepted], token):
            if not row.take(one):
                return


def _draft(
    decoder: Decoder, row: Row, token: int, kv: KeyValues, sampling: Sampling, drafting: Drafting
) -> tuple[list[int], list[Tensor]]:
    """Tokens that the first layers would write next, and (sampling) the law that each was drawn from."""
    shallow = kv.first(decoder.layout.draft)
    drafted: list[int] = []
    laws: list[Tensor] = []
    while len(drafted) < drafting.ahead:
        found, shallow = decoder.step(DRAFT, torch.tensor([[token]]), shallow)
        if sampling.greedy:
            token = int(found[0, 0].argmax())
        else:
            laws.append(sampling.probabilities(found[0, 0]))
            token = draw(laws[-1], float(sampling.uniforms(row.request, row.step + len(drafted), 1, _DRAFTING)[0]))
        drafted.append(token)
        if drafting.floor and float(found[0, 0].softmax(-1)[token]) < drafting.floor:
            break
    return drafted, laws


def verify_drafts(
    row: Row, drafted: Sequence[int], laws: Sequence[Tensor], logits: Tensor, sampling: Sampling
) -> tuple[int, int]:
    """How many drafted tokens stand, and the token after them; logits [drafted + 1, vocabulary]."""
    if sampling.greedy:
        wanted: list[int] = logits.argmax(-1).tolist()
        accepted = next((i for i, one in enumerate(drafted) if one != wanted[i]), len(drafted))
        return accepted, wanted[accepted]
    for i, (one, law) in enumerate(zip(drafted, laws, strict=True)):
        true = sampling.probabilities(logits[i])
        step = row.step + i
        if float(sampling.uniforms(row.request, step, 1, _ACCEPTING)[0]) * float(law[one]) < float(true[one]):
            continue
        rest = (true - law).clamp_min(0)
        return i, draw(rest / rest.sum(), float(sampling.uniforms(row.request, step, 1, _REPAIRING)[0]))
    return len(drafted), sampling.choose(logits[-1], row.request, row.step + len(drafted))


def decode_with_exits(
    decoder: Decoder, row: Row, logits: Tensor, kv: KeyValues, sampling: Sampling, exiting: Exiting
) -> None:
    """One row: a token whose first layers are sure enough is written without the others."""
    token = sampling.choose(logits[0], row.request, row.step)
    shallow = kv.first(decoder.layout.draft)
    pending: list[int] = []
    while row.take(token) and _room(decoder, row, shallow, 0):
        pending.append(token)
        found, shallow = decoder.step(DRAFT, torch.tensor([[token]]), shallow)
        answer = found[0, 0]
        if float(answer.softmax(-1).max()) < exiting.threshold:
            given = torch.tensor([pending])
            found, kv = decoder.step(PREFILL, given, kv, at=torch.tensor([len(pending) - 1]))
            answer, pending, shallow = found[0, 0], [], kv.first(decoder.layout.draft)
        elif exiting.fill == "copy":
            kv, pending = kv.copied(shallow), []
        token = sampling.choose(answer, row.request, row.step)


def _room(decoder: Decoder, row: Row, kv: KeyValues, at: int) -> bool:
    """Whether a position is left for one more token; else the row is over."""
    return int(kv.positions[at]) < decoder.layout.context or row.end("context")
