"""Writes ``report.json`` and ``report.html``: one file that needs no network and trusts no model."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from compiler.report import charts
from compiler.report.plain import (
    short,
    show_bytes,
    show_cosine,
    show_count,
    show_seconds,
    show_small,
    show_times,
)

TEMPLATE = "report.html.j2"
_MOST_REMARKS = 500
_MOST_TEXT = 400
_MOST_ROWS = 200


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write both forms into a folder.

    Raises:
        ValueError: the report holds what JSON cannot carry.
    """
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    (folder / "report.json").write_text(text, encoding="utf-8")
    (folder / "report.html").write_text(page(report), encoding="utf-8")


def page(report: Mapping[str, Any]) -> str:
    """The report as one HTML page. Every text in it is escaped: names in models are foreign."""
    return _environment().get_template(TEMPLATE).render(r=report, v=_view(report))


@lru_cache(maxsize=1)  # compiling the template takes longer than filling it in
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= _FILTERS
    return made


def _seconds(value: float | None) -> str:
    return show_seconds(value, "\N{MICRO SIGN}s")


def _milliseconds(value: float | None) -> str:
    return _seconds(None if value is None else value / 1e3)


def _decade(value: float) -> str:
    """A power of ten without the places that would say nothing: ``10 T``."""
    return show_count(value).replace(".00", "").replace(".0", "")


def _cut(text: object, most: int = _MOST_TEXT) -> str:
    return short(str(text), most)


def _digest(source: str) -> str:
    """How a content security policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


_FILTERS: dict[str, Callable[..., str]] = {
    "seconds": _seconds,
    "ms": _milliseconds,
    "bytes": show_bytes,
    "si": show_count,
    "decade": _decade,
    "times": show_times,
    "small": show_small,
    "cosine": show_cosine,
    "cut": _cut,
    "digest": _digest,
}


def _view(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows and the report does not say: geometry, and what was left out for size."""
    remarks = _remarks(report)
    return {
        "waterfall": charts.waterfall(report),
        "candidates": charts.candidate_bars(report),
        "flow": report.get("flow", [])[:_MOST_ROWS],  # an older report has none
        "lowerings": [c for c in report["candidates"] if c.get("lowering")],
        "adaptive": charts.adaptive(report),
        "roofline": charts.roofline(report),
        "structure": charts.shares(report["structure"][:_MOST_ROWS], "seconds"),
        "kernels": charts.shares(report["nodes"][:_MOST_ROWS], "seconds"),
        "phases": charts.shares([{"name": k, "seconds": s} for k, s in report["phases"].items()], "seconds"),
        "remarks": remarks[:_MOST_REMARKS],
        "more_remarks": max(0, len(remarks) - _MOST_REMARKS),
    }


def _remarks(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every remark once, with the variants that it was made in; declined ones first."""
    found: dict[tuple[object, ...], dict[str, Any]] = {}
    for variant, row in report["variants"].items():
        for pass_ in row["passes"]:
            name = pass_["name"].partition("{")[0]
            for said in pass_["remarks"]:
                key = (name, said["at"], said["applied"], said["why"], said["count"])
                entry = found.setdefault(key, {**said, "pass": name, "variants": []})
                if variant not in entry["variants"]:
                    entry["variants"].append(variant)
    return sorted(found.values(), key=lambda said: bool(said["applied"]))
