"""What the virtual machine's code says about branches: it runs on the host and jumps over the side not taken."""

from __future__ import annotations

import re
from collections.abc import Sequence

from backends.base import FlowProof
from ir import COND, Graph

_IF = re.compile(r"\s*If\s+%\d+, (\d+)")
_GOTO = re.compile(r"\s*goto\s+(\d+)")
_CALL = re.compile(r"\s*call\s+(\S+)")


def proofs(graph: Graph, code: str) -> tuple[FlowProof, ...]:
    """One proof per ``cond`` of a graph, from the listing of the executable.

    Structural evidence: as many conditional jumps as there are conditions, each between two stretches of code that
    call different functions, and no such function called from anywhere else.
    """
    nodes = [node for node in graph.walk() if node.op is COND]
    pairs = sides(code)
    calls = _CALL.findall(code)
    apart = len(pairs) == len(nodes) and all(
        set(yes).isdisjoint(no) and all(calls.count(name) == 1 for name in (*yes, *no)) for yes, no in pairs
    )
    if apart:
        detail = "the virtual machine jumps on the host: each side is a function that only its side of the jump calls"
    else:
        detail = f"{len(pairs)} conditional jumps were found for {len(nodes)} conditions"
    return tuple(
        FlowProof(f"cond at {node.origin}" if str(node.origin) else "cond", "if", "structural" if apart else "none",
                  detail, lazy=apart)
        for node in nodes
    )  # fmt: skip


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


def _called(lines: Sequence[str]) -> tuple[str, ...]:
    names = [found[1] for line in lines if (found := _CALL.match(line))]
    return tuple(name for name in names if not name.startswith("vm.builtin."))
