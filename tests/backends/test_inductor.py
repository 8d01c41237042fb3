"""AOTInductor: what cannot be shared with the other engines' tests, for a build takes half a minute."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from backends import BuildOptions, Device, backend
from backends.inductor import toolchain, wrapper
from backends.inductor.backend import _remarks
from backends.inductor.package import describe, described
from backends.inductor.prepare import prepared, refused
from ir import Graph, interpret, parse, show, verify
from ir.errors import BuildError, MissingError, ResourceError, UntrustedError
from ir.weights import save
from tests.backends.cases import SIZES, Built, Call, engine_of
from tests.backends.operators import FAMILIES
from tests.conformance.judge import compare
from tests.conformance.regions import EXIT, LOOP, NESTED

C = Call
INDUCTOR = backend("inductor")


def _graph(text: str, **weights: torch.Tensor) -> Graph:
    graph = parse(text.lstrip(), weights)
    verify(graph)
    return graph


def _w() -> dict[str, torch.Tensor]:
    return {"w": torch.randn(4, 4, generator=torch.Generator().manual_seed(0)) * 0.5}


# --- without a build -----------------------------------------------------------------------------

HEAD = 'penstock-ir 1\ngraph "g"\ndim n [1, 64]\ninput %x: f32[n, 4] "x"\n'


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("%y: f32[n, 4] = aten.rand_like.default(%x)\nreturn \"y\" %y", "random"),
        ("%y: f32[n, 4] = aten.dropout.default(%x, 0.5, True)\nreturn \"y\" %y", "random"),
        ("%s: f32[] = aten.sum.default(%x)\n%f: float = aten.item.default(%s)\n%g: float = sym.mul(%f, 2.0)\n"
         "%b: bool = sym.gt(%g, 1.0)\n%y: f32[n, 4] = cond(%b, [%x]) do\nregion(%a: f32[n, 4])\n  return %a\nend\n"
         "region(%c: f32[n, 4])\n  return %c\nend\nreturn \"y\" %y", "float number"),
    ],
)  # fmt: skip
def test_refuses_with_a_reason(body: str, words: str) -> None:
    assert any(words in fault.reason for fault in INDUCTOR.unsupported(_graph(HEAD + body + "\n")))


def test_dropout_that_drops_nothing_is_carried() -> None:
    body = '%y: f32[n, 4] = aten.dropout.default(%x, 0.5, False)\nreturn "y" %y\n'
    assert INDUCTOR.unsupported(_graph(HEAD + body)) == []


def test_predicates_of_sizes_become_tensors() -> None:
    graph = _graph(NESTED, **_w())
    made = prepared(graph, "cpu", narrow=False)
    assert list(refused(graph)) == []
    assert [str(n.args[0].type) for n in made.walk() if n.op.name == "cond"] == ["bool[]"] * 2  # type: ignore[union-attr]
    assert not [n for n in made.walk() if n.op.name == "sym.gt"]
    for rows in (2, 3):
        inputs = {"x": torch.randn(rows, 4)}
        torch.testing.assert_close(interpret(made, inputs), interpret(graph, inputs), rtol=0, atol=0)


SOUND = """
void AOTInductorModel::run_impl(
) {
    cpp_fused_amax_gt_0(a, b);
    if (buf1_scalar) {
        cpp_fused_clone_1(a);
    } else {
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(a, b, c));
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(a, b, c));
    }
    buf1.reset();
} // AOTInductorModel::run_impl
"""


def test_a_branch_is_read_from_the_generated_code() -> None:
    graph, body = _graph(EXIT, **_w()), wrapper.read(SOUND)
    (proof,) = wrapper.flow(graph, body)
    assert (proof.lowering, proof.evidence, proof.lazy) == ("if", "structural", True)
    assert wrapper.facts(body)["matmuls"] == 2
    assert wrapper.facts(body)["kernels"] == 2


@pytest.mark.parametrize("fault", ["hoisted", "no branch"])
def test_work_outside_of_its_branch_is_no_proof(fault: str) -> None:
    """The planted bug: the untaken side computed all the same."""
    product = "        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(a, b, c));\n"
    text = SOUND.replace("    if (", product[4:] + "    if (") if fault == "hoisted" else SOUND.replace("_scalar", "")
    (proof,) = wrapper.flow(_graph(EXIT, **_w()), wrapper.read(text))
    assert (proof.evidence, proof.lazy) == ("none", False)


def test_what_a_library_needs_of_the_processor() -> None:
    assert toolchain.architecture("avx512 avx512_vnni") in ("x86-64-v4", None)
    assert {"avx512f", "avx512_vnni", "fma"} <= set(toolchain.required("avx512 avx512_vnni", "-mavx512f"))
    assert "amx_bf16" in toolchain.required("avx512 avx512_vnni amx_tile", "-mavx512bf16 -mamx-bf16")
    assert toolchain.required("asimd", "") == ()


def test_cuda_without_a_gpu_and_a_missing_compiler_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = _graph(EXIT, **_w())
    save(graph.weights, tmp_path / "weights.safetensors")
    assert not torch.cuda.is_available()
    assert INDUCTOR.why_not(Device("l4", "cuda", 89)) == "AOTInductor for CUDA is built on the CUDA machine itself"
    with pytest.raises(MissingError, match="CUDA machine"):
        INDUCTOR.build(graph, tmp_path, BuildOptions(device=Device("l4", "cuda", 89)))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "nothing")
    with pytest.raises(MissingError, match=r"C\+\+ compiler") as caught:
        INDUCTOR.build(graph, tmp_path)
    assert caught.value.hint == "apt install g++"
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


def test_packages_that_are_none(tmp_path: Path) -> None:
    save({}, tmp_path / "weights.safetensors")
    with pytest.raises(UntrustedError):
        INDUCTOR.load(tmp_path)
    (tmp_path / "engine.pt2").write_bytes(b"no archive")
    with pytest.raises(UntrustedError):
        INDUCTOR.load(tmp_path)
    with pytest.raises(UntrustedError):
        described({"penstock": "[]"}, tmp_path)
    graph = _graph(EXIT, **_w())
    found = described(describe(graph, "cpu", ["avx2"], {"p0_w": "w"}), tmp_path)
    assert (found.inputs, found.outputs, found.weights) == (("x",), ("z",), {"p0_w": "w"})


def test_a_slow_or_broken_compiler_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = _graph(EXIT, **_w())
    save(graph.weights, tmp_path / "weights.safetensors")
    with pytest.raises(ResourceError, match="within 1 s"):
        INDUCTOR.build(graph, tmp_path, BuildOptions(timeout=1.0))
    broken = tmp_path / "broken-g++"
    broken.write_text(
        '#!/bin/sh\ncase "$*" in *-o*) echo "x.cpp:1: error: it is broken" >&2; exit 1;; esac\nexec g++ "$@"\n'
    )
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(BuildError, match="it is broken"):
        INDUCTOR.build(graph, tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("penstock-inductor")]
    assert not (tmp_path / "engine.pt2").exists()


# --- one build each ------------------------------------------------------------------------------

INT8 = [
    C("penstock.int8_linear_static.default", "f32[n,m,24]", "%i8[16,24]", "%f32[16]+", "%f32[16]", "%f32[]+", 120),
    C("penstock.int8_linear_static.default", "f32[n,24]", "%i8[16,24]", "%f32[16]+", None, "%f32[24]+", 128),
    C("penstock.int8_linear_dynamic.default", "f32[n,24]", "%i8[16,24]", "%f32[16]+", "%f32[16]"),
    C("penstock.quantize_rows.default", "f32[n,24]"),
]  # fmt: skip
INT8_ATTENTION = C(
    "penstock.int8_attention.default", "f32[n,2,m,8]", "$0", "$0", "bool[n,1,1,m]", 0.3, 0.02, 0.02, 0.02
)
# one row is not two: torch would take it for granted that n is two at least
LAST_ROWS = C("slice.Tensor", "f32[n,4]", 0, -2)
FEW = [c for name, calls in FAMILIES.items() if name not in ("recurrent", "numbers", "quantized") for c in calls[3::24]]


def _faults(calls: list[Call], folder: Path) -> list[str]:
    built = Built(calls)
    verify(built.graph)
    assert INDUCTOR.unsupported(built.graph) == []
    run = engine_of("inductor", built.graph, folder)
    faults = []
    for seed, sizes in enumerate(SIZES):
        inputs = built.inputs(sizes, seed)
        want, got = interpret(built.graph, inputs), run(inputs)
        assert list(got) == list(want)
        verdicts = {name: compare(want[name], got[name]) for name in want}
        faults += [f"{name} at {sizes}: {v}" for name, v in verdicts.items() if v.kind not in ("exact", "close")]
    return faults


def test_some_operators_of_each_family_and_int8(tmp_path: Path) -> None:
    assert not (faults := _faults([*FEW, *INT8, LAST_ROWS], tmp_path)), "\n".join(faults)
    # sums of rows are made of the weights when the engine is loaded, not stored
    with zipfile.ZipFile(tmp_path / "engine.pt2") as archive:
        assert max(i.file_size for i in archive.infolist() if i.filename.endswith(".so")) < 4_000_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["engine.pt2", "weights.safetensors"]


# both kinds of region, nested; a predicate of sizes; what is returned is an input, a weight, a number, twice the same
_LOOP = LOOP.rpartition("return")[0].replace("input %limit", 'state %held: f32[4] "held"\ninput %limit')
_BRANCHES = NESTED[NESTED.index("%n1") : NESTED.rindex("return")].replace("%y:", "%z:").replace("[%x, ", "[%y, ")
EVERYTHING = f"""{_LOOP}{_BRANCHES}
%new: f32[4] = aten.mean.dim(%z, [0])
%flat: f32[4, 4] = aten.t.default(%w)
return "i" %i, "z" %z, "x" %x, "w" %flat, "n" %n1, "again" %z, state "held" %new
"""


def test_regions_states_and_what_is_returned(tmp_path: Path) -> None:
    graph = _graph(EVERYTHING, **_w())
    heard: list[str] = []
    save(graph.weights, tmp_path / "weights.safetensors")
    built = INDUCTOR.build(graph, tmp_path, BuildOptions(stem="part", progress=lambda phase, _: heard.append(phase)))
    run = INDUCTOR.load(tmp_path, threads=1, stem="part")
    assert heard == ["read", "export", "compile", "done"]
    assert [(p.lowering, p.evidence, p.lazy) for p in built.flow] == [
        (lowering, "structural", True) for lowering in ("loop", "if", "if", "if")
    ]
    assert (built.facts["ifs"], built.facts["loops"]) == (3, 1)
    assert built.facts == run.facts()
    before = torch.get_num_threads()
    for rows, limit in ((1, 2), (2, 1), (3, 0), (5, 5)):
        for sign in (1, -1):
            x = sign * (torch.rand(rows, 4) + 0.1)
            inputs = {"x": x, "limit": torch.tensor(limit), "held": torch.ones(4)}
            want, got = interpret(graph, inputs), run(inputs)
            assert list(got) == list(want)
            for name, tensor in want.items():
                torch.testing.assert_close(got[name], torch.as_tensor(tensor), rtol=1e-5, atol=1e-6)
            assert len({t.untyped_storage().data_ptr() for t in (*got.values(), *inputs.values())}) == 10
            got["w"].zero_()  # the caller's own copy
    assert torch.get_num_threads() == before
    needs = built.requires["cpu"].split()
    assert not toolchain.missing(needs)
    assert toolchain.missing([*needs, "no_such_feature"]) == ["no_such_feature"]


# --- slow: everything ------------------------------------------------------------------------------


@pytest.mark.slow
def test_int8_attention_runs_in_float_and_says_so(tmp_path: Path) -> None:
    assert not (faults := _faults([INT8_ATTENTION], tmp_path)), "\n".join(faults)
    assert INDUCTOR.load(tmp_path).facts()["int8_matmuls"] == 0
    built = Built([INT8_ATTENTION])
    assert "float32" in _remarks(built.graph, "cpu", narrow=False, frozen=False)[0]


@pytest.mark.slow
def test_a_build_that_would_be_wrong_at_a_size_of_one_is_refused(tmp_path: Path) -> None:
    """The recurrent one makes torch take n for two at least; then the last two rows of one would be two."""
    (recurrent,) = [c for c in FAMILIES["recurrent"] if c.name == "aten.lstm.input"][:1]
    with pytest.raises(BuildError, match="at the smallest sizes"):
        _faults([recurrent, LAST_ROWS], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


def test_a_kit_for_cuda_is_the_graph_and_finishing_needs_the_machine(tmp_path: Path) -> None:
    built = Built([Call("relu", "f32[n,4]")])
    save(built.graph.weights, tmp_path / "weights.safetensors")
    options = BuildOptions(Device("h100_sxm", "cuda", 90))
    made = INDUCTOR.kit(built.graph, tmp_path, options)
    assert made is not None and "build-on-target" in made.remarks[0]
    assert (tmp_path / "engine.kit.ir").read_text() == show(built.graph)
    with pytest.raises(MissingError, match="on the CUDA machine itself"):
        INDUCTOR.finish(tmp_path, options)
