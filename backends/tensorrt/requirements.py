"""What a plan needs of the machine that loads it, in ``STEM.json`` beside ``STEM.plan``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from backends.base import Device
from backends.tensorrt.emit import Emitted, Profile
from backends.tensorrt.library import torch_type, version
from ir.errors import PenstockError, UntrustedError
from ir.types import DTYPE_NAMES, DTYPES

_SCHEMA = 1


@dataclass(frozen=True)
class Requirements:
    """What a plan needs.

    Attributes:
        package, version: that built it, and the only one that can load it.
        capability: compute capability times ten.
        inputs, outputs: element type of each by its name in the engine, in order.
        profile: smallest, likeliest and largest shape of each dynamic input.
        dims: the same of each named dim.
    """

    package: str
    version: str
    capability: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    profile: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)
    dims: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def text(self) -> str:
        """As JSON."""
        return json.dumps({"schema": _SCHEMA, **asdict(self)}, indent=1) + "\n"

    def check(self, device: Device, package: str, found: str | None) -> None:
        """Whether a machine can load the plan.

        Raises:
            PenstockError: another GPU, or another version of TensorRT.
        """
        if (package, found) != (self.package, self.version):
            raise PenstockError(
                f"the plan was built by {self.package} {self.version}, and here is {package} {found or 'none'}",
                hint=f"pip install {self.package.replace('_', '-')}=={self.version}, or compile the model anew",
            )
        if device.capability != self.capability:
            raise PenstockError(
                f"the plan was built for compute capability {_dotted(self.capability)}, "
                f"and {device.name} has {_dotted(device.capability)}",
                hint="compile the model with this GPU among its targets",
            )


def _dotted(capability: int) -> str:
    return f"{capability // 10}.{capability % 10}"


def of_network(
    emitted: Emitted, package: str, capability: int, profile: Profile, dims: Mapping[str, Sequence[int]]
) -> Requirements:
    """What the plan of a network needs."""
    definition, trt = emitted.network.definition, emitted.network.trt

    def types(tensors: Sequence[Any]) -> dict[str, str]:
        return {t.name: DTYPE_NAMES[torch_type(trt, t.dtype)] for t in tensors}

    return Requirements(
        package, version(package) or "", capability,
        types([definition.get_input(i) for i in range(definition.num_inputs)]),
        types([definition.get_output(i) for i in range(definition.num_outputs)]),
        profile, dims,
    )  # fmt: skip


def plan_file(folder: Path, stem: str) -> Path:
    """The plan itself."""
    return folder / f"{stem}.plan"


def requirements_file(folder: Path, stem: str) -> Path:
    """What it needs."""
    return folder / f"{stem}.json"


def read_requirements(folder: Path, stem: str) -> Requirements:
    """Read what ``text`` wrote.

    Raises:
        UntrustedError: the file is not there, or is no such thing.
    """
    path = requirements_file(folder, stem)
    try:
        found = json.loads(path.read_text())
        assert found.pop("schema") == _SCHEMA
        needs = Requirements(**found)
        assert {*needs.inputs.values(), *needs.outputs.values()} <= set(DTYPES)
        assert isinstance(needs.capability, int) and plan_file(folder, stem).is_file()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, AssertionError):
        raise UntrustedError(f"{folder} holds no TensorRT engine") from None
    return needs
