"""Values as JSON can carry them and people can read them. Knows nothing of models."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

_INDEX = re.compile(r"(?<![^. ])\d+(?=[. ]|$)")
_KEPT = "\n\t"
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def plain(value: object) -> Any:
    """The same data as dicts, lists, texts and finite numbers: NaN and infinity become ``None``."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {visible(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return visible(str(value))


def visible(text: str) -> str:
    """A text without what could forge a display: control codes, direction marks, lone surrogates."""
    return "".join(c if c.isprintable() or c in _KEPT else _UNKNOWN for c in text)


def starred(text: str) -> str:
    """Module paths in a text with ``*`` for numbers, so that repeated blocks have one name.

    >>> starred("aten.gelu.default at layer.3.act @ model.py:7")
    'aten.gelu.default at layer.*.act @ model.py:7'
    """
    return _INDEX.sub("*", text)


def short(text: str, most: int) -> str:
    """At most so many characters, cut with an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def show_seconds(value: float | None, micro: str = "us") -> str:
    """Three digits and a unit; ``-`` for what is not known."""
    return show(value, ((1.0, "s"), (1e-3, "ms"), (1e-6, micro), (1e-9, "ns")))


def show_bytes(value: float | None) -> str:
    """Three digits and a unit."""
    return show(value, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")))


def show_count(value: float | None, unit: str = "") -> str:
    """Three digits and a prefix: ``1.53 GFLOP``."""
    return show(value, tuple((scale, prefix + unit) for scale, prefix in _PREFIXES))


_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def show(value: float | None, units: tuple[tuple[float, str], ...]) -> str:
    """Three digits in the largest unit that leaves one before the point."""
    if value is None:
        return "-"
    scale, unit = next((u for u in units if abs(value) >= u[0] * 0.9995), units[-1])
    number = value / scale
    digits = 0 if abs(number) >= 99.95 or number == 0 else 1 if abs(number) >= 9.995 else 2
    return f"{number:.{digits}f} {unit}".rstrip()


def show_times(value: float | None) -> str:
    """A ratio: ``1.31x``."""
    return "-" if value is None else f"{value:.2f}x"


def show_small(value: float | None) -> str:
    """A loss or a distance: two digits, wherever they are."""
    return "-" if value is None else "0" if value == 0 else f"{value:.2g}"


def show_cosine(value: float | None) -> str:
    """Six places, or how little is missing: ``0.999952``, ``1 - 2e-09``."""
    if value is None:
        return "-"
    return f"1 - {1 - value:.0e}" if 0 < 1 - value < 5e-7 else f"{value:.6f}"
