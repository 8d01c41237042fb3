"""What the generated C++ says about the library: which kernels it runs, and what stands inside its branches.

Read from the main function of the wrapper, whose source lies in the package. A branch is ``if (NAME_scalar) {``, a
loop ``while (1) {``; each call of a kernel or of a library is a statement of its own.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backends.base import FlowProof, flow_name
from ir import COND, WHILE, Block, Graph, Node

_START = re.compile(r"^void AOTInductorModel::run_impl\(", re.M)
_LIBRARY = re.compile(r"\baoti_torch_(?:cpu|cuda)_(\w+)\(")
_PROXY = re.compile(r"\baoti_torch_proxy_executor_call_function\(")
_KERNEL = re.compile(r"^\s*(?:kernels\.)?((?:cpp|triton)_\w+|call_(?:triton|cpp)_\w+)\(")
_IF, _LOOP = re.compile(r"^\s*if \(\w+_scalar\) \{"), re.compile(r"^\s*while \(1\) \{")
_MATMULS = frozenset({
    "mm_out", "addmm_out", "bmm_out", "baddbmm_out", "_int_mm_out", "_mkl_linear", "mkldnn__linear_pointwise",
    "mkldnn__linear_pointwise_binary", "mkldnn__convolution_pointwise", "mkldnn__convolution_pointwise_binary",
    "convolution", "mkldnn__convolution_transpose_pointwise", "_qlinear_pointwise_tensor",
})  # fmt: skip
_ATTENTIONS = frozenset({
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
})  # fmt: skip
_AT_MOST = {
    **{
        f"aten.{name}": 1.0
        for name in (
            "linear.default", "matmul.default", "mm.default", "bmm.default", "addmm.default", "baddbmm.default",
            "mv.default", "dot.default", "outer.default", "conv1d.default", "conv2d.default", "conv3d.default",
            "conv1d.padding", "conv2d.padding", "conv_transpose1d.default", "conv_transpose2d.input",
            "convolution.default", "cosine_similarity.default",
        )
    },
    **{
        f"aten.{name}": math.inf
        for name in (
            "einsum.default", "bilinear.default", "gru.input", "lstm.input", "rnn_tanh.input", "rnn_relu.input",
        )
    },
    "aten.scaled_dot_product_attention.default": 2.0,
    "penstock.int8_attention.default": 2.0,
}  # fmt: skip
"""Products that an operator becomes, at most."""


@dataclass(slots=True)
class Part:
    """A stretch of C++: its own calls, and the branches and loops in it.

    Attributes:
        kind: ``body``, ``then``, ``else`` or ``loop``.
        calls: names of kernels and library functions, in order.
        inner: parts within.
    """

    kind: str
    calls: list[str] = field(default_factory=list)
    inner: list[Part] = field(default_factory=list)

    def walk(self) -> Iterator[Part]:
        """This part and all within."""
        yield self
        for part in self.inner:
            yield from part.walk()

    def total(self) -> Counter[str]:
        """Calls of this part and of all within."""
        return Counter(call for part in self.walk() for call in part.calls)


def source(package: Path) -> str:
    """The C++ of the wrapper in a package."""
    with zipfile.ZipFile(package) as archive:
        names = [n for n in archive.namelist() if n.endswith(".cpp") and "/data/aotinductor/model/" in n]
        texts = [archive.read(name).decode("utf-8", "replace") for name in sorted(names)]
    return next((text for text in texts if _START.search(text)), "")


def read(text: str) -> Part:
    """The main function as parts."""
    body = Part("body")
    start = _START.search(text)
    if start is None:
        return body
    stack: list[Part] = [body]
    closing: list[str] = []  # indentation at which each open part ends
    for line in text[start.start() :].splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        if line.startswith("}"):
            break
        if closing and indent == closing[-1] and line.strip().startswith("}"):
            stack.pop()
            if line.strip() == "} else {":
                stack.append(_open(stack[-1], "else"))
            else:
                closing.pop()
        elif _IF.match(line) or _LOOP.match(line):
            stack.append(_open(stack[-1], "then" if _IF.match(line) else "loop"))
            closing.append(indent)
        else:
            stack[-1].calls += _calls(line)
    return body


def constants(text: str) -> set[str]:
    """Names of the constants that the library wants to be given."""
    return set(re.findall(r'constants_info_\[\d+\]\.original_fqn = "([^"]*)"', text))


def _open(outer: Part, kind: str) -> Part:
    made = Part(kind)
    outer.inner.append(made)
    return made


def _calls(line: str) -> list[str]:
    kernel = _KERNEL.match(line)
    found = [kernel[1]] if kernel else []
    return found + _LIBRARY.findall(line) + ["proxy"] * len(_PROXY.findall(line))


def facts(body: Part) -> dict[str, int | str]:
    """Counts, by the names that all engines use."""
    calls = body.total()
    kinds = Counter(part.kind for part in body.walk())
    kernels = sum(n for name, n in calls.items() if _KERNEL.match(f"{name}("))
    return {
        "matmuls": sum(calls[name] for name in _MATMULS),
        "int8_matmuls": calls["_int_mm_out"] + calls["_qlinear_pointwise_tensor"],
        "attentions": sum(calls[name] for name in _ATTENTIONS),
        "ifs": kinds["then"],
        "loops": kinds["loop"],
        "kernels": kernels,
        "library_calls": sum(calls.values()) - kernels,
        "callbacks": calls["proxy"],
    }


def flow(graph: Graph, body: Part) -> tuple[FlowProof, ...]:
    """For each branch and loop of the graph, whether its work stands inside that of the C++ and not outside."""
    found: list[tuple[Node, list[Part]]] = []
    nodes = [node for node in graph.walk() if node.op in (COND, WHILE)]
    if not _match([graph.body], body, found):
        return tuple(
            FlowProof(flow_name(n), _LOWERING[n.op.name], "none", "the C++ does not match the graph branch by branch")
            for n in nodes
        )
    return tuple(
        FlowProof(flow_name(node), _LOWERING[node.op.name], "structural", _detail(parts), lazy=True)
        for node, parts in found
    )


def _match(blocks: Sequence[Block], part: Part, found: list[tuple[Node, list[Part]]]) -> bool:
    """Whether a part of the C++ has the branches and loops of its blocks, and no more products than they have.

    A product that was moved out of a branch would be one too many where it went.
    """
    nodes = [node for block in blocks for node in block if node.op in (COND, WHILE)]
    groups = iter(part.inner)
    if _heavy(part.calls) > sum(map(_products, blocks)):
        return False
    for node in nodes:
        parts = [next(groups, Part("")) for _ in range(1 + (node.op is COND))]
        if [p.kind for p in parts] != (["then", "else"] if node.op is COND else ["loop"]):
            return False
        found.append((node, parts))
        pairs = zip([[r] for r in node.regions] if node.op is COND else [node.regions], parts, strict=True)
        if not all(_match(regions, inner, found) for regions, inner in pairs):
            return False
    return next(groups, None) is None


_LOWERING = {"cond": "if", "while": "loop"}


def _detail(parts: Sequence[Part]) -> str:
    calls = [(sum(p.total().values()), _heavy(list(p.total().elements()))) for p in parts]
    if len(parts) == 1:
        return f"a C++ loop around {calls[0][0]} calls, {calls[0][1]} of them products"
    (some, heavy), (others, weighty) = calls
    return (
        f"a C++ if: {some} calls, {heavy} of them products, when true, {others} calls, {weighty} of them products, "
        "when false; none of them stands outside of it"
    )


def _heavy(calls: Sequence[str]) -> int:
    return sum(call in _MATMULS or call in _ATTENTIONS for call in calls)


def _products(block: Block) -> float:
    """Products that the nodes of a block may become, at most; those of blocks within are not counted."""
    return sum(_AT_MOST.get(node.op.name, 1 if node.op.name.startswith("penstock.") else 0) for node in block)
