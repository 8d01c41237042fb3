"""Recipes: presets, passes as text, files; what a file may not say; who has the last word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from compiler.cost.targets import target
from compiler.pipeline.recipe import AUTO, PRESETS, gpu_auto, recipe
from compiler.settings import Settings, read_settings
from ir.errors import UsageError

FULL = """version: 1
target: cpu
engine: onnxruntime
threads: 2
max-loss: 0.005
check: full
seconds: 1
passes:
  - fold-constants{max-bytes=0}
  - quantize{skip=["head", "pooler"], keep=2}
"""

Write = Callable[[str], str]


@pytest.fixture
def file(tmp_path: Path) -> Write:
    def write(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_presets() -> None:
    assert list(recipe("auto").passes) == list(AUTO)
    assert set(AUTO) <= set(PRESETS)
    for name in PRESETS:
        assert recipe(name).passes == {name: PRESETS[name]}
        assert recipe(name).pipelines()[name].passes


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("t4", []),
        ("a100_80", ["bf16", "int8-weights", "int4"]),
        ("l4", ["bf16", "int8-weights", "int4", "fp8"]),
        ("rtx5090", ["bf16", "int8-weights", "int4", "fp8", "nvfp4"]),
    ],
)
def test_what_auto_tries_for_a_gpu(name: str, more: list[str]) -> None:
    found = gpu_auto(target(name).peak)
    assert set(found) == {"fp16", "int8-symmetric", *more}
    assert set(found) <= set(PRESETS)


def test_a_file(file: Write) -> None:
    found = recipe(file(FULL))
    assert found.name == "mine"
    assert found.passes == {"custom": 'fold-constants{max-bytes=0}, quantize{skip=["head", "pooler"], keep=2}'}
    assert found.settings == {
        "target": "cpu", "engine": "onnxruntime", "threads": 2, "max_loss": 0.005, "check": "full", "seconds": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", [FULL, "version: 1\n", "version: 1\nengine: reference\n", "version: 1\npasses: drop-dead-nodes\n"]
)
def test_what_a_recipe_prints_reads_back_as_the_same(file: Write, text: str) -> None:
    first = recipe(file(text))
    again = recipe(file(first.text()))
    assert (again.passes, again.settings) == (first.passes, first.settings)
    assert again.text() == first.text()


@pytest.mark.parametrize("name", ["auto", *PRESETS, "quantize{keep=2}, drop-dead-nodes"])
def test_what_has_no_file_prints_as_one(file: Write, name: str) -> None:
    first = recipe(name)
    again = recipe(file(first.text()))
    assert list(again.passes.values()) == list(first.passes.values())


def test_a_file_without_passes_is_auto(file: Write) -> None:
    assert recipe(file("version: 1")).passes == recipe("auto").passes


def test_a_file_may_name_a_preset(file: Write) -> None:
    assert recipe(file("version: 1\npasses: int8")).passes == recipe("int8").passes


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("version: 1\npases: []", "unknown key 'pases'\n  hint: did you mean \"passes\"?"),
        ("version: 1\nmax-los: 1", 'did you mean "max-loss"?'),
        ("version: 1\n1: 2", "unknown key 1"),
        ("version: 1\nthreads: two", "threads takes int, not 'two'"),
        ("version: 1\nthreads: true", "threads takes int, not True"),
        ("version: 1\nmax_loss: [1]", "max_loss takes int or float, not [1]"),
        ("version: 1\nengine: null", "engine takes str, not None"),
        ("version: 1\npasses: 3", "passes takes str or list, not 3"),
        ("version: 1\npasses: [1]", "passes is a list of texts"),
        ("version: 1\npasses: []", "there is no recipe ''"),
        ("version: 1\npasses: fold-constant", 'did you mean "fold-constants"?'),
        ("version: 1\npasses: fold-constants{max-byte=1}", 'did you mean "max-bytes"?'),
        ('version: 1\npasses: ["fold-constants{max-bytes=many}"]', "takes int, not 'many'"),
        ("version: 1\npasses: mine.yaml", "there is no recipe 'mine.yaml'"),  # nor can a file name itself
        ("passes: auto", "version is None, this Penstock reads 1\n  hint: write version: 1"),
        ("version: 2", "version is 2, this Penstock reads 1"),
        ("version: '1'", "version takes int, not '1'"),
        ("", "is not a mapping"),
        ("- version", "is not a mapping"),
        ("version: [1", "is not YAML: while parsing"),
        ("version: 1\ntarget: !!python/object/apply:os.getcwd []", "is not YAML: could not determine a constructor"),
        ("version: 2020-13-45", "is not YAML: month must be"),
        ("[" * 1000, "is not YAML: "),
        ("a: " + "x" * (1 << 17), "is larger than 65536 bytes"),
    ],
)
def test_faults_of_a_file(file: Write, text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipe(file(text))
    assert told in str(caught.value)
    assert "mine.yaml" in caught.value.what
    assert len(caught.value.what) < 400


def test_a_file_that_grows_when_it_is_read(file: Write) -> None:
    laughs = "version: 1\nengine: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
    )
    with pytest.raises(UsageError, match="engine takes str") as caught:
        recipe(file(laughs))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("name", "told"), [("nix.yaml", "no such recipe"), ("folder.yaml", "no such recipe")])
def test_no_such_file(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UsageError, match=told):
        recipe(str(tmp_path / name))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not YAML"):
        recipe(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("int9", 'did you mean "int8"?'),
        ("quantise", 'did you mean "quantize"?'),
        ("", "there is no recipe ''"),
        ("fold-constants, quantise", "there is no pass 'quantise'"),
        ("fold-constants{", "cannot read the passes"),
        ("fold-constants, a b", "cannot read the passes"),
        ("x" * 5000, "there is no recipe"),
    ],
)
def test_faults_of_a_text(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipe(text)
    assert told in str(caught.value)


# --- settings ------------------------------------------------------------------------------------------


def test_the_caller_comes_before_the_recipe_and_the_recipe_before_the_default(file: Write) -> None:
    path = file(FULL)
    assert read_settings({}) == Settings()
    from_file = read_settings({"recipe": path})
    assert (from_file.engine, from_file.threads, from_file.max_loss) == ("onnxruntime", 2, 0.005)
    both = read_settings({"recipe": path, "threads": 4, "max_loss": 0.1})
    assert (both.engine, both.threads, both.max_loss) == ("onnxruntime", 4, 0.1)
    assert both.force is Settings.force


def test_every_key_of_a_recipe_is_a_setting(file: Write) -> None:
    settings = recipe(file(FULL)).settings
    assert set(settings) == set(yaml.safe_load(FULL.replace("-loss", "_loss"))) - {"version", "passes"}
    assert read_settings(settings).seconds == 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"theads": 2}, "compile has no setting 'theads'\n  hint: did you mean \"threads\"?"),
        ({"threads": "2"}, "threads takes int, not '2'"),
        ({"threads": True}, "threads takes int, not True"),
        ({"threads": 0}, "threads is 0, not between 1 and 1024"),
        ({"max_loss": float("nan")}, "max_loss is nan, not between 0 and 2"),
        ({"max_loss": None}, "max_loss takes float, not None"),
        ({"seconds": -1}, "seconds is -1.0, not between 0 and 3600"),
        ({"force": 1}, "force takes bool, not 1"),
        ({"check": "ful"}, "check is 'ful'\n  hint: did you mean \"full\"?"),
        ({"target": None}, "target takes str, not None"),
        ({"dump": 3}, "dump takes Path, not 3"),
    ],
)
def test_settings_that_cannot_be_meant(given: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_settings(given)
    assert told in str(caught.value)


def test_a_recipe_with_a_number_out_of_bounds(file: Write) -> None:
    with pytest.raises(UsageError, match="max_loss is 3"):
        read_settings({"recipe": file("version: 1\nmax-loss: 3")})


def test_paths_are_taken_as_they_come(file: Write, tmp_path: Path) -> None:
    settings = read_settings({"recipe": Path(file(FULL)), "dump": str(tmp_path)})
    assert settings.engine == "onnxruntime"
    assert settings.dump == tmp_path


def test_several_presets_are_all_tried() -> None:
    both = recipe("fp32+int8")
    assert list(both.passes) == ["fp32", "int8"]
    with pytest.raises(UsageError, match="there is no recipe"):
        recipe("fp32+int9")
