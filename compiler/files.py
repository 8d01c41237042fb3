"""Files that a user names: read with one clear error each, written whole or not at all."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from compiler.artifact import storage_errors
from ir import Graph, parse, verify
from ir import weights as weight_files
from ir.errors import IRError, ResourceError, UntrustedError, UsageError


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        UsageError: no such file.
        UntrustedError: it is not text.
        ResourceError: it may not be read.
    """
    with _reading(path):
        return decode(path.read_bytes(), str(path))


def decode(content: bytes, name: str) -> str:
    """Bytes as UTF-8 text."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UntrustedError(f"{name} is not text (UTF-8)") from error


def read_tensors(path: Path) -> weight_files.Weights:
    """The tensors of a safetensors file, memory-mapped; errors as in ``read_text``."""
    from safetensors import SafetensorError

    with _reading(path):
        with path.open("rb"):  # says what is wrong more clearly than safetensors
            pass
        try:
            return weight_files.load(path)
        except SafetensorError as error:
            raise UntrustedError(f"{path} is not a safetensors file: {error}") from error


def read_ir(text: str, weights: weight_files.Weights | None = None) -> Graph:
    """A verified graph of IR text.

    Raises:
        ParseError: the text is not IR; names the line.
        UntrustedError: it is, but the graph is not well formed.
    """
    try:
        with _torch_unheard():
            graph = parse(text, weights)
            verify(graph)
    except IRError as error:
        raise UntrustedError(f"the IR text is not well formed: {error.what}", where=error.where) from error
    return graph


@contextmanager
def _torch_unheard() -> Iterator[None]:
    """Shapes that do not fit come back as an error with their line; torch would also print its own stack."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A file to write to; what is written stands at ``path`` when the block ends well, and nowhere otherwise.

    Raises:
        UsageError: ``path`` cannot name a file.
        ResourceError: no space, no permission.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a directory, not a file")
    if not path.parent.is_dir():
        raise UsageError(f"there is no directory {path.parent}")
    if path.exists() and not path.is_file():  # a pipe or a device cannot be replaced
        with storage_errors(path):
            yield path
        return
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with storage_errors(path):
            yield aside
            os.replace(aside, path)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            aside.unlink()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise UsageError(f"no such file: {path}") from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(f"{path} is not a file") from error
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {error.strerror}") from error
