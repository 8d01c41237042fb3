"""The backend as the compiler sees it: refusals, builds in a child, requirements, kits, errors."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
import torch

from backends import BuildOptions, Device, backend
from backends.base import DEFAULT
from backends.tensorrt import backend as module
from backends.tensorrt.engine import check_header
from backends.tensorrt.legality import why_not
from backends.tensorrt.library import RTX, library, session, version
from backends.tensorrt.requirements import Requirements, read_requirements
from ir import Graph, interpret, parse
from ir.errors import BuildError, MissingError, PenstockError, ResourceError, UnsupportedError, UntrustedError
from ir.weights import save

TENSORRT = backend("tensorrt")
L4, H100 = Device("l4", "cuda", 89), Device("h100", "cuda", 90)
TEXT = """penstock-ir 1
graph "small"
dim n [1, inf]
input %x: f16[n, 8] "x"
param %w: f16[4, 8] "w"
%y: f16[n, 4] = aten.linear.default(%x, %w)
%z: f16[n, 4] = aten.tanh.default(%y)
return "z" %z
"""


def _graph(text: str = TEXT) -> Graph:
    return parse(text, {"w": torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).half()})


def _folder(graph: Graph, folder: Path) -> Path:
    save(graph.weights, folder / "weights.safetensors")
    return folder


@pytest.mark.parametrize(
    ("capability", "words"),
    [(70, "Volta"), (87, "Orin"), (90, "Hopper"), (100, "Blackwell"), (103, "build-on-target"), (60, "does not know")],
)
def test_why_not(capability: int, words: str) -> None:
    assert words in TENSORRT.why_not(Device("x", "cuda", capability))


def test_datacenter_builds_for_the_gpu_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "present only" in why_not(H100, rtx=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert why_not(H100, rtx=False) == "" and "present only" in why_not(L4, rtx=False)


@pytest.mark.parametrize("capability", [75, 80, 86, 89, 120, 121])
def test_what_it_builds_for(capability: int) -> None:
    assert TENSORRT.why_not(Device("x", "cuda", capability)) == ""
    assert TENSORRT.why_not(Device()) == "tensorrt builds for NVIDIA GPUs only"


def test_everything_unsupported_is_listed_with_its_place() -> None:
    text = """penstock-ir 1
graph "bad"
input %x: f32[4, 8] "x"
input %d: f64[4] "d"
param %w: f16[4, 8] "w"
%a: i64[u0, 2] = aten.nonzero.default(%x)  # gate.pick @ model.py:7
%b: f32[4, 4] = aten.mm.default(%x, %c)  # head @ model.py:9
return "a" %a
"""
    text = text.replace("%b: f32[4, 4] = aten.mm.default(%x, %c)", "%c: f32[8, 4] = aten.t.default(%x)\n"
                        "%b: f32[4, 4] = aten.mm.default(%x, %c)")  # fmt: skip
    graph = parse(text.replace("u0, 2", "u0, 2"), {"w": torch.zeros(4, 8).half()})
    told = "\n".join(map(str, TENSORRT.unsupported(graph, Device("t4", "cuda", 75))))
    assert "aten.nonzero.default at gate.pick @ model.py:7: a shape that the data decides" in told
    assert "aten.mm.default at head @ model.py:9: t4 has no float32 products" in told
    assert "input at d: TensorRT has no float64" in told
    assert len(told.splitlines()) == 3
    with pytest.raises(UnsupportedError, match="3 operator"):
        TENSORRT.build(graph, Path(), BuildOptions(Device("t4", "cuda", 75)))


@pytest.mark.parametrize(
    ("dtype", "capability", "words"),
    [("bf16", 75, "bfloat16 from compute capability 8.0"), ("f32", 75, "no float32 products"), ("bf16", 80, "")],
)
def test_types_by_capability(dtype: str, capability: int, words: str) -> None:
    graph = parse(TEXT.replace("f16", dtype), {"w": torch.zeros(4, 8).to({"bf16": torch.bfloat16}.get(dtype))})
    told = " ".join(map(str, TENSORRT.unsupported(graph, Device("x", "cuda", capability))))
    assert words in told and bool(told) == bool(words)


def test_build_tells_what_it_made(tmp_path: Path) -> None:
    graph, heard = _graph(), list[tuple[str, float]]()
    options = BuildOptions(L4, progress=lambda *said: heard.append(said), stem="small")
    built = TENSORRT.build(graph, _folder(graph, tmp_path), options)
    assert {p.name for p in tmp_path.iterdir()} == {"small.plan", "small.json", "weights.safetensors"}
    assert built.requires == {RTX: version(RTX), "compute capability": "8.9"}
    assert built.facts["matmuls"] == 1 and built.flow == ()
    assert built.remarks == ("tensorrt: built for sizes up to 4096 of n",)
    fractions = [fraction for _, fraction in heard]
    assert fractions and fractions == sorted(fractions) and all(0 <= f <= 1 for f in fractions)
    needs = read_requirements(tmp_path, "small")
    assert needs.capability == 89 and needs.profile["x"] == [[1, 8], [2048, 8], [4096, 8]]
    assert (needs.inputs, needs.outputs) == ({"x": "f16"}, {"z": "f16"})
    if not torch.cuda.is_available():
        with pytest.raises(MissingError, match="NVIDIA GPU"):
            TENSORRT.load(tmp_path, stem="small")
    runtime = library().Runtime(session()[1].logger)
    check_header(runtime, (tmp_path / "small.plan").read_bytes())
    with pytest.raises(PenstockError, match="damaged"):
        check_header(runtime, b"no plan at all" * 20)


@pytest.mark.slow
def test_equal_builds_give_equal_bytes(tmp_path: Path) -> None:
    from tests.conformance.regions import NESTED

    graph = parse(NESTED.lstrip(), {"w": torch.eye(4)})
    plans = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        TENSORRT.build(graph, _folder(graph, folder), BuildOptions(L4))
        plans.append((folder / "engine.plan").read_bytes())
    assert plans[0] == plans[1]


def test_builder_that_takes_too_long(tmp_path: Path) -> None:
    graph = _graph()
    with pytest.raises(ResourceError, match=r"did not finish within 0\.2 s"):
        TENSORRT.build(graph, _folder(graph, tmp_path), BuildOptions(L4, timeout=0.2))


def test_builder_that_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = _graph()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(module, "STEADY", {"PYTHONPATH": str(broken)})
    with pytest.raises(BuildError, match="the tensorrt builder crashed"):
        TENSORRT.build(graph, _folder(graph, tmp_path), BuildOptions(L4))


def test_plan_for_another_machine() -> None:
    needs = Requirements(RTX, "1.7.1.116", 89, {}, {})
    needs.check(L4, RTX, "1.7.1.116")
    with pytest.raises(PenstockError, match=r"compute capability 8.9, and t4 has 7.5"):
        needs.check(Device("t4", "cuda", 75), RTX, "1.7.1.116")
    with pytest.raises(PenstockError, match=r"built by tensorrt_rtx 1.7.1.116, and here is tensorrt_rtx 1.8") as caught:
        needs.check(L4, RTX, "1.8")
    assert "pip install tensorrt-rtx==1.7.1.116" in caught.value.hint


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"schema": 1, "package": 3}'])
def test_requirements_that_are_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text(content)
    (tmp_path / "engine.plan").touch()
    with pytest.raises(UntrustedError, match="holds no TensorRT engine"):
        TENSORRT.load(tmp_path)


def test_kit_for_a_machine_that_builds_itself(tmp_path: Path) -> None:
    text = TEXT.replace("f16", "f32")
    graph = parse(text, {"w": torch.randn(4, 8)})
    assert TENSORRT.kit(graph, tmp_path, BuildOptions(L4)) is None
    built = TENSORRT.kit(graph, _folder(graph, tmp_path), BuildOptions(H100))
    assert built is not None and "penstock build-on-target" in built.remarks[-1]
    names = {"engine.ir", "engine.kit.json", "engine.twin.onnx", "weights.safetensors"}
    assert {p.name for p in tmp_path.iterdir()} == names
    told = json.loads((tmp_path / "engine.kit.json").read_text())
    assert (told["device"], told["capability"], told["finished"]) == ("h100", 90, False)
    assert told["profile"] == {"x": [[1, 8], [2048, 8], [4096, 8]]} and told["precision"] == ["f32"]
    assert (told["inputs"], told["outputs"]) == ({"x": "f32"}, {"z": "f32"})
    assert "was not run" in told["verified"]
    twin = onnxruntime.InferenceSession(str(tmp_path / told["twin"]))
    inputs = {"x": torch.randn(3, 8)}
    (got,) = twin.run(None, {"x": inputs["x"].numpy()})
    again = parse((tmp_path / "engine.ir").read_text(), graph.weights)
    for same in (graph, again):
        torch.testing.assert_close(torch.from_numpy(got), interpret(same, inputs)["z"], rtol=1e-5, atol=1e-6)
    if version("tensorrt") is None:
        with pytest.raises(MissingError, match="datacenter TensorRT is not installed"):
            TENSORRT.finish(tmp_path, BuildOptions(H100))


def test_finish_without_a_kit(tmp_path: Path) -> None:
    with pytest.raises(UntrustedError, match="holds no kit"):
        TENSORRT.finish(tmp_path, DEFAULT)
