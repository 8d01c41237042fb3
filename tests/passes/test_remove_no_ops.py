from passes import RemoveNoOps
from tests.passes.case import Case, cases, check

PLAIN = """
input %x: f32[2, 4] "x"
return "x" %x
"""


def one(line: str) -> str:
    return f'input %x: f32[2, 4] "x"\n{line}\nreturn "x" %y\n'


@cases(
    Case(
        "dropout",
        one("%y: f32[2, 4] = aten.dropout.default(%x, 0.1, False)"),
        PLAIN,
        ("+ dropout does nothing outside of training",),
    ),
    Case("clone", one("%y: f32[2, 4] = aten.clone.default(%x)"), PLAIN, ("+ values are never changed in place",)),
    Case("same cast", one("%y: f32[2, 4] = aten.to.dtype(%x, !f32)"), PLAIN, ("+ it changes nothing",)),
    Case("same reshape", one("%y: f32[2, 4] = aten.reshape.default(%x, [2, 4])"), PLAIN, ("+ it changes nothing",)),
    Case("same permute", one("%y: f32[2, 4] = aten.permute.default(%x, [0, -1])"), PLAIN, ("+ it changes nothing",)),
    Case(
        "full slice",
        one("%y: f32[2, 4] = aten.slice.Tensor(%x, 1, 0, 9223372036854775807)"),
        PLAIN,
        ("+ it takes everything",),
    ),
    Case("cat of one", one("%y: f32[2, 4] = aten.cat.default([%x])"), PLAIN, ("+ cat of one",)),
    Case(
        "cat with nothing",
        one("%e: f32[0] = aten.zeros.default([0])\n%y: f32[2, 4] = aten.cat.default([%e, %x], -2)"),
        'input %x: f32[2, 4] "x"\n%e: f32[0] = aten.zeros.default([0])\nreturn "x" %x\n',
        ("+ cat of one, the others are empty",),
    ),
    Case("add 0", one("%y: f32[2, 4] = aten.add.Tensor(%x, 0)"), PLAIN, ("+ add 0",)),
    Case("mul 1", one("%y: f32[2, 4] = aten.mul.Tensor(%x, 1.0)"), PLAIN, ("+ mul 1",)),
    Case(
        "wider and back",
        one("%w: f64[2, 4] = aten.to.dtype(%x, !f64)\n%y: f32[2, 4] = aten.to.dtype(%w, !f32)"),
        'input %x: f32[2, 4] "x"\n%w: f64[2, 4] = aten.to.dtype(%x, !f64)\nreturn "x" %x\n',
        ("+ the cast there loses nothing",),
    ),
    Case(
        "narrower and back is no no-op",
        one("%w: bf16[2, 4] = aten.to.dtype(%x, !bf16)\n%y: f32[2, 4] = aten.to.dtype(%w, !f32)"),
        one("%w: bf16[2, 4] = aten.to.dtype(%x, !bf16)\n%y: f32[2, 4] = aten.to.dtype(%w, !f32)"),
    ),
    Case(
        "dropout in training is declined",
        one("%y: f32[2, 4] = aten.dropout.default(%x, 0.1, True)"),
        one("%y: f32[2, 4] = aten.dropout.default(%x, 0.1, True)"),
        ("- the model was captured in training mode",),
    ),
    Case(
        "a proven assertion goes",
        'input %x: f32[2, 4] "x"\naten._assert_tensor_metadata.default(%x, dtype=!f32)\nreturn "x" %x\n',
        PLAIN,
        ("+ the types prove it",),
    ),
    Case(
        "mul 2 stays", one("%y: f32[2, 4] = aten.mul.Tensor(%x, 2.0)"), one("%y: f32[2, 4] = aten.mul.Tensor(%x, 2.0)")
    ),
)
def test_rewrites(case: Case) -> None:
    check(RemoveNoOps(), case)
