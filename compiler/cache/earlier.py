"""Compiles that were done before: their key, finding them, keeping them. A cache never fails a compile."""

from __future__ import annotations

import inspect
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends import BACKENDS
from compiler.artifact import AFTER, Artifact, penstock_version
from compiler.cache.cache import Cache
from compiler.cache.key import Components, digest_samples, digest_tensors, digest_text
from compiler.capture.inputs import flatten_inputs
from compiler.events import Phases
from compiler.pipeline.recipe import Recipe
from compiler.settings import Settings
from compiler.spec import ModelSpec
from ir import Graph, show
from ir.errors import PenstockError


@dataclass(frozen=True)
class Earlier:
    """What an equal, earlier compile left."""

    id: str
    graph: Graph
    report: Mapping[str, Any]


def components(spec: ModelSpec, graph: Graph, recipe: Recipe, settings: Settings) -> Components:
    """All that decides what a compile gives."""
    asked = f"max_loss={settings.max_loss} nonfinite={settings.allow_nonfinite} metric={_source(spec.metric)}"
    asked += f" max_drop={settings.max_drop} rows={_source(spec.row_quality)}" if settings.max_drop else ""
    parts = [s for part in spec.exit_samples.values() for s in part] if settings.max_drop else []
    return Components(
        ir=digest_text(show(graph)),
        weights=digest_tensors(graph.weights, graph.initial),
        recipe=f"{recipe.text()}{asked}",
        target=settings.target,
        engine=settings.engine,
        engine_version=", ".join(f"{b.name} {b.version()}" for b in BACKENDS if b.name in (settings.engine, "auto")
                                 or settings.engine == "auto"),
        threads=str(settings.threads or ""),
        penstock=f"{penstock_version()} {_own_source()}",
        calibration=digest_samples([flatten_inputs(s) for s in (spec.example_inputs, *spec.calibration, *parts)]),
    )  # fmt: skip


def _own_source() -> str:
    """Digest of Penstock's own code: between two versions a checkout changes, and with it what a compile gives."""
    root = Path(__file__).parents[2]
    files = sorted(f for room in ("ir", "passes", "backends", "compiler") for f in (root / room).rglob("*.py"))
    return digest_text("".join(digest_text(f.read_text(encoding="utf-8")) for f in files))[:16]


def _source(metric: Callable[..., Any] | None) -> str:
    """Digest of the file that defines a metric: another metric may choose another engine.

    One that has no file (typed in, or built) is equal to no other: such a compile is never taken from the cache.
    """
    if metric is None:
        return ""
    try:
        file = inspect.getsourcefile(metric if inspect.isroutine(metric) else type(metric))
        return digest_text(Path(file or "").read_text(encoding="utf-8"))
    except (OSError, TypeError, UnicodeDecodeError):
        return secrets.token_hex(16)


def earlier(made_from: Components, folder: Path, phases: Phases) -> Earlier | None:
    """Copy the artifact of an equal compile into ``folder``, if there is one; else the folder is empty."""
    try:
        cache = Cache()
        found = cache.fetch(made_from.key, folder)
        if found is None:
            phases.note("cache", f"nothing to take: {cache.why_miss(made_from)}")
            return None
        kept = _read(found)
        phases.note("cache", f"equal compile of {found.manifest.created}: artifact and figures are of then")
        return kept
    except (PenstockError, ValueError, LookupError) as error:
        phases.note("cache", f"not used: {str(error).splitlines()[0]}")
        for file in folder.iterdir():
            file.unlink()
        return None


def _read(found: Artifact) -> Earlier:
    return Earlier(found.id, found.graph(AFTER), json.loads(found.read("report.json")))


def keep(made_from: Components, folder: Path, phases: Phases) -> None:
    """Keep a copy of a sealed artifact for the next equal compile."""
    try:
        Cache().publish(made_from.key, folder)
    except PenstockError as error:
        phases.note("cache", f"not kept: {error.what}")
