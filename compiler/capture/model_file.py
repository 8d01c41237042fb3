"""Finds the model that a command line names: ``FILE.py[:factory]`` or ``package.module:factory``.

The file is run as Python: naming it is trusting it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch

from compiler.spec import ModelSpec
from ir.errors import PenstockError, UsageError, nearest
from ir.exported import short_path

DEFAULT_FACTORY = "model"
_HERE = __file__
_EXAMPLE = 'return penstock.ModelSpec(model, {"x": tensor})'
_T = TypeVar("_T")


def load_spec(reference: str) -> ModelSpec:
    """The model that a reference names.

    Args:
        reference: ``FILE.py``, ``FILE.py:factory``, ``package.module`` or ``package.module:factory``. The factory
            takes no arguments; ``model`` when none is named. It returns a ``ModelSpec``, or a tuple
            ``(model, example_inputs)`` or ``(model, example_inputs, dynamic_shapes)``.

    Raises:
        UsageError: nothing is there, or it does not run; says what was found instead.
    """
    source, name = _split(reference)
    path = Path(source) if source.endswith(".py") else None
    with _importable(*([path.resolve().parent] if path else []), Path.cwd()):
        module = _load_file(path) if path else _load_module(source)
        factory = _factory(module, name, source)
        result = _run(f"{source}:{name}", factory)
    return _spec(result, f"{source}:{name}")


def _split(reference: str) -> tuple[str, str]:
    source, colon, factory = reference.rpartition(":")
    if not colon:
        source, factory = reference, DEFAULT_FACTORY
    if not source or not factory.isidentifier():
        raise UsageError(f"not a model: {reference!r}", hint="write FILE.py:factory or package.module:factory")
    return source, factory


@contextlib.contextmanager
def _importable(*folders: Path) -> Iterator[None]:
    """Folders first on the import path, for as long as the model's own code is loaded and run."""
    added = [str(folder) for folder in folders]
    sys.path[:0] = added
    try:
        yield
    finally:
        for folder in added:
            with contextlib.suppress(ValueError):  # the model's code may have removed it
                sys.path.remove(folder)


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        folder = path.parent
        names = sorted(str(folder / p.name) for p in folder.glob("*.py")) if folder.is_dir() else []
        raise UsageError(f"no such file: {path}", hint=nearest(str(path), names) if names else "")
    package_name = _package_name(path.resolve())
    if package_name:  # Python imports it, so that the package's own imports find the same module
        module = _run(str(path), lambda: importlib.import_module(package_name))
        if Path(module.__file__ or "").resolve() == path.resolve():
            return module
    return _run(str(path), lambda: _execute(f"penstock_model_{path.stem}", path))


def _package_name(path: Path) -> str:
    """``examples.minilm`` for a file of a package below the working folder, else nothing."""
    try:
        parts = path.relative_to(Path.cwd()).with_suffix("").parts
    except ValueError:
        return ""
    folders = [Path.cwd().joinpath(*parts[:i]) for i in range(1, len(parts))]
    whole = bool(folders) and all((folder / "__init__.py").is_file() for folder in folders)
    return ".".join(parts) if whole and all(part.isidentifier() for part in parts) else ""


def _execute(name: str, path: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses look the module of a class up there
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _load_module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        near = f"{name}.py" if Path(f"{name}.py").is_file() else "FILE.py"
        raise UsageError(f"not a model: {name!r}", hint=f"write {near}:factory or package.module:factory")
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # a package on the way is missing
        found = None
    except Exception as error:  # a parent package runs here: anything can come out
        raise _failed(name, error) from error
    if found is None:
        near = f"; there is a file {name}.py: write {name}.py:factory" if Path(f"{name}.py").is_file() else ""
        raise UsageError(
            f"no module named {name!r}", hint=f"modules are looked up from {Path.cwd().name}/ and as installed{near}"
        )
    return _run(name, lambda: importlib.import_module(name))


def _factory(module: ModuleType, name: str, source: str) -> Callable[[], Any]:
    found = getattr(module, name, None)
    if found is None:
        names = [n for n, f in vars(module).items() if _could_be_factory(module, f) and not n.startswith("_")]
        hint = nearest(name, names) if names else f"write def {name}(): ... {_EXAMPLE}"
        raise UsageError(f"{source} has no {name!r}", hint=hint)
    if isinstance(found, torch.nn.Module) or not callable(found):
        kind = "a model" if isinstance(found, torch.nn.Module) else type(found).__name__
        raise UsageError(
            f"{source}:{name} is {kind}, not a function that makes one", hint=f"write def {name}(): ... {_EXAMPLE}"
        )
    needed = _required(found)
    if needed:
        raise UsageError(
            f"{source}:{name} needs arguments: {', '.join(needed)}",
            hint="a factory is called without any: give them defaults",
        )
    return found


def _could_be_factory(module: ModuleType, found: Any) -> bool:
    return inspect.isfunction(found) and found.__module__ == module.__name__ and not _required(found)


def _required(function: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _run(what: str, action: Callable[[], _T]) -> _T:
    """Run the user's code; a failure shows their last line, not our stack."""
    try:
        return action()
    except PenstockError:
        raise
    except SystemExit as error:
        raise UsageError(
            f"{what} ends the program (sys.exit) while it is loaded", hint='guard scripts with __name__ == "__main__"'
        ) from error
    except Exception as error:  # the user's code: anything can come out
        raise _failed(what, error) from error


def _failed(what: str, error: Exception) -> UsageError:
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{short_path(error.filename)}:{error.lineno}: `{(error.text or '').strip()}`"
        return UsageError(f"{what} is not valid Python: {error.msg}", where=where)
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if f.filename != _HERE and not f.filename.startswith("<") and "/importlib/" not in f.filename
    ]
    own = [f for f in frames if "-packages/" not in f.filename] or frames
    where = f"{short_path(own[-1].filename)}:{own[-1].lineno}: `{own[-1].line}`" if own else ""
    hint = ""
    if isinstance(error, ModuleNotFoundError) and error.name:
        hint = f"install {error.name.partition('.')[0]}, or run from the folder that holds it"
    return UsageError(f"{what} failed: {type(error).__name__}: {error}", where=where, hint=hint)


def _spec(result: Any, reference: str) -> ModelSpec:
    if isinstance(result, tuple) and len(result) in (2, 3) and isinstance(result[0], torch.nn.Module):
        result = ModelSpec(*result)
    if not isinstance(result, ModelSpec):
        told = ", ".join(type(x).__name__ for x in result) if isinstance(result, tuple) else ""
        raise UsageError(
            f"{reference} returned {type(result).__name__}{f' of {told}' if told else ''}, not a ModelSpec",
            hint=_EXAMPLE,
        )
    if not isinstance(result.model, torch.nn.Module):
        raise UsageError(f"the model of {reference} is {type(result.model).__name__}, not a torch.nn.Module")
    if not isinstance(result.example_inputs, (Mapping, Sequence, torch.Tensor)):
        raise UsageError(f"the example inputs of {reference} are {type(result.example_inputs).__name__}", hint=_EXAMPLE)
    return result
