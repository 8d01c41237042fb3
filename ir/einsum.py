"""Reads the subscripts of ``einsum`` for pricing; the meaning stays with torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ir.dims import Dim


def subscripts(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Letters of each operand and of the result, ``...`` filled with letters that no equation can hold.

    >>> subscripts("ij,jk", [2, 2])
    (['ij', 'jk'], 'ik')
    """
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    spare = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    widest = max((s for term, s in zip(terms, spare, strict=True) if "..." in term), default=0)
    dots = "".join(chr(0x100 + i) for i in range(widest))
    if not arrow:
        plain = "".join(terms).replace("...", "")
        out = dots + "".join(sorted(c for c in set(plain) if plain.count(c) == 1))
    filled = [term.replace("...", dots[widest - s :]) for term, s in zip(terms, spare, strict=True)]
    return filled, out.replace("...", dots)


def contraction(one: str, two: str, out: str, sizes: Mapping[str, Dim]) -> tuple[Dim, Dim, Dim, Dim]:
    """Batch, m, n and k of the product of two operands; letters of size one may be left out of ``sizes``."""
    found: list[Dim] = []
    for place in ((True, True, True), (True, False, True), (False, True, True), (True, True, False)):
        total: Dim = 1
        for c in dict.fromkeys(one + two):
            if (c in one, c in two, c in out) == place:
                total = total * sizes.get(c, 1)
        found.append(total)
    batch, m, n, k = found
    return batch, m, n, k
