"""The laws that every pass keeps, on every corpus graph, on random graphs and on the zoo.

A new pass is held to them by standing in ``PASSES``; nobody writes these again. ``VARIANTS`` adds options.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import passes
from ir import RETURN, Fact, Graph, Origin, parse, show, verify
from passes import base
from tests.compare import Tensors, disagreement, outputs, runs
from tests.corpus import CORPUS, load
from tests.random_graphs import graphs
from tests.zoo import ZOO, captured

VARIANTS = (
    "quantize{min-weights=1}",
    "quantize{min-weights=1, keep=1}",
    "quantize{min-weights=1, symmetric=true}",
    "quantize-floats{min-weights=1, format=fp8}",
    "quantize-floats{min-weights=1, format=nvfp4}",
    'quantize{min-weights=1, activations="dynamic"}',
    "quantize-weights{min-weights=1}",
    "quantize-weights{min-weights=1, format=int4, block=2}",
    'cast-compute{dtype="f16"}',
    "fold-constants{max-bytes=0}",
    'lower-rows{mode="compacted"}',
)
EVERY = {p.name: p() for p in passes.PASSES} | {text: passes.parse_passes(text, passes.PASSES)[0] for text in VARIANTS}
# No fault of the pass: float16 ends at 65504, and calibrated scales end where the calibration inputs do.
BEYOND = {text: {"large"} for text in ('cast-compute{dtype="f16"}', *VARIANTS[:5])}
# A folded weight is laid out anew, so that a matmul may take another kernel: the last bit may move.
_LAST_BIT = base.Tolerance(rtol=1e-5, atol=1e-6)
LOOSER = {"fold-constants": _LAST_BIT, "fold-constants{max-bytes=0}": _LAST_BIT}
# What these passes change is the layout of values in memory, which `aten.view` minds and `aten.reshape` does not.
NEEDS = dict.fromkeys(("remove-no-ops", "quantize-attention"), frozenset({Fact.CANONICAL_VIEWS}))
BASIC = frozenset({Fact.WELL_FORMED, Fact.TYPED})


def keeps_the_laws(name: str, graph: Graph, inputs: Mapping[str, Tensors]) -> None:
    """Run a pass on a graph and check each law of it."""
    pass_ = EVERY[name]
    prepare(pass_.requires | NEEDS.get(name, BASIC), graph)
    samples = [x for kind, x in inputs.items() if kind.startswith("seed")]
    before, version, types = show(graph), graph.version, signature(graph)
    want = {kind: outputs(graph, x) for kind, x in inputs.items()}

    remarks = pass_.run(graph, samples)
    changed = graph.version != version
    after = show(graph)

    verify(graph)
    verify(graph, *pass_.requires - pass_.breaks, *pass_.gives)
    assert changed == (after != before), "a change that the text does not show, or the other way round"
    assert show(parse(after, graph.weights)) == after, "show and parse are no inverses"
    assert signature(graph) == types, "inputs and outputs keep their names and types"
    assert changed == any(r.applied for r in remarks), f"changed: {changed}, but the remarks are {remarks}"
    assert all(r.at and r.why for r in remarks), "a remark says where and why"
    lost = [n.op.name for n in graph.walk() if not n.origin.line and n.op is not RETURN]
    assert not lost, f"{lost} do not say which line of the model they come from"
    for kind, x in inputs.items():
        assert not disagreement(want[kind], outputs(graph, x), tolerance_of(name)), kind

    version = graph.version
    pass_.run(graph, samples)
    assert show(graph) == after, "a second run changes the graph"
    assert graph.version == version, "a second run changes something"


def tolerance_of(name: str) -> base.Tolerance:
    return LOOSER.get(name, EVERY[name].tolerance)


def prepare(facts: frozenset[Fact], graph: Graph) -> None:
    """Establish what a pass requires, and give each node an origin that it may not lose."""
    for fact in facts - BASIC:
        for giver in (p() for p in passes.PASSES if fact in p.gives):
            giver.run(graph)
    for index, node in enumerate(graph.walk()):
        node.origin = Origin(node.origin.path, node.origin.line or f"{graph.name}.py:{index + 1}")
    verify(graph, *facts)


def signature(graph: Graph) -> object:
    """Names and types of what goes in and comes out; params may change."""
    given = [(i.kind, i.name, repr(v.type)) for v, i in graph.inputs.items() if i.kind != "param"]
    made = [repr(getattr(v, "type", v)) for v in graph.body.returned.args]
    return given, graph.outputs, made


@pytest.mark.parametrize("graph_name", CORPUS)
@pytest.mark.parametrize("pass_name", EVERY)
def test_corpus(pass_name: str, graph_name: str) -> None:
    graph = load(graph_name)
    inputs = runs(graph, exact=tolerance_of(pass_name) == base.Tolerance())
    kept = {kind: x for kind, x in inputs.items() if kind not in BEYOND.get(pass_name, ())}
    keeps_the_laws(pass_name, graph, kept)


def gentle(graph: Graph) -> dict[str, Tensors]:
    """Inputs that no chain of passes, float16 among them, takes out of range."""
    return {name: x for name, x in runs(graph).items() if name != "large"}


@settings(max_examples=40)
@given(graph=graphs(), order=st.permutations(list(EVERY)))
def test_random_graphs_through_passes_in_any_order(graph: Graph, order: list[str]) -> None:
    inputs = gentle(graph)
    for name in order[:4]:
        keeps_the_laws(name, graph, inputs)


@pytest.mark.slow
@settings(max_examples=30)
@given(graph=graphs(), order=st.permutations(list(EVERY)))
def test_many_random_graphs(graph: Graph, order: list[str]) -> None:
    inputs = gentle(graph)
    for name in order:
        keeps_the_laws(name, graph, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("model", ZOO)
def test_zoo(model: str, subtests: pytest.Subtests) -> None:
    _, known = captured(model)
    inputs = {kind: x for kind, x in runs(known).items() if kind in ("seed 0", "NaN")}
    text = show(known)
    for pass_ in passes.PASSES:
        graph = parse(text, known.weights)
        graph.typer = known.typer  # types derived once for all passes
        with subtests.test(pass_=pass_.name):
            keeps_the_laws(pass_.name, graph, inputs)


def test_two_processes_with_different_hash_seeds_write_the_same_text() -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.test_laws"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (process.communicate()[0] for process in running)
    assert first.count("\n") == len(CORPUS)
    assert first == second


def digests() -> str:
    """A digest per corpus graph of its text after each pass in turn."""
    lines = []
    for name in CORPUS:
        graph, digest = load(name), hashlib.sha256()
        samples = list(runs(graph).values())[:1]
        for pass_ in EVERY.values():
            digest.update(repr(pass_.run(graph, samples)).encode())
            digest.update(show(graph).encode())
        lines.append(f"{digest.hexdigest()}  {name}\n")
    return "".join(lines)


if __name__ == "__main__":
    sys.stdout.write(digests())
