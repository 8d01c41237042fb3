"""TVM on the CPU: kernels of every processor, branches, rows that the data chooses, models. Operators: conformance."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backends import backend
from backends.tvm import link
from backends.tvm.child import build
from backends.tvm.cpu.target import cpu_here, flags_here, named
from backends.tvm.engine import TvmEngine
from ir import DimRange, Graph, TensorType, interpret, op, parse, show, symbol, verify
from ir.errors import MissingError, ResourceError
from ir.weights import save
from tests.backends.cases import Built, Call
from tests.conformance.models import case
from tests.conformance.regions import LOOP


def engine_of(graph: Graph, folder: Path, level: str = "") -> TvmEngine:
    """Built in this process, which saves an import of torch and TVM; one test goes through the child."""
    save(graph.weights, folder / "weights.safetensors")
    request = {"text": show(graph), "folder": str(folder), "stem": "engine", "level": level}
    build(request, lambda phase, fraction: None)
    return TvmEngine(folder, "engine", 1)


_WIDE = [
    Call("linear", "f32[n,m,32]", "%f32[70,32]", "%f32[70]"),
    Call("addmm", "%f32[50]", "f32[m,7]", "%f32[7,50]"),
    Call("layer_norm", "f32[n,m,32]", [32], "%f32[32]", "%f32[32]", 1e-5),
    Call("rms_norm", "f32[n,m,32]", [32], "%f32[32]", 1e-6),
    Call("softmax.int", "f32[n,m,37]", -1),
    Call("scaled_dot_product_attention", "f32[n,4,m,20]", "f32[n,2,19,20]", "f32[n,2,19,32]", enable_gqa=True),
    Call("scaled_dot_product_attention", "f32[n,2,m,32]", "$0", "$0", "bool[n,1,1,m]"),
    Call("scaled_dot_product_attention", "f32[n,2,m,32]", "$0", "$0", "f32[1,2,m,m]", scale=0.2),
    Call("scaled_dot_product_attention", "f32[n,2,m,32]", "$0", "$0", None, 0.0, True),
    Call("gelu", "f32[n,32]"), Call("exp", "f32[n,12]!"), Call("tanh", "f32[n,12]!"), Call("erf", "f32[n,12]!"),
]  # fmt: skip

_KINDS = [c for i, c in enumerate(_WIDE) if i not in (1, 7, 8)]
"""One of each kernel: products with the weight first, and masks of floats or none, take the same ones."""


@pytest.mark.parametrize("level", ["vnni", "avx2", "portable"])
def test_kernels_of_every_processor(level: str, tmp_path: Path) -> None:
    if not flags_here().issuperset(named(level).flags):
        assert cpu_here().level != level  # such code cannot run here; the levels below are tried
        return
    built = Built(_WIDE if level == "avx2" else _KINDS)
    run = engine_of(built.graph, tmp_path, level)
    for seed, sizes in enumerate(({"n": 2, "m": 3}, {"n": 1, "m": 21}, {"n": 3, "m": 64})):
        inputs = built.inputs(sizes, seed)
        want, got = interpret(built.graph, inputs), run(inputs)
        for name in want:
            torch.testing.assert_close(got[name], want[name], rtol=2e-5, atol=5e-6, equal_nan=True)


@pytest.mark.parametrize("level", ["vnni", "avx2", "portable"])
@pytest.mark.parametrize("kind", ["dynamic", "static", "smooth"])
def test_int8_products_are_exact(kind: str, level: str, tmp_path: Path) -> None:
    if not flags_here().issuperset(named(level).flags):
        assert cpu_here().level != level
        return
    graph = Graph("int8", {"n": DimRange(1, 64)})
    x = graph.add_input("input", "x", TensorType(torch.float32, (symbol("n"), 5, 70)))
    made = torch.Generator().manual_seed(0)
    weight = graph.add_param("w", torch.randint(-127, 128, (50, 70), generator=made, dtype=torch.int8))
    scale = graph.add_param("s", torch.rand(50, generator=made) * 0.01 + 0.001)
    bias = graph.add_param("b", torch.randn(50, generator=made))
    if kind == "dynamic":
        node = graph.insert(op("penstock.int8_linear_dynamic.default"), x, weight, scale, bias)
    else:
        # powers of two: no rounding of the quotient can fall to the other side
        steps = torch.full((70,), 2.0**-5) if kind == "smooth" else torch.tensor(2.0**-5)
        step = graph.add_param("x_scale", steps)
        node = graph.insert(op("penstock.int8_linear_static.default"), x, weight, scale, bias, step, 120)
    graph.returns(graph.insert(op("aten.relu.default"), node.result).result)
    run = engine_of(graph, tmp_path, level)
    assert run.facts()["int8_matmuls"] == run.facts()["matmuls"] == 1
    for rows in (1, 7):
        inputs = {"x": torch.randn(rows, 5, 70, generator=torch.Generator().manual_seed(rows))}
        want = interpret(graph, inputs)
        torch.testing.assert_close(run(inputs), want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("level", ["vnni", "avx2", "portable"])
@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_weights_of_few_bits_are_read_as_they_are_stored(kind: str, level: str, tmp_path: Path) -> None:
    if not flags_here().issuperset(named(level).flags):
        assert cpu_here().level != level
        return
    graph = Graph("weights", {"n": DimRange(1, 64)})
    x = graph.add_input("input", "x", TensorType(torch.float32, (symbol("n"), 3, 64)))
    made = torch.Generator().manual_seed(0)
    bias = graph.add_param("b", torch.randn(50, generator=made))
    if kind == "int4":
        codes = graph.add_param("w", torch.randint(0, 256, (50, 32), generator=made, dtype=torch.uint8))
        scale = graph.add_param("s", torch.rand(50, 2, generator=made) * 0.1)
        weight = graph.insert(op("penstock.dequantize_int4.default"), codes, scale, 32).result
    else:
        codes = graph.add_param("w", torch.randint(-127, 128, (50, 64), generator=made, dtype=torch.int8))
        scale = graph.add_param("s", torch.rand(50, generator=made) * 0.01)
        name = "quantized_decomposed.dequantize_per_channel.default"
        weight = graph.insert(op(name), codes, scale, None, 0, -127, 127, torch.int8).result
    graph.returns(graph.insert(op("aten.linear.default"), x, weight, bias).result)
    run = engine_of(graph, tmp_path, level)
    assert run.facts()["weight_only_matmuls"] == run.facts()["matmuls"] == 1
    told = json.loads((tmp_path / "engine.tvm.json").read_text())["arguments"]
    assert [kind for kind, _ in told] == ["input", "packed", "packed", "packed"]  # the float weight is made nowhere
    for rows in (1, 7):
        inputs = {"x": torch.randn(rows, 3, 64, generator=torch.Generator().manual_seed(rows))}
        torch.testing.assert_close(run(inputs), interpret(graph, inputs), rtol=1e-5, atol=1e-4)


def _flow(text: str) -> Graph:
    torch.manual_seed(0)
    graph = parse(text.lstrip(), {"w": torch.randn(4, 4) * 0.5})
    verify(graph)
    return graph


def test_operators_taken_apart_stand_beside_each_other(tmp_path: Path) -> None:
    """Their sizes are those of the graph: with names of their own TVM did not compute them."""
    built = Built([Call("lift", "f16[n,4]"), Call("ravel", "f16[n,4]"), Call("mish", "f32[n,12]!")])
    run, inputs = engine_of(built.graph, tmp_path), built.inputs({"n": 5, "m": 3})
    for name, want in interpret(built.graph, inputs).items():
        torch.testing.assert_close(run(inputs)[name], want, equal_nan=True)


def test_nan_is_a_truth_and_no_number(tmp_path: Path) -> None:
    """LLVM's ``!=`` is false of NaN; shrinking and large negative numbers through gelu lost it or grew."""
    calls = [Call("ne.Tensor", "f32[n,4]?", "f32[4]"), Call("to.dtype", "f16[n,4]?", torch.bool)]
    calls += [Call(n, "f32[n,4]?") for n in ("softshrink", "hardshrink", "logical_not")]
    calls += [Call("linalg_vector_norm", "f32[n,4]?", 0, [1], True), Call("gelu", "f32[n,12]!", approximate="tanh")]
    calls += [Call("avg_pool1d", "i64[n,4,9]", 2)]
    calls += [Call("sort.stable", "i8[n,20]<4", stable=True, dim=1)]
    calls += [
        Call("sign", "bool[n]"),
        Call("neg", "u8[n]"),
        Call("maximum", "bool[n]", "bool[n]"),
        Call("minimum", "bool[n]", "bool[n]"),
    ]
    # of bf16 under a name TVM reads the bits
    calls += [Call("argmax", "bf16[n,4]"), Call("logsumexp", "bf16[n,4]", [1])]
    built = Built(calls)
    run, inputs = engine_of(built.graph, tmp_path), built.inputs({"n": 5, "m": 3})
    for name, want in interpret(built.graph, inputs).items():
        torch.testing.assert_close(run(inputs)[name], want, equal_nan=True)


def test_loops_are_refused() -> None:
    found = backend("tvm").unsupported(_flow(LOOP))
    assert [(f.op, f.reason) for f in found] == [("while", "loops are driven by the host (segments)")]


_ROWS = """
penstock-ir 1
graph "rows"
dim n [1, 64]
dim u0 [0, inf]
input %x: f32[n, 4] "x"
input %live: bool[n] "live"
param %w: f32[4, 4] "w"
%at: i64[u0, 1] = aten.nonzero.default(%live)
%flat: i64[u0] = aten.squeeze.dim(%at, 1)
%rows: f32[u0, 4] = aten.index_select.default(%x, 0, %flat)
%made: f32[u0, 4] = aten.linear.default(%rows, %w)
%back: f32[n, 4] = aten.index_copy.default(%x, 0, %flat, %made)
return "y" %back
"""


def test_only_live_rows_are_computed(tmp_path: Path) -> None:
    graph = _flow(_ROWS)
    run = engine_of(graph, tmp_path)
    for live in ([1, 0, 1, 1], [0, 0, 0], [1], [1, 1]):
        inputs = {"x": torch.randn(len(live), 4), "live": torch.tensor(live, dtype=torch.bool)}
        torch.testing.assert_close(run(inputs), interpret(graph, inputs))


def test_an_index_out_of_range_does_not_go_unseen(tmp_path: Path) -> None:
    built = Built([Call("embedding", "%f32[10,4]", "i64[n,m]<10")])
    run = engine_of(built.graph, tmp_path)
    (made,) = run({"x1": torch.tensor([[3, 10, -1]])}).values()
    assert made[0, 0].isfinite().all() and made[0, 1:].isnan().all()


QUICK = ("bert", "gpt2", "llama", "mixtral", "vit", "resnet", "early_exit", "compaction")
SLOW = ("qwen3", "qwen3_moe", "whisper_encoder", "llama_decode", "t5_encoder", "mamba", "nested_cond",
        "tied", "running_mean")  # fmt: skip


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.long) for n in SLOW)])
def test_model_equals_eager(name: str, tmp_path: Path) -> None:
    graph, samples, tolerance = case(name)
    run = engine_of(graph, tmp_path)
    for inputs, wanted in samples:
        got = run(inputs)
        for key, expected in wanted.items():
            torch.testing.assert_close(got[key], expected, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.slow
def test_a_size_that_no_input_shows_is_refused() -> None:
    found = backend("tvm").unsupported(case("unet_block")[0])  # its images are multiples of a hidden size
    assert {f.op for f in found} == {"input"} and "no input has a dim of size" in found[-1].reason


_NO_TORCH = """
import json, sys, pathlib, numpy
sys.modules["torch"] = None  # tvm_ffi reads it where it is installed
import tvm
from safetensors.numpy import load_file
folder = pathlib.Path(sys.argv[1])
told = json.loads((folder / "engine.tvm.json").read_text())
weights = {"param": load_file(folder / "weights.safetensors")}
weights["packed"] = load_file(folder / "engine.packed.safetensors")
given = load_file(folder / "given.safetensors")
args = [tvm.runtime.tensor(weights[k][n] if k in weights else given[n]) for k, n in told["arguments"]]
machine = tvm.runtime.vm.VirtualMachine(tvm.runtime.load_module(str(folder / "engine.so")), tvm.cpu())
results = machine["main"](*args)
assert sys.modules["torch"] is None
print(json.dumps([numpy.asarray(r.numpy()).tolist() for r in results]))
"""


def test_built_in_a_child_and_run_without_torch(tmp_path: Path) -> None:
    built = Built(_WIDE[:3])
    save(built.graph.weights, tmp_path / "weights.safetensors")
    phases: list[str] = []
    from backends import BuildOptions

    made = backend("tvm").build(built.graph, tmp_path, BuildOptions(progress=lambda phase, _: phases.append(phase)))
    assert phases[0] == "emit" and phases[-1] == "link"
    assert made.requires["apache-tvm-ffi"] == "0.1.14.post1" and made.facts["matmuls"] == 2
    inputs = built.inputs({"n": 2, "m": 3})
    save(inputs, tmp_path / "given.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", _NO_TORCH, str(tmp_path)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    want = interpret(built.graph, inputs)
    for found, expected in zip(json.loads(done.stdout), want.values(), strict=True):
        torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-5, atol=1e-5)


def test_a_build_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    from backends import BuildOptions

    built = Built(_WIDE[:1])
    save(built.graph.weights, tmp_path / "weights.safetensors")
    with pytest.raises(ResourceError, match="did not finish"):
        backend("tvm").build(built.graph, tmp_path, BuildOptions(timeout=0.1))


def test_another_ffi_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.1.15.post2" if name == "apache-tvm-ffi" else real(name))
    with pytest.raises(MissingError) as caught:
        backend("tvm").unsupported(Built(_WIDE[:1]).graph)
    assert 'pip install "apache-tvm-ffi==0.1.14.post1"' in caught.value.hint


def test_equal_graphs_give_equal_libraries(tmp_path: Path) -> None:
    built = Built(_WIDE[:4])
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        engine_of(built.graph, tmp_path / name)
        files.append((tmp_path / name / "engine.so").read_bytes())
    assert files[0] == files[1]


def test_no_linker_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(link, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="no linker"):
        engine_of(Built(_WIDE[:1]).graph, tmp_path)
