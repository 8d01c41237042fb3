"""Fewer blocks, rolled blocks and early exits: exact at the extreme, and as their definitions say in between."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
from torch import Tensor

from compiler.capture.capture import capture
from compiler.spec import Dim, ModelSpec
from examples.tinylm import load_tinylm
from examples.tinylm_data import read_corpus, windows
from ir import ROWS, WHILE, Graph, interpret, parse, show, verify
from ir.copy import copy_graph
from ir.errors import PenstockError, UnsupportedError, UsageError
from ir.rows import MODES, lowered
from passes import PASSES, Depth, Remark, parse_passes
from passes.depth import with_maps
from passes.depth_exits import LAYERS, THRESHOLDS, insert_exits, taps
from passes.depth_keep import balanced, influence
from passes.depth_scores import SCORES
from tests.corpus import load
from tests.depth_models import BLOCKS, graph_of, network, tokens

AT = (1, 2, 4)
KINDS = ("lm", "classes", "embedding")
INF = float("inf")


def run(graph: Graph, batch: int = 6, **settings: Tensor) -> dict[str, Tensor]:
    return interpret(graph, tokens(batch) | {f"depth.{name}": value for name, value in settings.items()})


def applied(graph: Graph, depth: Depth, samples: int = 0) -> tuple[Graph, Remark]:
    made = copy_graph(graph)
    (said,) = depth.run(made, [tokens(4, seed=7 + i) for i in range(samples)])
    verify(made)
    assert show(parse(show(made), made.weights)) == show(made)
    return made, said


def answer(results: dict[str, Tensor]) -> Tensor:
    return next(iter(results.values()))


@cache
def tapped(kind: str, score: str, quantized: bool = False) -> tuple[Graph, Graph]:
    """The chain and the taps of a model."""
    graph = graph_of(kind, passes="canonicalize-views, fold-constants, quantize{min-weights=1}") if quantized else (
        graph_of(kind)
    )  # fmt: skip
    return insert_exits(graph, AT, score), taps(graph, AT, score)


# --- exact at the extreme ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "depth",
    [
        Depth(), Depth(order="influence"), Depth(layers=tuple(range(BLOCKS))), Depth(mode="nested"),
        Depth(mode="nested", layers=(BLOCKS,)), Depth(mode="roll"),
        *(Depth(mode="exit", score=score) for score in SCORES),
    ],
    ids=str,
)  # fmt: skip
def test_all_blocks_are_exactly_the_original(kind: str, depth: Depth) -> None:
    graph = graph_of(kind)
    want, got = run(graph), run(applied(graph, depth, samples=1)[0])
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor)
    if depth.mode == "exit":
        assert got[f"trace:{LAYERS}"].tolist() == [BLOCKS] * 6


def test_a_second_run_changes_nothing() -> None:
    for depth in (Depth(mode="exit"), Depth(mode="roll")):
        made, _ = applied(graph_of("lm"), depth)
        again, said = applied(made, depth)
        assert show(again) == show(made) and not said.applied


# --- fewer blocks ------------------------------------------------------------------------------


def test_the_kept_list_is_the_formula() -> None:
    assert balanced(24, 2.0) == (*range(0, 21, 2), 23)  # 12 of 24, every second, as in the paper's code
    assert balanced(32, 3.0) == (0, 3, 6, 9, 12, 15, 18, 21, 24, 31)
    for depth, speedup in itertools.product((2, 3, 6, 12, 24, 32, 80), (1.0, 1.2, 1.5, 2.0, 3.0, 5.0)):
        kept = balanced(depth, speedup)
        assert len(kept) == max(1, int(depth / speedup + 1e-9)) and list(kept) == sorted(set(kept))
        assert len(kept) == 1 or (kept[0] == 0 and kept[-1] == depth - 1)


@pytest.mark.parametrize("kind", ["lm", "classes"])
@pytest.mark.parametrize("count", [1, 3])
def test_nested_is_the_truncated_module(kind: str, count: int) -> None:
    made, said = applied(graph_of(kind), Depth(mode="nested", layers=(count,)))
    module = network(kind)
    body = module if kind == "lm" else module.body
    body.layers = body.layers[:count]
    with torch.no_grad():
        want = module(**tokens(6))
    torch.testing.assert_close(answer(run(made)), want if kind == "lm" else want["logits"], rtol=1e-5, atol=1e-5)
    assert said.why.startswith(f"{count} of {BLOCKS} blocks stay")
    assert not [name for name in made.weights if f"layers.{count}." in name], "weights of blocks that are gone"


def test_kept_blocks_are_those_of_the_module() -> None:
    made, _ = applied(graph_of("lm"), Depth(layers=(0, 2, 4)))
    module = network("lm")
    module.layers = torch.nn.ModuleList(module.layers[i] for i in (0, 2, 4))
    with torch.no_grad():
        torch.testing.assert_close(answer(run(made)), module(**tokens(6)), rtol=1e-5, atol=1e-5)


def test_influence_drops_blocks_that_do_nothing() -> None:
    graph = graph_of("lm")
    for name in [n for n in graph.weights if ("layers.1." in n or "layers.3." in n) and ("o_proj" in n or "down" in n)]:
        tensor = torch.zeros_like(graph.weights[name])
        graph.weights.remove(name)
        graph.weights.add(name, tensor)
    assert influence(graph, BLOCKS, 3, [tokens(4)]) == (0, 2, 4)
    made, said = applied(graph, Depth(speedup=5 / 3, order="influence"), samples=1)
    torch.testing.assert_close(answer(run(made)), answer(run(graph)), rtol=1e-5, atol=1e-5)
    assert said.why == "3 of 5 blocks stay: 0, 2, 4"
    assert "there are none" in applied(graph, Depth(speedup=2.0, order="influence"))[1].why


def test_influence_loses_less_than_balance_on_the_trained_model() -> None:
    corpus = read_corpus()
    fit, rows = windows(corpus.fit, 96, 4), windows(corpus.held_out, 96, 8)
    dims = {"tokens": {0: Dim("batch", 1, 64)}}
    graph = capture(ModelSpec(load_tinylm(), {"tokens": rows[:2, :-1]}, dims, name="tinylm"))

    def loss(depth: Depth) -> float:
        made = copy_graph(graph)
        depth.run(made, [{"tokens": fit[:, :-1]}])
        logits = answer(interpret(made, {"tokens": rows[:, :-1]}))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item()

    whole, spread, measured = (loss(d) for d in (Depth(), Depth(speedup=1.5), Depth(speedup=1.5, order="influence")))
    # it was trained at every depth: without its last blocks it may even foresee a little better
    assert measured < 1.1 * whole < spread, (whole, measured, spread)


# --- one loop ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_rolled_is_unrolled_at_every_count(shared: bool) -> None:
    graph = graph_of("lm", shared=shared)
    made, said = applied(graph, Depth(mode="roll"))
    assert said.applied and sum(n.op is WHILE for n in made) == 1
    assert made.weights.nbytes == graph.weights.nbytes
    assert any("stacked" in name for name in made.weights) != shared
    for count in range(1, BLOCKS + 1):
        fewer, _ = applied(graph, Depth(mode="nested", layers=(count,)))
        assert torch.equal(answer(run(made, count=torch.tensor(count))), answer(run(fewer)))
    more = answer(run(made, count=torch.tensor(BLOCKS + 2)))
    deeper = answer(run(graph_of("lm", BLOCKS + 2, shared=True))) if shared else answer(run(graph))
    torch.testing.assert_close(more, deeper, rtol=1e-5, atol=1e-5)


def test_blocks_that_are_not_equal_are_not_rolled() -> None:
    graph = graph_of("lm", passes="quantize{min-weights=1}")
    made, said = applied(graph, Depth(mode="roll"))
    assert not said.applied and "differ" in said.why and show(made) == show(graph)


# --- exits -------------------------------------------------------------------------------------


def decided(graph: Graph, tau: Tensor, batch: int = 6) -> tuple[list[int], list[Tensor]]:
    """Where each row leaves and with which answer, from the taps alone."""
    seen = run(graph, batch)
    name, full = next(iter(seen.items()))
    scores = [seen[f"trace:depth.score.{e}"] for e in AT]
    layers, answers = [], []
    for row in range(batch):
        at = next((e for e, s, t in zip(AT, scores, tau, strict=True) if s[row] >= t), BLOCKS)
        layers.append(at)
        answers.append(full[row] if at == BLOCKS else seen[f"trace:depth.answer.{at}.{name}"][row])
    return layers, answers


def between(graph: Graph, share: float) -> Tensor:
    """Thresholds that lie between the scores of two rows, so that rounding decides nothing."""
    seen = run(graph)
    ordered = [seen[f"trace:depth.score.{e}"].sort().values for e in AT]
    at = [min(4, int(share * 5))] * len(ordered)
    return torch.stack([(s[i] + s[i + 1]) / 2 for s, i in zip(ordered, at, strict=True)])


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_chain_decides_as_the_taps_do(kind: str, score: str) -> None:
    chain, straight = tapped(kind, score)
    verify(chain)
    verify(straight)
    for tau in (
        *(between(straight, s) for s in (0.0, 0.4, 0.8)),
        torch.full((3,), -INF),
        torch.tensor([INF, -INF, INF]),
    ):
        want, answers = decided(straight, tau)
        for graph in (chain, *(lowered(chain, mode) for mode in MODES)):
            got = run(graph, thresholds=tau)
            assert got[f"trace:{LAYERS}"].tolist() == want
            torch.testing.assert_close(answer(got), torch.stack(answers), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("score", ["confidence", "agreement"])
def test_exits_after_quantization(score: str) -> None:
    chain, straight = tapped("classes", score, quantized=True)
    assert "int8_linear_static" in show(chain)
    tau = between(straight, 0.4)
    want, answers = decided(straight, tau)
    got = run(chain, thresholds=tau)
    assert got[f"trace:{LAYERS}"].tolist() == want
    torch.testing.assert_close(answer(got), torch.stack(answers), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("score", SCORES)
def test_mean_depth_grows_with_the_threshold(score: str) -> None:
    chain, straight = tapped("classes", score)
    seen = run(straight)
    scores = torch.cat([seen[f"trace:depth.score.{e}"] for e in AT])
    levels = [-INF, *scores.quantile(torch.linspace(0, 1, 6)).tolist(), INF]
    traces = [run(chain, thresholds=torch.full((3,), level))[f"trace:{LAYERS}"] for level in levels]
    depths = [trace.double().mean().item() for trace in traces]
    assert depths == sorted(depths) and depths[0] == AT[0] and depths[-1] == BLOCKS


@pytest.mark.parametrize(
    ("score", "first", "last"),
    [("patience", 1.0, 4.0), ("q", 0.0, 1.0), ("confidence", 0.0, 1.01), ("margin", 0.0, 1.01), ("entropy", -9.0, 0.01),
     ("agreement", -1.01, 1.01)],
)  # fmt: skip
def test_extremes_of_each_score(score: str, first: float, last: float) -> None:
    chain, _ = tapped("classes", score)
    assert run(chain, thresholds=torch.full((3,), first))[f"trace:{LAYERS}"].tolist() == [AT[0]] * 6
    assert run(chain, thresholds=torch.full((3,), last))[f"trace:{LAYERS}"].tolist() == [BLOCKS] * 6


def test_scores_are_what_they_say() -> None:
    seen = {score: run(tapped("classes", score)[1]) for score in SCORES}
    logits = [seen["q"][f"trace:depth.answer.{e}.logits"] for e in AT]
    p = [x.softmax(-1) for x in logits]
    top = [x.topk(2, -1).values for x in p]
    count, want = torch.ones(6), {}
    for i, e in enumerate(AT):
        if i:
            count = torch.where(logits[i].argmax(-1) == logits[i - 1].argmax(-1), count + 1, torch.ones(6))
        want = {
            "confidence": top[i][:, 0],
            "margin": top[i][:, 0] - top[i][:, 1],
            "entropy": (p[i] * p[i].log()).sum(-1),
            "patience": count,
            "q": 1 - torch.stack([1 - t[:, 0] for t in top[: i + 1]]).prod(0),
        }
        if i:
            want["agreement"] = torch.cosine_similarity(logits[i], logits[i - 1], dim=-1)
        for score, tensor in want.items():
            torch.testing.assert_close(seen[score][f"trace:depth.score.{e}"], tensor, rtol=1e-5, atol=1e-5)


def test_a_score_that_is_nan_leaves_nowhere() -> None:
    graph = graph_of("classes")
    weight = graph.weights["body.embed.weight"].clone()
    weight[:] = float("nan")
    graph.weights.remove("body.embed.weight")
    graph.weights.add("body.embed.weight", weight)
    got = run(insert_exits(graph, AT, "confidence", (0.0,)))
    assert got[f"trace:{LAYERS}"].tolist() == [BLOCKS] * 6


def test_a_wrong_live_is_caught() -> None:
    """The planted bug: rows that are sure go on, the others leave."""
    chain, straight = tapped("classes", "confidence")
    text = show(chain)
    wrong = parse(text.replace("aten.logical_not.default(%ge)", "aten.logical_and.default(%ge, %ge)"), chain.weights)
    verify(wrong)
    tau = between(straight, 0.4)
    want, _ = decided(straight, tau)
    inputs = tokens(6) | {THRESHOLDS: tau}
    assert interpret(chain, inputs)[f"trace:{LAYERS}"].tolist() == want
    assert interpret(wrong, inputs)[f"trace:{LAYERS}"].tolist() != want


# --- maps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_maps_apply_to_the_features(kind: str) -> None:
    graph = graph_of(kind)
    width = 32
    generator = torch.Generator().manual_seed(3)
    maps = {e: (torch.randn(width, width, generator=generator), torch.randn(width, generator=generator)) for e in AT}
    same = {e: (torch.eye(width), torch.zeros(width)) for e in AT}
    plain, mapped = taps(graph, AT, "confidence", features=True), taps(graph, AT, "confidence", maps)
    seen, moved = run(plain), run(mapped)
    name = next(iter(seen))
    feature = seen["trace:depth.feature.2"]
    assert feature.shape[-1] == width and torch.equal(answer(moved), answer(seen))
    assert not torch.allclose(moved[f"trace:depth.answer.2.{name}"], seen[f"trace:depth.answer.2.{name}"], atol=1e-2)
    module = network(kind)
    y = torch.nn.functional.linear(feature, *maps[2])
    with torch.no_grad():
        want = module.head(y) if kind == "lm" else module.classify(y) if kind == "classes" else (
            torch.nn.functional.normalize(y, dim=-1)
        )  # fmt: skip
    torch.testing.assert_close(moved[f"trace:depth.answer.2.{name}"], want, rtol=1e-4, atol=1e-4)
    identity = run(taps(graph, AT, "confidence", same))
    torch.testing.assert_close(identity[f"trace:depth.answer.2.{name}"], seen[f"trace:depth.answer.2.{name}"])
    chain, _ = applied(graph, with_maps(Depth(mode="exit", at=AT), maps))
    got = run(chain, thresholds=torch.tensor([INF, -INF, INF]))
    torch.testing.assert_close(answer(got), moved[f"trace:depth.answer.2.{name}"], rtol=1e-4, atol=1e-4)
    assert torch.equal(answer(run(chain)), answer(seen)), "the full depth has no map"


@pytest.mark.parametrize("kind", KINDS)
def test_a_gate_decides_by_the_features(kind: str) -> None:
    graph = graph_of(kind)
    generator = torch.Generator().manual_seed(4)
    gates = {e: (torch.randn(32, generator=generator), torch.randn((), generator=generator)) for e in AT}
    straight = taps(graph, AT, "gate", features=True, gates=gates)
    seen = run(straight)
    for exit_ in AT:
        feature = seen[f"trace:depth.feature.{exit_}"]
        feature = feature[:, -1] if feature.ndim == 3 else feature
        want = (feature @ gates[exit_][0] + gates[exit_][1]).sigmoid()
        torch.testing.assert_close(seen[f"trace:depth.score.{exit_}"], want, rtol=1e-4, atol=1e-5)
    chain, said = applied(graph, with_maps(Depth(mode="exit", at=AT, score="gate"), {}, gates))
    verify(chain)
    assert said.applied
    tau = between(straight, 0.4)
    want_layers, answers = decided(straight, tau)
    got = run(chain, thresholds=tau)
    assert got[f"trace:{LAYERS}"].tolist() == want_layers
    torch.testing.assert_close(answer(got), torch.stack(answers), rtol=1e-4, atol=1e-5)


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda g: insert_exits(g, (0, 1), "q"), "there is no exit 0: the model has 5 blocks"),
        (lambda g: insert_exits(g, (5,), "q"), "there is no exit 5: the model has 5 blocks"),
        (lambda g: insert_exits(g, (2, 1), "q"), "exits go up, 2:1 does not"),
        (lambda g: insert_exits(g, (1, 2), "sure"), "there is no score 'sure'"),
        (lambda g: insert_exits(g, (1, 2), "gate"), "exit 1 has no gate"),
        (lambda g: insert_exits(g, (1, 2), "q", (0.1, 0.2, 0.3)), "3 thresholds were given for 2 exits"),
        (lambda g: insert_exits(g, (1, 2), "q", (float("nan"),)), "a threshold is NaN"),
        (lambda g: taps(g, (1,), "q", {3: (torch.eye(32), torch.zeros(32))}), "a map for exit 3, but no such exit"),
        (lambda g: taps(g, (1,), "q", {1: (torch.eye(8), torch.zeros(8))}), "the map of exit 1 is [8, 8] and [8]"),
        (lambda g: applied(g, Depth(layers=(0, 7))), "there is no block 7: the model has 5 blocks"),
        (lambda g: applied(g, Depth(layers=(2, 2))), "blocks go up, 2:2 does not"),
    ],
)  # fmt: skip
def test_what_no_model_has_is_refused(make: object, words: str) -> None:
    with pytest.raises(UsageError) as error:
        make(graph_of("lm"))  # type: ignore[operator]
    assert words in error.value.what


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("depth{mode=skip}", "mode is one of keep, nested, roll, exit, not 'skip'"),
        ("depth{order=random}", "order is one of"),
        ("depth{score=loud}", "score is one of"),
        ("depth{speedup=0.5}", "speedup is 1 or more, not 0.5"),
        ("depth{tau=0.5:nan}", "a threshold is NaN"),
        ("depth{mode=nested, layers=1:2}", "nested takes layers=N"),
        ("depth{mode=roll, layers=0}", "roll takes layers=N"),
        ("depth{at=one}", "option at of depth takes a list of int, not 'one'"),
    ],
)
def test_bad_options(text: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_passes(text, PASSES)
    assert words in error.value.what


def test_a_graph_without_blocks_has_no_exits() -> None:
    graph = load("attention")
    for mode in ("exit", "keep", "nested", "roll"):
        (said,) = Depth(mode=mode).run(graph)
        assert not said.applied and "no two blocks" in said.why
    with pytest.raises(UnsupportedError, match="no exits: no part of the graph repeats"):
        insert_exits(graph, (), "confidence")


def test_a_batch_that_is_fixed_has_no_exits_unless_it_is_one() -> None:
    text = show(graph_of("classes"))
    fixed = [line for line in text.splitlines() if not line.startswith("dim batch")]
    for size in (1, 4):
        graph = parse("\n".join(fixed).replace("[batch", f"[{size}").replace("int<batch>", f"int<{size}>"))
        for name, tensor in graph_of("classes").weights.items():
            graph.weights.add(name, tensor)
        if size == 4:
            with pytest.raises(PenstockError, match="the batch is 4 for good"):
                insert_exits(graph, AT, "confidence")
            continue
        made = insert_exits(graph, AT, "confidence")
        verify(made)
        assert not any(n.op is ROWS for n in made.walk()), "one row is not gathered"
        for tau, depth in ((INF, BLOCKS), (-INF, 1)):
            got = run(made, 1, thresholds=torch.full((3,), tau))
            assert got[f"trace:{LAYERS}"].tolist() == [depth]
            shallow, _ = applied(graph, Depth(mode="nested", layers=(depth,)))
            assert torch.equal(answer(got), answer(run(shallow, 1)))
