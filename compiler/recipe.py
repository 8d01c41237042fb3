"""Recipes: named pipelines, and files that hold one. A recipe is text that parses and prints back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from compiler.pipeline import Pipeline
from ir.errors import UsageError, nearest
from passes import PASSES, parse_passes

CLEAN = (
    "canonicalize-views, canonicalize-scalars, remove-no-ops, match-rms-norm, match-attention, "
    "fold-constants, simplify-masks, merge-common-nodes, drop-dead-nodes"
)
"""What every recipe begins with: the same model, spelled in one way. Exact up to the order of sums."""

PRESETS: Mapping[str, str] = {
    "fp32": f"{CLEAN}, mark-fusion",
    "bf16": f"{CLEAN}, cast-compute, merge-common-nodes, drop-dead-nodes, mark-fusion",
    "int8": f"{CLEAN}, quantize, merge-common-nodes, drop-dead-nodes, mark-fusion",
}
AUTO = ("fp32", "bf16", "int8")
"""What ``auto`` tries, each measured on its own; the fastest within the loss bound stays."""

_MAX_BYTES = 1 << 20
_KEYS = {"version": int, "passes": (str, list), "engine": str, "target": str, "threads": int, "max_loss": (int, float)}


@dataclass(frozen=True)
class Recipe:
    """What to do with a model.

    Attributes:
        name: preset, file or ``custom``.
        passes: per variant, the passes as text. More than one variant: all are tried.
        settings: engine, target, threads, max_loss, where the recipe says so.
    """

    name: str
    passes: Mapping[str, str]
    settings: Mapping[str, Any]

    def pipelines(self) -> dict[str, Pipeline]:
        """A checked pipeline per variant."""
        return {name: Pipeline(*parse_passes(text, PASSES)) for name, text in self.passes.items()}

    def text(self) -> str:
        """YAML that reads back as this recipe."""
        only = next(iter(self.passes.values())) if len(self.passes) == 1 else self.name
        return yaml.safe_dump({"version": 1, **self.settings, "passes": only}, sort_keys=False, width=1000)


def recipe(reference: str) -> Recipe:
    """A recipe by preset name, by file (``.yaml``), or as the text of its passes.

    Raises:
        UsageError: no such preset, file, pass or option; unknown key.
    """
    if reference == "auto":
        return Recipe("auto", {name: PRESETS[name] for name in AUTO}, {})
    if reference in PRESETS:
        return Recipe(reference, {reference: PRESETS[reference]}, {})
    if reference.endswith((".yaml", ".yml")):
        return _from_file(Path(reference))
    names = {p.name for p in PASSES}
    first = reference.partition("{")[0].partition(",")[0].strip()
    if first in names:
        parse_passes(reference, PASSES)
        return Recipe("custom", {"custom": reference}, {})
    known = ["auto", *PRESETS, *sorted(names)]
    raise UsageError(f"there is no recipe {reference!r}", hint=nearest(first, known))


def _from_file(path: Path) -> Recipe:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"recipe {path} is larger than {_MAX_BYTES} bytes")
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path} is not YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"recipe {path} is not a mapping", hint="write keys such as passes: and max_loss:")
    for key, value in raw.items():
        if key not in _KEYS:
            raise UsageError(f"recipe {path}: unknown key {key!r}", hint=nearest(str(key), list(_KEYS)))
        if not isinstance(value, _KEYS[key]) or isinstance(value, bool):  # type: ignore[arg-type]
            raise UsageError(f"recipe {path}: {key} has the wrong type: {value!r}")
    if raw.get("version") != 1:
        raise UsageError(f"recipe {path}: version is {raw.get('version')!r}, this Penstock reads 1", hint="version: 1")
    base = recipe(_passes_text(raw.get("passes", "auto"), path))
    settings = {k: v for k, v in raw.items() if k not in ("version", "passes")}
    return Recipe(path.stem, base.passes, settings)


def _passes_text(passes: Any, path: Path) -> str:
    if isinstance(passes, str):
        return passes
    if all(isinstance(p, str) for p in passes):
        return ", ".join(passes)
    raise UsageError(f"recipe {path}: passes is a list of texts such as quantize{{keep=2}}")
