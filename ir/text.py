"""The text form of a graph: ``show`` writes it, ``ir.parse.parse`` reads it back, exactly.

Weights are named in the text and kept beside it. One node a line; regions are indented::

    penstock-ir 1
    graph "tiny"
    dim n [1, 64]
    input %x: f32[n, 4] "x"
    param %w: f32[4, 4] "w"
    %y: f32[n, 4] = aten.linear.default(%x, %w)  # layer @ model.py:7
    return "y" %y
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

import torch

from ir.core import Arg, Block, Graph, Node, Value
from ir.ops import RETURN
from ir.types import DTYPE_NAMES

VERSION = 1
_NOT_NAME = re.compile(r"[^A-Za-z0-9_]")


def show(graph: Graph, mark: Node | None = None, around: int | None = None) -> str:
    """Text of a graph. ``mark`` puts an arrow before a node; ``around`` keeps that many lines near it."""
    names = name_values(graph)
    lines = [f"penstock-ir {VERSION}", f"graph {json.dumps(graph.name)}"]
    lines += [f"dim {name} {bounds}" for name, bounds in graph.dims.items()]
    for value, spec in graph.inputs.items():
        lines.append(f"{spec.kind} %{names[value]}: {value.type!r} {json.dumps(spec.name)}")
    marked = 0
    for line, node in _block_lines(graph, graph.body, names, ""):
        if mark is not None and node is mark:
            marked = len(lines)
            line = "-> " + line.lstrip()
        lines.append(line)
    if mark is not None and around is not None:
        lines = lines[max(0, marked - around) : marked + around + 1]
    return "\n".join(lines) + "\n"


def name_values(graph: Graph) -> dict[Value, str]:
    """A unique printable name for each value, the same in every run."""
    names: dict[Value, str] = {}
    taken: set[str] = set()
    numbers: dict[str, int] = {}

    def give(value: Value, fallback: str) -> None:
        base = _NOT_NAME.sub("_", value.name or fallback) or "v"
        name = base
        while name in taken:
            numbers[base] = numbers.get(base, 0) + 1
            name = f"{base}_{numbers[base]}"
        taken.add(name)
        names[value] = name

    def visit(block: Block) -> None:
        for value in block.args:
            give(value, "arg")
        for node in block:
            for value in node.results:
                give(value, node.op.name.split(".")[1] if "." in node.op.name else node.op.name)
            for region in node.regions:
                visit(region)

    visit(graph.body)
    return names


def _block_lines(graph: Graph, block: Block, names: dict[Value, str], pad: str) -> Iterator[tuple[str, Node | None]]:
    for node in block:
        if node.op is RETURN and block is graph.body and len(graph.outputs) == len(node.args):
            parts = [
                (f"{o.kind} " if o.kind != "output" else "") + f"{json.dumps(o.name)} {show_arg(a, names)}"
                for o, a in zip(graph.outputs, node.args, strict=True)
            ]
            yield f"{pad}return {', '.join(parts)}".rstrip(), node
        elif node.op is RETURN:
            yield f"{pad}return {', '.join(show_arg(a, names) for a in node.args)}".rstrip(), node
        else:
            yield from _node_lines(graph, node, names, pad)


def _node_lines(graph: Graph, node: Node, names: dict[Value, str], pad: str) -> Iterator[tuple[str, Node | None]]:
    results = ", ".join(f"%{names[v]}: {v.type!r}" for v in node.results)
    args = [show_arg(a, names) for a in node.args]
    args += [f"{key}={show_arg(a, names)}" for key, a in node.kwargs.items()]
    hints = ", ".join(f"{k}={json.dumps(v)}" for k, v in node.hints.items())
    head = f"{pad}{results + ' = ' if results else ''}{node.op.name}({', '.join(args)})"
    head += f" {{{hints}}}" if hints else ""
    head += " do" if node.regions else ""
    origin = " ".join(str(node.origin).split())
    yield head + (f"  # {origin}" if origin else ""), node
    for region in node.regions:
        formal = ", ".join(f"%{names[v]}: {v.type!r}" for v in region.args)
        yield f"{pad}region({formal})", None
        yield from _block_lines(graph, region, names, pad + "  ")
        yield f"{pad}end", None


def show_arg(arg: Arg, names: dict[Value, str]) -> str:
    """Text of an argument; torch's own constants carry ``!``."""
    match arg:
        case Value():
            return f"%{names.get(arg, '?')}"
        case tuple():
            return f"[{', '.join(show_arg(a, names) for a in arg)}]"
        case None | bool():
            return str(arg)
        case int():
            return str(arg)
        case float():
            return repr(arg) if math.isfinite(arg) else f"!{arg!r}"
        case complex():
            return f"!complex({arg.real!r},{arg.imag!r})"
        case str():
            return json.dumps(arg)
        case torch.dtype():
            return f"!{DTYPE_NAMES[arg]}"
        case torch.device():
            return f"!device({arg})"
        case _:
            return f"!{str(arg).removeprefix('torch.')}"
