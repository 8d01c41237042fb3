"""Running a plan on the GPU. Not run where this was written: no machine with a GPU was at hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from backends.base import Device, Engine
from backends.payload import original_name
from backends.tensorrt.library import INSTALL, library, sentence, session, version
from backends.tensorrt.requirements import plan_file, read_requirements
from ir.errors import MissingError, PenstockError
from ir.types import DTYPES

_MALFORMED = 32


def open_engine(folder: Path, stem: str) -> Engine:
    """The engine of a plan.

    Raises:
        MissingError: no GPU, or no TensorRT.
        PenstockError: the plan is for another GPU or another TensorRT.
    """
    needs = read_requirements(folder, stem)
    found = version(needs.package)
    if found is None:
        raise MissingError(f"{needs.package} is not installed", hint=INSTALL)
    if not torch.cuda.is_available():
        raise MissingError("a TensorRT engine runs on an NVIDIA GPU, and torch finds none here")
    needs.check(present(), needs.package, found)
    plan = plan_file(folder, stem).read_bytes()
    trt = library(needs.package)
    _, log = session(needs.package)
    runtime = trt.Runtime(log.logger)
    check_header(runtime, plan)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise PenstockError(f"TensorRT does not load the plan: {sentence(log.take()[0])}")
    return _CudaEngine(runtime, engine, needs.inputs, needs.outputs)


def present() -> Device:
    """The GPU that torch runs on."""
    major, minor = torch.cuda.get_device_capability()
    return Device(torch.cuda.get_device_name(), "cuda", 10 * major + minor)


def check_header(runtime: Any, plan: bytes) -> None:
    """Whether bytes look like a plan, as far as the package can say without loading it.

    Raises:
        PenstockError: they do not.
    """
    if not hasattr(runtime, "get_engine_validity"):
        return
    _, reasons = runtime.get_engine_validity(plan)
    if int(reasons) & _MALFORMED:
        raise PenstockError("the plan is damaged: TensorRT does not know its header")


class _CudaEngine(Engine):
    """Memory is torch's; the engine runs on torch's stream. Results lie where the inputs lay."""

    def __init__(self, runtime: Any, engine: Any, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
        self._runtime = runtime  # must outlive the engine
        self._engine = engine
        self._context = engine.create_execution_context()
        self._inputs = {name: DTYPES[dtype] for name, dtype in inputs.items()}
        self._outputs = {name: DTYPES[dtype] for name, dtype in outputs.items()}

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        context, held = self._context, []
        home = next(iter(inputs.values())).device if inputs else torch.device("cuda")
        spare = torch.empty(1, device="cuda")  # an empty tensor has no address, and TensorRT wants one
        for name, dtype in self._inputs.items():
            on_host = self._engine.is_shape_inference_io(name)  # its content decides shapes: read by the CPU
            tensor = inputs[name].detach().to("cpu" if on_host else "cuda", dtype).contiguous()
            held.append(tensor)
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise PenstockError(f"input {name!r} of shape {list(tensor.shape)} is outside of what was built")
            context.set_tensor_address(name, tensor.data_ptr() or spare.data_ptr())
        if unknown := context.infer_shapes():
            raise PenstockError(f"TensorRT cannot tell the shapes that follow from {', '.join(unknown)}")
        made = {}
        for name, dtype in self._outputs.items():
            made[name] = torch.empty(tuple(context.get_tensor_shape(name)), dtype=dtype, device="cuda")
            context.set_tensor_address(name, made[name].data_ptr() or spare.data_ptr())
        stream = torch.cuda.current_stream()
        if not context.execute_async_v3(stream.cuda_stream):
            raise PenstockError("TensorRT could not run the engine")
        stream.synchronize()  # what was handed over may be freed now
        return {original_name(name): tensor.to(home) for name, tensor in made.items()}

    def facts(self) -> Mapping[str, int | str]:
        """What the engine tells of itself."""
        return {"layers": int(self._engine.num_layers)}
