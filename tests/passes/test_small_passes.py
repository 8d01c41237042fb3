"""Dead code, common nodes, constants, masks, fusion marks: a few rows each."""

import torch

from ir import interpret
from passes import DropDeadNodes, FoldConstants, MarkFusion, MergeCommonNodes, SimplifyMasks
from tests.passes.case import Case, cases, check, numbered, read, told


@cases(
    Case(
        "a dead chain goes, and its weight; asserts and randomness with readers stay",
        """
        param %w: f32[4] "w"
        input %x: f32[4] "x"
        %a: f32[4] = aten.mul.Tensor(%x, %w)
        %b: f32[4] = aten.exp.default(%a)
        aten._assert_tensor_metadata.default(%x, dtype=!f32)
        return "x" %x
        """,
        """
        input %x: f32[4] "x"
        aten._assert_tensor_metadata.default(%x, dtype=!f32)
        return "x" %x
        """,
        ("+ nothing reads it", "+ nothing reads it", "+ nothing reads it"),
    ),
)
def test_drop_dead_nodes(case: Case) -> None:
    check(DropDeadNodes(), case, {"w": torch.ones(4)})


@cases(
    Case(
        "equal nodes merge in one walk, also the ones that become equal",
        """
        input %x: f32[4] "x"
        %a: f32[4] = aten.exp.default(%x)
        %b: f32[4] = aten.exp.default(%x)
        %c: f32[4] = aten.neg.default(%a)
        %d: f32[4] = aten.neg.default(%b)
        return "c" %c, "d" %d
        """,
        """
        input %x: f32[4] "x"
        %a: f32[4] = aten.exp.default(%x)
        %c: f32[4] = aten.neg.default(%a)
        return "c" %c, "d" %c
        """,
        ("+ computed before", "+ computed before"),
    ),
    Case(
        "1, 1.0 and True differ; random numbers are drawn twice",
        """
        input %x: i64[4] "x"
        %a: i64[4] = aten.add.Tensor(%x, 1)
        %b: f32[4] = aten.add.Tensor(%x, 1.0)
        %r: f32[4] = aten.rand.default([4])
        %s: f32[4] = aten.rand.default([4])
        return "a" %a, "b" %b, "r" %r, "s" %s
        """,
        """
        input %x: i64[4] "x"
        %a: i64[4] = aten.add.Tensor(%x, 1)
        %b: f32[4] = aten.add.Tensor(%x, 1.0)
        %r: f32[4] = aten.rand.default([4])
        %s: f32[4] = aten.rand.default([4])
        return "a" %a, "b" %b, "r" %r, "s" %s
        """,
    ),
)
def test_merge_common_nodes(case: Case) -> None:
    check(MergeCommonNodes(), case)


FOLDABLE = """
    param %w: f32[4, 2] "w"
    input %x: f32[3, 4] "x"
    %t: f32[4, 2] = aten.mul.Tensor(%w, 2.0)
    %e: f32[100, 4, 2] = aten.expand.default(%t, [100, 4, 2])
    %y: f32[3, 2] = aten.mm.default(%x, %t)
    return "y" %y, "e" %e
    """


def test_fold_constants_computes_now_and_keeps_the_numbers() -> None:
    graph = read(FOLDABLE, {"w": torch.arange(8.0).reshape(4, 2)})
    x = torch.randn(3, 4)
    want = interpret(graph, {"x": x})
    said = FoldConstants(max_bytes=100).run(graph)
    assert told(said) == ("+ 32 bytes computed at compile time", "- the result takes 3200 bytes, what goes in 32")
    got = interpret(graph, {"x": x})
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert [node.op.name for node in graph] == ["aten.expand.default", "aten.mm.default", "return"]


def test_fold_constants_declines_without_weights() -> None:
    assert told(FoldConstants().run(read(FOLDABLE)))[0] == "- its weights are not at hand"


def test_simplify_masks_finds_the_mask_behind_the_gather() -> None:
    graph = read(
        """
        dim b [1, 8]
        dim s [2, 32]
        input %m: bool[b, s] "m"
        input %q: f32[b, 1, s, 4] "q"
        %nb: int<b> = aten.sym_size.int(%m, 0)
        %ns: int<s> = aten.sym_size.int(%m, 1)
        %ab: i64[b] = aten.arange.default(%nb)
        %as: i64[s] = aten.arange.default(%ns)
        %ib: i64[b, 1, 1, 1] = aten.reshape.default(%ab, [%nb, 1, 1, 1])
        %is: i64[1, 1, 1, s] = aten.reshape.default(%as, [1, 1, 1, %ns])
        %iq: i64[1, 1, s, 1] = aten.reshape.default(%as, [1, 1, %ns, 1])
        %g: bool[1, 1, s, 1] = aten.ge.Scalar(%iq, 0)
        %i: bool[b, 1, 1, s] = aten.index.Tensor(%m, [%ib, %is])
        %a: bool[b, 1, s, s] = aten.__and__.Tensor(%g, %i)
        %y: f32[b, 1, s, 4] = aten.scaled_dot_product_attention.default(%q, %q, %q, %a)
        return "y" %y
        """
    )
    inputs = {"m": torch.tensor([[True, True, False], [True, False, False]]), "q": torch.randn(2, 1, 3, 4)}
    want = interpret(graph, inputs)["y"]
    said = SimplifyMasks().run(graph)
    DropDeadNodes().run(graph)
    assert torch.equal(interpret(graph, inputs)["y"], want)
    assert sorted({w for w in told(said) if w.startswith("+")}) == [
        "+ a gather of everything, in order, is a reshape",
        "+ a range from 0 is never negative",
        "+ attention broadcasts the mask by itself",
        "+ one side is always true",
    ]
    assert "aten.index.Tensor" not in numbered(graph)
    assert "bool[b, 1, s, s]" not in numbered(graph)


@cases(
    Case(
        "a gather that skips or swaps is left alone",
        """
        input %m: bool[4, 4] "m"
        %r: i64[4] = aten.arange.start(1, 5)
        %a: i64[4, 1] = aten.reshape.default(%r, [4, 1])
        %s: i64[4] = aten.arange.default(4)
        %b: i64[1, 4] = aten.reshape.default(%s, [1, 4])
        %y: bool[4, 4] = aten.index.Tensor(%m, [%b, %a])
        %c: i64[4, 1] = aten.reshape.default(%s, [4, 1])
        %z: bool[4, 4] = aten.index.Tensor(%m, [%b, %c])
        return "y" %y, "z" %z
        """,
        """
        input %m: bool[4, 4] "m"
        %r: i64[4] = aten.arange.start(1, 5)
        %a: i64[4, 1] = aten.reshape.default(%r, [4, 1])
        %s: i64[4] = aten.arange.default(4)
        %b: i64[1, 4] = aten.reshape.default(%s, [1, 4])
        %y: bool[4, 4] = aten.index.Tensor(%m, [%b, %a])
        %c: i64[4, 1] = aten.reshape.default(%s, [4, 1])
        %z: bool[4, 4] = aten.index.Tensor(%m, [%b, %c])
        return "y" %y, "z" %z
        """,
        ("- an index is not a whole range over its axis", "- the ranges do not lie along axes of their own, in order"),
    ),
)
def test_simplify_masks_declines(case: Case) -> None:
    check(SimplifyMasks(), case)


def test_mark_fusion_groups_a_linear_with_what_follows() -> None:
    graph = read(
        """
        input %x: f32[8, 4] "x"
        input %w: f32[4, 4] "w"
        %a: f32[8, 4] = aten.linear.default(%x, %w)
        %b: f32[8, 4] = aten.gelu.default(%a)
        %c: f32[8, 4] = aten.add.Tensor(%b, %x)
        %d: f32[8, 4] = aten.exp.default(%c)
        return "c" %c, "d" %d
        """
    )
    said = MarkFusion().run(graph)
    assert [dict(node.hints) for node in graph] == [{"fuse": 0}, {"fuse": 0}, {"fuse": 0}, {}, {}]
    assert "- the value before it has another reader" in told(said)
    small = MarkFusion(max_nodes=2)
    assert "- the group is full (2 nodes)" in told(small.run(read_again(graph)))


def read_again(graph):
    from ir import parse, show

    return parse(show(graph))
