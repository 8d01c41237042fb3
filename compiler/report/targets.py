"""What came out for several targets: one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from compiler.report.plain import short, show_seconds, show_small
from compiler.report.terminal import WIDTH, table_of, text_of

_STYLES = {"built": "", "kit": "yellow", "failed": "bold red", "refused": "dim"}


def render_targets(rows: Sequence[Mapping[str, Any]], console: Console, width: int = WIDTH) -> None:
    """Print a row per target: what was built, for which device, verified how, how large, how long it took.

    Args:
        rows: of the report of a compile for several targets.
        console: where to.
        width: most columns, however wide the console is.
    """
    width = min(width, console.width)
    table = table_of("targets", "target", "engine", "precision", "state", "one run", "loss", "MB", "build s")
    for column in table.columns[:4]:
        column.justify = "left"
    for row in rows:
        style = _STYLES.get(row["state"], "")
        ran = row["milliseconds"]
        told = "-" if ran is None else f"{'~' if row['tier'] == 'predicted' else ''}{show_seconds(ran / 1e3)}"
        table.add_row(
            text_of(f"{row['target']} ({short(row['device'], 30)})" if row["gpu"] else row["target"], style),
            text_of(row["engine"].split(" ")[0] or "-"), text_of(row["precision"] or "-"),
            text_of(row["state"] + (", cached" if row["cached"] else ""), style),
            told, show_small(row["loss"]), f"{row['megabytes']:.1f}" if row["megabytes"] else "-",
            f"{row['build_seconds']:.1f}" if row["build_seconds"] else "-",
        )  # fmt: skip
    console.print(table, width=width, highlight=False)
    for row in rows:
        if row["why"]:
            on = f" on {row['engine']}" if row["engine"] else ""
            line = f"{row['target']}{on}: {short(row['why'], 300)}"
            console.print(text_of(line, _STYLES.get(row["state"], "")), width=width, highlight=False)
    for how in dict.fromkeys(row["verified"] for row in rows if row["verified"]):
        named = ", ".join(row["target"] for row in rows if row["verified"] == how)
        console.print(text_of(f"verified: {named}: {how}", "dim"), width=width, highlight=False)
    if any(row["tier"] == "predicted" for row in rows):
        note = "~: predicted by the cost model; nothing was run on these GPUs"
        console.print(text_of(note, "dim"), width=width, highlight=False)
