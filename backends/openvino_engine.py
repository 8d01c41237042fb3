"""OpenVINO on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from backends.base import CPU, DEFAULT, WEIGHTS_FILE, Backend, BuildOptions, Built, Device, Engine, Unsupported
from backends.payload import original_name, payload, write
from backends.widen import widened
from ir import Graph
from ir.errors import MissingError, PenstockError, UnsupportedError, UntrustedError

_LARGEST = 2**31
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "RNN", "LSTM", "GRU"})
_OTHER_TYPES = frozenset({
    "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN", "IsInf", "ArgMax", "ArgMin", "Shape", "Size",
    "NonZero", "QuantizeLinear", "DynamicQuantizeLinear",
})  # fmt: skip
"""What these make is of another type than what they read."""
_MATMULS = frozenset({"FullyConnected", "MatMul", "Convolution", "Deconvolution"})


class OpenVino(Backend):
    """Builds one ONNX file and runs it with OpenVINO."""

    name = "openvino"
    install = 'pip install "penstock[openvino]"'
    deviations = MappingProxyType({
        "nan": "activations, comparisons and extremes may give a number where torch gives NaN",
        "int64": "whole numbers are computed in 32 bits: larger results saturate (larger inputs are refused)",
        "denormal": "numbers below 1.2e-38 count as zero",
    })  # fmt: skip
    rows = "compacted"

    def version(self) -> str | None:
        """Version of the installed package."""
        try:
            metadata.version("onnx")
            return metadata.version("openvino")
        except metadata.PackageNotFoundError:
            return None

    def unsupported(self, graph: Graph, device: Device = CPU) -> list[Unsupported]:
        """Operators without an ONNX form that OpenVINO reads."""
        from backends.onnx_emit import unsupported

        self._require()
        return unsupported(_for_this_machine(graph), flavor="openvino")

    def build(self, graph: Graph, folder: Path, options: BuildOptions = DEFAULT) -> Built:
        """Write ``STEM.onnx``."""
        self._require()
        write(_for_this_machine(graph), folder, flavor="openvino", stem=options.stem)
        return Built()

    def load(self, folder: Path, threads: int | None = None, stem: str = "engine") -> Engine:
        """Compile the file for this machine."""
        self._require()
        return _Compiled(folder, threads, stem)

    def _require(self) -> None:
        if self.version() is None:
            raise MissingError("openvino is not installed", hint=self.install)


class _Compiled(Engine):
    def __init__(self, folder: Path, threads: int | None, stem: str) -> None:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # comes with onnx

        path = payload(folder, stem)
        if not path.is_file() or not (folder / WEIGHTS_FILE).is_file():
            raise UntrustedError(f"{folder} holds no OpenVINO engine")
        try:
            graph = onnx.load(str(path), load_external_data=False).graph
        except DecodeError as error:
            raise UntrustedError(f"{path} is no ONNX model") from error
        self._outputs = [original_name(o.name) for o in graph.output]
        try:
            model = _core().read_model(str(path))
            self._model = _core().compile_model(model, "CPU", _settings(graph, threads))
            self._request = self._model.create_infer_request()
        except RuntimeError as error:
            raise PenstockError(f"OpenVINO does not take the model: {_sentence(error)}") from None
        # OpenVINO drops inputs that nothing reads
        names = [i.name for i in graph.input]
        self._inputs = [next(n for n in names if n in port.get_names()) for port in self._model.inputs]
        types = {i.name: i.type.tensor_type.elem_type for i in graph.input}
        self._whole = [name for name in self._inputs if types[name] in _wide_whole()]

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        request = self._request
        for name in self._whole:
            _check_range(name, inputs[name])
        try:
            # half the overhead of handing the inputs to infer(), which matters for decode steps
            plain = [inputs[name].detach().contiguous() for name in self._inputs]  # kept alive: shared, not copied
            for at, tensor in enumerate(plain):
                request.set_input_tensor(at, _shared(tensor))
            request.infer(share_inputs=True, share_outputs=True)
            # the request owns its outputs and writes over them in the next call: copy
            return {name: _copied(request.get_output_tensor(at)) for at, name in enumerate(self._outputs)}
        except RuntimeError as error:
            raise PenstockError(f"OpenVINO failed: {_sentence(error)}") from None

    def facts(self) -> Mapping[str, int | str]:
        """Layers of the model as OpenVINO compiled it for this machine."""
        kinds: Counter[tuple[str, bool]] = Counter()
        for node in self._model.get_runtime_model().get_ordered_ops():
            info = node.get_rt_info()
            # weights stored as int8 show an int8 precision too; only the primitive says what is computed in
            int8 = _text(info, "runtimePrecision").lower() in ("i8", "u8")
            int8 = int8 and _text(info, "primitiveType").lower().endswith(("_i8", "_u8"))
            kinds[(_text(info, "layerType"), int8)] += 1
        products = {key: n for key, n in kinds.items() if key[0] in _MATMULS}
        return {
            "matmuls": sum(products.values()),
            "int8_matmuls": sum(n for (_, int8), n in products.items() if int8),
            "attentions": sum(n for (kind, _), n in kinds.items() if "ScaledDotProduct" in kind or kind == "MHA"),
            "ifs": sum(n for (kind, _), n in kinds.items() if kind == "If"),
            "loops": sum(n for (kind, _), n in kinds.items() if kind in ("Loop", "TensorIterator")),
            "nodes": sum(kinds.values()),
        }


def _wide_whole() -> tuple[int, ...]:
    from onnx import TensorProto

    return TensorProto.INT64, TensorProto.UINT64, TensorProto.UINT32


def _check_range(name: str, tensor: torch.Tensor) -> None:
    """OpenVINO's CPU computes whole numbers in 32 bits; larger ones would come out wrong without a word.

    Raises:
        UnsupportedError: names the input.
    """
    if tensor.numel():
        low, high = (int(v) for v in torch.aminmax(tensor))
        if low < -_LARGEST or high >= _LARGEST:
            worst = low if low < -_LARGEST else high
            raise UnsupportedError(
                f"input {name!r} holds {worst}: OpenVINO computes whole numbers in 32 bits",
                hint="use another engine, or smaller numbers",
            )


def _has_bf16() -> bool:
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _for_this_machine(graph: Graph) -> Graph:
    """Without bf16 instructions OpenVINO emulates them, forty times slower than float32 (measured on MiniLM)."""
    return graph if _has_bf16() else widened(graph)


@lru_cache(maxsize=1)
def _core() -> Any:
    """One core for the process: making one scans plugins."""
    import openvino

    return openvino.Core()


def _settings(graph: Any, threads: int | None) -> dict[str, str]:
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        # the IR says the precision; left alone, OpenVINO would compute in bf16 where the CPU can, and all of it: where
        # some products are float32, so are all
        "INFERENCE_PRECISION_HINT": "bf16" if _has_bf16() and _computes_in_bf16(graph) else "f32",
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    return settings


def _computes_in_bf16(graph: Any) -> bool:
    """Whether there are products, and all of them of bfloat16; weights stored in it are only widened."""
    kinds = set(_products(graph, set()))
    return kinds == {True}


def _products(graph: Any, narrow: set[str]) -> Iterator[bool]:
    """Of each product whether it is of bfloat16; ``narrow`` are the values of that type around the graph."""
    from onnx import TensorProto

    narrow = narrow | {w.name for w in graph.initializer if w.data_type == TensorProto.BFLOAT16}
    narrow |= {v.name for v in graph.input if v.type.tensor_type.elem_type == TensorProto.BFLOAT16}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _products(attribute.g, narrow)
        of_bf16 = any(name in narrow for name in node.input)
        if node.op_type == "Cast":
            of_bf16 = node.attribute[0].i == TensorProto.BFLOAT16
        elif node.op_type in _PRODUCTS:
            yield of_bf16
        if of_bf16 and node.op_type not in _OTHER_TYPES:
            narrow |= set(node.output)


def _shared(tensor: torch.Tensor) -> Any:
    """An OpenVINO tensor over the same memory; NumPy has no bfloat16, which travels as the integers it is made of."""
    from openvino import Tensor, Type

    if tensor.dtype == torch.bfloat16:
        return Tensor(tensor.view(torch.int16).numpy(), list(tensor.shape), Type.bf16)
    return Tensor(tensor.numpy(), shared_memory=True)


def _copied(tensor: Any) -> torch.Tensor:
    if tensor.element_type.get_type_name() == "bf16":
        return torch.from_numpy(tensor.data.view("int16")).view(torch.bfloat16).clone()
    return torch.from_numpy(tensor.data).clone()


def _text(info: Any, key: str) -> str:
    if key not in info:
        return ""
    value = info[key]
    return str(value.astype(str) if hasattr(value, "astype") else value)


def _sentence(error: Exception) -> str:
    """What OpenVINO said last, without the places in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '", "src/"))]
    return (told[-1] if told else lines[0] if lines else type(error).__name__)[:300]
