"""The builder's own process: ``python -m backends.inductor.child``, spoken to by ``backends.child``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.fx.experimental import _config

from backends.base import WEIGHTS_FILE
from backends.child import Progress, serve
from backends.inductor import toolchain, wrapper
from backends.inductor.forms import forms
from backends.inductor.library import Library
from backends.inductor.package import describe
from backends.inductor.prepare import prepared
from ir import WHILE, Arg, Graph, TensorType, Value, interpret, parse
from ir.dims import evaluate, symbols_of
from ir.errors import BuildError, IRError, MissingError, PenstockError, ResourceError
from ir.reexport import example_inputs, param_attributes, to_exported
from ir.weights import load

_TAIL = 4
_ASSUMED = 2
_ROUGH = 0.05
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
    # torch likes to take every dynamic size to be two at least, and x[-2:] of one row then has two: first without
    ways = (True, False) if any(bounds.min < _ASSUMED for bounds in graph.dims.values()) else (False,)
    for exact in ways:
        try:
            body, flags = _compile(made, request, exact, progress)
            _check(graph, request)
            break
        except (BuildError, IRError) as error:
            if exact is ways[-1]:
                Path(request["package"]).unlink(missing_ok=True)
                raise BuildError(error.what) from error
    progress("done", 1.0)
    return {
        "facts": wrapper.facts(body),
        "flow": [[p.node, p.lowering, p.evidence, p.detail, p.lazy] for p in wrapper.flow(made, body)],
        "flags": list(flags),
    }


def _compile(
    graph: Graph, request: dict[str, Any], exact: bool, progress: Progress
) -> tuple[wrapper.Part, tuple[str, ...]]:
    """Weights stay outside of the package, unless the compiler made constants of its own out of them.

    ``exact``: no size is taken to be two at least.
    """
    from torch._inductor import config, cpu_vec_isa

    progress("export", 0.05)
    with _config.patch(backed_size_oblivious=exact):
        program = to_exported(graph, forms=forms(request["kind"]), strict=exact)
    if request["kind"] == "cuda":
        from torch.export.passes import move_to_device_pass

        # by number: a tensor says cuda:0 of itself, and torch compares the words
        program = move_to_device_pass(program, f"cuda:{torch.cuda.current_device()}")
    progress("compile", 0.2)
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
            with _config.patch(backed_size_oblivious=exact), _no_conclusions(exact):
                known = {name: value for name, value in settings.items() if _is_setting(name)}
                torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=known)
        except Exception as error:  # its own errors and those of g++ have no kind in common; told in one line
            raise _told(error) from error
        text = wrapper.source(package)
        if inside or wrapper.constants(text) <= outside.keys():
            break
    return wrapper.read(text), flags


def _is_setting(name: str) -> bool:
    """Whether this torch knows a setting: those that only save time came one by one."""
    from torch._inductor import config

    return name in config._config


@contextmanager
def _no_conclusions(exact: bool) -> Iterator[None]:
    """A library checks no guards, so what one supposed (a size is not one) must not be concluded from elsewhere."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    kept = ShapeEnv._refine_ranges
    if exact:
        ShapeEnv._refine_ranges = lambda self, expr: None
    try:
        yield
    finally:
        ShapeEnv._refine_ranges = kept


def _check(graph: Graph, request: dict[str, Any]) -> None:
    """Run the library once with the smallest sizes, where what was assumed of sizes shows, against the meaning.

    Shapes and types must agree, and floats roughly; only a loop, which might not end on random numbers, is not run.

    Raises:
        BuildError: the library computes something else.
    """
    if any(node.op is WHILE for node in graph.walk()):
        return
    sizes = {name: max(bounds.min, 1) for name, bounds in graph.dims.items()}
    inputs = example_inputs(graph, sizes)
    try:
        want = interpret(graph, inputs)
    except Exception:  # noqa: BLE001  (random numbers are no indices, say: nothing to compare with)
        return
    try:
        found = Library(Path(request["package"]), Path(request["folder"]) / WEIGHTS_FILE, None)(inputs)
    except PenstockError as error:
        raise BuildError(error.what) from error
    for (name, value), returned in zip(want.items(), graph.body.returned.args, strict=True):
        tensor, got = torch.as_tensor(value), found[name]
        if got.numel() == tensor.numel() and _typed(got, returned, sizes):
            got = got.reshape(tensor.shape)  # torch's squeeze also takes an axis that is one long by chance
        if (got.shape, got.dtype) != (tensor.shape, tensor.dtype):
            raise BuildError(
                f"AOTInductor computes {name!r} as {got.dtype} {list(got.shape)} instead of {tensor.dtype} "
                f"{list(tensor.shape)} at the smallest sizes"
            )
        if tensor.dtype.is_floating_point and tensor.numel():
            right, left = tensor.double().nan_to_num(), got.double().nan_to_num()
            if not bool((left - right).abs().amax() <= _ROUGH * (right.abs().amax() + 1e-3)):
                raise BuildError(f"AOTInductor computes other numbers for {name!r} at the smallest sizes")


def _typed(tensor: torch.Tensor, returned: Arg, sizes: Mapping[str, int]) -> bool:
    """Whether an answer has the shape that the type of the value says."""
    if not isinstance(returned, Value) or not isinstance(returned.type, TensorType):
        return False
    shape = returned.tensor.shape
    if any(symbols_of(dim) - sizes.keys() for dim in shape):
        return False
    return tuple(evaluate(dim, sizes) for dim in shape) == tuple(tensor.shape)


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
