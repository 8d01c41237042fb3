"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import torch

from backends.base import CPU, DEFAULT, WEIGHTS_FILE, Backend, BuildOptions, Built, Device, Engine, Unsupported
from backends.payload import original_name, payload, write
from backends.widen import widened
from ir import Graph
from ir.errors import MissingError, PenstockError, UntrustedError

_QUIET = 4  # fatal only: every failure comes back as an exception anyway
_SLOW = ["SkipLayerNormFusion", "BiasSkipLayerNormFusion"]
"""Fusions whose CPU kernel takes four times as long as the two nodes it replaces (measured on MiniLM, AVX512)."""
_INT8_MATMULS = frozenset({
    "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm", "QAttention",
    "QLinearConv", "ConvInteger",
})  # fmt: skip
_MATMULS = _INT8_MATMULS | {"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "MatMulNBits", "Conv", "FusedConv"}


class OnnxRuntime(Backend):
    """Builds one ONNX file and runs it with onnxruntime."""

    name = "onnxruntime"
    install = 'pip install "penstock[onnxruntime]"'
    deviations = MappingProxyType({
        "nan": "extremes, norms and activations may give a number where torch gives NaN",
        "int64": "sums, products and powers of int64 beyond 2**53 are computed in float64",
    })  # fmt: skip
    rows = "compacted"

    def version(self) -> str | None:
        """Version of the installed package."""
        return _installed("onnxruntime", "onnx", "ml_dtypes")

    def unsupported(self, graph: Graph, device: Device = CPU) -> list[Unsupported]:
        """Operators without an ONNX form, and types that ONNX Runtime has no CPU kernels for."""
        from backends.onnx_emit import unsupported

        self._require()
        return unsupported(_for_its_kernels(graph), flavor="onnxruntime")

    def build(self, graph: Graph, folder: Path, options: BuildOptions = DEFAULT) -> Built:
        """Write ``STEM.onnx``."""
        self._require()
        write(_for_its_kernels(graph), folder, flavor="onnxruntime", stem=options.stem)
        return Built()

    def load(self, folder: Path, threads: int | None = None, stem: str = "engine") -> Engine:
        """An inference session over the file."""
        self._require()
        return _Session(folder, threads, stem)

    def _require(self) -> None:
        if self.version() is None:
            raise MissingError("onnxruntime is not installed", hint=self.install)


def _for_its_kernels(graph: Graph) -> Graph:
    """It has no bfloat16 kernels for the CPU, and few float16 ones."""
    from backends.onnx_emit.kernels import computes_wide

    return widened(graph, computes_wide)


def _installed(first: str, *others: str) -> str | None:
    try:
        for other in others:
            metadata.version(other)
        return metadata.version(first)
    except metadata.PackageNotFoundError:
        return None


class _Session(Engine):
    def __init__(self, folder: Path, threads: int | None, stem: str) -> None:
        self._path = payload(folder, stem)
        self._threads = threads
        self._session = _open(self._path, _options(threads))
        self._inputs = [(i.name, original_name(i.name)) for i in self._session.get_inputs()]
        self._files = [o.name for o in self._session.get_outputs()]
        self._outputs = [original_name(name) for name in self._files]
        types = {i.type for i in (*self._session.get_inputs(), *self._session.get_outputs())}
        self._plain = not any("bfloat16" in t or "float8" in t for t in types)

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        try:
            if self._plain:
                feeds = {name: inputs[key].detach().numpy() for name, key in self._inputs}
                found: Sequence[Any] = self._session.run(self._files, feeds)
                results = [torch.from_numpy(array) for array in found]
            else:
                results = self._run_values(inputs)
        except _failures() as error:
            raise PenstockError(f"ONNX Runtime failed: {_sentence(error)}") from None
        return dict(zip(self._outputs, results, strict=True))

    def _run_values(self, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        feeds = {name: _to_value(inputs[key].detach().contiguous()) for name, key in self._inputs}
        return [_from_value(v) for v in self._session.run_with_ort_values(self._files, feeds)]

    def facts(self) -> Mapping[str, int | str]:
        """Operators of the graph as ONNX Runtime rewrote it for this machine."""
        import onnx

        with TemporaryDirectory() as scratch:
            options = _options(self._threads)
            written = Path(scratch) / "optimized.onnx"
            options.optimized_model_filepath = str(written)
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
            _open(self._path, options)
            graph = onnx.load(str(written), load_external_data=False).graph
        kinds = Counter(_kinds(graph.node))
        return {
            "matmuls": sum(kinds[k] for k in _MATMULS),
            "int8_matmuls": sum(kinds[k] for k in _INT8_MATMULS),
            "attentions": sum(n for k, n in kinds.items() if "Attention" in k),
            "ifs": kinds["If"],
            "loops": kinds["Loop"],
            "nodes": sum(kinds.values()),
        }


def _to_value(tensor: torch.Tensor) -> Any:
    """NumPy has no bfloat16: it travels as the integers it is made of."""
    from onnx import TensorProto
    from onnxruntime import OrtValue

    if tensor.dtype == torch.bfloat16:
        bits = tensor.view(torch.uint16).numpy()
        return OrtValue.ortvalue_from_numpy_with_onnx_type(bits, TensorProto.BFLOAT16)
    return OrtValue.ortvalue_from_numpy(tensor.numpy())


def _from_value(value: Any) -> torch.Tensor:
    if value.data_type() == "tensor(bfloat16)":
        found: torch.Tensor = torch.from_dlpack(value._ortvalue)
        return found
    return torch.from_numpy(value.numpy())


def _kinds(nodes: Any) -> Iterator[str]:
    for node in nodes:
        yield node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _kinds(attribute.g.node)


def _options(threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _open(path: Path, options: Any) -> Any:
    import onnxruntime

    if not path.is_file() or not (path.parent / WEIGHTS_FILE).is_file():
        raise UntrustedError(f"{path.parent} holds no ONNX Runtime engine")
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOW
        )
    except _failures() as error:
        raise PenstockError(f"ONNX Runtime does not take the model: {_sentence(error)}") from None


def _failures() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return tuple(
        getattr(state, name)
        for name in ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented",
                     "RuntimeException", "EPFail", "NoModel")
    ) + (RuntimeError, ValueError)  # fmt: skip


def _sentence(error: Exception) -> str:
    """What an engine said, without code paths of its own sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2])
    for mark in ("Status Message: ", "Non-zero status code returned while running "):
        text = text.partition(mark)[2] or text
    words = [w for w in text.split() if not w.startswith(("/onnxruntime_src", "/home"))]
    return " ".join(words)[:300] or type(error).__name__
