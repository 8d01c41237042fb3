"""How to compile: every setting, with its default and its bounds."""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from compiler.pipeline.recipe import recipe
from ir.errors import UsageError, nearest

CHECKS = ("none", "each", "full")
TASKS = ("", "generate")


@dataclass(frozen=True)
class Settings:
    """How to compile. Every field is an argument of ``compile`` and an option of the command line.

    Attributes:
        target: name of the machine to compile for, several separated by commas, or ``all``.
        recipe: preset, recipe file, or passes as text.
        engine: ``auto`` tries every usable one (for a GPU: the first that can); ``all`` keeps one of each; or its name.
        build_timeout: seconds that one builder may take.
        build_memory: bytes that one builder may hold; ``None``: no bound.
        threads: of the engine and of the baseline; ``None``: every core.
        max_loss: largest loss against the original (relative metric drop, or one minus the worst cosine).
        max_drop: largest mean loss by rows that leave early, a share or a text such as ``0.5%``; ``None``: none do.
            Of ``generate``: the share of tokens that may be other than the model's own.
        check: ``none``, ``each`` (well-formed after each pass, types at the end), ``full``.
        seconds: to spend on timing each candidate.
        force: replace an artifact that is there.
        allow_nonfinite: compile although weights hold NaN or infinity.
        dump: folder for the IR after each pass.
        print_ir_after: name of a pass; the IR after it goes to the listener.
        dry_run: stop before building engines.
        task: ``generate``: a language model with a cache; empty: inputs to outputs.
        draft: of ``generate``: layers of an engine that drafts tokens; 0: none.
        cache: take the artifact of an equal earlier compile, if there is one.
    """

    target: str = "cpu"
    recipe: str = "auto"
    engine: str = "auto"
    threads: int | None = None
    max_loss: float = 0.01
    max_drop: float | None = None
    check: str = "each"
    seconds: float = 2.0
    force: bool = False
    allow_nonfinite: bool = False
    dump: Path | None = None
    print_ir_after: str = ""
    dry_run: bool = False
    cache: bool = True
    task: str = ""
    draft: int = 0
    build_timeout: float = 1800.0
    build_memory: int | None = None


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Settings from names and values; what is not given comes from the recipe, then from the defaults.

    Raises:
        UsageError: an unknown name, or a value that cannot be meant.
    """
    known = [f.name for f in fields(Settings)]
    for key in given:
        if key not in known:
            raise UsageError(f"compile has no setting {key!r}", hint=nearest(key, known))
    hints = typing.get_type_hints(Settings)
    if isinstance(given.get("max_drop"), str):
        given = {**given, "max_drop": share(given["max_drop"])}
    values = {key: _typed(key, value, hints[key]) for key, value in given.items()}
    from_recipe = dict(recipe(values.get("recipe", Settings.recipe)).settings)
    if isinstance(from_recipe.get("max_drop"), str):
        from_recipe["max_drop"] = share(from_recipe["max_drop"])
    settings = Settings(**{**from_recipe, **values})
    if settings.check not in CHECKS:
        raise UsageError(f"check is {settings.check!r}", hint=nearest(settings.check, list(CHECKS)))
    if settings.task not in TASKS:
        raise UsageError(f"task is {settings.task!r}", hint=nearest(settings.task, [t for t in TASKS if t]))
    if settings.draft and settings.task != "generate":
        raise UsageError("draft is for language models", hint="--task generate")
    if not 0 <= settings.max_loss <= 2:
        raise UsageError(f"max_loss is {settings.max_loss}, not between 0 and 2")
    if settings.max_drop is not None and not 0 < settings.max_drop <= 1:
        raise UsageError(f"max_drop is {settings.max_drop:g}, not above 0 and at most 1", hint="0.5% or 0.005")
    if settings.max_drop is not None and settings.task == "generate" and not settings.draft:
        raise UsageError("max_drop is for tokens of the first layers, and no layers are given", hint="--draft 3")
    if settings.threads is not None and not 1 <= settings.threads <= 1024:
        raise UsageError(f"threads is {settings.threads}, not between 1 and 1024")
    if not 0 <= settings.seconds <= 3600:
        raise UsageError(f"seconds is {settings.seconds}, not between 0 and 3600")
    if not settings.build_timeout > 0:
        raise UsageError(f"build_timeout is {settings.build_timeout}, not above 0")
    if settings.build_memory is not None and settings.build_memory < 1 << 20:
        raise UsageError(f"build_memory is {settings.build_memory} bytes; less than a megabyte builds nothing")
    return settings


def share(text: str) -> float:
    """A share from ``0.5%`` or ``0.005``.

    Raises:
        UsageError: it is neither.
    """
    digits = text.strip()
    try:
        return float(digits[:-1]) / 100 if digits.endswith("%") else float(digits)
    except ValueError:
        raise UsageError(f"max_drop is {text!r}", hint="write 0.5% or 0.005") from None


def _typed(name: str, value: Any, want: Any) -> Any:
    kinds = typing.get_args(want) or (want,)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if Path in kinds and isinstance(value, str):
        return Path(value)
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds:
        return float(value)
    if isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)):
        return value
    told = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
    raise UsageError(f"{name} takes {told}, not {value!r}")
