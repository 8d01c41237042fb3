"""exp, tanh and erf of float32 as polynomials that vectorize; everything else is libm's.

The forms are Cephes' (exp) and Eigen's (tanh, erf): within a few units in the last place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from backends.tvm.scalars import Functions

_LOG2E, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_TANH_TOP = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08, 1.48572235717979e-05,
    6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
_TANH_BOTTOM = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
_ERF_TOP = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05, -7.34990630326855e-04,
    -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_BOTTOM = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03, -1.42647390514189e-02,
)  # fmt: skip
_MOST, _LEAST = 88.7228, -86.6


class FastFunctions(Functions):
    """Float32 only; scalars or vectors alike. NaN stays NaN."""

    binds = True

    def exp(self, x: Any) -> Any:
        """``2^n * p(r)`` with ``x = n ln 2 + r``; below -86.6 it is 0."""
        from tvm import tirx

        if not _single(x):
            return super().exp(x)

        def of_parts(held: Any, n: Any, r: Any) -> Any:
            p = horner(_EXP, r, x) * r * r + r + like(1, x)
            bits = _cast("int32", n) + _whole(126, x)
            value = p * _reinterpret("float32", bits << _whole(23, x)) * like(2, x)
            value = tirx.Select(held < like(_LEAST, x), like(0, x), value)
            return tirx.Select(held > like(_MOST, x), like(math.inf, x), value)

        def of_clamped(given: Any, held: Any) -> Any:
            return bound(
                tirx.nearbyint(held * like(_LOG2E, x)),
                lambda n: bound(held - n * like(_LN2_HIGH, x) - n * like(_LN2_LOW, x), lambda r: of_parts(given, n, r)),
            )

        return bound(x, lambda v: bound(_clamped(v, _LEAST, _MOST), lambda held: of_clamped(v, held)))

    def tanh(self, x: Any) -> Any:
        """A ratio of polynomials."""
        if not _single(x):
            return super().tanh(x)
        return bound(
            x,
            lambda v: bound(
                _clamped(v, -7.90531110763549805, 7.90531110763549805),
                lambda held: _saturated(v, 7.90531110763549805, _ratio(_TANH_TOP, _TANH_BOTTOM, held)),
            ),
        )

    def erf(self, x: Any) -> Any:
        """A ratio of polynomials."""
        if not _single(x):
            return super().erf(x)
        return bound(
            x,
            lambda v: bound(
                _clamped(v, -4.0, 4.0), lambda held: _saturated(v, 4.0, _ratio(_ERF_TOP, _ERF_BOTTOM, held))
            ),
        )


def bound(value: Any, body: Callable[[Any], Any]) -> Any:
    """Name a value once: without that, expressions are written out as often as they are read."""
    from tvm import tirx

    name = tirx.Var("v", value.ty.dtype)
    return tirx.Let(name, value, body(name))


def _ratio(top: Sequence[float], bottom: Sequence[float], held: Any) -> Any:
    return bound(held * held, lambda square: held * horner(top, square, held) / horner(bottom, square, held))


def _saturated(x: Any, limit: float, inside: Any) -> Any:
    """Exactly -1 and 1 beyond a limit: what is left of one there, times a large number, would be large."""
    from tvm import tirx

    below = tirx.Select(x < like(-limit, x), like(-1, x), inside)
    return tirx.Select(x > like(limit, x), like(1, x), below)


def horner(factors: Sequence[float], x: Any, kind: Any) -> Any:
    """A polynomial, highest power first."""
    total = like(factors[0], kind)
    for factor in factors[1:]:
        total = total * x + like(factor, kind)
    return total


def lanes_of(x: Any) -> int:
    """Elements of a vector expression; 1 for a scalar."""
    found = str(x.ty.dtype).partition("x")[2]
    return int(found) if found else 1


def like(value: float, x: Any) -> Any:
    """A float32 constant as wide as another expression."""
    from tvm import tirx

    one = tirx.const(value, "float32")
    return one if lanes_of(x) == 1 else tirx.Broadcast(one, lanes_of(x))


def _single(x: Any) -> bool:
    return str(x.ty.dtype).startswith("float32")


def _whole(value: int, x: Any) -> Any:
    from tvm import tirx

    one = tirx.const(value, "int32")
    return one if lanes_of(x) == 1 else tirx.Broadcast(one, lanes_of(x))


def _typed(name: str, x: Any) -> str:
    return name if lanes_of(x) == 1 else f"{name}x{lanes_of(x)}"


def _cast(name: str, x: Any) -> Any:
    from tvm import tirx

    return tirx.Cast(_typed(name, x), x)


def _reinterpret(name: str, x: Any) -> Any:
    from tvm import tirx

    return tirx.reinterpret(_typed(name, x), x)


def _clamped(x: Any, low: float, high: float) -> Any:
    from tvm import tirx

    held = tirx.Select(x < like(low, x), like(low, x), x)
    return tirx.Select(held > like(high, x), like(high, x), held)
