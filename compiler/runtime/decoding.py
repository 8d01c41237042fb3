"""Token after token, in three ways: plainly, by drafts that are verified, by exits that are made up for later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from backends.base import Engine
from compiler.artifact.generation import DECODE, DRAFT, PREFILL, PROJECT, Generation
from compiler.runtime.kv import KeyValues
from compiler.runtime.rows import Row
from compiler.runtime.sampling import Sampling, draw

_DRAFTING, _ACCEPTING, _REPAIRING = 1, 2, 3
"""Streams of random numbers beside 0, that of plain sampling."""


@dataclass(frozen=True, slots=True)
class Drafting:
    """How many tokens to draft at most, and the probability below which a draft ends."""

    ahead: int
    floor: float = 0.0


FILLS = ("recompute", "copy", "project", "none")


@dataclass(frozen=True, slots=True)
class Exiting:
    """When the first layers answer alone, and what the others keep of such a token.

    Attributes:
        threshold: least probability of the likeliest token; above 1: never.
        fill: ``recompute``: the other layers run later, on all tokens they missed at once, with the next token that
            needs them; from then on the cache is what it would be without exits. ``copy``: they get the keys and
            values of the last layer that ran, and never see the token itself. ``project``: they get what their own
            norm and projections make of the state that the token left with. ``none``: nothing, and from the first
            such token on they do not run for that text again.
        stop_below: a text ends where the layer that answers gives its likeliest token less probability.
    """

    threshold: float
    fill: str = "recompute"
    stop_below: float = 0.0


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


def decode_plainly(
    decoder: Decoder, rows: Sequence[Row], logits: Tensor, kv: KeyValues, sampling: Sampling, stop_below: float = 0.0
) -> None:
    """Every row by one token per step; rows that are done leave the batch."""
    live = list(rows)
    while True:
        tokens, going = _taken(decoder, live, logits, kv, sampling, stop_below)
        if not going:
            return
        if len(going) < len(live):
            kv = kv.select(torch.tensor(going))
            live = [live[i] for i in going]
        found, kv = decoder.step(DECODE, tokens[going][:, None], kv)
        logits = found[:, 0]


def _taken(
    decoder: Decoder, live: Sequence[Row], logits: Tensor, kv: KeyValues, sampling: Sampling, stop_below: float = 0.0
) -> tuple[Tensor, list[int]]:
    """The next token of every row, int64 [batch], and the rows that go on after it.

    A row whose likeliest token has less than ``stop_below`` is given up: what would come is hardly worth its time
    (the stop of "When Neural Code Completion Models Size up the Situation", whose controller exits, stops, or goes on).
    """
    tokens = [sampling.choose(logits[i], row.request, row.step) for i, row in enumerate(live)]
    lost = logits.softmax(-1).amax(-1) < stop_below if stop_below else torch.zeros(len(live), dtype=torch.bool)
    going = []
    for i, row in enumerate(live):
        goes = row.end("unsure") if lost[i] else row.take(tokens[i])
        if goes and _room(decoder, row, kv, i):
            going.append(i)
    return torch.tensor(tokens), going


def decode_by_drafts(
    decoder: Decoder, rows: Sequence[Row], logits: Tensor, kv: KeyValues, sampling: Sampling, drafting: Drafting
) -> None:
    """The first layers draft tokens, one run of all layers verifies them (LayerSkip, 2404.16710).

    Rows of a batch draft together, until none of them is sure, and each keeps what stands. Greedy, the text of a row
    is that of ``decode_plainly``; sampling, it has the same distribution (rejection, 2211.17192).
    """
    live = list(rows)
    tokens, going = _taken(decoder, live, logits, kv, sampling)
    while going:
        if len(going) < len(live):
            kv = kv.select(torch.tensor(going))
        live, tokens = [live[i] for i in going], tokens[going]
        # a verified run gives one token more than was drafted
        most = min(drafting.ahead, max(row.left for row in live) - 1, decoder.layout.context - 1 - kv.longest)
        drafted, laws = _draft(decoder, live, tokens, kv, sampling, replace(drafting, ahead=most))
        given = torch.cat((tokens[:, None], drafted), dim=1)
        found, grown = decoder.step(PREFILL, given, kv, at=torch.arange(given.shape[1]))
        accepted, going = torch.zeros(len(live), dtype=torch.int64), []
        for i, row in enumerate(live):
            mine = drafted[i, : row.left - 1].tolist()  # as many as it would have drafted alone
            stands, last = verify_drafts(row, mine, laws[i][: len(mine)], found[i, : len(mine) + 1], sampling)
            accepted[i], tokens[i] = stands, last
            if all(row.take(one) for one in (*mine[:stands], last)):
                going.append(i)
        kv = grown.accepted(kv.slots, accepted + 1, decoder.layout.context // 2)
        going = [i for i in going if _room(decoder, live[i], kv, i)]


def _draft(
    decoder: Decoder, live: Sequence[Row], tokens: Tensor, kv: KeyValues, sampling: Sampling, drafting: Drafting
) -> tuple[Tensor, list[list[Tensor]]]:
    """Tokens that the first layers would write next, int64 [batch, drafted], and (sampling) the laws of each row's."""
    shallow = kv.first(decoder.layout.draft)
    drafted: list[Tensor] = []
    laws: list[list[Tensor]] = [[] for _ in live]
    sure = torch.ones(len(live), dtype=torch.bool)
    while len(drafted) < drafting.ahead and bool(sure.any()):
        found, shallow = decoder.step(DRAFT, tokens[:, None], shallow)
        if sampling.greedy:
            tokens = found[:, 0].argmax(-1)
        else:
            for i, law in enumerate(laws):
                law.append(sampling.probabilities(found[i, 0]))
            at = len(drafted)
            chance = [sampling.uniforms(row.request, row.step + at, 1, _DRAFTING) for row in live]
            tokens = torch.tensor([draw(law[-1], float(u[0])) for law, u in zip(laws, chance, strict=True)])
        drafted.append(tokens)
        if drafting.floor:
            sure &= found[:, 0].softmax(-1).gather(1, tokens[:, None])[:, 0] >= drafting.floor
    return torch.stack(drafted, 1) if drafted else tokens.new_zeros(len(live), 0), laws


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
    decoder: Decoder, rows: Sequence[Row], logits: Tensor, kv: KeyValues, sampling: Sampling, exiting: Exiting
) -> None:
    """A token whose first layers are sure enough is written without the others.

    Depth is synchronous: the others run for the whole batch where one row is not sure. A row that is sure keeps the
    first layers' answer even then, so its text does not depend on its batch.
    """
    live, draft, fill = list(rows), decoder.layout.draft, exiting.fill
    shallow = kv.first(draft)
    pending: list[Tensor] = []
    settled = torch.zeros(len(live), dtype=torch.bool)  # the first layers write the rest
    while True:
        tokens, going = _taken(decoder, live, logits, shallow, sampling, exiting.stop_below)
        if not going:
            return
        if len(going) < len(live):
            index = torch.tensor(going)
            kv, shallow, pending = kv.select(index), shallow.select(index), [p[index] for p in pending]
            live, tokens, settled = [live[i] for i in going], tokens[index], settled[index]
        pending.append(tokens)
        if fill == "project":
            found, filled = decoder.step(PROJECT, tokens[:, None], kv)
            shallow = filled.first(draft)
        else:
            found, shallow = decoder.step(DRAFT, tokens[:, None], shallow)
            # of a settled row the others are never read again: any number will do to keep the batch in step
            filled = kv if fill == "recompute" or bool(settled.all()) else kv.copied(shallow)
        logits = found[:, 0]
        best = logits.softmax(-1).amax(-1)
        # who is given up need not wait for the other layers
        unsure = (best < exiting.threshold) & ~(best < exiting.stop_below) & ~settled
        if bool(unsure.any()):
            at = torch.tensor([len(pending) - 1])
            found, full = decoder.step(PREFILL, torch.stack(pending, 1), kv, at=at)
            logits = torch.where(unsure[:, None], found[:, 0], logits)
            kv = full if fill == "recompute" else filled.where(unsure, full)
            shallow, pending = kv.first(draft), []
        elif fill != "recompute":
            kv, pending = filled, []
        if fill == "none":
            settled = ~unsure


def _room(decoder: Decoder, row: Row, kv: KeyValues, at: int) -> bool:
    """Whether a position is left for one more token; else the row is over."""
    return int(kv.positions[at]) < decoder.layout.context or row.end("context")
