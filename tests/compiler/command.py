"""What a command of the command line ended with and left, IR to give it, and a clock that shows what a test wants."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.select.measure import Timing

MODELS = Path(__file__).parent / "models"
MLP = str(MODELS / "mlp.py")
IR = """penstock-ir 1
graph "small"
dim batch [1, 64]
input %x: f32[batch, 4] "x"
param %w: f32[4, 4] "w"
%h: f32[batch, 4] = aten.linear.default(%x, %w)
%y: f32[batch, 4] = aten.relu.default(%h)
%dead: f32[batch, 4] = aten.neg.default(%y)
return "y" %y
"""


@dataclass(frozen=True)
class Ran:
    """What a command ended with."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    def failed(self, code: int, *words: str) -> Ran:
        """One clean message with these words, this exit code, and nothing on stdout."""
        assert self.code == code, self.err
        assert self.err.count("error:") == 1, self.err
        assert "Traceback" not in self.err
        assert self.out == ""
        for word in words:
            assert word in self.err
        return self

    def worked(self) -> Ran:
        assert self.code == 0, self.err
        assert "error:" not in self.err
        return self


Run = Callable[..., Ran]


def clock(engine_ms: float, eager_ms: float = 2.0) -> Callable[..., dict[str, Timing]]:
    """A measurement that takes no time and no chances."""

    def interleave(calls: Mapping[str, Callable[[], object]], seconds: float = 0) -> dict[str, Timing]:
        times = {name: eager_ms if name == "eager" else engine_ms for name in calls}
        return {name: Timing(ms / 1e3, ms / 1e3, ms / 1e3, 5) for name, ms in times.items()}

    return interleave


def here(tmp_path: Path) -> list[str]:
    """What a test left in its folder, beside the cache."""
    return sorted(name for name in os.listdir(tmp_path) if name != "cache")
