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
    table = table_of(
        "targets", "target", "device", "engine", "precision", "state", "one run", "loss", "MB", "build s", "verified",
        wide=("target", "device", "engine", "precision", "state", "verified"),
    )  # fmt: skip
    for row in rows:
        style = _STYLES.get(row["state"], "")
        engine = row["engine"].split(" ")[0]
        ran = row["milliseconds"]
        told = "-" if ran is None else f"{show_seconds(ran / 1e3)} {'(pred.)' if row['tier'] == 'predicted' else ''}"
        table.add_row(
            text_of(row["target"], style), text_of(short(row["device"], 40)), text_of(engine or "-"),
            text_of(row["precision"] or "-"), text_of(row["state"] + (", cached" if row["cached"] else ""), style),
            told, show_small(row["loss"]), f"{row['megabytes']:.1f}" if row["megabytes"] else "-",
            f"{row['build_seconds']:.1f}" if row["build_seconds"] else "-", text_of(row["verified"] or "-"),
        )  # fmt: skip
    console.print(table, width=width, highlight=False)
    for row in rows:
        if row["why"]:
            on = f" on {row['engine']}" if row["engine"] else ""
            line = f"{row['target']}{on}: {short(row['why'], 300)}"
            console.print(text_of(line, _STYLES.get(row["state"], "")), width=width, highlight=False)
    if any(row["tier"] == "predicted" for row in rows):
        note = "(pred.): from the cost model; nothing was run on these GPUs"
        console.print(text_of(note, "dim"), width=width, highlight=False)
