"""A builder that crashes, hangs, eats memory or talks nonsense ends as one message."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from backends.child import run_child
from ir.errors import BuildError, PenstockError, ResourceError, UnsupportedError


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    def make(body: str) -> str:
        package = tmp_path / "fake"
        package.mkdir(exist_ok=True)
        (package / "__init__.py").touch()
        text = "from backends.child import serve\nfrom ir.errors import *\nimport os, sys, time\n"
        text += "def build(request, progress):\n" + textwrap.indent(textwrap.dedent(body), "    ") + "\nserve(build)\n"
        (package / "builder.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return "fake.builder"

    return make


def test_answers_and_tells_progress(child) -> None:  # type: ignore[no-untyped-def]
    heard: list[tuple[str, float]] = []
    module = child(
        "print('noise'); os.write(1, b'more noise'); progress('half', 0.5); return {'double': 2 * request['n']}"
    )
    assert run_child(module, {"n": 21}, progress=lambda *said: heard.append(said)) == {"double": 42}
    assert heard == [("half", 0.5)]


def test_an_error_of_the_child_is_raised_here(child) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UnsupportedError, match="no such thing") as caught:
        run_child(child("raise UnsupportedError('no such thing', where='model.py:3', hint='another')"), {})
    assert caught.value.where == "model.py:3"


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ("sys.stderr.write('the last words\\n'); sys.stderr.flush(); os.kill(os.getpid(), 11)", BuildError,
         "crashed.*SIGSEGV.*the last words"),
        ("os._exit(3)", BuildError, "ended with code 3"),
        ("raise ValueError('odd')", BuildError, "odd"),
        ("os.kill(os.getpid(), 9)", ResourceError, "killed by the system"),
        ("time.sleep(60)", ResourceError, "within 2 s"),
        ("x = bytearray(900_000_000); time.sleep(60)", ResourceError, "more than"),
    ],
)  # fmt: skip
def test_a_broken_builder_is_one_message(child, body: str, kind: type[PenstockError], words: str) -> None:  # type: ignore[no-untyped-def]
    timeout = 2 if "sleep(60)" in body and "bytearray" not in body else 60
    with pytest.raises(kind, match=words):
        run_child(child(body), {}, timeout=timeout, memory=800_000_000)
    assert sys.modules.get("fake") is None
