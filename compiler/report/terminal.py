"""The report as tables for a terminal, at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from compiler.report.plain import short, show_cosine, show_seconds, show_small, show_times, visible

WIDTH = 100
_MOST_WHY = 300


def render(report: Mapping[str, Any], console: Console, width: int = WIDTH) -> None:
    """Print what the passes did, what the candidates reached, and the verdict.

    Args:
        report: of ``build_report``, or a ``report.json`` that was read back.
        console: where to.
        width: most columns, however wide the console is.
    """
    width = min(width, console.width)
    for part in (*_passes(report), *_candidates(report), *_adaptive(report), *_flow(report), *_verdict(report)):
        console.print(part, width=width, highlight=False)


def text_of(text: str, style: str = "") -> Text:
    """Text from a model: never markup, never a control code."""
    return Text(visible(" ".join(text.split())), style=style)


def table_of(title: str, *columns: str, wide: tuple[str, ...] = ()) -> Table:
    """Numbers stand to the right; ``wide`` names the columns of words, which may wrap."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        words = name in wide
        table.add_column(name, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    return table


# --- passes --------------------------------------------------------------------------------------


def _passes(report: Mapping[str, Any]) -> list[Any]:
    variant = report["chosen_variant"]
    if variant not in report["variants"]:
        return []
    found = report["variants"][variant]
    table = table_of(
        f"passes of {variant}", "pass", "changes", "predicted saving", "moved", "cosine", "declined",
        wide=("pass",),
    )  # fmt: skip
    idle = []
    for row in found["passes"]:
        if not row["changes"] and not row["dropped"]:
            idle.append(row["name"])
            continue
        table.add_row(text_of(row["name"]), *_pass_cells(row))
        if row["dropped"]:
            table.add_row(text_of(f"  rolled back: {short(row['dropped'], 160)}", "yellow"))
    before, after = found["before_seconds"], found["after_seconds"]
    lines: list[Any] = [table] if table.rows else []
    if idle:
        lines.append(text_of(f"found nothing: {', '.join(idle)}", "dim"))
    if before is not None and after:
        told = f"{show_seconds(before)} -> {show_seconds(after)}, {before / after:.2f}x"
        margin = _margin(report["totals"]["after"])
        lines.append(text_of(f"predicted time of the kernels: {told}{margin}", "dim"))
    return [*lines, ""]


def _margin(after: Mapping[str, Any]) -> str:
    """How sure the prediction is, and what it rests on: ``(6.4 ms to 17 ms, prior)``."""
    if not after:
        return ""
    low, high = show_seconds(after["low_seconds"]), show_seconds(after["high_seconds"])
    return f" ({low} to {high}, {after['tier']})"


def _pass_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    if row["dropped"]:
        return ("0", "-", show_small(row["moved"]), show_cosine(row["cosine"]), _number(row["declined"]))
    moved = row["moved"]
    exact = moved == 0
    return (
        str(row["changes"]),
        _saving(row["saved_seconds"]),
        "exact" if exact else show_small(moved),
        "-" if exact else show_cosine(row["cosine"]),
        _number(row["declined"]),
    )


def _saving(seconds: float | None) -> str:
    return "-" if seconds is None or abs(seconds) < 1e-9 else show_seconds(seconds)


def _number(count: int) -> str:
    return str(count) if count else "-"


# --- candidates ----------------------------------------------------------------------------------


def _candidates(report: Mapping[str, Any]) -> list[Any]:
    if not report["candidates"]:
        return []
    table = table_of(
        "candidates", "candidate", "predicted", "measured", "x eager", "loss", "verdict",
        wide=("candidate", "verdict"),
    )  # fmt: skip
    for row in report["candidates"]:
        style = "bold" if row["taken"] else ""
        table.add_row(
            text_of(row["name"], style),
            _milliseconds(row["predicted_ms"]),
            _milliseconds(row["ms"]),
            show_times(row["speedup"]),
            show_small(row["loss"]),
            text_of(("taken: " if row["taken"] else "") + short(row["why"], _MOST_WHY), style),
        )
    return [table, ""]


def _milliseconds(ms: float | None) -> str:
    return show_seconds(None if ms is None else ms / 1e3)


# --- exits ---------------------------------------------------------------------------------------


def adaptive_lines(told: Mapping[str, Any]) -> list[str]:
    """What a section ``depth`` says, in a few lines."""
    total = sum(told["histogram"]) or 1
    layers = [*told["exits"], told["blocks"]]
    leave = ", ".join(f"{layer}: {n / total:.0%}" for layer, n in zip(layers, told["histogram"], strict=True))
    thresholds = ", ".join(f"{e}: {_threshold(t)}" for e, t in zip(told["exits"], told["default"], strict=True))
    error = f" +- {show_small(told['loss_error'])}" if "loss_error" in told else ""  # an older report has none
    task = f"; metric {told['task']['before']:.4f} -> {told['task']['after']:.4f}" if "task" in told else ""
    oracle = f" ({told['oracle']:.2f} if the first good answer were known)" if "oracle" in told else ""
    return [
        f"rows leave early by {told['criterion']}: {told['expected']:.2f} of {told['blocks']} blocks expected{oracle}, "
        f"p95 {told['p95']:g}; held-out loss {show_small(told['loss'])}{error} of {show_small(told['budget'])} allowed "
        f"({told['metric']}){task}",
        f"rows that leave after block {leave}",
        f"thresholds after block {thresholds} (effort {told['default_effort']:.2f})",
    ]


def _threshold(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _adaptive(report: Mapping[str, Any]) -> list[Any]:
    told = report.get("depth")  # an older report has none
    return [*(text_of(line) for line in adaptive_lines(told)), ""] if told else []


# --- control flow --------------------------------------------------------------------------------

_MOST_FLOW = 12


def _flow(report: Mapping[str, Any]) -> list[Any]:
    rows = report.get("flow", ())  # an older report has none
    if not rows:
        return []
    made = table_of(
        "control flow: what is proven", "branch", "lowered", "skips", "taken", "untaken", "evidence",
        wide=("branch", "lowered", "skips", "evidence"),
    )  # fmt: skip
    for row in rows[:_MOST_FLOW]:
        made.add_row(
            text_of(short(row["node"], 120)),
            text_of(row["lowering"]),
            text_of("yes" if row["lazy"] else "unknown" if row["evidence"] == "none" else "no"),
            *(show_seconds(row["seconds"].get(path)) for path in ("taken", "untaken")),
            text_of(f"{row['evidence']}: {short(row['detail'], _MOST_WHY)}"),
        )
    more = len(rows) - _MOST_FLOW
    return [made, *([text_of(f"and {more} more, in report.json", "dim")] if more > 0 else []), ""]


# --- verdict -------------------------------------------------------------------------------------

_STYLES = {"met": "bold green", "missed": "bold yellow", "failed": "bold red", "planned": "bold", "built": "bold"}


def _verdict(report: Mapping[str, Any]) -> list[Text]:
    verdict, chosen = report["verdict"], report["chosen"]
    lines = [text_of(verdict["text"], _STYLES.get(verdict["state"], "bold"))]
    if chosen:
        told = f"{chosen['variant']} on {chosen['engine']} {chosen['engine_version']}"
        times = f"{_milliseconds(chosen['ms'])}, eager {_milliseconds(chosen['eager_ms'])}"
        if chosen["tier"] != "measured":
            times = f"predicted {_milliseconds(chosen['predicted_ms'])}; verified: {chosen['verified']}"
        lines.append(text_of(f"{told}: {times}"))
    if verdict["noise"]:
        lines.append(text_of(verdict["noise"], "yellow"))
    if verdict["loss"] is not None:
        lines.append(text_of(_loss(verdict)))
    return lines


def _loss(verdict: Mapping[str, Any]) -> str:
    allowed = f"{show_small(verdict['max_loss'])} allowed ({verdict['loss_kind']})"
    told = f"loss {show_small(verdict['loss'])} of {allowed}"
    if verdict["metric_before"] is None or verdict["metric_after"] is None:
        return told
    return f"{told}; metric {verdict['metric_before']:.4f} -> {verdict['metric_after']:.4f}"
