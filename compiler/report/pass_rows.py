"""What each pass of a variant did, bought and cost: rows of the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from compiler.report.job import Job
from compiler.report.plain import starred
from passes import Remark

if TYPE_CHECKING:
    from compiler.pipeline.pipeline import PassRecord


def variant_row(job: Job, variant: str) -> dict[str, Any]:
    """One variant of the recipe, with a row per pass."""
    records = job.records[variant]
    costs = costs_of(records)
    return {
        "predicted_speedup": job.predicted.get(variant),
        "before_seconds": costs[0] if costs else None,
        "after_seconds": costs[-1] if costs else None,
        "nodes": len(job.graphs[variant]) if variant in job.graphs else None,
        "passes": [_pass(record) for record in records],
    }


def costs_of(records: Sequence[PassRecord]) -> list[float]:
    """Predicted seconds before the first pass, and after each that was priced."""
    priced = [r.columns for r in records if "cost" in r.columns]
    if not priced:
        return []
    start = float(priced[0]["cost"]) + float(priced[0].get("saved", 0.0))
    return [start, *(float(columns["cost"]) for columns in priced)]


def _pass(record: PassRecord) -> dict[str, Any]:
    columns = record.columns
    return {
        "name": record.name,
        "changes": record.changes,
        "applied": record.applied,
        "declined": record.declined,
        "ms": columns.get("ms"),
        "nodes": columns.get("nodes"),
        "seconds": columns.get("cost"),
        "saved_seconds": columns.get("saved"),
        "moved": columns.get("moved"),
        "cosine": columns.get("cosine"),
        "dropped": record.dropped,
        "remarks": _folded(record.remarks, bool(record.dropped)),
    }


def _folded(remarks: Sequence[Remark], dropped: bool) -> list[dict[str, Any]]:
    """Equal remarks as one with a count; those that differ in the number of a block are equal."""
    groups: dict[tuple[str, bool, str], list[Remark]] = {}
    for said in remarks:
        groups.setdefault((starred(said.at), said.applied, said.why), []).append(said)
    return [
        {
            "at": pattern if len({said.at for said in same}) > 1 else same[0].at,
            "applied": applied and not dropped,
            "why": f"rolled back with its pass: {why}" if applied and dropped else why,
            "count": len(same),
        }
        for (pattern, applied, why), same in groups.items()
    ]
