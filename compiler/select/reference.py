"""The original model as the baseline of every comparison: its answers, its quality, its time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.utils import _pytree as pytree

from compiler.capture.eager import run_eager
from compiler.capture.inputs import bind_inputs, flatten_inputs
from compiler.capture.refusals import first_line, place_of
from compiler.select.compare import Distance, distance
from compiler.spec import Metric, ModelSpec
from ir import Graph
from ir.errors import PenstockError, UsageError

Tensors = Mapping[str, torch.Tensor]
Runner = Callable[[Tensors], Tensors]


@dataclass(frozen=True, slots=True)
class Loss:
    """What an engine loses against the original.

    Attributes:
        loss: drop of the metric relative to the original's, or one minus the worst cosine without a metric.
        cosine: worst cosine over the rows of any output on the samples.
        max_abs: largest absolute difference on the samples.
        metric: the engine's value of the user's metric.
        base: the original's value of it.
    """

    loss: float
    cosine: float
    max_abs: float
    metric: float | None = None
    base: float | None = None


class Reference:
    """Runs the original in eager mode on the samples, once, and judges others by its answers."""

    def __init__(self, spec: ModelSpec, graph: Graph) -> None:
        """Run the original on the samples.

        Raises:
            UsageError: a calibration input does not fit the model; the metric cannot be called.
        """
        if spec.metric is not None and not callable(spec.metric):
            raise UsageError(f"the metric is {type(spec.metric).__name__}, not a function of a model")
        self._spec = spec
        self._names = [o.name for o in graph.outputs if o.kind == "output"]
        sets = [*spec.calibration] or [spec.example_inputs]
        self.samples: list[dict[str, torch.Tensor]] = [
            {**graph.initial, **flatten_inputs(bind_inputs(spec.model, s).named)} for s in sets
        ]
        self.answers = [self._answer(s, count) for count, s in enumerate(sets)]
        self.example = {**graph.initial, **flatten_inputs(bind_inputs(spec.model, spec.example_inputs).named)}
        self._base: float | None = None

    def _answer(self, inputs: Mapping[str, Any], count: int) -> dict[str, torch.Tensor]:
        try:
            return self._eager(inputs)
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            told = f"{type(error).__name__}: {first_line(str(error))}"
            raise UsageError(
                f"the model fails on calibration input {count}: {told}", where=str(place_of(error))
            ) from error

    def _eager(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        bound = bind_inputs(self._spec.model, inputs)
        was_training = self._spec.model.training
        self._spec.model.eval()
        try:
            answer = run_eager(self._spec.model, bound.args, bound.kwargs)
        finally:
            self._spec.model.train(was_training)
        leaves = [leaf for leaf in pytree.tree_leaves(answer) if leaf is not None]
        tensors = [leaf if isinstance(leaf, torch.Tensor) else torch.tensor(leaf) for leaf in leaves]
        return dict(zip(self._names, tensors, strict=True))

    def eager_call(self) -> Callable[[], object]:
        """The original on the example inputs, as a user would call it: for timing."""
        bound = bind_inputs(self._spec.model, self._spec.example_inputs)
        model = self._spec.model

        def call() -> object:
            with torch.inference_mode():
                return model(*bound.args, **bound.kwargs)

        return call

    def eager_run(self, inputs: Tensors) -> object:
        """The original on other inputs, tensors by the name of their argument."""
        with torch.inference_mode():
            return self._spec.model(**inputs)

    @property
    def metric(self) -> Metric | None:
        """The user's metric."""
        return self._spec.metric

    def base(self) -> float | None:
        """The original's value of the metric."""
        if self._base is None and self.metric is not None:
            self._base = self._measure(self.metric, lambda **inputs: self._eager(inputs))
        return self._base

    @staticmethod
    def _measure(metric: Metric, run: Callable[..., Tensors]) -> float:
        try:
            return float(metric(run))
        except PenstockError:
            raise
        except Exception as error:
            told = f"{type(error).__name__}: {first_line(str(error))}"
            raise UsageError(f"the metric failed: {told}", where=str(place_of(error))) from error

    def judge(self, run: Runner) -> Loss:
        """Loss of an engine: on the samples, and by the metric when there is one."""
        found = [
            distance(want, {n: t for n, t in run(sample).items() if n in want})
            for sample, want in zip(self.samples, self.answers, strict=True)
        ]
        worst = Distance(max(d.max_abs for d in found), min(d.cosine for d in found))
        base = self.base()
        if self.metric is None or base is None:
            return Loss(worst.loss, worst.cosine, worst.max_abs)
        got = self._measure(self.metric, lambda **inputs: run(flatten_inputs(inputs)))
        drop = max(0.0, (base - got) / max(abs(base), 1e-12)) if got == got else float("inf")
        return Loss(drop, worst.cosine, worst.max_abs, got, base)


def sizes_of(graph: Graph, inputs: Tensors) -> dict[str, int]:
    """Size of each dim in some inputs, as far as the inputs say it; ``2*n`` of 8 says that ``n`` is 4."""
    sizes: dict[str, int] = {}
    for value, spec in graph.inputs.items():
        if spec.kind == "param" or spec.name not in inputs:
            continue
        for dim, size in zip(value.tensor.shape, inputs[spec.name].shape, strict=True):
            if isinstance(dim, int) or len(dim.free_symbols) != 1:
                continue
            (unknown,) = dim.free_symbols
            factor, rest = dim.coeff(unknown), dim.xreplace({unknown: sympy.Integer(0)})
            if factor.is_Integer and factor != 0 and rest.is_Integer and factor * unknown + rest == dim:
                sizes.setdefault(unknown.name, (size - int(rest)) // int(factor))
    return sizes
