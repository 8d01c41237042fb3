"""TVM for GPUs that are not here: what the library holds, and what its kernels compute on an emulated device."""

from __future__ import annotations

import ctypes
import json
import platform
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backends.base import WEIGHTS_FILE, BuildOptions, Device
from backends.tvm import link
from backends.tvm.backend import Tvm
from backends.tvm.cuda import archs, cubins, stub, toolchain
from ir.errors import BuildError, MissingError, ResourceError
from ir.weights import save
from tests.backends.cuda_on_cpu.run import graph_of
from tests.conformance.regions import EXIT

ROOT = Path(__file__).parents[2]
L4 = Device("l4", "cuda", 89)


def in_process(case: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.backends.cuda_on_cpu.run", case]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_builds_a_library_for_a_gpu_that_is_not_here_and_proves_its_branch(tmp_path: Path) -> None:
    graph = graph_of(EXIT)
    save(graph.weights, tmp_path / WEIGHTS_FILE)
    heard: list[str] = []
    options = BuildOptions(device=L4, progress=lambda phase, _: heard.append(phase), stem="exit")
    assert Tvm().why_not(L4) == "" and Tvm().unsupported(graph, L4) == []
    built = Tvm().build(graph, tmp_path, options)
    (proof,) = built.flow
    assert (proof.lowering, proof.evidence, proof.lazy) == ("if", "structural", True)
    assert built.facts["cubin"] == "sm_89" and built.facts["tensor_core_kernels"] == 0  # f32
    assert built.facts == cubins.checked((tmp_path / "exit.so").read_bytes(), 89)
    assert any("never run" in remark for remark in built.remarks)
    assert built.requires["cuda"].startswith("a GPU of compute capability 8.9")
    assert heard[0] == "emit" and "nvrtc" in heard
    with pytest.raises(BuildError, match="a library with sm_89, where sm_90"):
        cubins.checked((tmp_path / "exit.so").read_bytes(), 90)
    with pytest.raises(MissingError):  # here is no driver and no GPU
        Tvm().load(tmp_path, stem="exit")


def test_branches_run_lazily_on_an_emulated_gpu() -> None:
    found = in_process("branches")
    assert max(found["exit"]["errors"] + found["nested"]["errors"]) < 1e-6
    taken, untaken = found["exit"]["launches"]
    assert untaken == taken + 2  # the side with two matmuls launches two kernels more


def test_tensor_core_kernels_compute_right_on_an_emulated_gpu() -> None:
    found = in_process("transformer")
    assert max(found["right"]["errors"]) < 2e-3  # f16 has 11 bits
    assert found["right"]["tensor_core_kernels"] == 6  # of six matmuls, two of them over heads of 64
    assert found["right"]["shared"] <= archs.SHARED_MEMORY
    assert found["no_barrier"]["errors"][0] > 0.1 and found["askew"]["errors"][0] > 0.1  # planted bugs are seen


def test_int8_is_exact_on_an_emulated_gpu() -> None:
    found = in_process("integers")
    assert found["tensor_core_kernels"] == 2 and max(found["errors"]) < 1e-6


@pytest.mark.slow
def test_every_gpu_gets_its_own_code() -> None:
    found = in_process("every_arch")
    for arch in archs.ARCHS:
        assert found[arch.name] == {"cubin": arch.name, "kernels": 16, "tensor_core_kernels": 6}


def test_unknown_gpus_are_refused() -> None:
    why = Tvm().why_not(Device("v100", "cuda", 70))
    assert "sm_70" in why and "sm_75 (T4)" in why


def test_a_build_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    graph = graph_of(EXIT)
    save(graph.weights, tmp_path / WEIGHTS_FILE)
    with pytest.raises(ResourceError, match="did not finish"):
        Tvm().build(graph, tmp_path, BuildOptions(device=L4, timeout=0.2))


def test_stand_in_for_the_driver_names_its_symbols(tmp_path: Path) -> None:
    path = tmp_path / "libstandin.so"
    path.write_bytes(stub.shared_object("libstandin.so", stub.SYMBOLS, platform.machine()))
    library = ctypes.CDLL(str(path))
    assert all(getattr(library, name) for name in stub.SYMBOLS)
    with pytest.raises(AttributeError):
        library.cuInit  # noqa: B018  (looked up when it is read)
    with pytest.raises(MissingError, match="riscv64"):
        stub.shared_object("libstandin.so", stub.SYMBOLS, "riscv64")


def test_a_real_driver_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name, *_: opened.append(name))
    assert stub.load_driver() is True
    assert opened == ["libcuda.so.1"]


def test_without_a_compiler_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "wheels_root", lambda: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(MissingError, match="neither nvcc") as raised:
        toolchain.toolchain()
    assert raised.value.hint == toolchain.INSTALL


def test_a_library_for_the_processor_of_orin_is_linked_here(tmp_path: Path) -> None:
    import tvm
    from tvm import te

    orin = archs.arch_of(87)
    assert orin is not None
    x = te.placeholder((8,), name="x")
    function = te.create_prim_func([x, te.compute((8,), lambda i: x[i] + 1.0)])
    made = tvm.compile(function, target=tvm.target.Target({"kind": "llvm", "mtriple": orin.host}))
    link.link(made, tmp_path / "a.so", orin.host.partition("-")[0])
    found = (tmp_path / "a.so").read_bytes()
    assert found[:4] == b"\x7fELF" and struct.unpack_from("<HH", found, 16) == (3, 183)  # shared, AArch64


def test_linker_of_another_processor_or_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}" if name == "aarch64-linux-gnu-ld" else None)
    assert link.linker_for("aarch64")[0] == "aarch64-linux-gnu-ld"
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(link, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="no linker for aarch64") as raised:
        link.linker_for("aarch64")
    assert "ziglang" in str(raised.value.hint)


def cubin(capability: int, words: list[int]) -> bytes:
    """A cubin with one kernel of such instructions."""
    code = b"".join(struct.pack("<QQ", word, 0) for word in words)
    names = b"\0.text.k\0.names\0"
    sections = [(0, 0, 0), (1, 64, len(code)), (9, 64 + len(code), len(names))]
    at = 64 + len(code) + len(names)
    header = b"\x7fELF\x02\x01\x01\x41\x08" + bytes(7) + struct.pack("<HHIQQQ", 2, 190, 1, 0, 0, at)
    header += struct.pack("<IHHHHHH", capability << 8, 64, 0, 0, 64, len(sections), 2)
    table = b"".join(struct.pack("<IIQQQQ", n, 1, 0, 0, start, size) + bytes(24) for n, start, size in sections)
    return header + code + names + table


def test_cubins_are_read_wherever_they_lie() -> None:
    library = b"\x7fELF" + bytes(60) + cubin(86, [0x723C, 0x7230, 0x7237]) + b"x" * 13 + cubin(86, [0x7230])
    assert cubins.cubins(library) == (
        cubins.Cubin(86, (cubins.Kernel("k", 2),)),
        cubins.Cubin(86, (cubins.Kernel("k", 0),)),
    )
    assert cubins.checked(library, 86) == {"cubin": "sm_86", "kernels": 2, "tensor_core_kernels": 1}
    with pytest.raises(BuildError, match="no GPU code"):
        cubins.checked(b"\x7fELF" + bytes(200), 86)
