"""Finish a kit on the machine that has its device: the engine that could not be built ahead of time."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from backends import BuildOptions, Device, backend
from compiler.artifact import (
    MANIFEST,
    SEAL,
    EngineChoice,
    copy_artifact,
    is_bundle,
    open_artifact,
    open_bundle,
    seal,
    staging,
)
from compiler.runtime.device import Gpu, check_device, gpus
from ir.errors import MissingError, UsageError


def finish_kit(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    target: str | None = None,
    force: bool = False,
    timeout: float = 1800.0,
    progress: Callable[[str, float], None] = lambda phase, fraction: None,
) -> tuple[Path, str]:
    """Build the engine of a kit for the GPU of this machine.

    Args:
        path: the kit, or an artifact of several targets that holds it.
        output: ``NAME-TARGET.penstock`` beside the current directory when ``None``.
        target: of several targets, the one to finish; by itself the one whose GPU is here.
        force: replace an artifact that stands there.
        timeout: seconds for the builder.
        progress: hears of the builder.

    Returns:
        The new artifact, and its id.

    Raises:
        UsageError: nothing there is a kit.
        MissingError: its GPU, or its engine, is not here.
        BuildError: the builder failed.
    """
    here = gpus()
    place, expect = _kit(Path(path), target, here)
    manifest = open_artifact(place, expect).manifest
    if manifest.state != "kit":
        raise UsageError(f"{place} is no kit: its engine is built", hint="load it with penstock.load")
    made_by = backend(manifest.engine.name)
    check_device(manifest.device, str(place), here)
    device = Device(manifest.target, manifest.device.kind, manifest.device.capability)
    result = Path(output) if output is not None else Path(f"{manifest.name}-{manifest.target}.penstock")
    with staging(result, force=force) as folder:
        copy_artifact(place, folder, expect)
        built = made_by.finish(folder, BuildOptions(device, timeout, progress=progress))
        for name in (MANIFEST, SEAL):
            (folder / name).unlink()
        engine = EngineChoice(made_by.name, made_by.version() or manifest.engine.version, manifest.engine.threads)
        identity = seal(
            folder, replace(manifest, state="built", engine=engine, requires=dict(built.requires), files={})
        )
    return result, identity


def _kit(path: Path, target: str | None, here: tuple[Gpu, ...]) -> tuple[Path, str | None]:
    if not is_bundle(path):
        return path, None
    bundle = open_bundle(path)
    kits = {name: member for name, member in bundle.members.items() if member.state == "kit"}
    if not kits:
        raise UsageError(f"{path} holds no kit", hint="every engine in it is built")
    if target is not None:
        fits = [name for name, member in kits.items() if target in (name, member.target)]
    else:
        fits = [name for name, member in kits.items() if any(g.capability == member.device.capability for g in here)]
    if not fits:
        listing = ", ".join(f"{name} ({member.device})" for name, member in kits.items())
        raise MissingError(f"no kit in {path} fits {target or 'the GPU of this machine'}: it holds {listing}")
    return bundle.folder / fits[0], bundle.members[fits[0]].id
