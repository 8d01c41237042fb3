"""Models that say "ready" in a file and then take long: to be interrupted."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

import penstock
from tests.compiler.models import mlp


def _wait() -> None:
    Path(os.environ["READY"]).touch()
    time.sleep(120)


def factory() -> penstock.ModelSpec:
    _wait()
    return mlp.model()


def engine() -> penstock.ModelSpec:
    """Waits when an engine is judged: its files lie in the staging folder then."""
    calls: list[float] = []

    def metric(run: Callable[..., Mapping[str, Tensor]]) -> float:
        calls.append(1.0)
        if len(calls) > 1:
            _wait()
        return 1.0

    return replace(mlp.model(), metric=metric)
