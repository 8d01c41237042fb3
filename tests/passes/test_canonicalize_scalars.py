from passes import CanonicalizeScalars
from tests.passes.case import Case, cases, check


@cases(
    Case(
        "scalar forms, rsub, square",
        """
        input %x: f32[4] "x"
        %a: f32[4] = aten.add.Scalar(%x, 2, 3)
        %b: f32[4] = aten.rsub.Tensor(%a, %x)
        %c: f32[4] = aten.pow.Tensor_Scalar(%b, 2)
        return "c" %c
        """,
        """
        input %x: f32[4] "x"
        %a: f32[4] = aten.add.Tensor(%x, 2, alpha=3)
        %b: f32[4] = aten.sub.Tensor(%x, %a)
        %c: f32[4] = aten.mul.Tensor(%b, %b)
        return "c" %c
        """,
        ("+ scalar form", "+ rsub is sub", "+ a square is a product"),
    ),
    Case(
        "every cast is to.dtype",
        """
        input %x: f32[4] "x"
        input %y: f64[4] "y"
        %a: f64[4] = aten._to_copy.default(%x, dtype=!f64)
        %b: f64[4] = aten.type_as.default(%x, %y)
        return "a" %a, "b" %b
        """,
        """
        input %x: f32[4] "x"
        input %y: f64[4] "y"
        %a: f64[4] = aten.to.dtype(%x, !f64)
        %b: f64[4] = aten.to.dtype(%x, !f64)
        return "a" %a, "b" %b
        """,
        ("+ cast", "+ cast"),
    ),
    Case(
        "another device is declined",
        """
        input %x: f32[4] "x"
        %a: f32[4] = aten._to_copy.default(%x, device=!device(meta))
        return "a" %a
        """,
        """
        input %x: f32[4] "x"
        %a: f32[4] = aten._to_copy.default(%x, device=!device(meta))
        return "a" %a
        """,
        ("- it moves to another device or layout",),
    ),
    Case(
        "known and repeated sizes",
        """
        dim n [1, 8]
        input %x: f32[n, 4] "x"
        input %y: f32[n, 4] "y"
        %a: int<n> = aten.sym_size.int(%x, 0)
        %b: int<4> = aten.sym_size.int(%x, 1)
        %c: int<n> = aten.sym_size.int(%y, 0)
        %f: f32[n, 4] = aten.full.default([%a, %b], 1.0)
        %g: f32[n, 4] = aten.expand.default(%y, [%c, %b])
        return "f" %f, "g" %g
        """,
        """
        dim n [1, 8]
        input %x: f32[n, 4] "x"
        input %y: f32[n, 4] "y"
        %a: int<n> = aten.sym_size.int(%x, 0)
        %f: f32[n, 4] = aten.full.default([%a, 4], 1.0)
        %g: f32[n, 4] = aten.expand.default(%y, [%a, 4])
        return "f" %f, "g" %g
        """,
        ("+ the size is always 4", "+ the same size is at hand"),
    ),
    Case(
        "a square of whole numbers keeps its operator",
        """
        input %x: i64[4] "x"
        %c: i64[4] = aten.pow.Tensor_Scalar(%x, 2)
        return "c" %c
        """,
        """
        input %x: i64[4] "x"
        %c: i64[4] = aten.pow.Tensor_Scalar(%x, 2)
        return "c" %c
        """,
        ("- the square has another type",),
    ),
)
def test_rewrites(case: Case) -> None:
    check(CanonicalizeScalars(), case)
