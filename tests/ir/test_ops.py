"""Operators: torch's own by name; nothing that is not an operator, and nothing that touches the world outside."""

from __future__ import annotations

import operator

import pytest
import torch

from ir import COND, RETURN, WHILE, ParseError, op
from ir.ops import SYM_OPS, op_of


@pytest.mark.parametrize(
    "name",
    [
        "aten.add.Tensor",
        "aten.sym_size.int",
        "aten._assert_scalar.default",
        "aten.__and__.Tensor",
        "prims.add.default",
        "penstock.int8_linear_dynamic.default",
        "quantized_decomposed.quantize_per_tensor.default",
        *SYM_OPS,
        "cond",
        "while",
        "return",
    ],
)
def test_an_operator_has_one_name(name: str) -> None:
    found = op(name)
    assert found.name == name
    assert op(name) is found
    if found.target is not None:
        assert op_of(found.target) == found


@pytest.mark.parametrize(
    "name",
    [
        "aten.from_file.default",  # reads
        "aten.save.default",  # writes, a builtin of TorchScript
        "aten._print.default",
        "prim.Print.default",
        "debugprims.load_tensor.default",
        "aten.__class__.__base__",
        "aten.add.__class__",
        "aten.add.op",
        "aten.name.upper",
        "load_library.__func__.__code__",
        "import_module.__func__.__globals__",
        "__path__.a.b",
        "ops.a.b",
        "aten.no_such_operator.default",
        "aten.add.NoSuchOverload",
        "nobody.add.default",
        "aten.add",
        "aten..Tensor",
        "aten.add.Tensor.more",
        "sym.nothing",
        "os.system",
        "add",
        "",
    ],
)
def test_all_else_is_refused(name: str) -> None:
    with pytest.raises(ParseError):
        op(name)


def test_effects_and_randomness() -> None:
    assert op("aten.add.Tensor").pure
    assert op("aten.add_.Tensor").effects
    assert op("aten._assert_async.msg").effects
    assert op("aten.rand_like.default").random
    assert op("aten.dropout.default").random
    assert not op("aten.rand_like.default").pure
    assert RETURN.effects
    assert COND.pure
    assert WHILE.pure


def test_functions_on_sizes() -> None:
    assert op_of(operator.add).name == "sym.add"
    assert op_of(torch.sym_max).name == "sym.max"
    with pytest.raises(KeyError):
        op_of(print)
