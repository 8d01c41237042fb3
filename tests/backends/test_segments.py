"""Segments equal the whole, start what is taken and nothing else, forget what is done, and believe no file."""

from __future__ import annotations

import copy
import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from backends import BACKENDS, CPU, Backend, Engine, backend
from backends.segments import build_segments, cut, is_segmented, load_engine, load_segments, unsupported_segments
from backends.segments.reader import read_schedule
from compiler.artifact.strict import check_file_name
from ir import Graph, PenstockError, interpret, parse, verify
from ir.errors import UntrustedError
from ir.weights import save
from tests import corpus
from tests.backends.random_regions import Maker
from tests.conformance.regions import EXIT, LOOP, NESTED
from tests.zoo import captured

ENGINES = ("reference", "onnxruntime", "openvino")
HIGH, LOW = torch.rand(3, 4) + 0.1, -torch.rand(5, 4) - 0.1
TEXTS: dict[str, tuple[str, list[dict[str, torch.Tensor]]]] = {
    "exit": (EXIT, [{"x": HIGH}, {"x": LOW}]),
    "nested": (NESTED, [{"x": torch.randn(2, 4)}, {"x": HIGH}, {"x": LOW}]),
    "loop": (LOOP, [{"x": HIGH, "limit": torch.tensor(k)} for k in (0, 1, 2, 5)]),
}
SEEDS = range(40)


def read(text: str) -> Graph:
    graph = parse(text.lstrip(), {"w": torch.randn(4, 4, generator=torch.Generator().manual_seed(0)) * 0.5})
    verify(graph)
    return graph


def segmented(graph: Graph, inner: Backend, folder: Path) -> Engine:
    assert not unsupported_segments(graph, inner)
    save(graph.weights, folder / "weights.safetensors")
    build_segments(graph, folder, inner)
    return load_engine(folder, inner, 1)


def same(engine: Engine, graph: Graph, inputs: Mapping[str, torch.Tensor]) -> None:
    want, got = interpret(graph, inputs), engine(inputs)
    assert list(got) == list(want)
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("case", TEXTS)
def test_segments_equal_the_whole(case: str, name: str, tmp_path: Path) -> None:
    text, runs = TEXTS[case]
    graph = read(text)
    engine = segmented(graph, backend(name), tmp_path)
    for inputs in runs:
        same(engine, graph, inputs)
    assert is_segmented(tmp_path)
    assert int(engine.facts()["segments"]) > 1
    assert all(check_file_name(p.name) for p in tmp_path.iterdir())
    assert engine.facts().get("ifs", 0) == engine.facts().get("loops", 0) == 0


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("model", ["early_exit", "nested_cond", "while_loop"])
def test_models_of_the_zoo_equal_the_whole(model: str, name: str, tmp_path: Path) -> None:
    spec, graph = captured(model)
    engine = segmented(graph, backend(name), tmp_path)
    for inputs in (*spec.calibration, spec.example_inputs):
        same(engine, graph, inputs)


def runs_of(seed: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for size, limit in ((1, 0), (2, 1), (5, 3)):
        x, y = (torch.randn(size, 4, generator=generator) for _ in range(2))
        made.append({"x": x, "y": y, "limit": torch.tensor(limit)})
    return made


def test_random_graphs_equal_the_whole(tmp_path: Path) -> None:
    counts = set()
    for seed in SEEDS:
        graph = Maker(seed).make()
        parts = cut(graph)
        for segment in parts.segments:
            verify(segment)
            assert not any(node.regions for node in segment)
        assert read_schedule(parts.schedule.text()) == parts.schedule
        (tmp_path / str(seed)).mkdir()
        engine = segmented(graph, backend("reference"), tmp_path / str(seed))
        for inputs in runs_of(seed):
            same(engine, graph, inputs)
        counts.add(len(parts.segments))
    assert max(counts) > 8


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("seed", range(6))
def test_random_graphs_equal_the_whole_on_engines(seed: int, name: str, tmp_path: Path) -> None:
    graph = Maker(seed).make()
    engine = segmented(graph, backend(name), tmp_path)
    for inputs in runs_of(seed):
        same(engine, graph, inputs)


@pytest.mark.parametrize("name", ENGINES)
def test_rows_run_on_the_live_ones_only(name: str, tmp_path: Path) -> None:
    for case, shape in (("rows", (6, 3, 4)), ("rows_nested", (6, 6))):
        (tmp_path / case).mkdir()
        graph = corpus.load(case)
        engine = segmented(graph, backend(name), tmp_path / case)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        for rows in (x, x[:1], x.abs() + 2, -x.abs() - 2, x.abs().clamp_max(0.1)):  # some, none and all of them live
            inputs = {"x": rows, "mask": torch.ones(rows.shape[0], 1, 3, dtype=torch.bool)}
            same(engine, graph, {k: inputs[k] for k, _ in graph.arguments("input")})


def test_no_live_row_starts_nothing(tmp_path: Path) -> None:
    spied = Spied()
    engine = segmented(corpus.load("rows_nested"), spied, tmp_path)
    engine({"x": torch.full((3, 6), 9.0)})
    assert [stem for stem, _ in spied.log] == ["engine.0"]
    parts = cut(corpus.load("rows_nested"))
    assert {str(s.dims.get("u0")) for s in parts.segments if "u0" in s.dims} == {"[1, 16]"}


class Spy(Engine):
    """Counts how often it is started; remembers, weakly, what it gave."""

    def __init__(self, inner: Engine, log: list[tuple[str, list[str]]], gave: dict[str, Any], stem: str) -> None:
        self._inner, self._log, self._gave, self._stem = inner, log, gave, stem

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        alive = [name for name, kept in self._gave.items() if kept() is not None]
        self._log.append((self._stem, alive))
        found = self._inner(inputs)
        self._gave.update({name: weakref.ref(tensor) for name, tensor in found.items()})
        return found


class Spied(Backend):
    name, install = "spied", ""

    def __init__(self) -> None:
        self.inner = backend("reference")
        self.log: list[tuple[str, list[str]]] = []
        self.gave: dict[str, Any] = {}

    def version(self) -> str | None:
        return self.inner.version()

    def unsupported(self, graph: Graph, *more: Any) -> Any:
        return self.inner.unsupported(graph, *more)

    def build(self, graph: Graph, folder: Path, *more: Any) -> Any:
        return self.inner.build(graph, folder, *more)

    def load(self, folder: Path, threads: int | None = None, stem: str = "engine") -> Engine:
        return Spy(self.inner.load(folder, threads, stem), self.log, self.gave, stem)


def test_the_side_that_is_not_taken_is_never_started(tmp_path: Path) -> None:
    spied = Spied()
    engine = segmented(read(EXIT), spied, tmp_path)
    engine({"x": HIGH})
    assert [stem for stem, _ in spied.log] == ["engine.0", "engine.2"]  # a clone needs no engine
    spied.log.clear()
    engine({"x": LOW})
    assert [stem for stem, _ in spied.log] == ["engine.0", "engine.1", "engine.2"]


def test_a_loop_starts_its_body_once_a_turn(tmp_path: Path) -> None:
    spied = Spied()
    engine = segmented(read(LOOP), spied, tmp_path)
    for turns in (0, 1, 4):
        spied.log.clear()
        engine({"x": HIGH, "limit": torch.tensor(turns)})
        stems = [stem for stem, _ in spied.log]
        assert (stems.count("engine.0"), stems.count("engine.1")) == (turns + 1, turns)


def test_values_are_forgotten_after_their_last_use(tmp_path: Path) -> None:
    spied = Spied()
    segmented(read(LOOP), spied, tmp_path)({"x": HIGH, "limit": torch.tensor(4)})
    assert max(len(alive) for _, alive in spied.log) <= 3  # of each turn nothing but what it carries
    assert not any(kept() is not None for kept in spied.gave.values())


def test_weights_lie_on_disk_once(tmp_path: Path) -> None:
    graph = read(EXIT)
    graph.add_param("ahead", torch.zeros(1000, dtype=torch.float64))  # shifts the others
    engine = segmented(graph, backend("onnxruntime"), tmp_path)
    same(engine, graph, {"x": LOW})
    assert sum(p.stat().st_size for p in tmp_path.glob("*.onnx")) < 4000


def test_outputs_are_the_callers_own(tmp_path: Path) -> None:
    engine = segmented(Maker(0).make(), backend("reference"), tmp_path)
    inputs = runs_of(0)[0]
    first = engine(inputs)
    kept = copy.deepcopy(first)
    for tensor in (*first.values(), *engine(inputs).values()):
        assert not any(tensor.data_ptr() == given.data_ptr() for given in inputs.values())
    for tensor in engine(inputs).values():
        tensor.zero_()
    torch.testing.assert_close(first, kept)
    torch.testing.assert_close(engine(inputs), kept)


def test_every_backend_that_carries_the_pieces_can_be_cut_for() -> None:
    graph = read(NESTED)
    for one in BACKENDS:
        if one.version() is not None and not one.why_not(CPU):
            assert not unsupported_segments(graph, one), one.name


def plain() -> dict[str, Any]:
    return json.loads(cut(read(NESTED)).schedule.text())


def broken(path: list[Any], value: Any) -> str:
    """The schedule with one place changed; ``...`` takes it out."""
    raw = plain()
    at: Any = raw
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return json.dumps(raw)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (["schema"], 2, "schema"),
        (["schema"], True, "schema"),
        (["code"], "import os", "keys"),
        (["steps"], ..., "keys"),
        (["segments"], 100_000, "not within"),
        (["segments"], -1, "not within"),
        (["steps", 0, "run"], 99, "not within"),
        (["steps", 0, "run"], 0.0, "expected int"),
        (["steps", 0, "inputs"], ["nowhere"], "before it is made"),
        (["steps", 0, "inputs"], "x", "expected list"),
        (["steps", 0, "outputs"], ["../x"], "no name"),
        (["steps", 0, "eval"], "1", "keys"),
        (["steps", 0], {"exec": 1}, "no step"),
        (["steps", 0], 3, "no step"),
        (["steps", 1, "if"], "y", "before it is made"),
        (["steps", 1, "results"], ["y"], "as many results"),
        (["steps", 1, "then", "results"], ["x"], "as many results"),
        (["steps", 1, "else", "steps"], [], "before it is made"),
        (["steps", 0, "drop"], ["many"], "before it is made"),
        (["constants", "one"], ["f32", [2], [1.0]], "do not fit"),
        (["constants", "one"], ["object", [], [1.0]], "no type"),
        (["constants", "one"], ["f32", [10**9, 10**9], []], "not within"),
        (["outputs", 0, 1], {"value": "gone"}, "before it is made"),
        (["outputs", 1, 0], "y", "twice"),
    ],
)
def test_a_faulty_schedule_is_refused(path: list[Any], value: Any, told: str) -> None:
    with pytest.raises(UntrustedError, match=told):
        read_schedule(broken(path, value))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": NaN}', '{"schema":1,"schema":1}', "[" * 100_000])
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(UntrustedError):
        read_schedule(text)


def test_a_loop_whose_second_turn_lacks_a_value_is_refused() -> None:
    raw = json.loads(cut(read(LOOP)).schedule.text())
    raw["steps"][0]["do"]["steps"][0]["drop"].append("limit")
    with pytest.raises(UntrustedError, match="second turn"):
        read_schedule(json.dumps(raw))


def test_faulty_rows_are_refused() -> None:
    raw = json.loads(cut(corpus.load("rows")).schedule.text())
    (at,) = (i for i, step in enumerate(raw["steps"]) if "rows" in step)
    for key, value in (("results", ["a", "b", "c", "d"]), ("inner", ["a"]), ("given", ["gone"] * 3), ("rows", "gone")):
        changed = copy.deepcopy(raw)
        changed["steps"][at][key] = value
        with pytest.raises(UntrustedError):
            read_schedule(json.dumps(changed))


def test_missing_pieces_and_weights_are_refused(tmp_path: Path) -> None:
    inner = backend("onnxruntime")
    segmented(read(EXIT), inner, tmp_path)
    schedule = tmp_path / "engine.schedule.json"
    text = schedule.read_text()
    schedule.write_text(text.replace('"weights":{}', '"weights":{"v":"no such weight"}'))
    with pytest.raises(UntrustedError, match="no such weight"):
        load_segments(tmp_path, inner)
    schedule.write_text(text)
    (tmp_path / "engine.1.onnx").unlink()
    with pytest.raises(PenstockError):
        load_segments(tmp_path, inner)
