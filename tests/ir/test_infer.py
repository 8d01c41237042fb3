"""Result types come from torch's meta kernels, over symbolic shapes; a symbol is never fixed in silence."""

from __future__ import annotations

import re

import pytest
import torch

from ir import Arg, DimRange, Graph, IRError, NoneType, ScalarType, TensorType, Type, Value, op, symbol, verify
from ir.dims import Dim, is_data_symbol, parse_dim, symbols_of

N, M = symbol("n"), symbol("m")


class Bench:
    """A graph with inputs at hand, to ask for the type of one operation."""

    def __init__(self) -> None:
        self.graph = Graph("bench", {"n": DimRange(1, 64), "m": DimRange(2, None)})

    def tensor(self, *shape: Dim | str, dtype: torch.dtype = torch.float32) -> Value:
        dims = tuple(parse_dim(d) if isinstance(d, str) else d for d in shape)
        return self.graph.add_input("input", f"x{len(self.graph.inputs)}", TensorType(dtype, dims))

    def types(self, name: str, *args: Arg, **kwargs: Arg) -> list[Type]:
        return [v.type for v in self.graph.insert(op(name), *args, kwargs=kwargs).results]

    def type(self, name: str, *args: Arg, **kwargs: Arg) -> str:
        return repr(self.types(name, *args, **kwargs)[0])

    def size(self, value: Value, axis: int) -> Value:
        return self.graph.insert(op("aten.sym_size.int"), value, axis).result


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_symbolic_shapes(bench: Bench) -> None:
    x = bench.tensor(N, M, 4)
    assert bench.type("aten.add.Tensor", x, 1.5) == "f32[n, m, 4]"
    assert bench.type("aten.add.Tensor", x, bench.tensor(1, M, 1)) == "f32[n, m, 4]"
    assert bench.type("aten.linear.default", x, bench.tensor(7, 4)) == "f32[n, m, 7]"
    assert bench.type("aten.matmul.default", x, bench.tensor(N, 4, "m + 1")) == "f32[n, m, m + 1]"
    assert bench.type("aten.cat.default", (x, x), 1) == "f32[n, 2*m, 4]"
    assert bench.type("aten.reshape.default", x, (-1, 4)) == "f32[m*n, 4]"
    assert bench.type("aten.reshape.default", x, (bench.size(x, 0), -1)) == "f32[n, 4*m]"
    assert bench.type("aten.slice.Tensor", x, 1, 0, bench.size(x, 0)) in ("f32[n, Min(m, n), 4]", "f32[n, n, 4]")
    assert bench.type("aten.slice.Tensor", x, 1, 0, 2**63 - 1, 2) == "f32[n, FloorDiv(m + 1, 2), 4]"
    assert bench.type("aten.pad.default", x, (1, 1, 0, 3)) == "f32[n, m + 3, 6]"
    assert bench.type("aten.arange.default", bench.size(x, 0)) == "i64[n]"
    assert bench.type("aten.expand.default", bench.tensor(1, 4), (bench.size(x, 0), -1)) == "f32[n, 4]"


def test_dtypes_follow_torch(bench: Bench) -> None:
    x, i = bench.tensor(N), bench.tensor(N, dtype=torch.int64)
    assert bench.type("aten.add.Tensor", i, 1) == "i64[n]"
    assert bench.type("aten.add.Tensor", i, 1.0) == "f32[n]"
    assert bench.type("aten.div.Tensor", i, 2) == "f32[n]"
    assert bench.type("aten.gt.Scalar", x, 0) == "bool[n]"
    assert bench.type("aten.sum.default", bench.tensor(N, dtype=torch.bool)) == "i64[]"
    assert bench.type("aten.add.Tensor", x, bench.tensor(N, dtype=torch.bfloat16)) == "f32[n]"
    assert bench.type("aten.complex.default", x, x) == "c64[n]"


def test_several_results_and_none(bench: Bench) -> None:
    x = bench.tensor(N, 6)
    assert [repr(t) for t in bench.types("aten.split.Tensor", x, 4, 1)] == ["f32[n, 4]", "f32[n, 2]"]
    assert [repr(t) for t in bench.types("aten.topk.default", x, 2)] == ["f32[n, 2]", "i64[n, 2]"]
    assert bench.types("aten._assert_async.default", bench.tensor(dtype=torch.bool)) == []
    flash = "aten._scaled_dot_product_flash_attention_for_cpu.default"
    q = bench.tensor(2, 2, 4, 8)
    assert all(isinstance(t, (TensorType, NoneType)) for t in bench.types(flash, q, q, q))


def test_arithmetic_on_sizes(bench: Bench) -> None:
    x = bench.tensor(N, M)
    n, m = bench.size(x, 0), bench.size(x, 1)
    assert bench.types("sym.mul", n, m) == [ScalarType("int", N * M)]
    assert bench.type("sym.floordiv", n, 2) == "int<FloorDiv(n, 2)>"
    assert bench.type("sym.max", n, 3) == "int<Max(3, n)>"
    assert bench.type("sym.sum", (n, n, 1)) == "int<2*n + 1>"
    assert bench.type("sym.pow", n, 2) == "int<Pow(n, 2)>"
    assert bench.type("sym.truediv", n, 2) == "float"
    assert bench.type("sym.lt", n, 5) == "bool"


def test_an_int_made_of_a_runtime_float_or_bool_is_unknown(bench: Bench) -> None:
    n = bench.size(bench.tensor(N), 0)
    half = bench.graph.insert(op("sym.truediv"), n, 2).result
    small = bench.graph.insert(op("sym.lt"), n, 5).result
    twice = bench.graph.insert(op("sym.mul"), n, 2).result
    for name in ("sym.int", "sym.ceil", "sym.floor", "sym.round", "sym.trunc"):
        assert bench.types(name, half) == [ScalarType("int")]
    assert bench.types("sym.ite", small, n, twice) == [ScalarType("int")]
    assert bench.types("sym.not", small) == [ScalarType("bool")]


@pytest.mark.parametrize(
    ("name", "shapes", "told"),
    [
        ("aten.add.Tensor", ((N, 4), (7, 4)), "n = 7"),
        ("aten.add.Tensor", ((N, 4), (M, 4)), "n = m|m = n"),
        ("aten.matmul.default", ((2, N), (5, 3)), "n = 5"),
    ],
)
def test_specialisation_is_refused_and_names_the_dim(bench: Bench, name: str, shapes: tuple, told: str) -> None:
    left, right = (bench.tensor(*shape) for shape in shapes)
    with pytest.raises(IRError, match=f"{re.escape(name)} holds only for ({told})|does not accept") as caught:
        bench.graph.insert(op(name), left, right)
    assert "n" in caught.value.what
    # and the accident is forgotten: n is free again
    assert bench.type("aten.exp.default", bench.tensor(N, "n + m")) == "f32[n, m + n]"
    assert bench.type("aten.cat.default", (bench.tensor(N, 7), bench.tensor(7, 7))) == "f32[n + 7, 7]"


def test_what_torch_refuses_says_operator_operands_and_reason(bench: Bench) -> None:
    with pytest.raises(IRError, match=r"aten.linear.default does not accept f32\[n, 4\], f32\[3, 5\]: \w+"):
        bench.graph.insert(op("aten.linear.default"), bench.tensor(N, 4), bench.tensor(3, 5))
    with pytest.raises(IRError, match=r"aten.add.Tensor does not accept f32\[n\], \(1, 'a'\)"):
        bench.graph.insert(op("aten.add.Tensor"), bench.tensor(N), (1, "a"))
    with pytest.raises(IRError, match=r"aten.exp.default does not accept"):
        bench.graph.insert(op("aten.exp.default"))


def test_sizes_that_depend_on_the_data_are_new_symbols(bench: Bench) -> None:
    mask = bench.tensor(N, dtype=torch.bool)
    rows = bench.graph.insert(op("aten.nonzero.default"), mask).result
    more = bench.graph.insert(op("aten.nonzero.default"), bench.tensor(M, dtype=torch.bool)).result
    sizes = [rows.tensor.shape[0], more.tensor.shape[0]]
    assert all(is_data_symbol(name) for size in sizes for name in symbols_of(size))
    assert sizes[0] != sizes[1]
    assert rows.tensor.shape[1] == 1
    picked = bench.graph.insert(op("aten.squeeze.dim"), rows, 1).result
    got = bench.graph.insert(op("aten.index_select.default"), bench.tensor(N, 4), 0, picked).result
    assert got.tensor.shape == (sizes[0], 4)
    assert bench.types("aten.item.default", bench.tensor()) == [ScalarType("float")]
    bench.graph.returns(got)
    verify(bench.graph)


def test_a_range_that_only_allows_small_sizes_is_kept(bench: Bench) -> None:
    graph = Graph("tiny", {"k": DimRange(1, 3)})
    x = graph.add_input("input", "x", TensorType(torch.float32, (symbol("k"), 4)))
    assert repr(graph.insert(op("aten.cumsum.default"), x, 0).result.type) == "f32[k, 4]"


def test_results_are_remembered_per_operand_types(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = bench.tensor(N, 4), bench.tensor(N, 4)
    bench.type("aten.exp.default", x)
    monkeypatch.setattr(bench.graph.typer, "_derive", lambda node: pytest.fail("derived again"))
    assert bench.type("aten.exp.default", y) == "f32[n, 4]"


def test_literals_of_different_types_are_different(bench: Bench) -> None:
    i = bench.tensor(N, dtype=torch.int64)
    assert bench.type("aten.mul.Tensor", i, 1) == "i64[n]"
    assert bench.type("aten.mul.Tensor", i, 1.0) == "f32[n]"
    assert bench.type("aten.mul.Tensor", i, True) == "i64[n]"
