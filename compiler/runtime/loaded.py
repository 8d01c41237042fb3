"""``load`` turns an artifact into a callable model that says what is wrong with its inputs."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

import backends
from backends.base import Backend, BuildOptions, Engine
from backends.segments import build_engine, load_engine
from compiler.artifact import (
    AFTER,
    Artifact,
    ChangedError,
    Manifest,
    copy_artifact,
    is_bundle,
    open_artifact,
    open_bundle,
)
from compiler.runtime.depth import Effort
from compiler.runtime.device import check_device, fitting_member, gpus
from compiler.runtime.generate import Generator
from compiler.runtime.rows import Answer
from compiler.runtime.signature import InputError, Signature
from ir import PenstockError, parse
from ir.errors import MissingError, ResourceError, UsageError
from ir.types import DTYPES
from ir.weights import load as load_weights

__all__ = ["InputError", "LoadedModel", "load"]


class LoadedModel:
    """A compiled model: ``model(input_ids=..., attention_mask=...)`` gives its outputs by name.

    Inputs are torch tensors on the CPU (numpy arrays are taken too), by name or in the order of the
    manifest. States are passed and returned explicitly: in as ``NAME`` or ``state:NAME``, out as
    ``state:NAME``. A setting (a state that is never renewed, such as ``depth.thresholds``) may be left out. Traces
    are no part of the answer: ``trace`` gives both.

    Threads may share one: inputs are checked side by side, the engine runs one call at a time. For
    parallel runs load the artifact once per worker, with few ``threads`` each.
    """

    def __init__(
        self,
        artifact: Artifact,
        engine: Engine,
        backend: str,
        version: str,
        threads: int | None,
        facts: Mapping[str, int | str] | None = None,
        others: Mapping[str, Engine] | None = None,
    ) -> None:
        self._artifact = artifact
        self._backend = backend
        self._engine: Engine | None = engine
        self._facts = facts
        self._threads, self._version = threads, version
        self._lock = threading.Lock()
        self._initial = artifact.initial_states()
        settings = {name: self._initial[name] for name in artifact.manifest.settings if name in self._initial}
        self._signature = Signature(artifact.manifest, settings)
        self._takes_effort = any(port.name == "effort" for port in artifact.manifest.inputs)
        self._effort = Effort(artifact.manifest)
        self._traces = tuple(port.name for port in artifact.manifest.outputs if port.kind == "trace")
        self._bind = self._signature.bind
        layout = artifact.manifest.generate
        dtypes = {port.name: DTYPES[port.dtype] for port in artifact.manifest.inputs}
        self._generator = (
            None if layout is None else Generator({"engine": engine, **(others or {})}, layout, dtypes["cache_k_0"])
        )

    @property
    def manifest(self) -> Manifest:
        """What the artifact says about itself."""
        return self._artifact.manifest

    @property
    def id(self) -> str:
        """The artifact's id."""
        return self._artifact.id

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Run once.

        Raises:
            InputError: an input is missing, unknown, or not what the manifest says; names it.
            UsageError: the model was closed, the effort is not between 0 and 1, or rows cannot leave early.
        """
        return self.trace(*args, **kwargs)[0] if self._traces else self._run(args, kwargs)

    def trace(self, *args: Any, **kwargs: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Run once, and say how: the answer, and the traces by name (``depth.layers``, int64 per row).

        Raises:
            InputError, UsageError: as of a call.
        """
        answer = self._run(args, kwargs)
        return answer, {name: answer.pop(f"trace:{name}") for name in self._traces}

    def generate(self, prompts: Any, max_new_tokens: int = 128, **options: Any) -> list[Answer]:
        """Write on after each prompt; see ``compiler.runtime.generate.Generator.generate`` for the options.

        Raises:
            UsageError: the artifact does not generate, an option cannot be meant, or the model was closed.
        """
        generator = self._generating()
        with self._lock:
            if self._engine is None:
                raise UsageError(f"the model {self.manifest.name!r} was closed")
            return generator.generate(prompts, max_new_tokens, **options)

    def stream(self, prompt: Any, max_new_tokens: int = 128, **options: Any) -> Iterator[tuple[int, ...]]:
        """As ``generate`` for one prompt: yields its tokens as they come."""
        yield from self._generating().stream(prompt, max_new_tokens, **options)

    def _generating(self) -> Generator:
        if self._generator is None:
            raise UsageError(f"{self.manifest.name} does not generate", hint="penstock compile MODEL --task generate")
        return self._generator

    def _run(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        if "effort" in kwargs and not self._takes_effort:
            kwargs = self._effort.settings(kwargs)
        inputs = self._bind(args, kwargs)
        with self._lock:
            if self._engine is None:
                raise UsageError(f"the model {self.manifest.name!r} was closed")
            return self._engine(inputs)

    def initial_state(self) -> dict[str, torch.Tensor]:
        """Fresh copies of the states that the model came with, to pass to the first call."""
        return {name: tensor.clone() for name, tensor in self._initial.items()}

    def facts(self) -> dict[str, int | str]:
        """What runs here: artifact, engine, and what the engine says about itself."""
        engine = self._engine
        return {
            "model": self.manifest.name,
            "id": self.id,
            "engine": self._backend,
            "engine_version": self._version,
            "compiled_with": f"{self.manifest.engine.name} {self.manifest.engine.version}",
            "threads": "the engine's choice" if self._threads is None else self._threads,
            **({} if engine is None else engine.facts() if self._facts is None else self._facts),
        }

    def close(self) -> None:
        """Let go of the engine once the running call is done; harmless when repeated."""
        with self._lock:
            engine, self._engine = self._engine, None
            release = getattr(engine, "close", None)
            if release is not None:
                release()

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def load(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    expect: str | None = None,
    engine_override: str | None = None,
    target: str | None = None,
) -> LoadedModel:
    """Check an artifact to its last byte and load its engine.

    Args:
        path: the directory ``NAME.penstock``.
        threads: of the engine; the number it was compiled and measured with when ``None``.
        expect: the artifact's id as printed by ``penstock compile``. Give it for artifacts that came over a
            road you do not trust: digests alone do not tell who made it.
        engine_override: another engine: its payload is built anew from ``after.ir``, which takes a while. To
            find out which of two engines is wrong; what was measured does not hold for it.
        target: of several targets in one artifact, the one to load; by itself that of the GPU found, else the CPU's.

    Raises:
        UsageError: no such artifact, no such engine.
        UntrustedError: a file was changed, is missing, extra, a link; a version or machine does not fit.
        MissingError: the engine is not installed, or cannot load what was built.
        UnsupportedError: the other engine cannot carry the graph.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; it must be 1 or more, or None")
    try:
        return _load(*_place(path, expect, target), threads, engine_override)
    except ChangedError:  # a new version was published just now: that one, whole, is as good
        return _load(*_place(path, expect, target), threads, engine_override)


def _place(path: str | os.PathLike[str], expect: str | None, target: str | None) -> tuple[Path, str | None]:
    """Directory and id of the artifact itself: of a bundle, its member for this machine."""
    if not is_bundle(path):
        if target is not None:
            raise UsageError(f"{os.fspath(path)} holds one target only", hint="leave out target")
        return Path(path), expect
    bundle = open_bundle(path, expect)
    name = fitting_member(bundle, gpus(), target)
    return bundle.folder / name, bundle.members[name].id


def _load(path: Path, expect: str | None, threads: int | None, override: str | None) -> LoadedModel:
    artifact = open_artifact(path, expect)
    choice = artifact.manifest.engine
    if override is None:
        _check_runs_here(artifact)
    backend = backends.backend(override or choice.name)
    version = _version(artifact, backend)
    threads = choice.threads if threads is None else threads
    facts = None
    layout = artifact.manifest.generate
    stems = () if layout is None else layout.stems[1:]
    others: dict[str, Engine] = {}
    try:
        if backend.name == choice.name:
            engine = load_engine(artifact.folder, backend, threads)
            others = {stem: load_engine(artifact.folder, backend, threads, stem) for stem in stems}
        else:
            engine, others, facts = _rebuilt(artifact, backend, threads, stems)
    except PenstockError:
        artifact.recheck()
        raise
    except MemoryError as error:
        raise ResourceError(f"not enough memory to load {artifact.folder}") from error
    except Exception as error:
        artifact.recheck()
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise MissingError(
            f"{backend.name} {version} cannot load what was compiled for {choice.name} {choice.version}: {reason}",
            hint=f"install {choice.name} {choice.version}, or compile the model again",
        ) from error
    artifact.recheck()
    return LoadedModel(artifact, engine, backend.name, version, threads, facts, others)


def _check_runs_here(artifact: Artifact) -> None:
    manifest = artifact.manifest
    check_device(manifest.device, str(artifact.folder), gpus() if manifest.device.kind == "cuda" else ())
    if manifest.state == "kit":
        raise UsageError(
            f"{artifact.folder} is a kit for {manifest.target}: its engine is not built yet",
            hint=f"penstock build-on-target {artifact.folder}, on a machine that has {manifest.device}",
        )


def _rebuilt(
    artifact: Artifact, backend: Backend, threads: int | None, stems: Sequence[str]
) -> tuple[Engine, dict[str, Engine], Mapping[str, int | str]]:
    """The engine, and those of more payloads, made here and now from a checked copy; they leave no files.

    Facts of the first come with it: some engines read them from those files.
    """
    with tempfile.TemporaryDirectory(prefix="penstock-") as scratch:
        folder = Path(scratch)
        copy_artifact(artifact.folder, folder, artifact.id)
        weights = load_weights(folder / backends.WEIGHTS_FILE)
        made = {}
        for stem in ("engine", *stems):
            text = artifact.read(AFTER if stem == "engine" else f"{stem}.ir").decode("utf-8", "replace")
            build_engine(parse(text, weights), folder, backend, BuildOptions(stem=stem))
            made[stem] = load_engine(folder, backend, threads, stem)
        engine = made.pop("engine")
        return engine, made, dict(engine.facts())


def _version(artifact: Artifact, backend: Backend) -> str:
    """Version of the engine here; it may differ from the one that built the payload, ``facts`` names both."""
    version = backend.version()
    if version is None:
        raise MissingError(f"{artifact.folder} runs on {backend.name}, which is not installed", hint=backend.install)
    return version
