"""The report: plain data, tables within 100 columns, one page that trusts nothing from a model."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from compiler.cost.targets import Target, read_cpu
from compiler.events import Phases
from compiler.pipeline.instruments import comparing, counting, pricing, timing
from compiler.pipeline.pipeline import PassRecord, Pipeline
from compiler.pipeline.recipe import Recipe, recipe
from compiler.report import SCHEMA, build_report, page, render, write_report
from compiler.report.kernels import structure
from compiler.report.plain import plain, show_bytes, show_seconds, starred
from compiler.select.measure import Timing
from compiler.select.race import Candidate
from compiler.select.reference import Loss
from compiler.settings import Settings
from compiler.spec import ModelSpec
from ir import Graph, parse
from ir.copy import copy_graph
from passes import PASSES, Remark, parse_passes
from tests.corpus import add_weights, load

HOSTILE = "</script><img onerror=alert(1)>"
SAMPLE = {"x": torch.linspace(-1, 1, 2 * 4 * 8).reshape(2, 4, 8)}


class FakeReference:
    example: Mapping[str, torch.Tensor] = SAMPLE


@dataclass
class FakeJob:
    """A compile without a model to capture and without engines."""

    spec: ModelSpec
    settings: Settings = field(default_factory=lambda: Settings(max_loss=0.01))
    recipe: Recipe = field(default_factory=lambda: recipe("auto"))
    target: Target = field(default_factory=lambda: read_cpu("", 2, 8e9))
    phases: Phases = field(default_factory=Phases)
    reference: Any = field(default_factory=FakeReference)
    records: dict[str, list[PassRecord]] = field(default_factory=dict)
    graphs: dict[str, Graph] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)
    exits: dict[str, Any] = field(default_factory=dict)


def job_of(before: Graph, name: str = "block") -> FakeJob:
    """Two variants of a graph, by the real passes under the real instruments."""
    from compiler.cost.cost import estimate

    job = FakeJob(ModelSpec(torch.nn.Linear(8, 8), SAMPLE, name=name))
    sizes = {"b": 2, "s": 4}
    price = lambda graph: estimate(graph, job.target, sizes).seconds  # noqa: E731
    for variant, text in (
        ("fp32", "remove-no-ops, mark-fusion"),
        ("int8", "quantize{min-weights=1}, drop-dead-nodes"),
    ):
        graph = copy_graph(before)
        watch = [counting, pricing(price), comparing([SAMPLE]), timing]
        job.records[variant] = Pipeline(*parse_passes(text, PASSES)).run(graph, watch, [SAMPLE], rollback=True)
        job.graphs[variant] = graph
        job.predicted[variant] = price(before) / price(graph)
    job.phases.seconds |= {"capture": 1.25, "engines": 12.5}
    return job


def times(ms: float) -> Timing:
    return Timing(ms / 1e3, ms / 1.1e3, ms / 0.9e3, 40)


TAKEN = Candidate(
    "int8", "onnxruntime", "1.30", 1.8, 0.5, times(2.0), times(5.0), Loss(0.002, 0.998, 0.1),
    {"int8_matmuls": 2},
)  # fmt: skip
SLOWER = Candidate(
    "fp32", "onnxruntime", "1.30", 1.2, 0.5, times(3.0), times(5.0), Loss(0.0, 1.0, 0.0), why="slower: 1.67x"
)  # fmt: skip
WRONG = Candidate(  # timed although its answers are bad: no speed-up of it may be told
    "int8", "openvino", "2026.2", 1.8, 0.5, times(0.5), times(5.0), Loss(0.5, 0.5, 9.0),
    why="loss 0.5 is more",
)  # fmt: skip
BROKEN = Candidate("fp32", "openvino", why="2 operation(s) it cannot carry:\n  - a\n  - b")
ALL = [SLOWER, TAKEN, WRONG, BROKEN]


@pytest.fixture(scope="module")
def job() -> FakeJob:
    return job_of(load("block"))


@pytest.fixture(scope="module")
def report(job: FakeJob) -> dict[str, Any]:
    return build_report(job, ALL, TAKEN)


def shown(report: Mapping[str, Any], width: int = 100, columns: int = 200) -> str:
    out = io.StringIO()
    render(report, Console(file=out, width=columns, color_system=None), width)
    return out.getvalue()


# --- the data ------------------------------------------------------------------------------------


def test_report_is_strict_json_with_a_schema(report: dict[str, Any]) -> None:
    again = json.loads(json.dumps(report, allow_nan=False))
    assert again == report
    assert report["schema"] == SCHEMA == 1
    assert report["format"] == "penstock-report"


def test_the_same_job_gives_the_same_report(
    job: FakeJob, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    one, two = (json.dumps(build_report(job, ALL, TAKEN)) for _ in range(2))
    assert one == two
    assert list(report) == list(json.loads(one))


def test_verdict_names_its_baseline(report: dict[str, Any]) -> None:
    verdict = report["verdict"]
    assert verdict["baseline"] == "vs torch eager fp32, same inputs, same threads, interleaved, median of 40"
    assert verdict["text"] == f"2.50x {verdict['baseline']}"
    assert (verdict["state"], verdict["met"], verdict["loss"], verdict["max_loss"]) == (
        "met",
        True,
        0.002,
        0.01,
    )


def test_chosen_is_flat_and_measured(report: dict[str, Any]) -> None:
    chosen = report["chosen"]
    assert all(v is None or isinstance(v, (bool, int, float, str)) for v in chosen.values())
    assert (chosen["engine"], chosen["variant"], chosen["tier"]) == ("onnxruntime", "int8", "measured")
    assert (chosen["ms"], chosen["eager_ms"], chosen["speedup"]) == pytest.approx((2.0, 5.0, 2.5))
    assert (chosen["int8_matmuls"], chosen["rounds"]) == (2, 40)


def test_facts_of_an_engine_hide_nothing_measured(job: FakeJob) -> None:
    boasting = replace(TAKEN, facts={"speedup": 99, "ms": 0})
    assert build_report(job, [boasting], boasting)["chosen"]["speedup"] == pytest.approx(2.5)


def test_candidates_say_why_not(report: dict[str, Any]) -> None:
    slower, taken, wrong, broken = report["candidates"]
    assert slower["why"] == "slower: 1.67x"
    assert taken["taken"]
    assert taken["why"] == "the fastest within the loss bound"
    assert (wrong["within_loss"], wrong["speedup"]) == (False, None)
    assert (broken["ms"], broken["loss"], broken["within_loss"]) == (None, None, None)
    assert taken["gain_base"] == "fp32 on onnxruntime"
    assert taken["gain_measured"] == pytest.approx(1.5)
    assert taken["gain_predicted"] == pytest.approx(1.5)


def test_passes_are_rows_with_what_the_instruments_wrote(job: FakeJob, report: dict[str, Any]) -> None:
    rows = report["variants"]["int8"]["passes"]
    assert [row["name"].partition("{")[0] for row in rows] == ["quantize", "drop-dead-nodes"]
    record = job.records["int8"][0]
    assert rows[0]["saved_seconds"] == record.columns["saved"]
    assert rows[0]["seconds"] == record.columns["cost"]
    assert (rows[0]["changes"], rows[0]["applied"]) == (record.changes, record.applied)
    assert sum(said["count"] for said in rows[0]["remarks"]) == len(record.remarks)
    variant = report["variants"]["int8"]
    assert variant["before_seconds"] - variant["after_seconds"] == pytest.approx(
        sum(row["saved_seconds"] for row in rows)
    )


def test_equal_remarks_of_repeated_blocks_are_one(job: FakeJob) -> None:
    said = [Remark(f"aten.gelu.default at layer.{i}.act @ m.py:7", True, "fused") for i in range(6)]
    said.append(Remark("aten.gelu.default at layer.0.act @ m.py:7", False, "has another reader"))
    changed = deepcopy_with(job, PassRecord("p", 6, tuple(said)))
    folded = build_report(changed, ALL, TAKEN)["variants"]["int8"]["passes"][0]["remarks"]
    assert [(r["at"], r["applied"], r["count"]) for r in folded] == [
        ("aten.gelu.default at layer.*.act @ m.py:7", True, 6),
        ("aten.gelu.default at layer.0.act @ m.py:7", False, 1),
    ]


def test_a_pass_that_was_rolled_back_applied_nothing(job: FakeJob) -> None:
    record = PassRecord("quantize", 0, (Remark("a", True, "w"),), {"moved": 3.0, "cosine": 0.2}, "moved too far")
    report = build_report(deepcopy_with(job, record), ALL, TAKEN)
    row = report["variants"]["int8"]["passes"][0]
    assert (row["applied"], row["dropped"], row["saved_seconds"]) == (0, "moved too far", None)
    assert row["remarks"] == [{"at": "a", "applied": False, "why": "rolled back with its pass: w", "count": 1}]
    assert "rolled back: moved too far" in shown(report)
    assert "rolled back: moved too far" in page(report)


def deepcopy_with(job: FakeJob, *records: PassRecord) -> FakeJob:
    return replace(job, records={**job.records, "int8": list(records)})


def test_kernels_memory_and_environment(report: dict[str, Any]) -> None:
    assert report["nodes"] == sorted(report["nodes"], key=lambda r: -r["seconds"])
    assert {"op", "origin", "count", "flops", "bytes", "seconds", "bound"} <= report["nodes"][0].keys()
    assert report["totals"]["after"]["seconds"] == pytest.approx(report["variants"]["int8"]["after_seconds"])
    assert report["memory"]["weight_bytes"] > 0
    assert report["environment"]["versions"]["torch"] == torch.__version__
    assert report["phases"] == {"capture": 1.25, "engines": 12.5}
    assert report["signature"]["dims"] == {"b": [1, 8], "s": [2, 16]}
    assert report["sizes"] == {"b": 2, "s": 4}


def test_the_captured_graph_adds_its_kernels(job: FakeJob) -> None:
    before = load("block")
    report = build_report(job, ALL, TAKEN, before)
    assert report["nodes_before"]
    assert report["totals"]["before"]["nodes"] == len(before)
    assert 'class="p0"' in page(report)


def test_infinite_loss_is_null_and_never_within(job: FakeJob) -> None:
    nan = replace(WRONG, loss=Loss(float("nan"), float("nan"), float("inf")), engine_time=None)
    row = build_report(job, [nan, TAKEN], TAKEN)["candidates"][0]
    assert (row["loss"], row["cosine"], row["max_abs"], row["within_loss"]) == (None, None, None, False)


def test_dry_run_and_failure_have_verdicts(job: FakeJob) -> None:
    planned = build_report(job, [], None)
    assert (planned["verdict"]["state"], planned["chosen"]) == ("planned", {})
    assert "nothing was built or measured" in shown(planned)
    failed = build_report(job, [WRONG, BROKEN], None)
    assert failed["verdict"]["state"] == "failed"
    assert "<html" in page(planned)
    assert "<html" in page(failed)


def test_a_job_without_graphs_still_reports(job: FakeJob) -> None:
    empty = replace(job, records={}, graphs={}, predicted={}, reference=None)
    report = build_report(empty, [], None)
    assert "<html" in page(report)
    assert "nothing was built" in shown(report)


def test_slower_than_eager_is_no_success(job: FakeJob) -> None:
    slow = replace(TAKEN, engine_time=times(10.0))
    verdict = build_report(job, [slow], slow)["verdict"]
    assert (verdict["met"], verdict["state"]) == (False, "missed")
    assert verdict["text"].endswith("not faster than the original")


def test_noisy_times_are_called_noisy(job: FakeJob, report: dict[str, Any]) -> None:
    assert report["verdict"]["noise"] == ""
    noisy = replace(TAKEN, eager_time=Timing(0.005, 0.002, 0.009, 40))
    found = build_report(job, [noisy], noisy)
    assert "times vary by 70%" in shown(found)
    assert "times vary by 70%" in page(found)
    few = replace(TAKEN, engine_time=Timing(0.002, 0.002, 0.002, 5))
    assert "5 rounds are few" in build_report(job, [few], few)["verdict"]["noise"]


def test_a_metric_is_told_before_and_after(job: FakeJob) -> None:
    with_metric = replace(job, spec=replace(job.spec, metric=lambda run: 0.0))
    made = replace(TAKEN, loss=Loss(0.002, 0.99, 0.1, 0.8190, 0.8213))
    report = build_report(with_metric, [made], made)
    assert report["verdict"]["loss_kind"] == "relative drop of the metric"
    assert "metric 0.8213 -> 0.8190" in shown(report)
    assert "0.8213 &rarr; 0.8190" in page(report)


# --- plain ---------------------------------------------------------------------------------------


def test_plain_keeps_nothing_that_json_or_a_terminal_cannot_carry() -> None:
    assert plain({"a": (1, float("nan"), True), 2: float("-inf")}) == {"a": [1, None, True], "2": None}
    assert plain("a\x1b[31m\u202eb\ud800\n") == "a\ufffd[31m\ufffdb\ufffd\n"
    assert plain(torch.float32) == "torch.float32"


def test_starred_touches_indices_only() -> None:
    assert starred("aten.linear.default at 0.layer.12.conv2d @ m2.py:33") == (
        "aten.linear.default at *.layer.*.conv2d @ m2.py:33"
    )


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "-"),
        (0, "0 ns"),
        (1.5e-9, "1.50 ns"),
        (9.996e-4, "1.00 ms"),
        (0.0123, "12.3 ms"),
        (100, "100 s"),
    ],
)
def test_seconds(value: float | None, told: str) -> None:
    assert show_seconds(value) == told


def test_bytes() -> None:
    assert [show_bytes(v) for v in (0, 999, 44.2e6)] == ["0 B", "999 B", "44.2 MB"]


def test_structure_folds_blocks_and_survives_odd_paths() -> None:
    from compiler.cost.calibration import Trust
    from compiler.cost.cost import Row

    trust = Trust("prior", 1.0)
    at = [
        "embed",
        *(f"enc.layer.{i}.{part}" for i in range(3) for part in ("a", "b")),
        "m.py:3",
        "x." * 500 + "y",
    ]
    rows = [Row("op", f"{path} @ m.py:1" if ":" not in path else path, 1.0, 1, "memory", 1, 1, 0, trust) for path in at]
    found = structure(rows)
    blocks = [(r["name"], r["times"], r["kernels"]) for r in found if "layer" in r["name"]]
    assert blocks == [("enc.layer.*", 3, 6)]
    assert found[0]["kernels"] == len(rows)
    assert max(r["depth"] for r in found) < 20


# --- the terminal --------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "columns"), [(100, 300), (100, 100), (100, 60), (72, 300)])
def test_tables_keep_their_width(report: dict[str, Any], width: int, columns: int) -> None:
    long = deepcopy(report)
    long["candidates"][0]["why"] = "because " * 80 + "x" * 150
    long["candidates"][0]["name"] = "fp32 on " + "engine" * 10
    long["variants"]["int8"]["passes"][0]["name"] = "quantize{" + "a" * 150 + "}"
    assert max(map(len, shown(long, width, columns).splitlines())) <= min(width, columns)


def test_tables_tell_what_the_passes_and_candidates_did(report: dict[str, Any]) -> None:
    text = shown(report)
    assert "passes of int8" in text
    assert "found nothing: drop-dead-nodes" in text
    assert re.search(r"int8 on onnxruntime +\S+ \w+ +2\.00 ms +2\.50x +0\.002 +taken", text)
    assert "2.50x vs torch eager fp32, same inputs, same threads, interleaved, median of 40" in text


def test_no_speedup_of_a_candidate_beyond_the_loss_bound(report: dict[str, Any]) -> None:
    assert WRONG.speedup == pytest.approx(10)
    for text in (shown(report), page(report), json.dumps(report)):
        assert "10.00x" not in text
        assert '"speedup": 10.0' not in text


def test_text_of_a_model_is_no_markup(report: dict[str, Any]) -> None:
    odd = deepcopy(report)
    odd["candidates"][0]["why"] = "[bold red]x[/] \x1b]0;title\x07"
    text = shown(odd)
    assert "[bold red]x[/]" in text
    assert "\x1b" not in text


def test_a_report_that_was_read_back_renders_the_same(report: dict[str, Any], tmp_path: Path) -> None:
    write_report(report, tmp_path)
    again = json.loads((tmp_path / "report.json").read_text())
    assert shown(again) == shown(report)
    assert page(again) == (tmp_path / "report.html").read_text()


# --- the page ------------------------------------------------------------------------------------

VOID = {"meta", "br", "input", "rect", "line"}


class Tags(HTMLParser):
    """Collects tags with their attributes, and checks that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_self_contained(report: dict[str, Any]) -> None:
    text = page(report)
    parsed = Tags(text)
    assert parsed.open == []
    assert not {"link", "img", "iframe", "object", "embed", "base", "form", "a"} & {tag for tag, _ in parsed.tags}
    attributes = {name for _, attrs in parsed.tags for name in attrs}
    assert not {"src", "href", "style", "srcdoc", "action"} & attributes
    assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"https?://|@import|url\(", text)
    assert len(text) < 1_000_000


def test_page_allows_its_own_script_and_style_only(report: dict[str, Any]) -> None:
    import base64
    import hashlib

    text = page(report)
    policy = next(a["content"] for t, a in Tags(text).tags if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        (source,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_names_from_a_model_are_escaped() -> None:
    text = """penstock-ir 1
graph "hostile"
dim b [1, 8]
dim s [2, 16]
input %x: f32[b, s, 8] "x"
param %w: f32[8, 8] "w"
%y: f32[b, s, 8] = aten.linear.default(%x, %w)  # layer
%z: f32[b, s, 8] = aten.gelu.default(%y)  # layer
return "z" %z
"""
    graph = parse(text)
    add_weights(graph)
    from ir import Origin

    for node in graph:
        node.origin = Origin(f"layer.0.{HOSTILE}", f"{HOSTILE}.py:1")
    graph.outputs = (replace(graph.outputs[0], name=HOSTILE),)
    job = job_of(graph, name=HOSTILE)
    bad = replace(BROKEN, why=HOSTILE, version=HOSTILE)
    taken = replace(TAKEN, facts={HOSTILE: HOSTILE})
    report = build_report(job, [taken, bad], taken, graph)
    html = page(report)
    assert html.count("onerror") == html.count("&lt;/script&gt;&lt;img onerror=alert(1)&gt;")
    assert html.count("onerror") > 5
    assert not [attrs for tag, attrs in Tags(html).tags if tag == "img" or "onerror" in attrs]
    assert html.count("<script>") == html.count("</script>") == 1
    shown(report)


def test_a_large_model_makes_no_large_page(job: FakeJob) -> None:
    said = tuple(Remark(f"op{i} at {'deep.' * 60}x", bool(i % 2), f"why {i} " * 40) for i in range(3000))
    report = build_report(deepcopy_with(job, PassRecord("p", 1, said)), ALL, TAKEN)
    text = page(report)
    assert len(text) < 1_000_000
    assert "2" in re.findall(r"(\d+) more are in report.json", text)[0]
    assert len(report["variants"]["int8"]["passes"][0]["remarks"]) == 3000


def test_page_folds_repeated_blocks_and_shows_what_to_do_next(report: dict[str, Any]) -> None:
    text = page(report)
    for part in (
        "What each pass bought",
        "Candidates",
        "Loss",
        "Roofline",
        "Remarks",
        "The model",
        "Environment",
    ):
        assert f"<h2>{part}</h2>" in text
    assert "penstock.load(&#39;block.penstock&#39;)" in text
    assert "penstock compile MODEL --target cpu --recipe auto" in text
    assert "version: 1" in text
