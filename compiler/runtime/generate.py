"""``engine.generate(prompts, ...)``: reads the arguments, pads the batch, picks the way of decoding, gives answers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import torch

from backends.base import Engine
from compiler.artifact.generation import DRAFT, PROJECT, Generation
from compiler.runtime.decoding import (
    FILLS,
    Decoder,
    Drafting,
    Exiting,
    decode_by_drafts,
    decode_plainly,
    decode_with_exits,
)
from compiler.runtime.rows import Answer, Listener, Row, Tokens
from compiler.runtime.sampling import Sampling
from ir.errors import UsageError, nearest

Prompt: TypeAlias = "str | bytes | Sequence[int] | torch.Tensor"
_MOST_AHEAD = 32


@dataclass(frozen=True, slots=True)
class Options:
    """How to write on; every field is an option of ``generate``.

    Attributes:
        temperature, top_k, top_p, seed: see ``Sampling``.
        requests: a number per prompt that its random numbers hang on; 0, 1, ... when ``None``.
        stop: sequences that end an answer, which does not hold them.
        stream: called as ``stream(prompt number, tokens)`` as tokens come.
        draft: verify so many drafted tokens at once; the answer stays what it is without. 0 or ``None``: no; ``True``:
            as planned when the model was compiled, the floor too, which may be not at all.
        draft_floor: a draft ends early at a token of less probability.
        exit_at: tokens that the first layers give at least this probability are written by them alone; above 1 none
            is. ``None``: no exits; ``True``: as planned for the budget when the model was compiled, which may be none.
        fill: what the other layers keep of such tokens, see ``Exiting``.
        stop_below: an answer is given up where its likeliest token has less probability than this, by the first layers
            already with ``exit_at``; its ``finish`` is ``unsure``.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    requests: Sequence[int] | None = None
    stop: Sequence[str | bytes | Sequence[int]] = ()
    stream: Listener | None = None
    draft: int | bool | None = None
    draft_floor: float | None = None
    exit_at: float | bool | None = None
    fill: str = "recompute"
    stop_below: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: says which.
        """
        if self.draft is not None and not 0 <= self.draft <= _MOST_AHEAD:
            raise UsageError(f"draft is {self.draft} tokens; it must be 0 (none) to {_MOST_AHEAD}")
        if self.draft_floor is not None and not 0 <= self.draft_floor <= 1:
            raise UsageError(f"draft_floor is {self.draft_floor}; it is a probability, 0 to 1")
        if self.exit_at is not None and not self.exit_at >= 0:
            raise UsageError(f"exit_at is {self.exit_at}; it is a probability, or more than 1 for no exit")
        if not 0 <= self.stop_below <= 1:
            raise UsageError(f"stop_below is {self.stop_below}; it is a probability, 0 to 1")
        if self.draft and self.stop_below:
            raise UsageError("draft and stop_below do not go together")
        if self.fill not in FILLS:
            raise UsageError(f"fill is {self.fill!r}", hint=nearest(self.fill, list(FILLS)))
        if self.draft and self.exit_at is not None:
            raise UsageError("draft and exit_at do not go together")


def read_options(given: Mapping[str, Any]) -> Options:
    """Options by name.

    Raises:
        UsageError: there is none of that name, or one cannot be meant.
    """
    known = [field.name for field in fields(Options)]
    for name in given:
        if name not in known:
            raise UsageError(f"generate has no option {name!r}", hint=nearest(name, known))
    return Options(**given)


class Generator:
    """The engines of a language model. One call at a time: the caller holds the lock."""

    def __init__(self, engines: Mapping[str, Engine], layout: Generation, dtype: torch.dtype) -> None:
        self._engines = engines
        self.layout = layout
        self._dtype = dtype

    def generate(self, prompts: Prompt | Sequence[Prompt], max_new_tokens: int = 128, **options: Any) -> list[Answer]:
        """Write on after each prompt.

        Args:
            prompts: one, or several: texts for a model of bytes, else token numbers.
            max_new_tokens: at most so many after each.
            **options: fields of ``Options``.

        Raises:
            UsageError: an argument cannot be meant; says which.
        """
        listed = self._prompts(prompts)
        chosen = read_options(options)
        sampling = Sampling(chosen.temperature, chosen.top_k, chosen.top_p, chosen.seed)
        rows = self._rows(len(listed), max_new_tokens, chosen)
        self._check_draft(chosen)
        drafting = self._drafting(chosen)
        decoder = Decoder(self._engines, self.layout, self._dtype)
        if max_new_tokens == 0:
            for row in rows:
                row.end("length")
            return [self._answer(row, decoder) for row in rows]
        logits, kv = decoder.prefill(listed)
        if drafting.ahead:
            decode_by_drafts(decoder, rows, logits, kv, sampling, drafting)
        elif (exit_at := self._exit_at(chosen, len(rows))) is not None:
            exiting = Exiting(exit_at, chosen.fill, chosen.stop_below)
            decode_with_exits(decoder, rows, logits, kv, sampling, exiting)
        else:
            decode_plainly(decoder, rows, logits, kv, sampling, chosen.stop_below)
        return [self._answer(row, decoder) for row in rows]

    def stream(self, prompt: Prompt, max_new_tokens: int = 128, **options: Any) -> Iterator[Tokens]:
        """As ``generate`` for one prompt: yields its tokens as they come. Errors come out of the iterator."""
        heard: queue.Queue[Tokens | Exception | None] = queue.Queue()

        def work() -> None:
            try:
                self.generate(prompt, max_new_tokens, stream=lambda _, tokens: heard.put(tokens), **options)
                heard.put(None)
            except Exception as error:  # noqa: BLE001  (raised again where the iterator is read)
                heard.put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while (found := heard.get()) is not None:
            if isinstance(found, Exception):
                raise found
            yield found
        thread.join()

    # --- reading arguments -------------------------------------------------------------------------

    def _prompts(self, given: Any) -> list[Tokens]:
        one = isinstance(given, (str, bytes)) or (isinstance(given, torch.Tensor) and given.dim() == 1)
        one = one or (isinstance(given, Sequence) and len(given) > 0 and all(isinstance(t, int) for t in given))
        listed = [given] if one else list(given)
        if not listed:
            raise UsageError("there are no prompts", hint='generate(["def "], max_new_tokens=100)')
        found = [self._tokens(prompt, f"prompt {i}") for i, prompt in enumerate(listed)]
        for i, tokens in enumerate(found):
            if len(tokens) > self.layout.context:
                raise UsageError(
                    f"prompt {i} has {len(tokens)} tokens; the model has {self.layout.context} positions",
                    hint="shorten it",
                )
        return found

    def _tokens(self, given: Any, what: str) -> Tokens:
        if isinstance(given, (str, bytes)):
            if self.layout.text != "bytes":
                raise UsageError(f"{what} is a text, and the artifact has no tokenizer", hint="pass token numbers")
            found: Tokens = tuple(given.encode() if isinstance(given, str) else given)
        else:
            listed = given.tolist() if isinstance(given, torch.Tensor) else given
            if not isinstance(listed, Sequence) or not all(type(t) is int for t in listed):
                raise UsageError(f"{what} is {type(given).__name__}, not a text or a list of token numbers")
            found = tuple(listed)
        if not found:
            raise UsageError(f"{what} is empty", hint="begin with one token at least")
        if wrong := [t for t in found if not 0 <= t < self.layout.vocabulary]:
            raise UsageError(f"{what} holds the token {wrong[0]}; there are {self.layout.vocabulary}, from 0 on")
        return found

    def _rows(self, count: int, limit: int, options: Options) -> list[Row]:
        if limit < 0:
            raise UsageError(f"max_new_tokens is {limit}; it must be 0 or more")
        numbers = list(range(count)) if options.requests is None else [*options.requests]
        if len(numbers) != count or any(not 0 <= n < 1 << 64 for n in numbers):
            raise UsageError(f"requests are {numbers!r}; there must be one number, 0 or more, for each prompt")
        stops = [self._tokens(one, "stop sequence") for one in options.stop]
        ends = frozenset(self.layout.ends)
        return [Row(i, n, limit, ends, stops, options.stream) for i, n in enumerate(numbers)]

    def _check_draft(self, options: Options) -> None:
        if (options.draft or options.exit_at is not None) and DRAFT not in self._engines:
            raise UsageError(
                "the artifact has no draft engine", hint="penstock compile MODEL --task generate --draft LAYERS"
            )

        if options.exit_at is not None and options.fill == "project" and PROJECT not in self._engines:
            raise UsageError(
                "the artifact has no engine that projects: its model's blocks were not found",
                hint=f"fill={FILLS[0]!r}",
            )

    def _drafting(self, options: Options) -> Drafting:
        planned = options.draft is True
        floor = options.draft_floor
        if floor is None:
            floor = self.layout.floor if planned else 0.0
        return Drafting(self.layout.ahead if planned else int(options.draft or 0), floor)

    def _exit_at(self, options: Options, rows: int) -> float | None:
        if options.exit_at is True:  # planned: not where it does not pay
            return self.layout.exit_at if rows <= self.layout.exit_rows else None
        return None if options.exit_at is None or options.exit_at is False else options.exit_at

    def _answer(self, row: Row, decoder: Decoder) -> Answer:
        raw = bytes(row.tokens) if self.layout.text == "bytes" else None
        return Answer(tuple(row.tokens), row.finish, dict(decoder.calls), raw)
