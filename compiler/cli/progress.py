"""Shows the phases of a long command: a spinner on a terminal, one line per phase elsewhere."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.events import Event


class Progress:
    """A listener for ``compiler.events``; a context manager, so that the spinner always ends.

    The estimate of the time left is what the same phases took on this machine last time.
    """

    def __init__(self, title: str, level: int = 0) -> None:
        """``level``: -1 quiet, 0 normal, 1 verbose."""
        from rich.console import Console

        self._title = title
        self._level = level
        self._console = Console(stderr=True, highlight=False)
        self._status: Any = None
        self._file = _history_file()
        self._known: dict[str, float] = _read(self._file).get(title, {})
        self._taken: dict[str, float] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        if error is None and self._taken:
            _write(self._file, self._title, self._taken)

    def __call__(self, event: Event) -> None:
        """Hear of an event."""
        if event.kind == "end":
            self._taken[event.phase] = event.seconds
        if event.phase == "ir":
            self._stop()
            print(event.text, end="", file=sys.stderr)  # noqa: T201  (asked for by --print-ir-after)
            return
        if self._level < 0:
            return
        if event.phase == "progress":  # of a builder: shown where it can be overwritten, nowhere else
            if self._status is not None:
                self._status.update(event.text)
            return
        if event.kind == "begin" and self._console.is_terminal:
            self._status = self._console.status(
                f"{event.phase}: {event.text}{self._eta(event.phase)}", refresh_per_second=2
            )
            self._status.start()
        elif event.kind == "note":
            self._console.print(f"    {event.text}", markup=False, soft_wrap=True)
        elif event.kind == "end":
            self._stop()
            self._console.print(f"[green]✓[/green] {event.phase:<10} {event.seconds:6.1f} s  ", end="")
            self._console.print(event.text, markup=False, soft_wrap=True)

    def _eta(self, phase: str) -> str:
        seconds = self._known.get(phase)
        return f"  (about {seconds:.0f} s, as last time)" if seconds and seconds >= 1 else ""

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def _history_file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "penstock" / "phases.json"


def _read(file: Path) -> dict[str, dict[str, float]]:
    with suppress(OSError, ValueError, AttributeError, TypeError, RecursionError):  # whatever stands there
        if file.stat().st_size < 1 << 20:
            raw = json.loads(file.read_text())
            return {title: {phase: float(s) for phase, s in taken.items()} for title, taken in raw.items()}
    return {}


def _write(file: Path, title: str, taken: dict[str, float]) -> None:
    with suppress(OSError):  # a missing estimate is no reason to fail
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = dict(list(_read(file).items())[-100:])
        known[title] = known.get(title, {}) | {phase: round(seconds, 2) for phase, seconds in taken.items()}
        aside = file.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(known))
        os.replace(aside, file)
