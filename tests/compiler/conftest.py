"""The command line in this process, with its own cache, however fast this machine is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from compiler.cli.main import main
from compiler.select import race as select
from tests.compiler.command import IR, MLP, Ran, Run, clock


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
    from compiler.capture.model_file import load_spec
    from compiler.compile import compile as compile_model

    path = tmp_path_factory.mktemp("compiled") / "mlp.penstock"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "interleave", clock(1.0))
        compile_model(load_spec(MLP), output=path, recipe="fp32", engine="onnxruntime", cache=False)
    return path


@pytest.fixture
def artifact(compiled: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(compiled, tmp_path / "mlp.penstock"))


@pytest.fixture
def ir_file(tmp_path: Path) -> Path:
    """A small graph as text."""
    path = tmp_path / "small.ir"
    path.write_text(IR)
    return path
