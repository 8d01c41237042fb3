"""The builder's own process: ``python -m backends.inductor.child``, spoken to by ``backends.child``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch.fx.experimental import _config

from backends.base import WEIGHTS_FILE
from backends.child import Progress, serve
from backends.inductor import toolchain, wrapper
from backends.inductor.forms import forms
from backends.inductor.package import describe
from backends.inductor.prepare import prepared
from ir import WHILE, Graph, parse
from ir.errors import BuildError, IRError, MissingError, ResourceError
from ir.reexport import param_attributes, to_exported
from ir.weights import load

_TAIL = 4
_ERROR = re.compile(r"\b(error|fatal|undefined reference|No space left|Killed)\b")


def build(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Compile one graph.

    Args:
        request: ``ir``, ``folder``, ``package``: paths; ``kind``: of the device; ``freeze``: whether weights are
            packed for oneDNN, which puts them into the package.
        progress: hears of phases.
    """
    progress("read", 0.0)
    folder = Path(request["folder"])
    graph = parse(Path(request["ir"]).read_text("utf-8"), load(folder / WEIGHTS_FILE))
    made = prepared(graph, request["kind"], narrow=request["freeze"] or request["kind"] == "cuda")
    progress("export", 0.05)
    # left alone, torch takes every dynamic size to be two at least, and x[-2:] of one row to have two
    with _config.patch(backed_size_oblivious=True):
        try:
            program = to_exported(made, forms=forms(request["kind"]))
        except IRError as error:
            raise BuildError(error.what) from error
        if request["kind"] == "cuda":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, "cuda")
        progress("compile", 0.2)
        body, flags = _compile(made, program, request)
    progress("done", 1.0)
    return {
        "facts": wrapper.facts(body),
        "flow": [[p.node, p.lowering, p.evidence, p.detail, p.lazy] for p in wrapper.flow(made, body)],
        "flags": list(flags),
    }


def _compile(graph: Graph, program: Any, request: dict[str, Any]) -> tuple[wrapper.Part, tuple[str, ...]]:
    """Weights stay outside of the package, unless the compiler made constants of its own out of them."""
    import torch
    from torch._inductor import config, cpu_vec_isa

    package = Path(request["package"])
    with config.patch({"cpp.vec_isa_ok": True}):  # what it would try, by compiling, is true of every wheel of torch
        isa = cpu_vec_isa.pick_vec_isa()
    words = str(isa) if request["kind"] == "cpu" else ""
    flags = toolchain.required(words, isa.build_arch_flags())
    names = {attribute: name for name, attribute in param_attributes(graph).items()}
    for inside in (True,) if request["freeze"] else (False, True):
        outside = {} if inside else names
        settings: dict[str, Any] = {
            "aot_inductor.package_constants_in_so": inside,
            "aot_inductor.metadata": describe(graph, request["kind"], flags, outside),
            "aot_inductor.check_lowerbound": False,  # a size of one is legal
            "aot_inductor.precompile_headers": False,  # longer to make than this one use of it saves
            "aot_inductor.enable_line_tables": False,
            "aot_inductor.enable_frame_pointer": False,
            "cpp.dynamic_threads": True,
            "cpp.vec_isa_ok": True,
            "freezing": request["freeze"],
        }
        if any(node.op is WHILE for node in graph.walk()):
            # a loop that never runs hands out its initial values, whose memory inductor takes to be free by then
            # (torch 2.13; pytorch issue 146213): another result would be written over them
            settings |= {"allow_buffer_reuse": False, "inplace_buffers": False}
        if request["kind"] == "cpu":
            settings["cpp.march"] = toolchain.architecture(words)
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=settings)
        except Exception as error:
            raise _told(error) from error
        text = wrapper.source(package)
        if inside or wrapper.constants(text) <= outside.keys():
            break
    return wrapper.read(text), flags


def _told(error: BaseException) -> Exception:
    """What the compiler said last, in one line."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.strerror:
            return ResourceError(f"the build failed: {cause.strerror}")
        if type(cause).__name__ == "InvalidCxxCompiler":
            return MissingError(f"the C++ compiler does not work: {cause}", hint="apt install g++")
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "No space left on device" in text:
        return ResourceError("the build failed: no space left on the device")
    said = [line for line in lines if _ERROR.search(line)][-_TAIL:] or lines[:1]
    return BuildError(f"AOTInductor failed: {'; '.join(said)[:800] or type(error).__name__}")


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


if __name__ == "__main__":
    serve(build)
