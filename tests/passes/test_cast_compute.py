import pytest
import torch

from ir import interpret, verify
from ir.errors import UsageError
from passes import PASSES, CastCompute, DropDeadNodes, MergeCommonNodes, parse_passes
from tests.passes.case import read, told

BLOCK = """
    dim n [1, 64]
    param %w: f32[32, 16] "up.weight"
    param %v: f32[8, 32] "down.weight"
    input %x: f32[n, 16] "x"
    %h: f32[n, 32] = aten.linear.default(%x, %w)  # up @ model.py:1
    %r: f32[n, 2, 16] = aten.reshape.default(%h, [-1, 2, 16])
    %s: f32[n, 32] = aten.reshape.default(%r, [-1, 32])
    %y: f32[n, 8] = aten.linear.default(%s, %v)  # down @ model.py:2
    return "y" %y
    """


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"up.weight": torch.randn(32, 16), "down.weight": torch.randn(8, 32)}


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_computes_narrow_and_keeps_data_narrow_between(dtype: str) -> None:
    graph = read(BLOCK, weights())
    x = {"x": torch.randn(5, 16)}
    want = interpret(graph, x)["y"]
    said = CastCompute(dtype=dtype).run(graph)
    verify(graph)
    DropDeadNodes().run(graph)
    assert told(said)[:2] == (f"+ computes in {dtype}",) * 2
    assert "+ data moves without a cast" in told(said)
    casts = [n for n in graph if n.op.name == "aten.to.dtype"]
    assert len(casts) == 2  # one in, one out: none between the linears
    assert {t.dtype for t in graph.weights.values()} == {torch.bfloat16 if dtype == "bf16" else torch.float16}
    got = interpret(graph, x)["y"]
    assert got.dtype is torch.float32
    assert torch.nn.functional.cosine_similarity(got, want).min() > 0.999


def test_skip_declines_by_path() -> None:
    assert told(CastCompute(skip=("up",)).run(read(BLOCK, weights())))[0] == "- its path is in skip"


def test_a_second_run_finds_nothing() -> None:
    graph = read(BLOCK, weights())
    for pass_ in (CastCompute(), MergeCommonNodes(), DropDeadNodes()):
        pass_.run(graph)
    version = graph.version
    CastCompute().run(graph)
    assert graph.version == version


def test_unknown_type_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="dtype is one of bf16, f16, not 'int3'"):
        parse_passes("cast-compute{dtype=int3}", PASSES)
