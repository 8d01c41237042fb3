"""What cannot be meant is refused in one sentence, before anything runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import penstock
from compiler.artifact import read_manifest
from compiler.generate.step import layout_of
from examples.tinylm import TinyLM
from ir.errors import UnsupportedError, UntrustedError, UsageError
from tests.compiler.command import Run


@pytest.mark.parametrize(
    ("prompts", "options", "told"),
    [
        ([1] * 49, {}, "prompt 0 has 49 tokens; the model has 48 positions"),
        ([], {}, "there are no prompts"),
        ("", {}, "prompt 0 is empty"),
        ([[1], []], {}, "prompt 1 is empty"),
        ([1, 256], {}, "holds the token 256; there are 256"),
        ([1, -1], {}, "holds the token -1"),
        ([[0.5]], {}, "prompt 0 is list, not a text"),
        ("a", {"max_new_tokens": -1}, "max_new_tokens is -1"),
        ("a", {"temperature": -0.1}, "temperature is -0.1"),
        ("a", {"temperature": float("nan")}, "temperature is nan"),
        ("a", {"top_k": -1}, "top_k is -1"),
        ("a", {"top_p": 0.0}, "top_p is 0.0"),
        ("a", {"top_p": 1.5}, "top_p is 1.5"),
        ("a", {"seed": -1}, "seed is -1"),
        ("a", {"stop": [""]}, "stop sequence is empty"),
        ("a", {"draft": -1}, "draft is -1"),
        ("a", {"draft": 99}, "draft is 99"),
        ("a", {"draft": 2, "draft_floor": 2.0}, "draft_floor is 2.0"),
        ("a", {"exit_at": float("nan")}, "exit_at is nan"),
        ("a", {"exit_at": 0.5, "draft": 2}, "do not go together"),
        ("a", {"fill": "zeros"}, "fill is 'zeros'"),
        ("a", {"top_n": 1}, "no option 'top_n'"),
        ("a", {"requests": [1, 2]}, "one number, 0 or more, for each prompt"),
    ],
)
def test_arguments(engine: penstock.LoadedModel, prompts: Any, options: Mapping[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told.replace("(", r"\(")):
        engine.generate(prompts, **{"max_new_tokens": 4, **options})


def without(engine: penstock.LoadedModel, stem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = engine._generating()
    monkeypatch.setattr(generator, "_engines", {s: e for s, e in generator._engines.items() if s != stem})


def test_drafts_need_a_draft_engine(engine: penstock.LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    without(engine, "draft", monkeypatch)
    for options in ({"draft": 2}, {"exit_at": 0.5}):
        with pytest.raises(UsageError, match="the artifact has no draft engine"):
            engine.generate("a", 4, **options)


def test_projecting_needs_its_engine(engine: penstock.LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    without(engine, "project", monkeypatch)
    with pytest.raises(UsageError, match="no engine that projects"):
        engine.generate("a", 4, exit_at=0.5, fill="project")


def test_other_artifacts_do_not_generate(artifact: Path, penstock: Run) -> None:
    from compiler.runtime.loaded import load

    with pytest.raises(UsageError, match="does not generate"):
        load(artifact).generate([1, 2])
    penstock("run", artifact, "--prompt", "x").failed(2, "does not generate")
    penstock("run", artifact, "--top-k", "3").failed(2, "--top-k goes with --prompt only")


def test_models_that_have_no_cached_step() -> None:
    with pytest.raises(UnsupportedError, match="Linear cannot generate"):
        layout_of(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"draft": 3}, "draft is 3 layers; the model has 3"),
        ({"task": "generat"}, "task is 'generat'"),
        ({"task": "", "draft": 1}, "draft is for language models"),
        ({"dry_run": True}, "does not go with a dry run"),
        ({"engine": "all"}, "does not go with several"),
        ({"example_inputs": {"tokens": torch.zeros(2, 3)}}, "hold no tokens"),
        ({"example_inputs": {"tokens": torch.full((2, 3), 256)}}, "not all within the vocabulary"),
    ],
)
def test_settings(small: TinyLM, tmp_path: Path, settings: Mapping[str, Any], told: str) -> None:
    given = {"example_inputs": {"tokens": torch.ones(2, 3).long()}, "task": "generate", **settings}
    with pytest.raises(UsageError, match=told):
        penstock.compile(small, output=tmp_path / "x.penstock", **given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layers", 0),
        ("context", True),
        ("ends", [256]),
        ("text", "utf-8"),
        ("draft", 9),
        ("more", 1),
        ("ahead", -1),
        ("exit_at", 3.0),
        ("exit_rows", -1),
    ],
)
def test_a_forged_section(written: Path, key: str, value: object) -> None:
    raw = json.loads((written / "manifest.json").read_text())
    raw["generate"][key] = value
    with pytest.raises(UntrustedError, match="generate"):
        read_manifest(json.dumps(raw))


def test_a_payload_that_is_missing(written: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(written, tmp_path / "x.penstock"))
    (copy / "decode.onnx").unlink()
    with pytest.raises(UntrustedError, match=r"decode\.onnx is missing"):
        penstock.load(copy)
