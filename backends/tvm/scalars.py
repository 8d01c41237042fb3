"""Functions of one number, as TIR expressions. A target may compute some of them in its own way."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar


class Functions:
    """The plain forms: libm by its TIR names."""

    binds: ClassVar[bool] = False
    """Whether they name what they compute on the way (a let)."""

    def call(self, name: str, x: Any) -> Any:
        """A function by its TIR name."""
        from tvm import tirx

        return getattr(tirx, name)(x)

    def exp(self, x: Any) -> Any:
        """``e ** x``."""
        return self.call("exp", x)

    def log(self, x: Any) -> Any:
        """Natural logarithm."""
        return self.call("log", x)

    def tanh(self, x: Any) -> Any:
        """Hyperbolic tangent."""
        return self.call("tanh", x)

    def erf(self, x: Any) -> Any:
        """Error function."""
        return self.call("erf", x)

    def sigmoid(self, x: Any) -> Any:
        """``1 / (1 + exp(-x))``."""
        one = constant(1, x)
        return one / (one + self.exp(-x))

    def log1p(self, x: Any) -> Any:
        """``log(1 + x)``, exact near zero: ``x log(u) / (u - 1)`` with ``u = 1 + x``."""
        from tvm import tirx

        one = constant(1, x)
        u = one + x
        gap = u - one
        safe = tirx.Select(gap == 0, one, gap)
        near = tirx.Select(gap == 0, x, self.log(u) * x / safe)
        return tirx.Select(is_infinite(u), u, near)

    def expm1(self, x: Any) -> Any:
        """``exp(x) - 1`` = ``2 t / (1 - t)`` with ``t = tanh(x / 2)``, exact near zero."""
        from tvm import tirx

        one = constant(1, x)
        half = self.tanh(x * constant(0.5, x))
        return tirx.Select(tirx.abs(x) < constant(0.5, x), half * 2 / (one - half), self.exp(x) - one)


def constant(value: float, like: Any) -> Any:
    """A number in the type of another."""
    from tvm import tirx

    return tirx.const(value, like.ty.dtype)


def is_truth(x: Any) -> bool:
    """Whether an expression is a truth value, which TIR compares with nothing."""
    return str(x.ty.dtype).startswith("bool")


def is_nan(x: Any) -> Any:
    """Whether a number is none; ``x != x`` would be simplified away."""
    from tvm import tirx

    return tirx.isnan(x)


def unequal(a: Any, b: Any) -> Any:
    """``a != b``, true if either is NaN: LLVM's comparison is the ordered one."""
    from tvm import tirx

    if "float" not in str(a.ty.dtype):
        return a != b
    return tirx.any(a != b, is_nan(a), is_nan(b))


def is_infinite(x: Any) -> Any:
    """Whether a number is beyond all numbers."""
    from tvm import tirx

    return tirx.abs(x) == constant(math.inf, x)


def maximum(a: Any, b: Any) -> Any:
    """The larger one; NaN if either is."""
    from tvm import tirx

    return tirx.any(a, b) if is_truth(a) else _extreme(a, b, lambda x, y: x >= y)


def minimum(a: Any, b: Any) -> Any:
    """The smaller one; NaN if either is."""
    from tvm import tirx

    return tirx.all(a, b) if is_truth(a) else _extreme(a, b, lambda x, y: x <= y)


def _extreme(a: Any, b: Any, first: Callable[[Any, Any], Any]) -> Any:
    from tvm import tirx

    if "float" not in str(a.ty.dtype):
        return tirx.Select(first(a, b), a, b)
    return tirx.Select(tirx.any(first(a, b), is_nan(a)), a, b)


def remainder_of(x: Any, y: Any) -> Any:
    """C's ``fmod``, which TIR has no lowering for."""
    from tvm import tirx

    name = "fmod" if str(x.ty.dtype) == "float64" else "fmodf"
    return tirx.call_pure_extern(x.ty.dtype, name, x, y)
