"""One text that is being written: its tokens, when it is over, and how much of it may be shown already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Listener = Callable[[int, tuple[int, ...]], None]
"""Hears new tokens: number of the prompt, tokens. All that it heard of one prompt is the answer, in order."""

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What was written after one prompt.

    Attributes:
        tokens: without the prompt, the end token or the stop sequence.
        finish: ``length``, ``end`` (the model's own end), ``stop``, ``context`` (no position is left), or ``unsure``
            (given up, see ``stop_below``).
        calls: how often each engine ran for it, with the batch it was in.
        raw: the tokens as bytes, where they are bytes.
    """

    tokens: Tokens
    finish: str
    calls: dict[str, int] = field(default_factory=dict)
    raw: bytes | None = None

    @property
    def text(self) -> str:
        """The bytes as text; empty where tokens are no bytes."""
        return (self.raw or b"").decode("utf-8", "replace")


@dataclass(slots=True)
class Row:
    """A text on its way.

    Attributes:
        number: of its prompt in the call.
        request: what its random numbers hang on.
        limit: tokens at most.
        ends: tokens that end it.
        stops: sequences that end it.
        listener: hears tokens as soon as no stop sequence can take them back.
    """

    number: int
    request: int
    limit: int
    ends: frozenset[int]
    stops: Sequence[Tokens]
    listener: Listener | None = None
    tokens: list[int] = field(default_factory=list)
    finish: str = ""
    shown: int = 0

    @property
    def step(self) -> int:
        """Number of the next token."""
        return len(self.tokens)

    @property
    def left(self) -> int:
        """Tokens that may still come."""
        return self.limit - len(self.tokens)

    def take(self, token: int) -> bool:
        """The next token; whether the text goes on after it."""
        if token in self.ends:
            return self.end("end")
        self.tokens.append(token)
        for stop in self.stops:
            if len(stop) <= len(self.tokens) and tuple(self.tokens[-len(stop) :]) == stop:
                del self.tokens[-len(stop) :]
                return self.end("stop")
        if not self.left:
            return self.end("length")
        self._show(self._held())
        return True

    def end(self, why: str) -> bool:
        """No token comes any more."""
        self.finish = why
        self._show(0)
        return False

    def _held(self) -> int:
        """How many of the last tokens begin a stop sequence."""
        longest = 0
        for stop in self.stops:
            for length in range(min(len(stop) - 1, len(self.tokens)), longest, -1):
                if tuple(self.tokens[-length:]) == stop[:length]:
                    longest = length
                    break
        return longest

    def _show(self, held: int) -> None:
        ready = len(self.tokens) - held
        if self.listener is not None and ready > self.shown:
            self.listener(self.number, tuple(self.tokens[self.shown : ready]))
        self.shown = max(self.shown, ready)
