"""What a long compile tells while it runs. Whoever listens decides how to show it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Event:
    """``kind`` is begin, note or end; ``seconds`` is how long the phase took, at its end."""

    kind: str
    phase: str
    text: str = ""
    seconds: float = 0.0


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """Listens to nothing."""


@dataclass
class Phases:
    """Tells a listener about phases, and remembers how long each took."""

    listen: Listener = silent
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Seconds of all phases so far."""
        return sum(self.seconds.values())

    @contextmanager
    def phase(self, name: str, text: str = "") -> Iterator[Callable[[str], None]]:
        """One phase; yields a function that says what came out of it."""
        self.listen(Event("begin", name, text))
        start = time.perf_counter()
        said: list[str] = []
        yield said.append
        taken = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + taken
        self.listen(Event("end", name, said[-1] if said else text, taken))

    def note(self, phase: str, text: str) -> None:
        """Something worth a line while a phase runs."""
        self.listen(Event("note", phase, text))
