"""What the cost model says about a graph: kernels, totals, memory, and the model's own structure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from compiler.cost.cost import Estimate, Row
from compiler.cost.targets import Target
from compiler.report.plain import starred

MOST_ROWS = 40
_MOST_BLOCKS = 200
_LINE = re.compile(r":\d+$")  # an origin without a path is a line of source
_MOST_DEPTH = 12  # a path is the user's text: do not recurse as deep as it says


def kernel_rows(rows: Iterable[Row], most: int = MOST_ROWS) -> list[dict[str, Any]]:
    """The kernels that take longest; equal ones of repeated blocks are one row with a count."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        key = (row.ops, starred(row.origin), row.flops, row.bytes, row.bound, row.times)
        groups.setdefault(key, []).append(row)
    found = [
        {
            "op": same[0].ops,
            "origin": same[0].origin if len(same) == 1 else starred(same[0].origin),
            "count": len(same),
            "flops": sum(r.flops * r.times for r in same),
            "bytes": sum(r.bytes * r.times for r in same),
            "seconds": sum(r.seconds for r in same),
            "floor_seconds": sum(r.floor for r in same),
            "bound": same[0].bound,
            "tier": same[0].trust.tier,
        }
        for same in groups.values()
    ]
    return sorted(found, key=lambda r: (-r["seconds"], r["op"], r["origin"]))[:most]  # type: ignore[operator]


def totals(found: Estimate, nodes: int) -> dict[str, Any]:
    """One graph in one row."""
    return {
        "seconds": found.seconds,
        "low_seconds": found.low,
        "high_seconds": found.high,
        "floor_seconds": found.floor,
        "flops": found.flops,
        "bytes": found.bytes,
        "kernels": found.kernels,
        "nodes": nodes,
        "tier": found.tier,
        "bound": {name: found.share(name) for name in ("compute", "memory", "launch")},
    }


def memory(found: Estimate, target: Target) -> dict[str, Any]:
    """What one call holds at once, against what the machine has."""
    return {
        "weight_bytes": found.weight_bytes,
        "peak_bytes": found.peak_bytes,
        "capacity_bytes": target.memory,
        "fits": found.fits,
    }


def roof(target: Target) -> dict[str, Any]:
    """The datasheet's two limits."""
    return {"peak": dict(target.peak), "bandwidth": target.bandwidth}


@dataclass
class _Part:
    """One place in the tree of modules, all its repetitions together."""

    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    kernels: int = 0
    seen: set[tuple[str, ...]] = field(default_factory=set)
    ops: Counter[str] = field(default_factory=Counter)
    parts: dict[str, _Part] = field(default_factory=dict)


def structure(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The tree of modules from the paths of kernels, in order, a row per place.

    Blocks that differ in a number only are one row: ``layer.*`` with ``times`` 6.
    """
    root = _Part()
    for row in rows:
        path = row.origin.partition(" @ ")[0]
        names = () if not path or _LINE.search(path) else tuple(path.split("."))
        _add(root, row, _grouped(names))
    found: list[dict[str, Any]] = []
    _list(root, "", 0, 1, found)
    return found[:_MOST_BLOCKS]


def _grouped(names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Names with the numbers that follow them: ``(("layer", "0"), ("act",))``."""
    groups: list[tuple[str, ...]] = []
    for name in names:
        if name.isdigit() and groups and not groups[-1][-1].isdigit():
            groups[-1] += (name,)
        else:
            groups.append((name,))
    return tuple(groups[:_MOST_DEPTH])


def _add(part: _Part, row: Row, groups: tuple[tuple[str, ...], ...]) -> None:
    exact: tuple[str, ...] = ()
    _count(part, row, exact)
    for group in groups:
        exact += group
        part = part.parts.setdefault(starred(".".join(group)), _Part())
        _count(part, row, exact)
    part.ops[row.ops] += 1


def _count(part: _Part, row: Row, exact: tuple[str, ...]) -> None:
    part.seconds += row.seconds
    part.flops += row.flops * row.times
    part.bytes += row.bytes * row.times
    part.kernels += 1
    part.seen.add(exact)


def _list(part: _Part, label: str, depth: int, outer: int, found: list[dict[str, Any]]) -> None:
    while len(part.parts) == 1 and not part.ops:  # a module that only passes on to one other
        name, inner = next(iter(part.parts.items()))
        label, part = f"{label}.{name}".lstrip("."), inner
        if len(part.seen) > outer:
            break
    found.append(
        {
            "name": label or "(model)",
            "depth": depth,
            "times": len(part.seen) // max(1, outer) or 1,
            "kernels": part.kernels,
            "seconds": part.seconds,
            "flops": part.flops,
            "bytes": part.bytes,
            "ops": [f"{op} x{count}" if count > 1 else op for op, count in part.ops.most_common(6)],
        }
    )
    for name, inner in part.parts.items():
        _list(inner, name, depth + 1, len(part.seen), found)
