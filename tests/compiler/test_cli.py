"""The command line as a whole: help, wrong use, what it lists, and that it starts without anything heavy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compiler.cli.main import EXIT_CODES, cli, main
from compiler.cli.progress import Progress
from compiler.doctor import ENGINES
from compiler.events import Event
from ir import errors
from passes import PASSES
from tests.compiler.command import Run

HEAVY = {"torch", "numpy", "sympy", "onnx", "onnxruntime", "openvino", "rich", "yaml", "networkx", "safetensors"}


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [(["--help"], set()), (["compile", "--help"], set()), (["doctor", "--json"], set()), (["doctor"], {"rich"})],
)
def test_nothing_heavy_is_imported_to_help(arguments: list[str], allowed: set[str]) -> None:
    code = f"""
import sys
from compiler.cli.main import main
try:
    main({arguments!r})
except SystemExit as ended:
    assert not ended.code
print(sorted({{m.partition(".")[0] for m in sys.modules}} & {HEAVY!r}), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stderr.splitlines()[-1].replace("'", '"'))) <= allowed
    assert done.stdout


def test_help_names_every_command_and_every_exit_code(penstock: Run) -> None:
    told = penstock("--help").worked().out
    for name in ("compile", "run", "bench", "estimate", "inspect", "verify", "passes", "targets", "doctor", "opt"):
        assert re.search(rf"^  {name} ", told, re.MULTILINE)
    documented = set(re.findall(r"\b(\d+) ", EXIT_CODES))
    kinds = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.PenstockError)]
    assert documented == {"0", "130"} | {str(kind.exit_code) for kind in kinds}
    assert max(map(len, told.splitlines())) <= 100


def test_no_command_is_help(penstock: Run) -> None:
    assert penstock().worked().out == penstock("-h").worked().out


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_help_of_a_command(penstock: Run, name: str) -> None:
    told = penstock(name, "-h").worked().out
    for option in ("--json", "--quiet", "--verbose"):
        assert option in told


def test_version(penstock: Run) -> None:
    assert re.fullmatch(r"penstock \S+\n", penstock("--version").worked().out)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["compil"], "No such command 'compil'. Did you mean 'compile'?\n  hint: penstock --help"),
        (["compile"], "Missing argument 'MODEL'.\n  hint: penstock compile --help"),
        (["compile", "m.py", "--recipy", "x"], "No such option '--recipy'"),
        (["compile", "m.py", "--recipy", "x"], "'--recipe'"),
        (["compile", "m.py", "n.py"], "unexpected extra argument"),
        (["compile", "m.py", "--threads", "two"], "'two' is not a valid integer"),
        (["compile", "m.py", "--threads", "0"], "0 is not in the range"),
        (["compile", "m.py", "--max-loss", "nan?"], "is not a valid float"),
        (["compile", "m.py", "--max-loss", "-1"], "is not in the range"),
        (["compile", "m.py", "--seconds", "-1"], "is not in the range"),
        (["run", "a.penstock", "-s", "batch"], "'batch' is not NAME=SIZE"),
        (["run", "a.penstock", "-s", "batch=-1"], "is not NAME=SIZE"),
        (["estimate", "m.py", "-b", "1,two"], "no list of whole numbers"),
        (["estimate", "m.py", "-b", "0"], "sizes begin at 1"),
    ],
)
def test_wrong_use(penstock: Run, arguments: list[str], told: str) -> None:
    penstock(*arguments).failed(2, told, "hint: penstock")


def test_an_option_without_its_value(penstock: Run) -> None:
    penstock("compile", "m.py", "-e").failed(2, "Option '-e' requires an argument")


def test_a_bug_says_so(penstock: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise LookupError("perm")

    monkeypatch.setattr("compiler.look.describe_passes", fails)
    penstock("passes").failed(1, "this is a bug in Penstock: LookupError: perm", "hint: run again with -v")
    told = penstock("passes", "-v")
    assert told.code == 1
    assert "Traceback" in told.err


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")]
)
def test_out_of_memory(penstock: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("compiler.look.describe_passes", fails)
    penstock("passes").failed(5, "out of memory")


def test_passes(penstock: Run) -> None:
    rows = penstock("passes", "--json").worked().json["passes"]
    assert [row["name"] for row in rows] == [p.name for p in PASSES]
    for row in rows:
        assert row.keys() == {"name", "summary", "options", "tolerance", "requires", "gives", "breaks"}
        assert row["summary"]
        told = penstock("passes", row["name"]).worked().out
        for word in (row["name"], "options", row["tolerance"], *row["options"]):
            assert word in told
    assert penstock("passes", "fold-constants", "--json").worked().json["options"] == {"max-bytes": 1 << 20}
    assert "fold-constants" in penstock("passes", "-q").worked().out
    penstock("passes", "fold-constant").failed(2, "there is no pass 'fold-constant'", 'did you mean "fold-constants"?')


def test_targets(penstock: Run) -> None:
    rows = penstock("targets", "--json").worked().json["targets"]
    assert rows[0]["name"] == "cpu"
    assert {"l4", "h100_sxm"} <= {row["name"] for row in rows}
    told = penstock("targets").worked().out
    assert max(map(len, told.splitlines())) <= 100


def test_doctor(penstock: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {row["name"]: row for row in penstock("doctor", "--json").worked().json["findings"]}
    assert {f"engine {name}" for name in ENGINES} <= found.keys()
    package, *rest = ENGINES["openvino"]
    gone = replace(package, module="no_such_module", package="no-such-package")
    monkeypatch.setitem(ENGINES, "openvino", (gone, *rest))
    found = {row["name"]: row for row in penstock("doctor", "--json").worked().json["findings"]}
    assert found["engine openvino"]["state"] == "missing"
    assert found["engine openvino"]["fix"] == 'pip install "penstock[openvino]"'
    assert 'fix: pip install "penstock[openvino]"' in penstock("doctor").worked().out


@pytest.mark.parametrize("content", ["", "[" * 100_000, '{"t": 3}', '{"t": {"engines": "x"}}', '{"t": {"engines": 2}}'])
def test_a_damaged_history_is_no_reason_to_fail(own_cache: Path, content: str) -> None:
    file = own_cache / "penstock" / "phases.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with Progress("t", -1) as progress:
        progress(Event("begin", "engines"))
        progress(Event("end", "capture", seconds=1.5))
    kept: dict[str, Any] = json.loads(file.read_text())
    assert kept["t"]["capture"] == 1.5
    assert ("engines" in kept["t"]) == content.endswith("2}}")


def test_an_interrupt_is_130(penstock: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("compiler.look.describe_passes", interrupted)
    penstock("passes").failed(130, "interrupted")


def test_main_reads_the_arguments_of_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["penstock", "passes", "-q"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "fold-constants" in capsys.readouterr().out
