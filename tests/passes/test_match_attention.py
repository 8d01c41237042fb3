from passes import MatchAttention
from tests.passes.case import Case, cases, check

HEAD = """
        dim b [1, 8]
        dim s [2, 32]
        input %q: f32[b, 2, s, 4] "q"
        input %k: f32[b, 2, s, 4] "k"
        input %v: f32[b, 2, s, 4] "v"
        input %mask: f32[b, 1, s, s] "mask"
        """


def attention(axis: int = -1, end: str = "%y") -> str:
    return (
        HEAD
        + f"""%t: f32[b, 2, 4, s] = aten.permute.default(%k, [0, 1, 3, 2])
        %m: f32[b, 2, s, s] = aten.matmul.default(%q, %t)
        %d: f32[b, 2, s, s] = aten.div.Tensor(%m, 2.0)
        %a: f32[b, 2, s, s] = aten.add.Tensor(%d, %mask)
        %p: f32[b, 2, s, s] = aten.softmax.int(%a, {axis})
        %y: f32[b, 2, s, 4] = aten.matmul.default(%p, %v)
        return "y" {end}
        """
    )


@cases(
    Case(
        "division, mask, softmax",
        attention(),
        HEAD
        + """%y: f32[b, 2, s, 4] = aten.scaled_dot_product_attention.default(%q, %k, %v, %mask, 0.0, False, scale=0.5)
        return "y" %y
        """,
        ("+ 5 operations are one",),
    ),
    Case("weights are returned", attention(end='%y, "p" %p'), attention(end='%y, "p" %p'),
         ("- the attention weights have another reader",)),
    Case("softmax over queries", attention(axis=2), attention(axis=2), ("- softmax is not over the keys, or casts",)),
    Case(
        "repeated keys and values are grouped queries",
        """
        dim s [2, 32]
        input %q: f32[1, 4, s, 8] "q"
        input %k: f32[1, 2, s, 8] "k"
        %u: f32[1, 2, 1, s, 8] = aten.unsqueeze.default(%k, 2)
        %n: int<s> = aten.sym_size.int(%k, 2)
        %e: f32[1, 2, 2, s, 8] = aten.expand.default(%u, [1, 2, 2, %n, 8])
        %r: f32[1, 4, s, 8] = aten.reshape.default(%e, [1, 4, %n, 8])
        %y: f32[1, 4, s, 8] = aten.scaled_dot_product_attention.default(%q, %r, %r)
        return "y" %y
        """,
        """
        dim s [2, 32]
        input %q: f32[1, 4, s, 8] "q"
        input %k: f32[1, 2, s, 8] "k"
        %y: f32[1, 4, s, 8] = aten.scaled_dot_product_attention.default(%q, %k, %k, enable_gqa=True)
        return "y" %y
        """,
        ("+ repeated keys and values are grouped queries",),
    ),
)  # fmt: skip
def test_rewrites(case: Case) -> None:
    check(MatchAttention(), case)
