"""How far to draft, and when to stop: from what each engine's run costs and how often drafts stand on the model's text.

The model continues some of the user's own tokens, greedily. At each position of that text the first layers are asked
what they would draft, and how sure they are; their cache is exact, so a trace holds for every way of drafting. Each
choice of (tokens ahead, floor) is then walked through with the measured times; none at all is one of the choices.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from compiler.artifact.generation import DECODE, DRAFT, PREFILL, Generation
from compiler.runtime.decoding import Decoder, decode_plainly
from compiler.runtime.kv import KeyValues
from compiler.runtime.rows import Row
from compiler.runtime.sampling import Sampling
from compiler.select.measure import interleave

MOST_AHEAD = 8
FLOORS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PROMPTS, MORE, PROMPT, WRITTEN = 8, 32, 64, 96
"""Texts that are continued, more where a threshold is chosen on them, and tokens of each: given and written."""
LEAST_GAIN = 1.03
SECONDS = 20.0
"""After which no further text is begun."""


@dataclass(frozen=True)
class Trace:
    """One text: at each of its positions how sure the draft is of its token, and whether that is the text's next."""

    sure: tuple[float, ...]
    stands: tuple[bool, ...]


@dataclass(frozen=True)
class Costs:
    """Seconds of one run: ``decode`` and ``draft`` of one token, ``verify[n - 1]`` of ``n`` tokens."""

    decode: float
    draft: float
    verify: tuple[float, ...]

    def verifying(self, tokens: int) -> float:
        """Of any number of tokens: beyond those measured, as each of the last ones costs."""
        known = self.verify
        if tokens <= len(known):
            return known[tokens - 1]
        slope = (known[-1] - known[0]) / max(1, len(known) - 1)
        return known[-1] + slope * (tokens - len(known))


@dataclass(frozen=True)
class Drafts:
    """What was chosen.

    Attributes:
        ahead: tokens to draft at most; 0: drafts do not pay.
        floor: a draft ends after a token of less probability.
        gain: times as fast as plain decoding, as simulated.
        agreement: share of positions at which the draft's token is the text's.
        told: for the report: costs in ms, rows of text, the gain of each number of tokens at its best floor.
    """

    ahead: int
    floor: float
    gain: float
    agreement: float
    told: Mapping[str, Any]

    def text(self) -> str:
        """One line."""
        stands = f"{self.agreement:.0%} of drafted tokens are the model's own"
        if not self.ahead:
            return f"drafts do not pay: {self.gain:.2f}x plain decoding at best; {stands}"
        floor = f", ending below a probability of {self.floor:g}" if self.floor else ""
        return f"{self.ahead} tokens ahead{floor}: {self.gain:.2f}x plain decoding expected; {stands}"


def given_of(tokens: Tensor, layout: Generation) -> int:
    """How many tokens of each text the model is given to continue."""
    return min(PROMPT, tokens.shape[1], layout.context // 2)


def traces_of(decoder: Decoder, tokens: Tensor) -> list[Trace]:
    """Traces of texts, int64 [rows, seq], as many as there is time for; one at least."""
    given = given_of(tokens, decoder.layout)
    written = max(1, min(WRITTEN, decoder.layout.context - given - MOST_AHEAD - 1))
    traces: list[Trace] = []
    end = time.monotonic() + SECONDS
    for row in tokens:
        if traces and time.monotonic() > end:
            break
        traces.append(trace_of(decoder, row[:given].tolist(), written))
    return traces


def trace_of(decoder: Decoder, prompt: Sequence[int], count: int) -> Trace:
    """Let the model write, then ask the first layers at every position."""
    row = Row(0, 0, count, frozenset(decoder.layout.ends), ())
    logits, kv = decoder.prefill([prompt])
    shallow = kv.first(decoder.layout.draft)
    decode_plainly(decoder, [row], logits, kv, Sampling())
    sure, stands = [], []
    for token, wanted in zip(row.tokens, row.tokens[1:], strict=False):
        found, shallow = decoder.step(DRAFT, torch.tensor([[token]]), shallow)
        best = found[0, 0].softmax(-1).max(-1)
        sure.append(float(best.values))
        stands.append(int(best.indices) == wanted)
    return Trace(tuple(sure), tuple(stands))


def measure_costs(decoder: Decoder, prompt: Sequence[int], seconds: float = 2.0, rows: int = 1) -> Costs:
    """Medians of interleaved runs after a prompt, so many rows of it."""
    _, kv = decoder.prefill([prompt] * rows)
    shallow, token = kv.first(decoder.layout.draft), torch.tensor([[prompt[-1]]] * rows)
    calls: dict[str, Any] = {
        DECODE: partial(decoder.step, DECODE, token, kv),
        DRAFT: partial(decoder.step, DRAFT, token, shallow),
    }
    widths = [n for n in (1, 2, 3, 5, MOST_AHEAD + 1) if int(kv.positions[0]) + n <= decoder.layout.context]
    calls |= {str(n): partial(_verify, decoder, token.expand(rows, n).contiguous(), kv) for n in widths}
    found = {name: timing.median for name, timing in interleave(calls, seconds).items()}
    known = [found[str(n)] for n in widths]
    verify = torch.tensor([_between(widths, known, n) for n in range(1, widths[-1] + 1)]).tolist()
    return Costs(found[DECODE], found[DRAFT], tuple(verify))


def _verify(decoder: Decoder, tokens: Tensor, kv: KeyValues) -> object:
    return decoder.step(PREFILL, tokens, kv, at=torch.arange(tokens.shape[1]))


def _between(widths: Sequence[int], known: Sequence[float], wanted: int) -> float:
    above = next(i for i, n in enumerate(widths) if n >= wanted)
    if widths[above] == wanted:
        return known[above]
    low, high = widths[above - 1], widths[above]
    return known[above - 1] + (known[above] - known[above - 1]) * (wanted - low) / (high - low)


def gain_of(traces: Sequence[Trace], costs: Costs, ahead: int, floor: float) -> float:
    """Times as fast as plain decoding. After a wrong token the draft goes on as it would on the right text."""
    spent = plain = 0.0
    for trace in traces:
        at, count = 0, len(trace.sure)
        while at < count:
            drafted = 0
            while drafted < min(ahead, count - at):
                drafted += 1
                if trace.sure[at + drafted - 1] < floor:
                    break
            spent += drafted * costs.draft + costs.verify[drafted]
            accepted = 0
            while accepted < drafted and trace.stands[at + accepted]:
                accepted += 1
            at += accepted + 1
        plain += at * costs.decode
    return plain / spent if spent else 1.0


def choose(traces: Sequence[Trace], costs: Costs) -> Drafts:
    """The fastest number of tokens and floor, or none where plain decoding is hardly slower."""
    most = min(MOST_AHEAD, len(costs.verify) - 1)
    best = {k: max((gain_of(traces, costs, k, floor), floor) for floor in FLOORS) for k in range(1, most + 1)}
    best = best or {0: (1.0, 0.0)}  # a context of so few positions leaves none to draft
    ahead = max(best, key=lambda k: best[k][0])
    gain, floor = best[ahead]
    stands = [one for trace in traces for one in trace.stands]
    told = {
        "texts": len(traces), "tokens": len(stands),
        "ms": {"decode": 1e3 * costs.decode, "draft": 1e3 * costs.draft, "verify": [1e3 * v for v in costs.verify]},
        "gain_by_tokens": {str(k): round(g, 3) for k, (g, _) in best.items()},
    }  # fmt: skip
    agreement = sum(stands) / len(stands) if stands else 0.0
    if gain < LEAST_GAIN:
        return Drafts(0, 0.0, gain, agreement, told)
    return Drafts(ahead, floor, gain, agreement, told)
