"""Section ``generate`` of a manifest: what the runtime must know of a language model and its engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

PREFILL, DECODE, DRAFT, PROJECT = "engine", "decode", "draft", "project"
"""Names of the payloads; the first is what an artifact's plain call runs."""

NEVER = 2.0
"""A probability that no token has."""
_MAX = 1 << 31
_MAX_ENDS = 64


class Reader(Protocol):
    """The part of ``strict.JsonObject`` that is needed here."""

    def whole(self, key: str, low: int, high: int) -> int:
        """A whole number within bounds."""
        ...

    def number(self, key: str, low: float, high: float) -> float:
        """A number within bounds."""
        ...

    def text(self, key: str) -> str:
        """A text."""
        ...

    def each(self, key: str, read: Callable[[object, str], Any], limit: int) -> list[Any]:
        """Each entry of a list."""
        ...


@dataclass(frozen=True, slots=True)
class Layout:
    """What a cache and the tokens of a model look like.

    Attributes:
        layers: that keep keys and values.
        kv_heads, head_width: of each.
        context: positions at most, prompt and answer together.
        vocabulary: number of tokens.
        ends: tokens after which a text is over.
        text: ``bytes`` when token n is byte n, else empty: prompts and answers are token numbers.
    """

    layers: int
    kv_heads: int
    head_width: int
    context: int
    vocabulary: int
    ends: tuple[int, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class Generation(Layout):
    """A language model as several engines over one store of weights.

    The payload ``engine`` takes any number of new tokens (prompts, drafts to verify), ``decode`` one per row, and
    ``draft``, where there is one, is the first layers of ``decode`` behind the same last norm and head; ``project`` is
    the same, and grows the caches of the other layers by what they make of the state after those.

    Attributes:
        draft: layers of the engine ``draft``; 0: there is none.
        project: layers of the engine ``project``; 0: there is none.
        ahead: tokens to draft before they are verified, as planned when it was compiled; 0: drafts do not pay.
        floor: a draft ends after a token of less probability.
        exit_at: probability from which the first layers may write a token alone, as planned for a budget when it was
            compiled; above 1: never.
        exit_rows: rows up to which that pays.
    """

    draft: int = 0
    project: int = 0
    ahead: int = 0
    floor: float = 0.0
    exit_at: float = NEVER
    exit_rows: int = 0

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of the payloads."""
        more = ((DRAFT, self.draft), (PROJECT, self.project))
        return (PREFILL, DECODE, *(stem for stem, layers in more if layers))

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "ends": list(self.ends)}


def read_generation(entry: Reader, whole: Callable[[object, str], int]) -> Generation:
    """The section, each number within bounds; ``whole`` reads one entry of a list."""
    sizes = {key: entry.whole(key, 1, _MAX) for key in ("layers", "kv_heads", "head_width", "context", "vocabulary")}
    return Generation(
        **sizes,
        ends=tuple(entry.each("ends", whole, _MAX_ENDS)),
        text=entry.text("text"),
        draft=entry.whole("draft", 0, sizes["layers"]),
        project=entry.whole("project", 0, sizes["layers"]),
        ahead=entry.whole("ahead", 0, 64),
        floor=entry.number("floor", 0, 1),
        exit_at=entry.number("exit_at", 0, NEVER),
        exit_rows=entry.whole("exit_rows", 0, _MAX),
    )
