"""What a user hands over: a model with example inputs, dynamic dims, calibration data, a metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

Metric = Callable[[Callable[..., Mapping[str, torch.Tensor]]], float]
"""Quality of a callable model; higher is better. It is called as ``metric(engine)``."""


@dataclass(frozen=True, slots=True)
class Dim:
    """A dynamic dimension; equal names are the same dimension. Bounds are inclusive."""

    name: str
    min: int = 1
    max: int | None = None


@dataclass(frozen=True)
class ModelSpec:
    """All that a compile needs to know about a model.

    Attributes:
        model: in eval mode; parameters on the CPU.
        example_inputs: a tensor (or nested list/dict of tensors) per argument of ``forward``; every dynamic
            dim should have a sample size of 2 or more.
        dynamic_shapes: argument name -> axis -> ``Dim``.
        calibration: more inputs of the same form, for passes that measure.
        metric: quality of the model's answers, higher is better; ``None``: cosine to the original's outputs.
        exit_samples: inputs by part (``fit``, ``threshold``, ``report``; no row in two) for early exits; by default the
            rows of ``calibration`` are parted by their content.
        row_quality: quality of each row of the outputs, ``row_quality(outputs, inputs) -> [rows]``, larger is better,
            for early exits; ``None``: closeness to the full model.
        name: of the artifact; the class name of the model when empty.
    """

    model: torch.nn.Module
    example_inputs: Mapping[str, torch.Tensor]
    dynamic_shapes: Mapping[str, Mapping[int, Dim]] = field(default_factory=dict)
    calibration: Sequence[Mapping[str, torch.Tensor]] = ()
    metric: Metric | None = None
    name: str = ""
    exit_samples: Mapping[str, Sequence[Mapping[str, torch.Tensor]]] = field(default_factory=dict)
    row_quality: Callable[[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]], torch.Tensor] | None = None
