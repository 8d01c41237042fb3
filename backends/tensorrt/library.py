"""The package: ``tensorrt_rtx`` (builds for named GPUs, none needed) or datacenter ``tensorrt`` (for the GPU present).

Both come from one source tree. What one lacks is found by ``hasattr``, never by version.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata, util
from typing import Any

import torch

from ir.errors import MissingError

RTX, DATACENTER = "tensorrt_rtx", "tensorrt"
INSTALL = 'pip install "penstock[tensorrt]"'
_NOISE = ("catchCudaError", "CUDA initialization failure", "cudaError 35")
"""What the package says after every call on a machine without a driver."""
_ERROR, _WARNING = 1, 2
TYPES: Mapping[torch.dtype, str] = {
    torch.float32: "FLOAT", torch.float16: "HALF", torch.bfloat16: "BF16", torch.float8_e4m3fn: "FP8",
    torch.int64: "INT64", torch.int32: "INT32", torch.int8: "INT8", torch.uint8: "UINT8", torch.bool: "BOOL",
    torch.float64: "FLOAT",  # only of numbers that Python keeps as doubles; tensors of it are refused
}  # fmt: skip


def package() -> str | None:
    """Which of the two is installed, RTX first."""
    return next((name for name in (RTX, DATACENTER) if util.find_spec(name) is not None), None)


def version(name: str | None = None) -> str | None:
    """Version of the installed package."""
    wanted = [name] if name else [RTX, DATACENTER]
    for distribution in (n for base in wanted for n in (base, base.replace("_", "-"))):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


@lru_cache(maxsize=2)
def library(name: str | None = None) -> Any:
    """The imported package.

    Raises:
        MissingError: it is not installed.
    """
    name = name or package() or RTX
    if util.find_spec(name) is None:
        raise MissingError(f"the Python package {name} is not installed", hint=INSTALL)
    return importlib.import_module(name)


class Log:
    """Everything the package said since the last ``take``; one for the process, as the package wants it."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, str]] = []
        self.logger: Any = None  # kept alive as long as the builder that writes to it

    def take(self) -> tuple[list[str], list[str]]:
        """Errors and warnings, without the noise of a machine that has no driver."""
        said, self.messages = self.messages, []
        heard = [(level, text) for level, text in said if not any(n in text for n in _NOISE)]
        errors = [text for level, text in heard if level <= _ERROR]
        return errors, [text for level, text in heard if level == _WARNING]


@lru_cache(maxsize=2)
def session(name: str | None = None) -> tuple[Any, Log]:
    """A builder and the log that it writes to; a process has one of each."""
    trt = library(name)
    log = Log()

    class Logger(trt.ILogger):  # type: ignore[name-defined]
        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= _WARNING:
                log.messages.append((int(severity), message))

    log.logger = Logger()
    return trt.Builder(log.logger), log


def data_type(trt: Any, dtype: torch.dtype) -> Any:
    """TensorRT's element type, ``None`` when there is none."""
    name = TYPES.get(dtype)
    return None if name is None else getattr(trt.DataType, name, None)


def torch_type(trt: Any, data_type_: Any) -> torch.dtype:
    """The torch element type of a tensor of the network."""
    found = {getattr(trt.DataType, name, None): dtype for dtype, name in TYPES.items() if dtype != torch.float64}
    return found[data_type_]


def sentence(errors: list[str]) -> str:
    """What the package said, short: the first error without paths of its own sources."""
    text = " ".join(errors[0].split()) if errors else "it gave no reason"
    for mark in ("Internal Error: ", "API Usage Error "):
        text = text.rpartition(mark)[2] or text
    return text[:300]
