"""The command line in this process, with its own cache and a clock that shows what a test wants.

A test module takes the fixtures by ``pytest_plugins = ["tests.compiler.command"]``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from compiler import select
from compiler.cli.main import main
from compiler.measure import Timing

MODELS = Path(__file__).parent / "models"
MLP = str(MODELS / "mlp.py")


@dataclass(frozen=True)
class Ran:
    """What a command ended with."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    def failed(self, code: int, *words: str) -> Ran:
        """One clean message with these words, this exit code, and nothing on stdout."""
        assert self.code == code, self.err
        assert self.err.count("error:") == 1, self.err
        assert "Traceback" not in self.err
        assert self.out == ""
        for word in words:
            assert word in self.err
        return self

    def worked(self) -> Ran:
        assert self.code == 0, self.err
        assert "error:" not in self.err
        return self


Run = Callable[..., Ran]


def clock(engine_ms: float, eager_ms: float = 2.0) -> Callable[..., dict[str, Timing]]:
    """A measurement that takes no time and no chances."""

    def interleave(calls: Mapping[str, Callable[[], object]], seconds: float = 0) -> dict[str, Timing]:
        times = {name: eager_ms if name == "eager" else engine_ms for name in calls}
        return {name: Timing(ms / 1e3, ms / 1e3, ms / 1e3, 5) for name, ms in times.items()}

    return interleave


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test meets what another one, or the user, has compiled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache" / "penstock"))
    return tmp_path / "cache"


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are twice as fast as eager."""
    monkeypatch.setattr(select, "interleave", clock(1.0))


@pytest.fixture
def penstock(fast: None, own_cache: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ran(ended.value.code, told.out, told.err)

    return run


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model on ONNX Runtime; never to be changed."""
    from compiler.compile import compile as compile_model
    from compiler.model_file import load_spec

    path = tmp_path_factory.mktemp("compiled") / "mlp.penstock"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "interleave", clock(1.0))
        compile_model(load_spec(MLP), output=path, recipe="fp32", engine="onnxruntime", cache=False)
    return path


@pytest.fixture
def artifact(compiled: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(compiled, tmp_path / "mlp.penstock"))
