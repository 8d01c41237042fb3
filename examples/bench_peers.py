"""The engines that the benchmark compares, each at the strongest setting found for it.

A peer builds a callable `engine(input_ids=..., attention_mask=...) -> {"embedding": Tensor}` for
a number of threads. Model files are converted once and kept in a folder that the peers share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import penstock

Engine = Callable[..., Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to run the model: `build(spec, threads)` gives the engine, or raises."""

    name: str
    precision: str
    build: Callable[[penstock.ModelSpec, int], Engine]
    is_ours: bool = False


EAGER = "torch eager fp32"
"""The name of the peer that all ratios and losses refer to."""


def peers(folder: Path) -> tuple[Peer, ...]:
    """All engines, the eager reference first; their files go to `folder`."""
    fp32, bf16 = torch.float32, torch.bfloat16
    return (
        Peer(EAGER, "fp32", partial(eager, dtype=fp32)),
        Peer("torch eager bf16 autocast", "bf16", autocast),
        Peer("torch eager bf16", "bf16", partial(eager, dtype=bf16)),
        Peer("torch.compile fp32", "fp32", partial(inductor, dtype=fp32, freezing=False)),
        Peer("torch.compile fp32 freezing", "fp32", partial(inductor, dtype=fp32, freezing=True)),
        Peer("torch.compile bf16 freezing", "bf16", partial(inductor, dtype=bf16, freezing=True)),
        Peer("ONNX Runtime fp32", "fp32", partial(onnxruntime_engine, folder=folder)),
        Peer("ONNX Runtime int8", "int8", partial(onnxruntime_int8, folder=folder)),
        Peer("OpenVINO fp32", "fp32", partial(openvino_engine, folder=folder, hint="f32")),
        Peer("OpenVINO bf16", "bf16", partial(openvino_engine, folder=folder, hint="bf16")),
        Peer("OpenVINO NNCF int8", "int8", partial(openvino_int8, folder=folder)),
        *(
            Peer(f"Penstock {precision}", precision, partial(ours, recipe=recipe, folder=folder), True)
            for precision, recipe in (("fp32", "fp32"), ("bf16", "bf16"), ("int8", "int8+int8-attention"))
        ),
    )


def ours(spec: penstock.ModelSpec, threads: int, recipe: str, folder: Path) -> Engine:
    """Compile with a Penstock recipe for the CPU, and load what it wrote."""
    output = folder / f"{recipe}-{threads}.penstock"
    result = penstock.compile(spec, target="cpu", recipe=recipe, threads=threads, output=output, cache=False)
    return penstock.load(result.path, threads=threads)


def eager(spec: penstock.ModelSpec, threads: int, dtype: torch.dtype) -> Engine:
    """The model as it is, with its weights in `dtype`."""
    torch.set_num_threads(threads)
    return spec.model if dtype == torch.float32 else deepcopy(spec.model).to(dtype)


def autocast(spec: penstock.ModelSpec, threads: int) -> Engine:
    """The model with fp32 weights, its matrix products in bf16."""
    torch.set_num_threads(threads)
    return torch.autocast("cpu", torch.bfloat16)(spec.model.forward)


def inductor(spec: penstock.ModelSpec, threads: int, dtype: torch.dtype, freezing: bool) -> Engine:
    """`torch.compile` with dynamic shapes; freezing packs the weights for oneDNN.

    The number of threads is an option of the compiler, as generated loops contain it. A full
    graph and recompiles of its own make sure that nothing falls back to eager in silence.
    """
    torch.set_num_threads(threads)
    engine = torch.compile(
        deepcopy(spec.model).to(dtype),
        dynamic=True,
        fullgraph=True,
        isolate_recompiles=True,
        options={"freezing": freezing, "cpp.threads": threads},
    )
    with torch.no_grad():
        engine(**spec.example_inputs)  # compiles here, so that a failure is one of building
    return engine


def onnxruntime_engine(spec: penstock.ModelSpec, threads: int, folder: Path) -> Engine:
    """ONNX Runtime on the plain export."""
    return _session(_onnx(spec, folder), threads)


def onnxruntime_int8(spec: penstock.ModelSpec, threads: int, folder: Path) -> Engine:
    """ONNX Runtime on its own dynamic int8 quantization, weights per channel.

    Only matrix products: it also offers to quantize `Attention`, but then the file does not load,
    and with `Gather` the embeddings lose more without a gain in time.
    """
    from onnxruntime.quantization import quantize_dynamic

    path = folder / "int8.onnx"
    if not path.exists():
        quantize_dynamic(_onnx(spec, folder), path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True)
    return _session(path, threads)


def openvino_engine(spec: penstock.ModelSpec, threads: int, folder: Path, hint: str) -> Engine:
    """OpenVINO on the exported program, computing in the precision of the hint."""
    return _request(_openvino(spec, folder), threads, INFERENCE_PRECISION_HINT=hint)


def openvino_int8(spec: penstock.ModelSpec, threads: int, folder: Path) -> Engine:
    """OpenVINO on NNCF's static int8 quantization for transformers.

    OpenVINO chooses the precision of what stays in floating point: bf16 where the CPU has it.
    """
    import nncf
    import openvino

    path = folder / "int8.xml"
    if not path.exists():
        batches = [{k: v.numpy() for k, v in batch.items()} for batch in spec.calibration]
        quantized = nncf.quantize(
            openvino.Core().read_model(_openvino(spec, folder)),
            nncf.Dataset(batches),
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER,
        )
        openvino.save_model(quantized, path, compress_to_fp16=False)
    return _request(path, threads)


def _export(spec: penstock.ModelSpec) -> torch.export.ExportedProgram:
    """Capture the model, its dims as `torch.export` writes them."""
    dims = {
        dim.name: torch.export.Dim(dim.name, min=dim.min, max=dim.max)
        for axes in spec.dynamic_shapes.values()
        for dim in axes.values()
    }
    shapes = {name: {axis: dims[dim.name] for axis, dim in axes.items()} for name, axes in spec.dynamic_shapes.items()}
    with torch.no_grad():
        return torch.export.export(spec.model, (), dict(spec.example_inputs), dynamic_shapes=shapes)


def _onnx(spec: penstock.ModelSpec, folder: Path) -> Path:
    """The model in ONNX; from opset 23 on, attention is one operator."""
    path = folder / "fp32.onnx"
    if not path.exists():
        torch.onnx.export(_export(spec), (), path, dynamo=True, opset_version=23, verbose=False)
    return path


def _session(path: Path, threads: int) -> Engine:
    """An ONNX Runtime session as an engine."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def engine(**inputs: Tensor) -> dict[str, Tensor]:
        (embedding,) = session.run(None, {name: x.numpy() for name, x in inputs.items()})
        return {"embedding": torch.from_numpy(embedding)}

    return engine


def _openvino(spec: penstock.ModelSpec, folder: Path) -> Path:
    """The model in OpenVINO's own format, weights in fp32."""
    import openvino

    path = folder / "fp32.xml"
    if not path.exists():
        openvino.save_model(openvino.convert_model(_export(spec)), path, compress_to_fp16=False)
    return path


def _request(path: Path, threads: int, **properties: str) -> Engine:
    """An OpenVINO request, tuned for the latency of one call at a time, as an engine."""
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        **properties,
    }
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()

    def engine(**inputs: Tensor) -> dict[str, Tensor]:
        found = request.infer({name: x.numpy() for name, x in inputs.items()}, share_inputs=True)
        return {"embedding": torch.from_numpy(found[0])}

    return engine
