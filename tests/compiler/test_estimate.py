"""The estimate table: plain data, and its rendering in 100 columns."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from compiler.cost.cost import estimate
from compiler.cost.estimate import estimate_table, render, show_bytes, show_seconds
from compiler.cost.targets import target
from ir import Graph, parse
from ir.errors import UsageError


@pytest.fixture
def graph() -> Graph:
    return parse(
        """penstock-ir 1
graph "encoder"
dim batch [1, 64]
dim seq [2, 512]
input %x: bf16[batch, seq, 256] "x"
param %w: bf16[256, 256] "w"
%h: bf16[batch, seq, 256] = aten.linear.default(%x, %w)
%v: bf16[batch, seq, 4, 64] = aten.view.default(%h, [-1, 8, 4, 64])
%t: bf16[batch, 4, seq, 64] = aten.transpose.int(%v, 1, 2)
%a: bf16[batch, 4, seq, 64] = aten.scaled_dot_product_attention.default(%t, %t, %t)
return "a" %a
"""
    )


def test_every_combination_in_order(graph: Graph) -> None:
    rows = estimate_table(graph, ["l4", "h100_sxm", "cpu"], [1, 8, 64], [128])
    assert [(r.target, r.sizes["batch"]) for r in rows] == [
        (t, b) for t in ("l4", "h100_sxm", "cpu") for b in (1, 8, 64)
    ]
    assert len(estimate_table(graph, ["l4"], [1, 8], [16, 32, 64])) == 6


def test_rows_are_the_estimates(graph: Graph) -> None:
    row = estimate_table(graph, [target("h100_sxm")], [8], [128])[0]
    found = estimate(graph, target("h100_sxm"), {"batch": 8, "seq": 128})
    assert (row.seconds, row.peak_bytes, row.tier) == (found.seconds, found.peak_bytes, found.tier)
    assert row.samples_per_second == pytest.approx(8 / row.seconds)
    assert sum(row.bounds.values()) == pytest.approx(1)
    assert row.margin > 0
    assert row.floor <= row.seconds


def test_to_dict_is_json(graph: Graph) -> None:
    row = estimate_table(graph, ["cpu"], [8], [128])[0].to_dict()
    back = json.loads(json.dumps(row))
    assert back["sizes"] == {"batch": 8, "seq": 128}
    assert back["tier"] == "prior"
    assert "priors" in back["notes"][0]


def test_other_dims_by_name() -> None:
    text = """penstock-ir 1
graph "g"
dim tokens [1, 64]
input %x: f32[tokens, 8] "x"
%y: f32[tokens, 8] = aten.relu.default(%x)
return "y" %y
"""
    assert estimate_table(parse(text), ["l4"], sizes={"tokens": 4})[0].bytes == 2 * 4 * 32


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((["l4"], [128], [128]), "batch = 128 is outside the range [1, 64] of that dim"),
        ((["l4"], [8], [1]), "seq = 1 is outside the range [2, 512] of that dim"),
        ((["l4"], [8]), "no size for seq [2, 512]"),
        ((["l5"], [8], [128]), "there is no target named 'l5'"),
        ((["l4"], [8], [128], {"heads": 2}), "the model has no dim named 'heads'"),
    ],
)
def test_faults(graph: Graph, arguments: tuple[object, ...], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        estimate_table(graph, *arguments)  # type: ignore[arg-type]
    assert told in str(caught.value)


def test_rendering_keeps_to_100_columns(graph: Graph) -> None:
    rows = estimate_table(graph, ["orin_nano_super", "h100_sxm", "x86_avx512_vnni", "cpu"], [1, 64], [512])
    for width in (80, 100, 200):
        out = io.StringIO()
        render(rows, Console(file=out, width=width, color_system=None))
        lines = out.getvalue().splitlines()
        assert max(map(len, lines)) <= min(width, 100)
        assert "…" not in out.getvalue()
    assert sum(line.startswith(("orin_nano_super ", "h100_sxm ", "x86_avx512_vnni ", "cpu ")) for line in lines) == 8
    assert "% (transferred)" in out.getvalue()
    assert "(prior)" in out.getvalue()
    assert "cpu: " in out.getvalue()  # what was assumed


def test_rendering_says_when_memory_is_short() -> None:
    text = """penstock-ir 1
graph "g"
dim batch [1, 100000000]
input %x: f32[batch, 1000] "x"
%y: f32[batch, 1000] = aten.relu.default(%x)
return "y" %y
"""
    out = io.StringIO()
    render(estimate_table(parse(text), ["l4"], [4_000_000]), Console(file=out, width=100, color_system=None))
    assert "32.0 GB > 24.0 GB" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (12.4e-3, "12.4 ms"),
        (0.9999e-3, "1.00 ms"),
        (2.5, "2.50 s"),
        (3.2e-6, "3.20 us"),
        (0.1234, "123 ms"),
        (0.0, "0.00 us"),
    ],
)
def test_seconds(seconds: float, told: str) -> None:
    assert show_seconds(seconds) == told


@pytest.mark.parametrize(("bytes_", "told"), [(12, "12 B"), (2048, "2.05 kB"), (438e6, "438 MB"), (24e9, "24.0 GB")])
def test_bytes(bytes_: float, told: str) -> None:
    assert show_bytes(int(bytes_)) == told
