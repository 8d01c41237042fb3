"""Where the marks of the page's charts stand: numbers for the template to draw, nothing of HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SPAN = 1000.0
"""Bars are drawn on this many units, which the page stretches to the room it has."""


# --- waterfall of passes -------------------------------------------------------------------------


def waterfall(report: Mapping[str, Any]) -> dict[str, Any]:
    """From the predicted time of the captured graph, pass by pass, to that of the compiled one.

    Without prices the passes are rows without bars.
    """
    variant = report["variants"].get(report["chosen_variant"])
    if variant is None:
        return {"rows": [], "idle": []}
    passes = variant["passes"]
    start, end = variant["before_seconds"], variant["after_seconds"]
    costs = [p["seconds"] for p in passes if p["seconds"] is not None]
    scale = SPAN / max([start, *costs]) if start else 0.0
    rows = [_total("as captured", start, scale)] if start else []
    at = start or 0.0
    for found in passes:
        if found["changes"] or found["dropped"]:
            rows.append(_step(found, at, scale))
        at = found["seconds"] if found["seconds"] is not None else at
    rows += [_total("as compiled", end, scale)] if start else []
    idle = [p["name"] for p in passes if not p["changes"] and not p["dropped"]]
    return {"rows": rows, "idle": list(dict.fromkeys(idle))}


def _total(label: str, seconds: float, scale: float) -> dict[str, Any]:
    return {"label": label, "kind": "total", "x": 0.0, "w": seconds * scale, "seconds": seconds}


def _step(found: Mapping[str, Any], at: float, scale: float) -> dict[str, Any]:
    """What one pass took off, or put on, where the pass before it ended."""
    after = found["seconds"] if found["seconds"] is not None else at
    saved = at - after
    width = max(abs(saved) * scale, 3.0) if scale else 0.0  # nothing saved is a hairline, not nothing
    return {
        "label": found["name"],
        "kind": "dropped" if found["dropped"] else "saved" if saved >= 0 else "lost",
        "x": min(min(at, after) * scale, SPAN - width),
        "w": width,
        "seconds": saved,
        "found": found,
    }


# --- bars ----------------------------------------------------------------------------------------


def candidate_bars(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Predicted and measured time of each candidate on one scale, the original's on the same."""
    rows = report["candidates"]
    longest = _longest(row[key] for row in rows for key in ("predicted_ms", "ms", "high_ms", "eager_ms"))
    return [
        {
            **row,
            "bars": {
                key: (row[key] or 0.0) / longest * SPAN
                for key in ("predicted_ms", "ms", "low_ms", "high_ms", "eager_ms")
            },
        }
        for row in rows
    ]


def shares(rows: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """Rows with ``w``: their part of the longest."""
    longest = _longest(row[key] for row in rows)
    return [{**row, "w": (row[key] or 0.0) / longest * SPAN} for row in rows]


def _longest(values: Iterable[float | None]) -> float:
    return max((v for v in values if v), default=1.0)


# --- exits ------------------------------------------------------------------------------------------


def adaptive(report: Mapping[str, Any]) -> dict[str, Any]:
    """Where held-out rows leave, and mean loss against mean depth; empty when no row can leave early."""
    told = report.get("depth")  # an older report has none
    if not told:
        return {}
    layers = [*told["exits"], told["blocks"]]
    rows = [{"layer": layer, "rows": count} for layer, count in zip(layers, told["histogram"], strict=True)]
    total = sum(told["histogram"]) or 1
    most = _longest([point["loss"] for point in told["curve"]] + [told["budget"]])

    def at(depth: float, loss: float) -> tuple[float, float]:
        x = _LEFT + (_RIGHT - _LEFT) * depth / told["blocks"]
        return round(x, 1), round(_BOTTOM - (_BOTTOM - _TOP) * max(loss, 0.0) / most, 1)

    points = [at(point["depth"], point["loss"]) for point in told["curve"]]
    return {
        **told,
        "rows": [{**row, "share": row["rows"] / total, "w": row["rows"] / total * SPAN} for row in rows],
        "line": " ".join(f"{x},{y}" for x, y in points),
        "points": points,
        "chosen": at(told["expected"], told["loss"]),
        "budget_y": at(0, told["budget"])[1],
        "ticks": [(n, at(n, 0)[0]) for n in range(0, told["blocks"] + 1, max(1, told["blocks"] // 8))],
        "most": most,
        "frame": {"left": _LEFT, "right": _RIGHT, "top": _TOP, "bottom": _BOTTOM},
    }


# --- roofline ------------------------------------------------------------------------------------

_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 700.0, 28.0, 320.0
_LABELS = 4


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis of whole decades."""

    low: int
    high: int
    start: float
    end: float

    def at(self, value: float) -> float:
        part = (math.log10(value) - self.low) / (self.high - self.low)
        return round(self.start + part * (self.end - self.start), 2)

    def ticks(self) -> list[tuple[float, float]]:
        return [(10.0**n, self.at(10.0**n)) for n in range(self.low, self.high + 1)]


def roofline(report: Mapping[str, Any]) -> dict[str, Any]:
    """Kernels by arithmetic intensity and predicted rate, under the limits of the datasheet."""
    peaks = {name: rate for name, rate in report["roof"]["peak"].items() if rate}
    bandwidth = report["roof"]["bandwidth"]
    drawn = [_point(row) for row in report["nodes"] if _counted(row)]
    before = [_point(row) for row in report["nodes_before"] if _counted(row)]
    if not (drawn or before) or not peaks or not bandwidth:
        return {}
    used = {name: rate for name, rate in peaks.items() if name in ("fp32", "bf16", "int8", "fp16")} or peaks
    both = [*drawn, *before]
    x = _axis([p["intensity"] for p in both] + [r / bandwidth for r in used.values()], _LEFT, _RIGHT)
    y = _axis([p["rate"] for p in both] + [*used.values()], _BOTTOM, _TOP)
    total = sum(p["seconds"] for p in drawn) or 1.0
    return {
        "x": x.ticks(),
        "y": y.ticks(),
        "frame": {"left": _LEFT, "right": _RIGHT, "top": _TOP, "bottom": _BOTTOM},
        "roofs": [_roof(name, used[name], bandwidth, x, y) for name in sorted(used, key=lambda n: -used[n])],
        "slope": _slope(max(used.values()), bandwidth, x, y),
        "points": [_placed(p, x, y, total) for p in drawn],
        "before": [_placed(p, x, y, sum(q["seconds"] for q in before) or 1.0) for p in before],
        "labels": _labels([_placed(p, x, y, total) for p in drawn]),
        "hidden": sum(row["count"] for row in report["nodes"] if not _counted(row)),
        "hidden_seconds": sum(row["seconds"] for row in report["nodes"] if not _counted(row)),
    }


def _counted(row: Mapping[str, Any]) -> bool:
    return bool(row["flops"] and row["bytes"] and row["seconds"])


def _point(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "intensity": row["flops"] / row["bytes"], "rate": row["flops"] / row["seconds"]}


def _axis(values: list[float], start: float, end: float) -> _Axis:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 0.05)
    return _Axis(low, max(high, low + 1), start, end)


def _roof(name: str, rate: float, bandwidth: float, x: _Axis, y: _Axis) -> dict[str, Any]:
    return {"name": name, "rate": rate, "x": x.at(max(rate / bandwidth, 10.0**x.low)), "y": y.at(rate)}


def _slope(rate: float, bandwidth: float, x: _Axis, y: _Axis) -> dict[str, float]:
    """The line of the bandwidth, from the corner of the frame that it enters by to the highest roof."""
    lowest = max(10.0**x.low, 10.0**y.low / bandwidth)
    top = rate / bandwidth
    return {"x1": x.at(lowest), "y1": y.at(lowest * bandwidth), "x2": x.at(top), "y2": y.at(rate)}


def _placed(point: Mapping[str, Any], x: _Axis, y: _Axis, total: float) -> dict[str, Any]:
    radius = 3.0 + 14.0 * math.sqrt(point["seconds"] / total)
    return {**point, "x": x.at(point["intensity"]), "y": y.at(point["rate"]), "r": round(radius, 1)}


def _labels(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Names of the longest kernels, where they do not cover each other."""
    taken: list[dict[str, Any]] = []
    for point in points:
        y = point["y"] - point["r"] - 4
        free = all(abs(y - t["y"]) > 14 or abs(point["x"] - t["x"]) > 150 for t in taken)
        if free and len(taken) < _LABELS:
            inside = _LEFT + 70 < point["x"] < _RIGHT - 70
            anchor = "middle" if inside else "start" if point["x"] < _RIGHT / 2 else "end"
            taken.append({"x": point["x"], "y": round(y, 1), "anchor": anchor, "text": point["op"]})
    return taken
