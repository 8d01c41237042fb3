"""Options that several commands share, small readers of their values, and the way to stdout."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

THREADS = click.IntRange(1, 1024)
SECONDS = click.FloatRange(0, 3600)
BUILD_SECONDS = click.FloatRange(0, min_open=True)


class Bytes(click.ParamType[int]):
    """A number of bytes: ``800m``, ``4g``, or plain."""

    name = "bytes"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        """Read it."""
        if isinstance(value, int):
            return value
        digits, unit = (value[:-1], value[-1].lower()) if value[-1:].isalpha() else (value, "")
        if not digits.isascii() or not digits.isdigit() or unit not in _UNITS:
            self.fail(f"{value!r} is no size such as 800m or 4g", parameter, context)
        return int(digits) * _UNITS[unit]


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
BYTES = Bytes()


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
    """``1,8,64`` as a tuple; empty when not given."""
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
        if not equals or not (size.isascii() and size.isdigit()):
            raise click.BadParameter(f"{pair!r} is not NAME=SIZE, such as batch=2")
        found[name] = int(size)
    return found


@contextmanager
def models_speak_aside() -> Iterator[None]:
    """What a model prints while it is loaded or run goes to stderr: stdout is for the result alone."""
    with redirect_stdout(sys.stderr):
        yield


def emit_json(data: Any) -> None:
    """One JSON object on stdout; NaN and infinity, which JSON lacks, are null."""
    click.echo(json.dumps(_finite(data), indent=1, allow_nan=False, default=str))


def _finite(data: Any) -> Any:
    if isinstance(data, float) and not math.isfinite(data):
        return None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, (list, tuple)) else data
