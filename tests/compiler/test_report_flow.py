"""What the report says of branches and loops."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from backends import FlowProof
from compiler.report import build_report, page
from tests.compiler.test_report import ALL, HOSTILE, SLOWER, TAKEN, FakeJob, Tags, job_of, shown
from tests.corpus import load


@pytest.fixture(scope="module")
def job() -> FakeJob:
    return job_of(load("block"))


@pytest.fixture(scope="module")
def report(job: FakeJob) -> dict[str, Any]:
    return build_report(job, ALL, TAKEN)


PROOFS = (
    FlowProof(
        "cond at layers.3 @ m.py:7", "segments", "measured", "the untaken side adds 9 ms", lazy=True,
        seconds={"taken": 0.01, "untaken": 0.001, "full": 0.0095},
    ),
    FlowProof(f"while at {HOSTILE}", "loop", "none", f"too small to measure {HOSTILE}"),
)  # fmt: skip
BRANCHING = replace(TAKEN, lowering="segments", flow=PROOFS, remarks=(f"it computes both sides {HOSTILE}",))


def test_control_flow_is_told_branch_by_branch(job: FakeJob) -> None:
    report = build_report(job, [BRANCHING, SLOWER], BRANCHING)
    assert [(row["lazy"], row["evidence"], row["seconds"].get("taken")) for row in report["flow"]] == [
        (True, "measured", 0.01),
        (False, "none", None),
    ]
    assert report["candidates"][0]["remarks"] == [f"it computes both sides {HOSTILE}"]
    text = shown(report)
    assert "control flow: what is proven" in text
    assert re.search(r"cond at layers.3 @ m.py:7 +segments +yes +10.0 ms +1.00 ms +measured", text)
    assert max(map(len, text.splitlines())) <= 100
    html = page(report)
    assert "<h2>Control flow: what is proven</h2>" in html
    assert html.count("onerror") == html.count("&lt;/script&gt;&lt;img onerror=alert(1)&gt;") == 3
    assert Tags(html).open == []


def test_without_branches_nothing_is_said_of_them(report: dict[str, Any]) -> None:
    assert report["flow"] == []
    assert "Control flow" not in page(report) and "control flow" not in shown(report)
    older = {key: value for key, value in report.items() if key != "flow"}
    assert page(older) == page(report)
