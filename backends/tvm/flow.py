"""What the virtual machine's code says about branches: it runs on the host and jumps over the side not taken."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from backends.base import FlowProof, flow_name
from backends.tvm.payload import PRODUCT
from ir import COND, Block, Graph
from ir.price import price

_FUNCTION = re.compile(r"@(\S+):")
_IF = re.compile(r"\s*If\s+%\d+, (\d+)")
_GOTO = re.compile(r"\s*goto\s+(\d+)")
_CALL = re.compile(r"\s*call\s+(\S+)")
_PRODUCTS = ("matmul", "conv", "attention")


def proofs(graph: Graph, code: str) -> tuple[FlowProof, ...]:
    """One proof per ``cond`` of a graph, from the listing of the executable.

    Structural evidence: as many conditional jumps as there are conditions, each between two stretches of code that
    call different functions; no such function is called from anywhere else; and as many of them as there are sides
    with products multiply, so that these were not moved out of their function.
    """
    nodes = [node for node in graph.walk() if node.op is COND]
    pairs = sides(code)
    why = _fault([block for node in nodes for block in node.regions], pairs, code)
    detail = (
        why or "the virtual machine jumps on the host: each side is a function that only its side of the jump calls"
    )
    return tuple(
        FlowProof(flow_name(node), "if", "none" if why else "structural", detail, lazy=not why) for node in nodes
    )


def _fault(regions: Sequence[Block], pairs: Sequence[tuple[tuple[str, ...], tuple[str, ...]]], code: str) -> str:
    """Why the listing is no evidence; empty when it is."""
    if 2 * len(pairs) != len(regions):
        return f"{len(pairs)} conditional jumps were found for {len(regions) // 2} conditions"
    calls = _CALL.findall(code)
    for yes, no in pairs:
        if not yes or not no:
            return "a side of a conditional jump calls nothing"
        if not set(yes).isdisjoint(no) or any(calls.count(name) != 1 for name in (*yes, *no)):
            return "what a side of a conditional jump calls is called elsewhere too"
    within = _bodies(code)
    multiply = sum(any(_multiplies(name, within) for name in side) for pair in pairs for side in pair)
    wanted = sum(map(_has_product, regions))
    if multiply < wanted:
        return f"{multiply} functions of branches multiply, where {wanted} sides do"
    return ""


def _has_product(block: Block) -> bool:
    return any(price(node).kind in _PRODUCTS or any(map(_has_product, node.regions)) for node in block)


def sides(code: str) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """For each conditional jump the functions that its two sides call, the machine's own apart."""
    lines = code.splitlines()
    found = []
    for at, line in enumerate(lines):
        if jump := _IF.match(line):
            no = at + int(jump[1])
            end = _GOTO.match(lines[no - 1])
            if end is not None:
                found.append((_called(lines[at + 1 : no - 1]), _called(lines[no : no - 1 + int(end[1])])))
    return found


def _bodies(code: str) -> Mapping[str, tuple[str, ...]]:
    """What each function calls."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in code.splitlines():
        if start := _FUNCTION.match(line):
            lines = found.setdefault(start[1], [])
        lines.append(line)
    return {name: _called(body) for name, body in found.items()}


def _multiplies(name: str, bodies: Mapping[str, tuple[str, ...]]) -> bool:
    if name in bodies:
        return any(_multiplies(inner, bodies) for inner in bodies[name])
    return PRODUCT.search(name) is not None or "attention" in name


def _called(lines: Sequence[str]) -> tuple[str, ...]:
    names = [found[1] for line in lines if (found := _CALL.match(line))]
    return tuple(name for name in names if not name.startswith("vm.builtin."))
