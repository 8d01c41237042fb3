"""``parse``: every fault is a ParseError that names its line; no text crashes it, whatever is in it."""

from __future__ import annotations

import random

import pytest
import torch

from ir import IRError, ParseError, parse, show, verify
from ir.text import VERSION
from tests.corpus import CORPUS

HEAD = 'penstock-ir 1\ngraph "g"\ndim n [1, 8]\ninput %x: f32[n, 4] "x"\nparam %w: f32[4] "w"\n'

# body -> the line that is at fault, and a part of what is said
FAULTS = {
    "unknown operator": ("%y: f32[n, 4] = aten.nonsense.default(%x)\nreturn", 6, "torch knows no operator"),
    "forbidden operator": ('%y: f32[4] = aten.from_file.default("f")\nreturn', 6, "not accepted"),
    "not an operator": ("%y: f32[n, 4] = exp(%x)\nreturn", 6, "not an operator name"),
    "undefined value": ("%y: f32[n, 4] = aten.exp.default(%z)\nreturn", 6, "%z is used before it is defined"),
    "use before definition": ("return %y", 6, "expected a quoted text"),
    "defined twice": ("%x: f32[n, 4] = aten.exp.default(%x)\nreturn", 6, "%x is defined twice"),
    "two results of one name": ("%a: f32[4], %a: i64[4] = aten.max.dim(%x, 0)\nreturn", 6, "%a is defined twice"),
    "unknown type": ("%y: f33[n] = aten.exp.default(%x)\nreturn", 6, "not a type: 'f33'"),
    "no type": ("%y = aten.exp.default(%x)\nreturn", 6, "expected ':'"),
    "open shape": ("%y: f32[n, 4 = aten.exp.default(%x)\nreturn", 6, "missing ']'"),
    "code in a shape": ('%y: f32[__import__("os")] = aten.exp.default(%x)\nreturn', 6, "not a dimension"),
    "huge shape": (f"%y: f32[{'9*' * 300}9] = aten.exp.default(%x)\nreturn", 6, "longer than"),
    "no equals sign": ("%y: f32[n, 4] aten.exp.default(%x)\nreturn", 6, "expected '='"),
    "no bracket": ("%y: f32[n, 4] = aten.exp.default %x\nreturn", 6, "expected '('"),
    "open arguments": ("%y: f32[n, 4] = aten.exp.default(%x\nreturn", 6, "expected"),
    "open list": ("%y: f32[n, 4] = aten.cat.default([%x\nreturn", 6, "expected"),
    "nested too deep": (f"%y: f32[n] = aten.cat.default({'[' * 50}%x{']' * 50})\nreturn", 6, "not a literal: '['"),
    "two commas": ("%y: f32[n, 4] = aten.cat.default([%x,, %x])\nreturn", 6, "not a literal: ','"),
    "missing comma": ("%y: f32[n, 4] = aten.add.Tensor(%x %x)\nreturn", 6, "expected ',' or ')'"),
    "text after the node": ("%y: f32[n, 4] = aten.exp.default(%x) more\nreturn", 6, "unexpected 'more'"),
    "unknown constant": ("%y: f32[n, 4] = aten.exp.default(!f99)\nreturn", 6, "not a literal"),
    "broken device": ("%y: f32[n, 4] = aten.exp.default(!device(nowhere))\nreturn", 6, "not a literal"),
    "broken complex": ("%y: f32[n, 4] = aten.exp.default(!complex(1))\nreturn", 6, "not a literal"),
    "word as argument": ("%y: f32[n, 4] = aten.exp.default(exec)\nreturn", 6, "not a literal: 'exec'"),
    "huge number": (f"%y: f32[n, 4] = aten.mul.Tensor(%x, {'9' * 5000})\nreturn", 6, "not a literal"),
    "broken string": ('%y: f32[n, 4] = aten.gelu.default(%x, approximate="tanh)\nreturn', 6, "expected"),
    "bad escape": ('%y: f32[n, 4] = aten.gelu.default(%x, approximate="\\q")\nreturn', 6, "not a literal"),
    "bad hint": ("%y: f32[n, 4] = aten.exp.default(%x) {fuse=True}\nreturn", 6, "not a hint"),
    "open hints": ("%y: f32[n, 4] = aten.exp.default(%x) {fuse=1\nreturn", 6, "expected"),
    "positional after keyword": ("%y: f32[n] = aten.add.Tensor(alpha=1, %x)\nreturn", 6, "after a keyword"),
    "keyword twice": ("%y: f32[n] = aten.add.Tensor(%x, alpha=1, alpha=2)\nreturn", 6, "twice"),
    "no return": ("%y: f32[n, 4] = aten.exp.default(%x)", 6, "ends before the last return"),
    "text after return": ('return "y" %x\nreturn "y" %x', 7, "after the last return"),
    "output without a name": ("return %x", 6, "expected a quoted text"),
    "outputs without comma": ('return "y" %x "z" %x', 6, "expected ','"),
    "no regions": ("%y: f32[n, 4] = cond(%x, [%x]) do\nreturn", 7, "expected 'region'"),
    "no end": ("%y: f32[n] = cond(%x, []) do\nregion()\n  return\nreturn", 9, "expected 'end'"),
    "outer value in a region": (
        "%y: f32[n] = cond(%x, []) do\nregion()\n return %x\nend\nreturn", 8, "%x is used before",
    ),
    "region value twice": (
        "%y: f32[n] = cond(%x, []) do\nregion(%a: f32[1], %a: f32[1])\nreturn", 7, "%a is defined twice",
    ),
}  # fmt: skip
HEADS = {
    "empty text": ("", 0, "ends before"),
    "another language": ("module {}\n", 1, "not IR, or of another version"),
    "another version": (f"penstock-ir {VERSION + 1}\n", 1, "of another version"),
    "no graph": ("penstock-ir 1\nreturn\n", 2, "expected 'graph'"),
    "unquoted name": ("penstock-ir 1\ngraph g\nreturn\n", 2, "expected a quoted text"),
    "broken bounds": ('penstock-ir 1\ngraph "g"\ndim n [a, 3]\nreturn\n', 3, "whole numbers"),
    "open bounds": ('penstock-ir 1\ngraph "g"\ndim n [1, 3\nreturn\n', 3, "expected"),
    "dim twice": ('penstock-ir 1\ngraph "g"\ndim n [1, 3]\ndim n [1, 4]\nreturn\n', 4, "n is defined twice"),
    "dim that is no name": ('penstock-ir 1\ngraph "g"\ndim "n" [1, 3]\nreturn\n', 3, "not a name"),
    "empty range": ('penstock-ir 1\ngraph "g"\ndim n [4, 3]\nreturn\n', 3, "empty"),
    "negative range": ('penstock-ir 1\ngraph "g"\ndim n [-1, 3]\nreturn\n', 3, "negative"),
    "input twice": (HEAD + 'input %z: f32[1] "x"\nreturn\n', 6, "there is a input named 'x' already"),
    "value twice": (HEAD + 'input %x: f32[1] "z"\nreturn\n', 6, "%x is defined twice"),
    "input without a name": (HEAD + "input %z: f32[1]\nreturn\n", 6, "expected"),
    "text after an input": (HEAD + 'input %z: f32[1] "z" "q"\nreturn\n', 6, "unexpected"),
    "text after a dim": ('penstock-ir 1\ngraph "g"\ndim n [1, 3] 7\nreturn\n', 3, "unexpected"),
    "a null byte": ("penstock-ir 1\0", 1, "not IR"),
}


@pytest.mark.parametrize("fault", [*FAULTS, *HEADS])
def test_a_fault_names_its_line(fault: str) -> None:
    if fault in FAULTS:
        body, line, what = FAULTS[fault]
        text = HEAD + body
    else:
        text, line, what = HEADS[fault]
    with pytest.raises(ParseError) as caught:
        parse(text)
    assert what in str(caught.value)
    if "ends before" not in what:
        assert f"line {line}: " in caught.value.what
    assert caught.value.exit_code == 8


def test_deep_nesting_is_refused() -> None:
    depth = 100
    opened = "".join(f"%v{i}: f32[1] = cond(%p{i}, [%p{i}]) do\nregion(%p{i + 1}: bool[])\n" for i in range(depth))
    text = f'penstock-ir 1\ngraph "deep"\ninput %p0: bool[] "p"\n{opened}'
    with pytest.raises(ParseError, match="regions nest deeper than"):
        parse(text)


def test_weights_must_have_the_type_that_the_text_says() -> None:
    text = HEAD + 'return "y" %x'
    assert list(parse(text).weights) == []
    given = parse(text, {"w": torch.ones(4), "not read": torch.ones(1)})
    assert list(given.weights) == ["w"]
    with pytest.raises(ParseError, match="line 5: there is no weight named 'w'"):
        parse(text, {})
    with pytest.raises(ParseError, match=r"line 5: weight 'w' is \[5\] torch.float32, the text says f32\[4\]"):
        parse(text, {"w": torch.ones(5)})


def test_blank_lines_and_indentation_are_free() -> None:
    text = CORPUS["cond_nested"]
    loose = "\n\n".join("   " + line.strip() for line in text.splitlines())
    assert show(parse(loose)) == text


@pytest.mark.parametrize("name", CORPUS)
def test_any_edit_is_a_graph_or_a_clean_error(name: str) -> None:
    """Fuzz: one character changed, dropped, doubled; one line dropped, doubled or swapped."""
    text, chance = CORPUS[name], random.Random(name)
    for attempt in range(40):
        edited = _edit(text, chance)
        try:
            graph = parse(edited)
            if attempt % 8 == 0:  # deriving types takes longer than reading
                verify(graph)
        except (ParseError, IRError):
            continue
        assert show(parse(show(graph))) == show(graph)


def _edit(text: str, chance: random.Random) -> str:
    at = chance.randrange(len(text))
    lines = text.splitlines(keepends=True)
    row, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    kind = chance.randrange(6)
    if kind == 0:
        return text[:at] + chance.choice('\0%!"[](){}=,:.#@ \n-09aznxé²\\<>') + text[at + 1 :]
    if kind == 1:
        return text[:at] + text[at + 1 :]
    if kind == 2:
        return text[:at] + text[at] + text[at:]
    if kind == 3:
        del lines[row]
    elif kind == 4:
        lines.insert(row, lines[other])
    else:
        lines[row], lines[other] = lines[other], lines[row]
    return "".join(lines)
