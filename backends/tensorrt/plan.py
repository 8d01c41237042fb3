"""What a built plan says about itself: its readable program, of which jumps and products are counted.

The text is not documented. It is read only when the package is the very version that it was studied with; otherwise
there is no evidence, which is what the proofs then say.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backends.base import FlowProof

STUDIED = "1.7.1.116"
_PROGRAM = re.compile(rb"(?:^|\n)main \{(.*?)\n\}", re.S)
_LABEL = re.compile(r"^ *label (\S+?):")
_JUMP = re.compile(r"^ *(cjmp|jmp)=\{.* target=\{([^}]*)\}")
_PRODUCT = re.compile(r"^ *(?:fully_connected=\{|corrltn=\{|\w+=\{ .*(?:backbone=|gemm|mha))")
_NAME = re.compile(r'name="([^"]+)"')
_TENSOR = re.compile(rb'^ *(?:sub_)?tensor=\{.* name="([^"]+)".* type=(\w+) \}', re.M)
_INPUTS = re.compile(r' input=\{"([^"]+)" "([^"]+)"')
_NARROW = {"int8": "int8", "fp8_e4m3": "fp8", "fp4_e2m1": "fp4"}
_BINARY = re.compile(r"^ *runtime_fusion=.* binary=(\d+) ")


@dataclass(frozen=True)
class Program:
    """Products and jumps of a plan.

    Attributes:
        always: products that every run computes.
        guarded: products behind a conditional jump.
        loops: jumps backward.
        jumps: conditional jumps in all.
        named_always, named_guarded: names of their layers, as far as they can be read.
        narrow: how many products multiply int8, fp8 or fp4 by the same.
        text: the program and those of its fusions.
    """

    always: int
    guarded: int
    loops: int
    jumps: int
    named_always: frozenset[str]
    named_guarded: frozenset[str]
    narrow: Mapping[str, int]
    text: str


def read(plan: bytes, version: str | None) -> Program | None:
    """The program of a plan; ``None`` when it cannot be read with confidence.

    The first program is the engine's; the others are the insides of its fusions, in the order of their numbers.
    """
    if version != STUDIED:
        return None
    found = [m.group(1).decode("latin1") for m in _PROGRAM.finditer(plan)]
    if not found or any("cjmp={" in text or " function={" in text for text in found[1:]):
        return None
    types = {name.decode("latin1"): word.decode("latin1") for name, word in _TENSOR.findall(plan)}
    return _program(found[0], found[1:], types)


def _program(text: str, fusions: Sequence[str], types: Mapping[str, str]) -> Program:
    blocks: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            current = blocks.setdefault(label.group(1), [])
        else:
            current.append(line)
    order = list(blocks)
    onward: dict[str, list[str]] = {}
    conditional = backward = 0
    for place, name in enumerate(order):
        targets: list[str] | None = None
        for line in blocks[name]:
            if jump := _JUMP.match(line):
                targets = jump.group(2).split()
                if jump.group(1) == "cjmp":
                    conditional += 1
                    backward += any(t in order and order.index(t) <= place for t in targets)
        onward[name] = order[place + 1 : place + 2] if targets is None else targets
    counts, named, narrow = [0, 0], (set[str](), set[str]()), Counter[str]()
    for name in order:
        side = int(_avoidable(name, order, onward))
        for line in blocks[name]:
            if _PRODUCT.match(line):
                parts = _parts(line, fusions)
                names = [word for part in parts for word in _names(part)]
                counts[side] += 2 if "mha" in line else max(len(names), 1)  # merged products say so in their name
                named[side].update(names)
                narrow.update(kind for part in parts if (kind := _narrow(part, types)))
    whole = "\n".join([text, *fusions])
    return Program(counts[0], counts[1], backward, conditional, frozenset(named[0]), frozenset(named[1]), narrow, whole)


def _parts(line: str, fusions: Sequence[str]) -> list[str]:
    """The products that a line computes: itself, or those within a fusion."""
    binary = _BINARY.match(line)
    if binary is None or int(binary.group(1)) >= len(fusions):
        return [line]
    return [part for part in fusions[int(binary.group(1))].splitlines() if _PRODUCT.match(part)]


def _names(line: str) -> list[str]:
    """Layers whose products a line computes."""
    name = _NAME.search(line)
    return [word.rpartition("^")[2] for word in name.group(1).split("+")] if name else []


def _narrow(line: str, types: Mapping[str, str]) -> str:
    """The narrow type that a product multiplies by the same; empty for others."""
    sides = _INPUTS.search(line)
    kinds = {types.get(name, "") for name in sides.groups()} if sides else set()
    return _NARROW.get(kinds.pop(), "") if len(kinds) == 1 else ""


def _avoidable(block: str, order: Sequence[str], onward: dict[str, list[str]]) -> bool:
    """Whether a run can end without passing a block."""
    if block == order[0]:
        return False
    seen, open_ = {block}, [order[0]]
    while open_:
        at = open_.pop()
        if at in seen:
            continue
        seen.add(at)
        if not onward.get(at):
            return True
        open_ += onward[at]
    return False


@dataclass(frozen=True)
class Flow:
    """A conditional or loop of the emitted network.

    Attributes:
        node: ``cond`` or ``while``, and where in the user's model.
        lowering: ``if`` or ``loop``.
        products: names of the layers with products within.
    """

    node: str
    lowering: str
    products: tuple[str, ...]


def proofs(flows: Sequence[Flow], outside: int, program: Program | None) -> tuple[FlowProof, ...]:
    """What the program proves of each conditional and loop.

    Args:
        flows: of the network.
        outside: products of the network that stand in no conditional.
        program: of the plan, where it could be read.
    """
    return tuple(_proof(flow, outside, program) for flow in flows)


def _proof(flow: Flow, outside: int, program: Program | None) -> FlowProof:
    def told(evidence: str, detail: str, lazy: bool = False) -> FlowProof:
        return FlowProof(flow.node, flow.lowering, evidence, detail, lazy=lazy)

    if program is None:
        return told("none", f"the plan's program can be read for tensorrt-rtx {STUDIED} only")
    if flow.lowering == "loop":
        if program.loops:
            return told("structural", f"the plan jumps back {program.loops} time(s) on a condition", lazy=True)
        return told("structural", "the plan holds no jump back: the loop was unrolled or is not conditional")
    if not flow.products:
        return told("none", "its sides hold no product by which they could be found in the plan")
    eager = sorted(set(flow.products) & program.named_always)
    if eager or program.always > outside:
        extra = ", ".join(eager) or f"{program.always} products where {outside} stand outside"
        return told("structural", f"products of its sides are computed in every run: {extra}")
    behind = len(set(flow.products) & program.named_guarded)
    if not program.guarded or not program.jumps:
        return told("structural", "no product stands behind a conditional jump")
    return told(
        "structural",
        f"{behind} of its {len(flow.products)} product(s) are seen behind a conditional jump, none before it; "
        f"{program.always} run always where {outside} stand outside",
        lazy=True,
    )


def facts(program: Program | None, size: int) -> dict[str, int | str]:
    """What a plan holds, as far as it can be read."""
    found: dict[str, int | str] = {"plan_bytes": size}
    if program is not None:
        found |= {f"{kind}_matmuls": count for kind, count in sorted(program.narrow.items())}
        found |= {"matmuls": program.always + program.guarded, "jumps": program.jumps, "loops": program.loops}
    return found
