"""``penstock run --prompt``: the text appears as it is written."""

from __future__ import annotations

from pathlib import Path

from compiler.runtime.loaded import load
from tests.compiler.command import Run


def test_a_text_on_the_terminal(penstock: Run, written: Path) -> None:
    answer = load(written).generate("def ", 12)[0]
    told = penstock("run", written, "--prompt", "def ", "--max-new-tokens", "12", "--draft", "2").worked()
    assert told.out.startswith("def ")
    assert "12 tokens in" in told.err
    assert "draft" in told.err
    as_json = penstock("run", written, "-p", "def ", "--max-new-tokens", "12", "--draft", "0", "--json").worked().json
    assert tuple(as_json["tokens"]) == answer.tokens
    assert as_json["calls"] == {"engine": 1, "decode": 11}
    stopped = penstock("run", written, "-p", "def ", "--max-new-tokens", "0", "-q").worked()
    assert stopped.out == "\n"


def test_options_that_cannot_be_meant(penstock: Run, written: Path) -> None:
    penstock("run", written, "-p", "x", "--top-p", "3").failed(2, "top_p is 3.0")
    penstock("run", written, "-p", "x", "-s", "batch=2").failed(2, "--prompt does not go with")
    penstock("run", written, "-p", "").failed(2, "prompt 0 is empty")


def test_an_artifact_that_generates_runs_on_random_inputs_too(penstock: Run, written: Path) -> None:
    assert "logits" in penstock("run", written).worked().out
