"""Short words for kernels written statement by statement: vectors of a buffer's row, loops, tiles in registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def ramp(start: Any, lanes: int) -> Any:
    """``lanes`` places from one on."""
    from tvm import tirx

    base = tirx.const(start, "int64") if isinstance(start, int) else start
    return base if lanes == 1 else tirx.Ramp(base, tirx.const(1, "int64"), lanes)


def read(buffer: Any, index: Sequence[Any], lanes: int) -> Any:
    """A vector along the last dim."""
    return buffer[(*index[:-1], ramp(index[-1], lanes))]


def write(buffer: Any, value: Any, index: Sequence[Any], lanes: int) -> None:
    """Store a vector along the last dim."""
    from tvm.tirx.script.builder import ir as I  # noqa: N812

    I.buffer_store(buffer, value, [*index[:-1], ramp(index[-1], lanes)])


def spread(value: Any, lanes: int) -> Any:
    """A number in every lane."""
    from tvm import tirx

    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def number(value: float, lanes: int = 1, dtype: str = "float32") -> Any:
    """A constant in every lane."""
    from tvm import tirx

    return spread(tirx.const(value, dtype), lanes)


def index(value: int) -> Any:
    """A whole number for loops and places."""
    from tvm import tirx

    return tirx.const(value, "int64")


class Tile:
    """Vectors that stay in registers: ``rows`` by ``vectors`` of ``lanes``."""

    def __init__(self, rows: int, vectors: int, lanes: int, dtype: str = "float32") -> None:
        from tvm.tirx.script.builder import ir as I  # noqa: N812

        self.rows, self.vectors, self.lanes = rows, vectors, lanes
        self._buffer = I.alloc_buffer((rows * vectors * lanes,), dtype, scope="local")

    def __getitem__(self, place: tuple[int, int]) -> Any:
        return self._buffer[ramp(self._start(place), self.lanes)]

    def __setitem__(self, place: tuple[int, int], value: Any) -> None:
        write(self._buffer, value, [self._start(place)], self.lanes)

    def _start(self, place: tuple[int, int]) -> int:
        return (place[0] * self.vectors + place[1]) * self.lanes

    def lane(self, place: tuple[int, int], lane: int) -> Any:
        """One number of a vector."""
        return self._buffer[self._start(place) + lane]
