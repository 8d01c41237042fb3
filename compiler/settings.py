"""How to compile: every setting, with its default and its bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from compiler.recipe import recipe
from ir.errors import UsageError, nearest

CHECKS = ("none", "each", "full")


@dataclass(frozen=True)
class Settings:
    """How to compile. Every field is an argument of ``compile`` and an option of the command line.

    Attributes:
        target: name of the machine to compile for.
        recipe: preset, recipe file, or passes as text.
        engine: ``auto`` tries every usable one; or its name.
        threads: of the engine and of the baseline; ``None``: every core.
        max_loss: largest loss against the original (relative metric drop, or one minus the worst cosine).
        check: ``none``, ``each`` (well-formed after each pass, types at the end), ``full``.
        seconds: to spend on timing each candidate.
        force: replace an artifact that is there.
        allow_nonfinite: compile although weights hold NaN or infinity.
        dump: folder for the IR after each pass.
        print_ir_after: name of a pass; the IR after it goes to the listener.
        dry_run: stop before building engines.
        cache: take the artifact of an equal earlier compile, if there is one.
    """

    target: str = "cpu"
    recipe: str = "auto"
    engine: str = "auto"
    threads: int | None = None
    max_loss: float = 0.01
    check: str = "each"
    seconds: float = 2.0
    force: bool = False
    allow_nonfinite: bool = False
    dump: Path | None = None
    print_ir_after: str = ""
    dry_run: bool = False
    cache: bool = True


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Settings from names and values; what is not given comes from the recipe, then from the defaults.

    Raises:
        UsageError: an unknown name, or a value that cannot be meant.
    """
    known = [f.name for f in fields(Settings)]
    for key in given:
        if key not in known:
            raise UsageError(f"compile has no setting {key!r}", hint=nearest(key, known))
    from_recipe = recipe(str(given.get("recipe", "auto"))).settings
    settings = Settings(**{**from_recipe, **given})
    if settings.check not in CHECKS:
        raise UsageError(f"check is {settings.check!r}", hint=nearest(settings.check, list(CHECKS)))
    if not 0 <= settings.max_loss <= 2:
        raise UsageError(f"max_loss is {settings.max_loss}, not between 0 and 2")
    if settings.threads is not None and not 1 <= settings.threads <= 1024:
        raise UsageError(f"threads is {settings.threads}, not between 1 and 1024")
    return settings
