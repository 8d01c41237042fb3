"""What of a model cannot be captured: everything at once, each with the user's line and a way out.

A first export stops at the first fault. A second one is let past each fault with the real values of the
example inputs (``fake_tensor_propagate_real_tensors``, as ``torch.export.draft_export`` does, but without its
log files), and every place where that was needed is written down.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from torch import nn
from torch.export import ExportedProgram

from ir.errors import UnsupportedError
from ir.exported import import_program, short_path

_TORCH = str(Path(torch.__file__).parent) + os.sep
_HERE = str(Path(__file__).parent) + os.sep
_LOGGING = str(Path(logging.__file__).parent) + os.sep
_QUOTED_FRAME = re.compile(r'File "([^"]+)", line (\d+), in \S+\n\s*(.*)')
_QUOTED_ERROR = re.compile(r"""got \w+\((["'])(.*?)\1\)""")
_MISSING_FAKE = re.compile(r"(?:operator|op|for) ['`]?([a-z_]\w*(?:::|\.)\w+(?:\.\w+)?)")

_LOOP = "loop a fixed number of times, work on all rows at once, or use torch.while_loop"
_BRANCH = "use torch.cond(pred, then, otherwise, operands) or torch.where"
_VALUE = "keep it a tensor; a size taken from data needs torch._check(low <= n) right after it"
_EXPERTS = 'build the model with experts_implementation="batched_mm"'
_FAKE = 'tell torch its result shapes: @torch.library.register_fake("{op}")'


@dataclass(frozen=True, slots=True)
class Place:
    """A source line: where, and what stands there."""

    where: str = ""
    code: str = ""

    def __str__(self) -> str:
        return f"{self.where}: `{self.code}`" if self.code else self.where


@dataclass(frozen=True, slots=True)
class Fault:
    """One construct that cannot be carried."""

    what: str
    place: Place
    hint: str

    def __str__(self) -> str:
        at = f" at {self.place}" if self.place.where else ""
        return f"  - {self.what}{at}\n    hint: {self.hint}"


def unsupported(faults: Sequence[str]) -> UnsupportedError:
    """One error that lists all faults, in the form that the importer uses too."""
    return UnsupportedError(f"{len(faults)} construct(s) of the model cannot be carried:\n" + "\n".join(faults))


def collect_faults(model: nn.Module, export: Callable[[], ExportedProgram], error: Exception) -> list[str]:
    """Every fault of a model whose export failed with ``error``; ``export`` tries again.

    Only what the example inputs reach is seen: code behind a branch not taken stays dark.
    """
    found: list[str] = []
    last: Exception | None = None
    with _watching() as watcher, _plain_weights(model):
        try:
            program = export()
        except Exception as again:  # noqa: BLE001  (whatever a model raises is a fault to report)
            last = again
    found += [str(fault) for fault in watcher.faults]
    if last is None:
        try:
            import_program(program, "draft")
        except UnsupportedError as refused:
            found += _entries(refused)
    elif watcher.faults and not _seen(watcher.faults, place_of(last)):
        found.append(str(fault_of(last)))
    if not found:  # real values got it no further: the first error says it best
        found.append(str(fault_of(error)))
    return list(dict.fromkeys(found))


def _seen(faults: Sequence[Fault], place: Place) -> bool:
    return any(fault.place.where == place.where for fault in faults)


def _entries(refused: UnsupportedError) -> list[str]:
    """Faults of an error made by ``unsupported`` or by the importer."""
    _, _, listing = refused.what.partition("\n")
    return [f"  - {entry.rstrip()}" for entry in listing.removeprefix("  - ").split("\n  - ") if entry]


def fault_of(error: Exception) -> Fault:
    """A fault in the user's words."""
    text = str(error)
    kind = type(error).__name__
    place = place_of(error)
    if kind == "GuardOnDataDependentSymNode" or "data-dependent" in text:
        return _data_dependent(place)
    if "UnsupportedOperator" in kind or "Meta" in text or "fake impl" in text or "register_fake" in text:
        operator = _MISSING_FAKE.search(text)
        name = operator.group(1).removesuffix(".default") if operator else "an operator"
        return Fault(f"{name} has no shape rule (fake kernel)", place, _FAKE.format(op=name))
    if "Unsupported output" in text or "Unsupported input" in text or "not a known type" in text.lower():
        found = re.search(r"<class '([^']+)'>", text)
        what = f"a {found[1].rpartition('.')[2]} among the inputs or outputs" if found else first_line(text)
        return Fault(what, place, "use tensors only (transformers: use_cache=False; or wrap the model)")
    if "torch.cond" in text or "while_loop" in text:
        told = "both branches (or each round) return fresh tensors of equal shape, dtype and strides"
        return Fault(first_line(text), place, f"{told}: .clone() what passes through")
    if (isinstance(error, ValueError) and "unpack" in text) or "unbind" in text or "iterat" in text:
        return Fault("a loop over a tensor whose length depends on the data", place, _LOOP)
    return Fault(f"{kind}: {first_line(text)}", place, "rewrite this line with plain tensor operations")


def _data_dependent(place: Place) -> Fault:
    """The line itself tells best what was meant."""
    code = place.code
    if "expert" in code and "transformers/" in place.where:
        return Fault("a choice of experts that depends on the data", place, _EXPERTS)
    if re.match(r"for\b|while\b", code):
        return Fault("a loop that depends on the data", place, _LOOP)
    if re.match(r"(?:el)?if\b|assert\b", code) or " if " in code:
        return Fault("a branch on a value known only at run time", place, _BRANCH)
    return Fault("a number read from a tensor, known only at run time", place, _VALUE)


def place_of(error: BaseException) -> Place:
    """Innermost line of the user's or of library code that an exception went through."""
    frames = [(f.filename, f.lineno or 0, f.line or "") for f in traceback.extract_tb(error.__traceback__)]
    place = _innermost(frames)
    if place.where:
        return place
    # torch.cond traces its branches out of sight and quotes the frames in its message
    quoted = [(name, int(line), code) for name, line, code in _QUOTED_FRAME.findall(str(error))]
    return _innermost(quoted)


def _innermost(frames: Sequence[tuple[str, int, str]]) -> Place:
    """The last line outside of torch and of this package; with its caller when that is a library's."""
    own = [f for f in frames if not f[0].startswith((_TORCH, _HERE, _LOGGING, "<")) and "/importlib/" not in f[0]]
    if not own:
        return Place()
    name, line, code = own[-1]
    where = f"{short_path(name)}:{line}"
    if "-packages/" in name:
        callers = [f for f in own if "-packages/" not in f[0]]
        if callers:
            where += f" (called from {short_path(callers[-1][0])}:{callers[-1][1]})"
    return Place(where, code.strip())


def first_line(text: str) -> str:
    """Where the message of an error says what is wrong; torch adds paragraphs of advice."""
    quoted = _QUOTED_ERROR.search(text)
    if quoted is not None:
        return quoted.group(2).strip()
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")


@dataclass
class _Watcher(logging.Handler):
    """Writes down where torch had to look at a real value, or at a real result of an operator."""

    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    __hash__ = logging.Handler.__hash__

    def emit(self, record: logging.LogRecord) -> None:
        metadata = getattr(record, "metadata", {})
        fault = None
        if "propagate_real_tensors_provenance" in metadata:
            fault = _data_dependent(self._place())
        for key in ("missing_fake_kernel", "mismatched_fake_kernel"):
            if key in metadata:
                op = str(metadata[key]["op"]).replace("::", ".", 1).removesuffix(".default").replace(".", "::", 1)
                what = "has no" if key.startswith("missing") else "has a wrong"
                fault = Fault(f"{op} {what} shape rule (fake kernel)", self._place(), _FAKE.format(op=op))
        if fault is not None and fault not in self.faults:
            self.faults.append(fault)

    def _place(self) -> Place:
        frame: FrameType | None = sys._getframe()
        summary = traceback.StackSummary.extract(traceback.walk_stack(frame), lookup_lines=True)
        return _innermost([(f.filename, f.lineno or 0, f.line or "") for f in reversed(summary)])


@contextlib.contextmanager
def _plain_weights(model: nn.Module) -> Iterator[None]:
    """Parameters as buffers for a while: torch 2.13 reads garbage as the real values of an ``nn.Parameter``."""
    saved = [(module, dict(module._parameters)) for module in model.modules()]
    for module, parameters in saved:
        module._parameters.clear()
        module._buffers.update({name: None if p is None else p.data for name, p in parameters.items()})
    try:
        yield
    finally:
        for module, parameters in saved:
            for name in parameters:
                del module._buffers[name]
            module._parameters.update(parameters)


@contextlib.contextmanager
def _watching() -> Iterator[_Watcher]:
    """Let torch go on with real values, and watch it do so."""
    from torch._functorch import config
    from torch._logging import _internal

    watcher = _Watcher()
    logger = logging.getLogger("torch.__trace")
    before = _internal.GET_DTRACE_STRUCTURED, logger.disabled
    logger.addHandler(watcher)
    logger.disabled = False  # somebody's logging.config may have silenced it
    _internal.GET_DTRACE_STRUCTURED = True
    try:
        with config.patch(fake_tensor_propagate_real_tensors=True, generate_fake_kernels_from_real_mismatches=True):
            yield watcher
    finally:
        _internal.GET_DTRACE_STRUCTURED, logger.disabled = before
        logger.removeHandler(watcher)
