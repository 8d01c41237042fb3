from passes import MatchRmsNorm
from tests.passes.case import Case, cases, check


def norm(mean: str = "aten.mean.dim(%s, [-1], True)", weight: str = "%w", end: str = "%y") -> str:
    return f"""
        dim n [1, 8]
        input %x: f32[n, 4] "x"
        input %w: f32[4] "w"
        input %m: f32[n, 4] "m"
        %s: f32[n, 4] = aten.mul.Tensor(%x, %x)
        %a: f32[n, 1] = {mean}
        %e: f32[n, 1] = aten.add.Tensor(%a, 1e-06)
        %r: f32[n, 1] = aten.rsqrt.default(%e)
        %z: f32[n, 4] = aten.mul.Tensor(%x, %r)
        %y: f32[n, 4] = aten.mul.Tensor({weight}, %z)
        return "y" {end}
        """


HEAD = """
        dim n [1, 8]
        input %x: f32[n, 4] "x"
        input %w: f32[4] "w"
        input %m: f32[n, 4] "m"
        """
UNWEIGHTED = (
    HEAD
    + """%z: f32[n, 4] = aten.rms_norm.default(%x, [4], None, 1e-06)
        """
)


@cases(
    Case(
        "whole norm",
        norm(),
        HEAD
        + """%y: f32[n, 4] = aten.rms_norm.default(%x, [4], %w, 1e-06)
        return "y" %y
        """,
        ("+ five operations are one", "+ the weight is part of the norm"),
    ),
    Case(
        "the normed value is returned as well",
        norm(end='%y, "z" %z'),
        UNWEIGHTED
        + """%y: f32[n, 4] = aten.mul.Tensor(%w, %z)
        return "y" %y, "z" %z
        """,
        ("+ five operations are one", "- the normed value has another reader"),
    ),
    Case(
        "the weight is a matrix",
        norm(weight="%m"),
        UNWEIGHTED
        + """%y: f32[n, 4] = aten.mul.Tensor(%m, %z)
        return "y" %y
        """,
        ("+ five operations are one", "- the weight is not one vector over the last dim, of its type"),
    ),
    Case(
        "the mean runs over rows",
        norm("aten.mean.dim(%s, [0], True)").replace("f32[n, 1]", "f32[1, 4]"),
        norm("aten.mean.dim(%s, [0], True)").replace("f32[n, 1]", "f32[1, 4]"),
        ("- the mean is not over the last dim",),
    ),
    Case(
        "layer norm without mean is no rms norm of another value",
        norm("aten.mean.dim(%m, [-1], True)"),
        norm("aten.mean.dim(%m, [-1], True)"),
    ),
)
def test_rewrites(case: Case) -> None:
    check(MatchRmsNorm(), case)
