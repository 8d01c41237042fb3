from passes import CanonicalizeViews
from tests.passes.case import Case, cases, check


@cases(
    Case(
        "view is reshape",
        """
        input %x: f32[2, 6] "x"
        %y: f32[3, 4] = aten.view.default(%x, [3, 4])
        return "y" %y
        """,
        """
        input %x: f32[2, 6] "x"
        %y: f32[3, 4] = aten.reshape.default(%x, [3, 4])
        return "y" %y
        """,
        ("+ view is reshape",),
    ),
    Case(
        "flatten keeps the one dynamic dim as -1",
        """
        dim n [1, 8]
        input %x: f32[n, 2, 3] "x"
        %y: f32[n, 6] = aten.flatten.using_ints(%x, 1)
        return "y" %y
        """,
        """
        dim n [1, 8]
        input %x: f32[n, 2, 3] "x"
        %y: f32[n, 6] = aten.reshape.default(%x, [-1, 6])
        return "y" %y
        """,
        ("+ flatten is reshape",),
    ),
    Case(
        "two dynamic dims are declined",
        """
        dim n [1, 8]
        dim m [1, 8]
        input %x: f32[n, m, 2, 3] "x"
        %y: f32[n, m, 6] = aten.flatten.using_ints(%x, 2)
        return "y" %y
        """,
        """
        dim n [1, 8]
        dim m [1, 8]
        input %x: f32[n, m, 2, 3] "x"
        %y: f32[n, m, 6] = aten.flatten.using_ints(%x, 2)
        return "y" %y
        """,
        ("- the new shape has more than one size that is only known at run time",),
    ),
    Case(
        "transpose, t and negative axes are permute, and compose",
        """
        input %x: f32[2, 3, 4] "x"
        %y: f32[2, 4, 3] = aten.transpose.int(%x, -1, -2)
        %z: f32[4, 2, 3] = aten.permute.default(%y, [1, 0, 2])
        return "z" %z
        """,
        """
        input %x: f32[2, 3, 4] "x"
        %z: f32[4, 2, 3] = aten.permute.default(%x, [2, 0, 1])
        return "z" %z
        """,
        ("+ transpose is permute", "+ two permutes are one"),
    ),
    Case(
        "an inner view with another reader stays",
        """
        input %x: f32[2, 6] "x"
        %y: f32[12] = aten.reshape.default(%x, [12])
        %z: f32[3, 4] = aten.reshape.default(%y, [3, 4])
        return "y" %y, "z" %z
        """,
        """
        input %x: f32[2, 6] "x"
        %y: f32[12] = aten.reshape.default(%x, [12])
        %z: f32[3, 4] = aten.reshape.default(%y, [3, 4])
        return "y" %y, "z" %z
        """,
        ("- the inner reshape has another reader",),
    ),
)
def test_rewrites(case: Case) -> None:
    check(CanonicalizeViews(), case)
