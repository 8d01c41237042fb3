"""Write a pass, from nothing to a tested rewrite, in one file: ``python -m examples.write_a_pass``.

The pass: ``relu(relu(x))`` is ``relu(x)``. Read it from top to bottom; every step runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from compiler.pipeline.instruments import comparing, counting, verifying
from compiler.pipeline.pipeline import Pipeline
from ir import Fact, Graph, Node, interpret, parse, show
from passes import Pass, Remark, Samples, remark
from passes.rewrite import forward, only_user, producer, rewrite

RELU = "aten.relu.default"


# 1. A pass is a frozen dataclass. Its fields are its options, its docstring its contract.
@dataclass(frozen=True)
class MergeRelus(Pass):
    """relu(relu(x)) -> relu(x). Sound: relu is idempotent. Declines when asked to keep shared ones."""

    name: ClassVar[str] = "merge-relus"
    summary: ClassVar[str] = "relu(relu(x)) -> relu(x)"
    keep_shared: bool = False

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        return rewrite(graph, (self._visit,))

    # 2. A rule looks at one node: no match is None, every match is answered, applied or declined.
    def _visit(self, graph: Graph, outer: Node) -> Remark | None:
        inner = producer(outer.args[0], RELU) if outer.op.name == RELU else None
        if inner is None:
            return None
        if self.keep_shared and not only_user(inner.result):
            return remark(outer, False, "the inner relu has another reader")
        said = remark(outer, True, "relu of relu")
        forward(graph, outer, inner.result)
        return said


# 3. A test is text before, text after.
BEFORE = """penstock-ir 1
graph "example"
dim n [1, 8]
input %x: f32[n, 4] "x"
%a: f32[n, 4] = aten.relu.default(%x)  # first @ model.py:3
%b: f32[n, 4] = aten.relu.default(%a)  # second @ model.py:4
%c: f32[n, 4] = aten.neg.default(%b)
return "c" %c
"""


def main() -> None:
    graph = parse(BEFORE)
    inputs = {"x": torch.randn(3, 4)}
    want = interpret(graph, inputs)["c"]

    # 4. A pipeline checks what passes need, and instruments hold them to what they promise.
    pipeline = Pipeline(MergeRelus())
    (record,) = pipeline.run(graph, [counting, verifying(Fact.WELL_FORMED, Fact.TYPED), comparing([inputs])])
    print(show(graph))
    for said in record.remarks:
        print(f"{record.name}: {'applied' if said.applied else 'declined'} {said.at}: {said.why}")
    assert torch.equal(interpret(graph, inputs)["c"], want)
    assert record.columns["nodes"] == 3

    # 5. Options have a text form; declining is said, not hidden.
    shared = parse(BEFORE.replace('return "c" %c', 'return "c" %c, "a" %a'))
    (record,) = Pipeline(MergeRelus(keep_shared=True)).run(shared)
    print(record.name, "->", record.remarks[0].why)

    # 6. To ship it: put the class into passes/merge_relus.py, add it to PASSES in passes/__init__.py, and
    #    its rows to tests/passes/test_merge_relus.py. The laws in tests/test_laws.py then run it over every
    #    corpus graph, random graphs and the model zoo without another line.


if __name__ == "__main__":
    main()
