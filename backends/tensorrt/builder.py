"""A plan from a network: targets, profiles, progress; whatever the package calls an error is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from backends.base import Device
from backends.tensorrt.emit import Emitted, Profile
from backends.tensorrt.legality import ADDRESSED
from backends.tensorrt.library import sentence, session
from ir.errors import BuildError

Progress = Callable[[str, float], None]
UNBOUNDED = 4096
"""Largest size that a dim without a bound is built for."""


def build(
    emitted: Emitted, profile: Profile, device: Device, progress: Progress | None = None, package: str | None = None
) -> tuple[bytes, list[str]]:
    """The serialized plan, and the warnings of the package.

    Raises:
        BuildError: the package said an error, or gave no plan.
    """
    builder, log = session(package)
    network = emitted.network
    trt, definition = network.trt, network.definition
    log.take()
    config = builder.create_builder_config()
    if hasattr(config, "set_compute_capability"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, ADDRESSED[device.capability]), 0)
    if shapes := _shapes(builder, definition, profile):
        config.add_optimization_profile(shapes)
    if progress is not None:
        config.progress_monitor = monitor(trt, progress)
    errors, _ = log.take()
    if errors:
        raise BuildError(f"TensorRT does not take the settings: {sentence(errors)}")
    plan = builder.build_serialized_network(definition, config)
    errors, warnings = log.take()
    if plan is None or errors:
        raise BuildError(f"TensorRT could not build the engine: {sentence(errors)}")
    return bytes(memoryview(plan)), list(dict.fromkeys(" ".join(w.split())[:300] for w in warnings))


def _shapes(builder: Any, definition: Any, profile: Profile) -> Any:
    shapes, used = builder.create_optimization_profile(), False
    for index in range(definition.num_inputs):
        tensor = definition.get_input(index)
        if tensor.name in profile:
            shapes.set_shape(tensor.name, *profile[tensor.name])
            used = True
        if tensor.is_shape_tensor:  # its content decides a shape: TensorRT wants to know the range
            count = 1
            for size in tensor.shape:
                count *= size
            highest = max((d for _, _, shape in profile.values() for d in shape), default=UNBOUNDED)
            shapes.set_shape_input(tensor.name, *([value] * count for value in (0, (highest + 1) // 2, highest)))
            used = True
    return shapes if used else None


def value_inputs(definition: Any) -> list[str]:
    """Inputs whose content decides shapes."""
    tensors = (definition.get_input(i) for i in range(definition.num_inputs))
    return [t.name for t in tensors if t.is_shape_tensor]


def monitor(trt: Any, progress: Progress) -> Any:
    """Progress from the builder's own phases, which nest: each gives its share of the step around it."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[tuple[str, int, int]] = []
            self.told = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.open.append((phase_name, 0, max(num_steps, 1)))

        def phase_finish(self, phase_name: str) -> None:
            while self.open and self.open.pop()[0] != phase_name:
                pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            for index, (name, _, steps) in enumerate(self.open):
                if name == phase_name:
                    self.open[index] = (name, step + 1, steps)
            self.told = max(self.told, _fraction(self.open))
            progress(phase_name, min(self.told, 1.0))
            return True  # anything else would cancel the build

    return Monitor()


def _fraction(phases: Sequence[tuple[str, int, int]]) -> float:
    done, share = 0.0, 1.0
    for _, step, steps in phases:
        done += share * min(step, steps) / steps
        share /= steps
    return done
