"""Proofs of skipping: what is measured, how it is judged, and that a lowering which computes both sides is found."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backends import BuildOptions, Built, Device, Engine, Unsupported, backend
from backends.base import DEFAULT, FlowProof, flow_name
from backends.segments import is_segmented, load_engine, refusals, simulated_segments
from compiler.select.forced import choices, forced, inputs_of, regions_of, straight
from compiler.select.lowering import build_unmeasured, lower
from compiler.select.skipping import Limits, Times, Verdict, judge, native, prove, segments
from ir import COND, Graph, interpret, parse, verify
from ir.errors import UnsupportedError
from ir.rows import lowered
from ir.weights import save
from tests import corpus
from tests.backends.random_regions import Maker
from tests.backends.test_segments import runs_of
from tests.compiler.branching import WIDTH, Flat, Planted, both_sides, branching, looping
from tests.conformance.regions import EXIT, LOOP, NESTED

QUICK = Limits(seconds=0.1, threads=1)
_TRIES = 4
INPUTS = {"x": torch.rand(64, WIDTH)}


def close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


# --- the copies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_forced_and_straight_copies_agree(seed: int) -> None:
    graph = Maker(seed).make()
    regions = regions_of(graph)
    ours = forced(graph, regions)
    verify(ours)
    inputs = runs_of(seed)[2]
    for region in regions:
        for heavy in (False, True):
            chosen = choices(regions, region, heavy)
            line = straight(graph, chosen)
            verify(line)
            assert not any(node.regions for node in line.walk())
            close(interpret(line, inputs), interpret(ours, {**inputs, **inputs_of(regions, chosen)}))


@pytest.mark.parametrize("x", [torch.rand(3, 4), -torch.rand(3, 4)])
@pytest.mark.parametrize("text", [EXIT, NESTED])
def test_forcing_what_happens_anyway_changes_nothing(text: str, x: torch.Tensor) -> None:
    graph = parse(text.lstrip(), {"w": torch.randn(4, 4)})
    regions = regions_of(graph)
    taken = {}
    interpret(
        graph, {"x": x}, lambda node, args, _: taken.update({node: 1 - int(bool(args[0]))} if node.op is COND else {})
    )
    chosen = {r.node: taken.get(r.node, 0) for r in regions}
    close(interpret(graph, {"x": x}), interpret(forced(graph, regions), {"x": x, **inputs_of(regions, chosen)}))
    close(interpret(graph, {"x": x}), interpret(straight(graph, chosen), {"x": x}))


def test_a_loop_turns_as_often_as_it_is_told() -> None:
    graph = parse(LOOP.lstrip(), {"w": torch.randn(4, 4) * 0.5})
    regions = regions_of(graph)
    loop, odd = regions
    assert (loop.heavy, loop.light) == (4, 0)
    assert odd.around == {loop.node: 4}
    inputs = {"x": torch.randn(2, 4), "limit": torch.tensor(9)}
    for turns in (0, 1, 3):
        chosen = {loop.node: turns, odd.node: 1}
        close(
            interpret(straight(graph, chosen), inputs),
            interpret(forced(graph, regions), {**inputs, **inputs_of(regions, chosen)}),
        )
    assert len(straight(graph, {loop.node: 0, odd.node: 1})) < len(straight(graph, {loop.node: 3, odd.node: 1}))


def test_the_heavy_side_is_the_longer_one() -> None:
    (region,) = regions_of(branching())
    assert (region.heavy, region.light) == (1, 0)


# --- the verdict ---------------------------------------------------------------------------------


def judged(
    *, cheap: Sequence[float], expensive: Sequence[float], lines: tuple[Sequence[float], Sequence[float]]
) -> Verdict:
    return judge(FlowProof("cond", "if", "none", ""), Times(cheap, expensive, *lines))[0]


def around(ms: float, noise: float = 0.01) -> list[float]:
    """Eight rounds, the noise of which is not the same in any two calls."""
    seed = torch.Generator().manual_seed(int(ms * 1e6) % 2**31)
    return [(ms + noise * float(e)) / 1e3 for e in torch.randn(8, generator=seed)]


def test_a_lazy_engine() -> None:
    found = judged(cheap=around(1.05), expensive=around(10.1), lines=(around(1.0), around(10.0)))
    assert found.keep and found.proof.lazy and found.proof.evidence == "measured"
    assert set(found.proof.seconds) == {"taken", "untaken", "full", "straight"}
    assert found.proof.seconds["untaken"] < found.proof.seconds["taken"]


def test_an_engine_that_computes_both_sides() -> None:
    found = judged(cheap=around(10.9), expensive=around(11.0), lines=(around(1.0), around(10.0)))
    assert not found.keep and not found.proof.lazy and found.proof.evidence == "measured"


def test_deciding_may_cost_more_than_a_tiny_branch() -> None:
    """A branch of 100 us under an If of 60 us: dear, but what is not taken is skipped."""
    found = judged(
        cheap=around(1.06, 0.001), expensive=around(1.16, 0.001), lines=(around(1.0, 0.001), around(1.1, 0.001))
    )
    assert found.proof.lazy and "60 us" in found.proof.detail


def test_too_small_to_measure_is_no_evidence_and_no_harm() -> None:
    found = judged(cheap=around(1.0, 0.1), expensive=around(1.01, 0.1), lines=(around(1.02, 0.1), around(1.03, 0.1)))
    assert found.proof.evidence == "none" and found.keep and not found.proof.lazy
    assert "too small" in found.proof.detail


def test_halves_that_disagree_leave_it_open() -> None:
    cheap = [1.1e-3, 6e-3] * 4
    found = judged(cheap=cheap, expensive=around(10.0), lines=(around(1.0), around(10.0)))
    assert found.proof.evidence == "none" and found.keep and not found.proof.lazy
    assert "too busy" in found.proof.detail


def test_the_cheap_side_is_found_by_the_clock() -> None:
    """What has fewer nodes need not be what takes less time."""
    found = judged(cheap=around(10.0), expensive=around(1.0), lines=(around(9.9), around(0.9)))
    assert found.proof.lazy and found.proof.seconds["full"] > found.proof.seconds["straight"]


# --- engines -------------------------------------------------------------------------------------


def proven(graph: Graph, name: str, folder: Path, bug: bool = False, cut: bool = False) -> list[Verdict]:
    made = Planted(name) if bug else backend(name)
    folder.mkdir()
    save(graph.weights, folder / "weights.safetensors")
    inputs = {**INPUTS, "limit": torch.tensor(1)} if graph.name == "looping" else INPUTS
    for _ in range(_TRIES):  # on a busy machine a verdict may say that it was too busy; that is no failure
        verdicts = prove(graph, made, segments(made) if cut else native(made), inputs, folder, QUICK)
        if all("too busy" not in v.proof.detail for v in verdicts):
            break
    return verdicts


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_engines_are_lazy_and_a_planted_bug_is_not(name: str, tmp_path: Path) -> None:
    graph = branching()
    (good,) = proven(graph, name, tmp_path / "good")
    (bad,) = proven(graph, name, tmp_path / "bad", bug=True)
    assert good.keep and good.proof.lazy and good.proof.evidence == "measured", good
    assert not bad.keep and not bad.proof.lazy and bad.proof.evidence == "measured", bad


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_loops_run_no_turn_too_many(name: str, tmp_path: Path) -> None:
    (found,) = proven(looping(), name, tmp_path / "loop")
    assert found.proof.lazy and found.proof.lowering == "loop", found


def test_segments_are_lazy(tmp_path: Path) -> None:
    (found,) = proven(branching(), "onnxruntime", tmp_path / "cut", cut=True)
    assert found.proof.lazy and found.proof.lowering == "segments", found


def test_the_planted_lowering_is_right_and_only_wasteful() -> None:
    graph = branching(3)
    for sign in (1, -1):
        inputs = {"x": sign * INPUTS["x"]}
        close(interpret(graph, inputs), interpret(both_sides(graph), inputs))


# --- the choice ----------------------------------------------------------------------------------


def test_a_proven_lowering_stays_native(tmp_path: Path) -> None:
    made = lower(branching(), backend("onnxruntime"), tmp_path / "engine", INPUTS, QUICK)
    assert made.lowering == "native" and all(p.lazy for p in made.flow)
    assert not is_segmented(tmp_path / "engine")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["engine"]  # nothing of the proof is left
    assert "1 of 1 proven" in made.remarks[0]


def test_a_lowering_that_computes_both_sides_is_replaced_by_segments(tmp_path: Path) -> None:
    graph = branching()
    made = lower(graph, Planted(), tmp_path / "engine", INPUTS, QUICK)
    assert made.lowering == "segments" and all(p.lazy for p in made.flow)
    assert "computes both sides of cond" in made.remarks[0] and "segments" in made.remarks[0]
    assert is_segmented(tmp_path / "engine")
    assert not (tmp_path / "engine" / "engine.onnx").exists()
    for sign in (1, -1):
        close(made.engine({"x": sign * INPUTS["x"]}), interpret(graph, {"x": sign * INPUTS["x"]}))


def test_what_cannot_be_lowered_is_cut(tmp_path: Path) -> None:
    graph = looping()
    inputs = {**INPUTS, "limit": torch.tensor(2)}
    made = lower(graph, Flat(), tmp_path / "engine", inputs, QUICK)
    assert made.lowering == "segments" and "does not carry while" in made.remarks[0]
    assert [p.lazy for p in made.flow] == [True]
    close(made.engine(inputs), interpret(graph, inputs))


def test_a_straight_graph_is_neither(tmp_path: Path) -> None:
    made = lower(both_sides(branching(2)), backend("onnxruntime"), tmp_path / "engine", INPUTS, QUICK)
    assert (made.lowering, made.flow, made.remarks) == ("", (), ())


def test_what_neither_way_can_carry_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    text = EXIT.replace("aten.linear.default(%d, %b2)", "aten.digamma.default(%d)")
    graph = parse(text.lstrip(), {"w": torch.randn(4, 4)})
    for name in (backend("onnxruntime"), Flat()):
        with pytest.raises(UnsupportedError, match="digamma"):
            lower(graph, name, tmp_path / "engine", {"x": torch.rand(2, 4)}, QUICK)
    assert not list(tmp_path.iterdir())


def test_rows_that_an_engine_lacks_are_the_hosts(tmp_path: Path) -> None:
    graph = corpus.load("rows")
    inputs = {"x": torch.randn(5, 3, 4), "mask": torch.ones(5, 1, 3, dtype=torch.bool)}
    made = lower(graph, Flat(), tmp_path / "engine", inputs, QUICK)
    assert "does not carry rows" in made.remarks[0]
    assert [(p.lowering, p.evidence, p.lazy) for p in made.flow] == [("segments", "structural", True)]
    close(made.engine(inputs), interpret(graph, inputs))


class Slow(Planted):
    """Has lazy branches of its own; whole engines and pieces each run after a rest."""

    name = "slow"

    def __init__(self, whole: float, piece: float) -> None:
        super().__init__()
        self.whole, self.piece = whole, piece

    def build(self, graph: Graph, folder: Path, options: BuildOptions = DEFAULT) -> Built:
        return self.inner.build(graph, folder, options)

    def load(self, folder: Path, threads: int | None = None, stem: str = "engine") -> Engine:
        return Resting(super().load(folder, threads, stem), self.piece if "." in stem else self.whole)


class Resting(Engine):
    def __init__(self, engine: Engine, rest: float) -> None:
        self._engine, self._rest = engine, rest

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        time.sleep(self._rest)
        return self._engine(inputs)


@pytest.mark.parametrize(("whole", "piece", "lowering"), [(0.0, 0.02, "native"), (0.02, 0.0, "segments")])
def test_rows_are_cut_where_the_engine_is_slower_within_its_branches(
    whole: float, piece: float, lowering: str, tmp_path: Path
) -> None:
    rows = corpus.load("rows")
    inputs = {"x": torch.randn(5, 3, 4), "mask": torch.ones(5, 1, 3, dtype=torch.bool)}
    graph = lowered(rows, "compacted")
    made = lower(graph, Slow(whole, piece), tmp_path / "engine", inputs, QUICK, rows=rows)
    assert made.lowering == lowering
    assert ("as long with branches of its own" in made.remarks[0]) == bool(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["engine"]
    close(made.engine(inputs), interpret(rows, inputs))


# --- where nothing can be measured ---------------------------------------------------------------


class Told(Planted):
    """Says of its branches what the test wants said."""

    name = "told"

    def __init__(self, lazy: bool) -> None:
        super().__init__()
        self.lazy = lazy

    def build(self, graph: Graph, folder: Path, options: BuildOptions = DEFAULT) -> Built:
        built = self.inner.build(graph, folder, options)
        flow = [FlowProof(flow_name(n), "if", "structural", "seen", lazy=self.lazy) for n in graph.walk() if n.regions]
        return replace(built, flow=tuple(flow))

    def simulated(self, graph: Graph, device: Device) -> Engine | None:
        folder = Path(tempfile.mkdtemp())
        save(graph.weights, folder / "weights.safetensors")
        backend("reference").build(graph, folder)
        return backend("reference").load(folder)


@pytest.mark.parametrize(
    ("made", "cut", "why"),
    [(Told(True), False, ""), (Told(False), True, "computes both sides"), (Flat(), True, "does not carry cond")],
)
def test_unmeasured_builds_go_by_what_the_builder_proves(made: Planted, cut: bool, why: str, tmp_path: Path) -> None:
    graph = branching(3)
    save(graph.weights, tmp_path / "weights.safetensors")
    built = build_unmeasured(graph, made, tmp_path, BuildOptions())
    assert is_segmented(tmp_path) == cut
    assert all(p.lazy and p.evidence == "structural" for p in built.flow)
    assert why in " ".join(built.remarks)
    for sign in (1, -1):
        inputs = {"x": sign * INPUTS["x"]}
        close(load_engine(tmp_path, made, 1)(inputs), interpret(graph, inputs))


def test_pieces_are_simulated_one_by_one() -> None:
    graph = branching(2)
    engine = simulated_segments(graph, Told(True), Device("l4", "cuda", 89))
    assert engine is not None
    close(engine(INPUTS), interpret(graph, INPUTS))
    assert simulated_segments(graph, Flat(), Device("l4", "cuda", 89)) is None


def test_what_is_left_to_refuse() -> None:
    assert refusals(branching(2), Flat()) == ([Unsupported("cond", "", "straight lines only")], [])
    text = EXIT.replace("aten.linear.default(%d, %b2)", "aten.digamma.default(%d)")
    refused, left = refusals(parse(text.lstrip(), {"w": torch.randn(4, 4)}), Flat())
    assert [one.op for one in refused] == ["cond"] and [one.op for one in left] == ["aten.digamma.default"]
