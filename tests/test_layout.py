"""The tree is what ARCHITECTURE.md says: imports run one way, names are ours, files stay small, imports do nothing."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import passes
from passes.base import Pass

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "ir": {"ir"},
    "passes": {"passes", "ir"},
    "backends": {"backends", "ir"},
    "compiler": {"compiler", "passes", "backends", "ir"},
    "penstock": {"compiler", "passes", "ir"},
    "examples": {"examples", "penstock", "compiler", "passes", "backends", "ir"},
}
OURS = {*MAY_IMPORT, "tests"}
ROOMS = ("ir", "passes", "backends", "compiler")
LONG, TOO_LONG = 400, 500
NO_PASS = {"__init__", "base", "options", "rewrite"}


def files(*rooms: str) -> list[Path]:
    found = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    return sorted(found + [ROOT / f"{room}.py" for room in rooms if (ROOT / f"{room}.py").exists()])


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of every import in a file, also of those within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_run_one_way(room: str) -> None:
    wrong = [
        f"{name_of(path)}:{line} imports {module}"
        for path in files(room)
        for line, module in imports(path)
        if module.startswith(".") or module.split(".")[0] in OURS - MAY_IMPORT[room]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", [*ROOMS, "penstock"])
def test_packages_come_from_this_checkout(name: str) -> None:
    module = importlib.import_module(name)
    places = [module.__file__] if module.__file__ else list(module.__path__)
    assert all(Path(str(place)).is_relative_to(ROOT) for place in places)
    assert name not in sys.stdlib_module_names


def test_no_other_distribution_owns_our_names() -> None:
    owners = importlib.metadata.packages_distributions()
    assert {name: set(owners[name]) - {"penstock"} for name in ROOMS if set(owners.get(name, ())) - {"penstock"}} == {}


def test_files_stay_small() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in files(*ROOMS, "penstock", "examples")}
    long = {name: lines for name, lines in lengths.items() if lines > LONG}
    if long:
        warnings.warn(f"files of more than {LONG} lines: {long}", stacklevel=1)
    assert not {name: lines for name, lines in long.items() if lines > TOO_LONG}


def test_every_test_folder_is_a_package() -> None:
    folders = {path.parent for path in files("tests")}
    assert not [name_of(folder) for folder in folders if not (folder / "__init__.py").exists()]


def test_every_pass_is_listed_and_named_after_its_file() -> None:
    stems = {path.stem for path in (ROOT / "passes").glob("*.py")} - NO_PASS
    listed = {pass_.__module__.removeprefix("passes."): pass_ for pass_ in passes.PASSES}
    defined = {
        stem
        for stem in stems
        if re.search(r"^class \w+\((\w+\.)?Pass\)", (ROOT / f"passes/{stem}.py").read_text(), re.M)
    }
    assert defined == set(listed), "add the pass to PASSES in passes/__init__.py"
    for stem, pass_ in listed.items():
        assert pass_.name == stem.replace("_", "-")
        assert pass_.__name__ == "".join(part.capitalize() for part in stem.split("_"))
        assert issubclass(pass_, Pass)
        assert pass_.summary
        assert "->" in (sys.modules[pass_.__module__].__doc__ or ""), "say before -> after"


def test_only_the_command_line_and_examples_print() -> None:
    printing = [
        f"{name_of(path)}:{node.lineno}"
        for path in files(*ROOMS, "penstock")
        if "compiler/cli" not in name_of(path)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printing


def test_importing_does_nothing() -> None:
    """No operator registered, no engine loaded, no setting of torch or of logging touched."""
    code = """
import logging, os, sys
import torch
before = (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), dict(os.environ), list(sys.path))
operators = set(torch._C._dispatch_get_all_op_names())
import ir, passes, backends, compiler, penstock
after = (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), dict(os.environ), list(sys.path))
assert before == after, (before, after)
assert not [n for n in set(torch._C._dispatch_get_all_op_names()) - operators if n.startswith("penstock")]
assert not logging.getLogger().handlers
assert not {"onnx", "onnxruntime", "openvino", "transformers", "onnxscript"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == ""
