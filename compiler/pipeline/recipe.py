"""Recipes: named pipelines, and files that hold one. A recipe is text that parses and prints back."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from compiler.cost.targets import Target
from compiler.pipeline.pipeline import Pipeline
from ir.errors import UsageError, nearest
from passes import PASSES, parse_passes

CLEAN = (
    "canonicalize-views, canonicalize-scalars, remove-no-ops, match-rms-norm, match-attention, "
    "fold-constants, simplify-masks, merge-common-nodes, drop-dead-nodes"
)
"""What every recipe begins with: the same model, spelled in one way. Exact up to the order of sums."""

_MARK = "match-rows, mark-fusion"  # last: other passes see weights as such only outside of regions
_TIDY = f"merge-common-nodes, drop-dead-nodes, {_MARK}"
_HALF = f"{CLEAN}, cast-compute{{dtype=f16}}, merge-common-nodes"  # merged: what reads one activation shares its scale

_EXITS = "depth{mode=exit}"  # after all that moves numbers: thresholds are found on the graph that will run

PRESETS: Mapping[str, str] = {
    "fp32": f"{CLEAN}, {_MARK}",
    "bf16": f"{CLEAN}, cast-compute, {_TIDY}",
    "int8": f"{CLEAN}, quantize, {_TIDY}",
    "int8-attention": f"{CLEAN}, quantize, quantize-attention, {_TIDY}",
    "exits": f"{CLEAN}, {_EXITS}, {_TIDY}",
    "int8-exits": f"{CLEAN}, quantize, merge-common-nodes, {_EXITS}, {_TIDY}",
    "fp16": f"{_HALF}, {_TIDY}",
    "fp16-exits": f"{_HALF}, {_EXITS}, {_TIDY}",
    "int8-symmetric": f"{_HALF}, quantize{{symmetric=true}}, {_TIDY}",
    "int8-weights": f"{_HALF}, quantize-weights, {_TIDY}",
    "int4": f"{_HALF}, quantize-weights{{format=int4}}, {_TIDY}",
    "fp8": f"{_HALF}, quantize-floats{{format=fp8}}, {_TIDY}",
    "nvfp4": f"{_HALF}, quantize-floats{{format=nvfp4}}, {_TIDY}",
}
AUTO = ("fp32", "bf16", "int8", "int8-attention")
"""What ``auto`` tries on a processor, each measured on its own; the fastest within the loss bound stays."""
AUTO_EXITS = ("exits", "int8-exits")
"""What it tries as well where a loss by exits is allowed (``max_drop``)."""
GPU_AUTO_EXITS = ("fp16-exits",)
"""The same for GPUs."""

_GPU_AUTO = (
    ("fp16", "fp16"),
    ("bf16", "bf16"),
    ("int8-symmetric", "int8"),
    ("int8-weights", "bf16"),  # weights alone: kernels that unpack into float exist from Ampere on, as bfloat16 does
    ("int4", "bf16"),
    ("fp8", "fp8"),
    ("nvfp4", "fp4"),
)
"""Preset, and the format that a GPU must multiply for it to make sense."""


def gpu_auto(formats: Iterable[str]) -> tuple[str, ...]:
    """What ``auto`` tries for a GPU that multiplies these formats (``Target.peak``)."""
    has = frozenset(formats)
    return tuple(name for name, needs in _GPU_AUTO if needs in has)


_VERSION = 1
_MAX_BYTES = 1 << 16
_KEYS: Mapping[str, tuple[type, ...]] = {
    "version": (int,),
    "passes": (str, list),
    "target": (str,),
    "engine": (str,),
    "threads": (int,),
    "max_loss": (int, float),
    "max_drop": (int, float, str),
    "check": (str,),
    "seconds": (int, float),
}


@dataclass(frozen=True)
class Recipe:
    """What to do with a model.

    Attributes:
        name: preset, file or ``custom``.
        passes: per variant, the passes as text. More than one variant: all are tried.
        settings: of ``compile``, where the recipe says so.
    """

    name: str
    passes: Mapping[str, str]
    settings: Mapping[str, Any]

    def pipelines(self) -> dict[str, Pipeline]:
        """A checked pipeline per variant."""
        return {name: Pipeline(*parse_passes(text, PASSES)) for name, text in self.passes.items()}

    def text(self) -> str:
        """YAML that reads back as this recipe."""
        only = next(iter(self.passes.values())) if len(self.passes) == 1 else "auto"
        return yaml.safe_dump({"version": _VERSION, **self.settings, "passes": only}, sort_keys=False, width=1000)


def variants_for(made: Recipe, target: Target) -> Mapping[str, str]:
    """The passes of each variant that is worth trying on a target; all of them, unless the recipe is ``auto``."""
    if made.name != "auto":
        return made.passes
    if target.kind != "cpu":
        more = GPU_AUTO_EXITS if AUTO_EXITS[0] in made.passes else ()
        return {name: PRESETS[name] for name in (*gpu_auto(target.peak), *more)}
    # without instructions for it, bf16 is no faster
    return {name: text for name, text in made.passes.items() if name != "bf16" or "bf16" in target.peak}


def pipelines_for(made: Recipe, target: Target) -> dict[str, Pipeline]:
    """A checked pipeline per variant that is worth trying on a target."""
    return {name: Pipeline(*parse_passes(text, PASSES)) for name, text in variants_for(made, target).items()}


def with_exits(made: Recipe) -> Recipe:
    """``auto`` with the variants whose rows leave early; other recipes as they are."""
    if made.name != "auto":
        return made
    return Recipe(made.name, {**made.passes, **{name: PRESETS[name] for name in AUTO_EXITS}}, made.settings)


def recipe(reference: str) -> Recipe:
    """A recipe by preset name (or several, ``fp32+int8``), by file (``.yaml``), or as the text of its passes.

    Raises:
        UsageError: no such preset, file, pass or option; unknown key.
    """
    if reference.endswith((".yaml", ".yml")):
        return _from_file(Path(reference))
    return _from_text(reference)


def _from_text(text: str) -> Recipe:
    """Presets, or passes."""
    if text == "auto":
        return Recipe("auto", {name: PRESETS[name] for name in AUTO}, {})
    presets = [part.strip() for part in text.split("+")]
    if all(name in PRESETS for name in presets):
        return Recipe(text, {name: PRESETS[name] for name in presets}, {})
    names = [p.name for p in PASSES]
    first = text.partition("{")[0].partition(",")[0].strip()
    if first not in names:
        known = ["auto", *PRESETS, *names]
        raise UsageError(f"there is no recipe {reprlib.repr(text)}", hint=nearest(first[:40], known))
    Pipeline(*parse_passes(text, PASSES))
    return Recipe("custom", {"custom": text}, {})


def _from_file(path: Path) -> Recipe:
    raw = _read(path)
    settings: dict[str, Any] = {}
    for written, value in raw.items():
        key = str(written).replace("-", "_")
        if key not in _KEYS:
            known = [name.replace("_", "-") for name in _KEYS]
            raise UsageError(
                f"recipe {path}: unknown key {reprlib.repr(written)}", hint=nearest(str(written)[:40], known)
            )
        if not isinstance(value, _KEYS[key]) or isinstance(value, bool):
            wanted = " or ".join(kind.__name__ for kind in _KEYS[key])
            raise UsageError(f"recipe {path}: {written} takes {wanted}, not {reprlib.repr(value)}")
        settings[key] = value
    if settings.pop("version", None) != _VERSION:
        raise UsageError(
            f"recipe {path}: version is {raw.get('version')!r}, this Penstock reads {_VERSION}",
            hint=f"write version: {_VERSION}",
        )
    passes = settings.pop("passes", "auto")
    if isinstance(passes, list) and not all(isinstance(p, str) for p in passes):
        raise UsageError(f"recipe {path}: passes is a list of texts such as quantize{{keep=2}}")
    try:
        base = _from_text(passes if isinstance(passes, str) else ", ".join(passes))
    except UsageError as error:
        raise UsageError(f"recipe {path}: {error.what}", hint=error.hint) from error
    return Recipe(path.stem, base.passes, settings)


def _read(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise UsageError(f"no such recipe: {path}")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"recipe {path} is larger than {_MAX_BYTES} bytes")
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or no such date
        raise UsageError(f"recipe {path} is not YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"recipe {path} is not a mapping", hint="write keys such as passes: and max-loss:")
    return raw
