"""One test per fault of TVM that we work around. When one fails, TVM has changed and the workaround may go."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import pytest
import torch

from backends.tvm.emit import module_of
from backends.tvm.pipeline import fusing, lowering
from ir import parse

_CHAIN = """
penstock-ir 1
graph "chain"
dim n [1, 64]
input %x: f32[n, 8] "x"
%a: f32[n, 8] = aten.add.Tensor(%x, 1.0)
%b: f32[n, 8] = aten.mul.Tensor(%a, 2.0)
return "y" %b
"""


def _chain() -> Any:
    return module_of(parse(_CHAIN.lstrip())).module


def _target() -> Any:
    import tvm

    return tvm.target.Target({"kind": "llvm"})


def _kernels(module: Any) -> list[str]:
    import tvm

    return [where.name_hint for where, f in module.functions_items() if isinstance(f, tvm.tirx.PrimFunc)]


def test_the_shape_function_is_not_marked_free_of_aliases() -> None:
    """``all_free_of_aliases``: else kernels of modules with symbolic shapes run at half speed."""
    import tvm

    ours = {"AllFreeOfAliases", "ShapeFunctionsInOrder"}
    plain = [p for p in lowering() if p.info.name not in ours]
    with _target():
        module = tvm.transform.Sequential([*fusing(), *plain])(_chain())
    unmarked = [n for n in _kernels(module) if "tirx.noalias" not in dict(module[n].attrs or {})]
    assert unmarked == ["shape_func"]


def test_compile_alone_does_not_fuse_on_llvm() -> None:
    """``fusing``: our own list of passes."""
    import tvm

    text = tvm.compile(_chain(), _target()).as_text()
    assert text.count(" add") + text.count(" mul") >= 2 and "fused" not in text


def test_nothing_is_fused_around_a_branch() -> None:
    """``ConvertToDataflow`` comes first."""
    import tvm
    from tvm import relax

    with _target():
        without = tvm.transform.Sequential([p for p in fusing() if p.info.name != "ConvertToDataflow"][1:])(_chain())
        with_it = tvm.transform.Sequential(fusing())(_chain())
    assert len(_kernels(without)) == 2 and len(_kernels(with_it)) == 1
    assert relax.transform.ConvertToDataflow is not None


def _import(model: torch.nn.Module, *inputs: torch.Tensor) -> Any:
    from tvm.relax.frontend.torch import from_exported_program

    return from_exported_program(torch.export.export(model, inputs))


def test_the_stock_importer_drops_mutation() -> None:
    """``module_of``: our own emission."""

    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += 1
            return x + self.seen

    returned = _import(Counting(), torch.ones(1))["main"].ret_ty
    assert len(returned.fields) == 1  # the new content of the buffer is missing


@pytest.mark.parametrize("name", ["amax", "scatter_add"])
def test_the_stock_importer_lacks_operators(name: str) -> None:
    class Uses(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if name == "amax":
                return x.amax(0)
            return x.scatter_add(0, torch.zeros(1, 2, dtype=torch.int64), x[:1])

    with pytest.raises(AssertionError, match="Unsupported"):
        _import(Uses(), torch.ones(2, 2))


def test_ffi_is_not_pinned_by_tvm_itself() -> None:
    """``payload.FFI``: 0.1.15 crashes this TVM, and pip would take it."""
    wanted = [r for r in metadata.requires("apache-tvm") or [] if r.startswith("apache-tvm-ffi")]
    assert wanted and "<" not in wanted[0] and "==" not in wanted[0]
    assert metadata.version("apache-tvm-ffi") == "0.1.14.post1"


def test_targets_are_no_command_lines() -> None:
    """``Cpu.target`` gives a dictionary."""
    import tvm

    with pytest.raises(ValueError, match="llvm"):
        tvm.target.Target("llvm -mcpu=haswell")


def test_fmod_has_no_lowering() -> None:
    """``remainder_of`` calls libm."""
    import tvm
    from tvm import te, tirx

    x = te.placeholder((4,), "float32")
    function = te.create_prim_func([x, te.compute((4,), lambda i: tirx.fmod(x(i), x(i)))])
    with pytest.raises(tvm.error.InternalError, match="fmod"):
        tvm.tirx.build(tvm.IRModule({"main": function}), target=_target())


def test_nan_is_simplified_away() -> None:
    """``is_nan`` is a call of its own."""
    from tvm import sym, tirx

    x = tirx.Var("x", "float32")
    assert sym.Analyzer().simplify((x != x).asobject()).value == 0


def test_a_reshape_to_no_elements_copies_the_dim() -> None:
    """``Scope.reshape`` makes an empty tensor instead."""
    from tvm import relax

    x = relax.Var("x", relax.TensorType((5, 0), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with pytest.raises(ValueError, match="5, 7"):  # to torch 0 means no elements, to Relax "as it was": 5
            builder.emit(relax.op.reshape(x, relax.ShapeExpr([0, 7])))
        builder.emit_func_output(x)
