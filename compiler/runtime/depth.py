"""``effort`` of a call: thresholds from the grid that the artifact holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from compiler.artifact import Manifest
from compiler.depth.thresholds import EffortGrid
from ir.errors import UntrustedError, UsageError

_SETTING = "depth.thresholds"


def read_grid(section: Mapping[str, Any]) -> EffortGrid:
    """The grid of a section ``depth``.

    Raises:
        UntrustedError: it is no such grid.
    """
    try:
        rows = [[float(t) for t in row] for row in section["thresholds"]]
        grid = EffortGrid(tuple(float(e) for e in section["efforts"]), np.array(rows, np.float64))
        if grid.thresholds.shape[1] != len(section["exits"]):
            raise ValueError("one threshold per exit")
    except (UsageError, LookupError, TypeError, ValueError) as error:
        raise UntrustedError(f"manifest.json: depth: no grid of thresholds: {str(error)[:200]}") from error
    return grid


class Effort:
    """Turns an effort into the setting of the graph."""

    def __init__(self, manifest: Manifest) -> None:
        """Of an artifact, with exits or without."""
        self._name = manifest.name
        self._grid = None if manifest.depth is None else read_grid(manifest.depth)

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The named inputs of a call with ``effort`` replaced by thresholds; ``None`` is the default.

        Raises:
            UsageError: it is not a number from 0 to 1, or rows of this model cannot leave early.
        """
        rest = {name: value for name, value in given.items() if name != "effort"}
        effort = given["effort"]
        if effort is None:
            return rest
        if self._grid is None:
            raise UsageError(
                f"{self._name} has no exits, so there is no effort to choose",
                hint="penstock compile MODEL --max-drop 1% lets rows leave early",
            )
        if _SETTING in rest or f"state:{_SETTING}" in rest:
            raise UsageError(f"effort and {_SETTING} say the same", hint="leave out one of them")
        return {**rest, _SETTING: torch.from_numpy(self._grid.at(effort)).float()}
