"""What the training commands share: checkpoints that are written whole and read with no trust, and a progress bar."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

FOLDER = Path(__file__).parent / "checkpoints"
QUIET_SECONDS = 10.0
Tell = Callable[[int, str], None]


def read_checkpoint(
    path: Path, form: str, wanted: Callable[[Mapping[str, str]], Mapping[str, Tensor]], remedy: str
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and weights of a safetensors file.

    Args:
        path: of the file.
        form: what its metadata must call its format.
        wanted: from metadata to tensors, on the meta device for all it matters, of which the file must have
            exactly the names, shapes and dtypes; raises ValueError if the metadata makes no sense.
        remedy: the command that makes such a file.

    Raises:
        ir.errors.UsageError: there is no such file.
        ir.errors.UntrustedError: it is not safetensors, of another format, or has other weights, or one is not finite.
    """
    from safetensors import SafetensorError, safe_open

    from ir.errors import UntrustedError, UsageError

    if not path.is_file():
        raise UsageError("there is no checkpoint", where=str(path), hint=f"`{remedy}` trains one")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            if metadata.get("format") != form:
                raise ValueError(f"its metadata does not say {form!r}")
            names = list(file.keys())
            expected = wanted(metadata)
            if wrong := sorted(set(names) ^ set(expected)):
                raise ValueError(f"weights are missing or foreign: {', '.join(wrong[:3])}")
            for name, tensor in expected.items():
                shape = file.get_slice(name).get_shape()
                if list(shape) != list(tensor.shape):
                    raise ValueError(f"{name} is {list(shape)}, not {list(tensor.shape)}")
            weights = {name: file.get_tensor(name) for name in expected}
        for name, weight in weights.items():
            if weight.dtype != expected[name].dtype:
                raise ValueError(f"{name} is {weight.dtype}, not {expected[name].dtype}")
            if not weight.isfinite().all():
                raise ValueError(f"{name} is not finite")
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise UntrustedError(
            f"this is no checkpoint of format {form!r}: {error}",
            where=str(path),
            hint=f"take the file of the repository, or make it anew with `{remedy}`",
        ) from error
    return metadata, weights


def write_aside(path: Path, content: bytes) -> None:
    """Write the whole file or, should that fail, keep the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def progress(title: str, total: int) -> Iterator[Tell]:
    """A bar with the time left on a terminal; elsewhere a line every ten seconds. To be told steps done and a note."""
    if not sys.stderr.isatty():
        yield _quietly(title, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda step, note: bar.update(task, completed=step, **({"description": note} if note else {}))


def _quietly(title: str, total: int) -> Tell:
    began = last = time.monotonic()
    latest = ""

    def tell(step: int, note: str) -> None:
        nonlocal last, latest
        now, latest = time.monotonic(), note or latest
        if now - last >= QUIET_SECONDS:
            last = now
            print(f"{title} {step}/{total}, {now - began:.0f} s {latest}", file=sys.stderr, flush=True)

    return tell
