"""Options that several commands share, and small readers of their values."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def common(command: F) -> F:
    """``--json``, ``-q``, ``-v``."""
    command = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")(command)
    command = click.option("-q", "--quiet", is_flag=True, help="Only the result and errors.")(command)
    return click.option("-v", "--verbose", is_flag=True, help="Remarks of every pass; traces of bugs.")(command)


def trust(command: F) -> F:
    """``--trust-pickle``."""
    told = "Load a .pt2 file although that can run code from it."
    return click.option("--trust-pickle", is_flag=True, help=told)(command)


def level(quiet: bool, verbose: bool) -> int:
    """-1 quiet, 0 normal, 1 verbose."""
    return -1 if quiet else int(verbose)


def numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    """``1,8,64`` as a tuple."""
    if value is None:
        return ()
    try:
        found = tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of whole numbers such as 1,8,64") from None
    if any(n < 1 for n in found):
        raise click.BadParameter("sizes begin at 1")
    return found


def sizes(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> dict[str, int]:
    """``batch=2`` pairs as a mapping."""
    found = {}
    for pair in value:
        name, equals, size = pair.partition("=")
        if not equals or not size.isdigit():
            raise click.BadParameter(f"{pair!r} is not NAME=SIZE, such as batch=2")
        found[name] = int(size)
    return found


def emit_json(data: Any) -> None:
    """One JSON object on stdout."""
    json.dump(data, sys.stdout, indent=1, allow_nan=False, default=str)
    sys.stdout.write("\n")
