"""What the report asks of a compile: a protocol, so that ``compiler.compile`` may import the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from compiler.cost.targets import Target
    from compiler.depth.calibrate import Exits
    from compiler.events import Phases
    from compiler.pipeline.pipeline import PassRecord
    from compiler.pipeline.recipe import Recipe
    from compiler.select.reference import Reference
    from compiler.settings import Settings
    from compiler.spec import ModelSpec
    from ir import Graph


class Job(Protocol):
    """What a compile knows at its end."""

    @property
    def spec(self) -> ModelSpec: ...  # noqa: D102
    @property
    def settings(self) -> Settings: ...  # noqa: D102
    @property
    def recipe(self) -> Recipe: ...  # noqa: D102
    @property
    def target(self) -> Target: ...  # noqa: D102
    @property
    def phases(self) -> Phases: ...  # noqa: D102
    @property
    def reference(self) -> Reference | None: ...  # noqa: D102
    @property
    def records(self) -> Mapping[str, Sequence[PassRecord]]: ...  # noqa: D102
    @property
    def graphs(self) -> Mapping[str, Graph]: ...  # noqa: D102
    @property
    def predicted(self) -> Mapping[str, float]: ...  # noqa: D102
    @property
    def exits(self) -> Mapping[str, Exits]: ...  # noqa: D102
