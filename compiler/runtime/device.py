"""Which devices this machine has, and which member of a bundle fits them."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import dataclass

from compiler.artifact import Bundle, DeviceNeed
from ir.errors import MissingError, UsageError, nearest

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_NAME_BYTES = 256


@dataclass(frozen=True, slots=True)
class Gpu:
    """An NVIDIA GPU that the driver shows: its name and compute capability times ten."""

    name: str
    capability: int


def gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine, asked of the driver itself; none without a driver."""
    found: list[Gpu] = []
    with suppress(OSError, AttributeError):
        cuda = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int()
        if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return ()
        for ordinal in range(count.value):
            device = ctypes.c_int()
            major, minor = ctypes.c_int(), ctypes.c_int()
            name = ctypes.create_string_buffer(_NAME_BYTES)
            asked = (
                cuda.cuDeviceGet(ctypes.byref(device), ordinal),
                cuda.cuDeviceGetName(name, _NAME_BYTES, device),
                cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
                cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
            )
            if not any(asked):
                found.append(Gpu(name.value.decode("utf-8", "replace"), major.value * 10 + minor.value))
    return tuple(found)


def check_device(need: DeviceNeed, where: str, here: tuple[Gpu, ...]) -> None:
    """Refuse an engine for a device that is not here.

    Raises:
        MissingError: says what it was built for, and what there is.
    """
    if need.kind == "cpu" or any(gpu.capability == need.capability for gpu in here):
        return
    raise MissingError(
        f"{where} was built for {need}; this machine has {_told(here)}",
        hint="compile for the GPU at hand (--target), or load it on its own machine",
    )


def fitting_member(bundle: Bundle, here: tuple[Gpu, ...], asked: str | None = None) -> str:
    """Name of the member to load: the one asked for, else of the GPU found, else of the processor.

    Raises:
        UsageError: the bundle holds nothing of the name asked for.
        MissingError: it holds nothing that runs here.
    """
    if asked is not None:
        names = [n for n, m in bundle.members.items() if asked in (n, m.target)]
        if not names:
            raise UsageError(f"{bundle.folder} holds no {asked!r}", hint=nearest(asked, list(bundle.members)))
        return names[0]
    ready = {n: m for n, m in bundle.members.items() if m.state == "built"}
    for gpu in here:
        for name, member in ready.items():
            if member.device == DeviceNeed("cuda", gpu.capability):
                return name
    for name, member in ready.items():
        if member.device.kind == "cpu":
            return name
    holds = ", ".join(f"{n} ({m.device}{', a kit' if m.state == 'kit' else ''})" for n, m in bundle.members.items())
    raise MissingError(
        f"nothing in {bundle.folder} runs here: it holds {holds}; this machine has {_told(here)}",
        hint="penstock build-on-target finishes a kit on its machine",
    )


def _told(here: tuple[Gpu, ...]) -> str:
    return ", ".join(f"{g.name} ({g.capability / 10:.1f})" for g in here) or "no NVIDIA GPU"
