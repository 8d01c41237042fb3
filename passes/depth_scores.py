"""How sure an answer is: one number per row, the larger the surer. A row may leave where it reaches its threshold.

    confidence  the largest probability                                                (0, 1]
    entropy     minus the entropy of the probabilities, in nats                        [-log C, 0]
    margin      the largest probability minus the second                               [0, 1]
    patience    how many exits in a row choose alike: 1 at the first (PABEE)           1, 2, 3 ...
    q           1 - prod(1 - confidence) over the exits so far, below 1 (PALBERT)      (0, 1)
    agreement   cosine to the answer of the exit before, at the first to that of depth 0  [-1, 1]
    gate        what a fitted linear gate of its own says of an exit's features           (0, 1)

Answers are logits ``[rows, classes]``; of ``[rows, seq, classes]`` the last position decides, for all but agreement,
which looks at the whole answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ir import Arg, Block, Graph, Node, Origin, Value, op

SCORES = ("confidence", "entropy", "margin", "patience", "q", "agreement")
"""Those that need nothing but answers."""
GATE = "gate"
Memory = Mapping[str, Value]
"""What a score must remember from exit to exit, per row."""
_BELOW_ONE = 1.0 - 2.0**-24


@dataclass(frozen=True)
class Emitter:
    """Inserts operators at one place."""

    graph: Graph
    origin: Origin
    block: Block
    before: Node | None = None

    def __call__(self, name: str, *args: Arg, called: str = "", **kwargs: Arg) -> Value:
        """The result of one more operator, typed by torch."""
        return self.graph.insert(
            op(f"aten.{name}"), *args, before=self.before, block=self.block, origin=self.origin, name=called,
            kwargs=kwargs,
        ).result  # fmt: skip


def why_not(score: str, answer: Value) -> str:
    """Why an answer has no such score; empty when it has."""
    if not answer.tensor.dtype.is_floating_point:
        return f"the answer {answer.type} holds no scores of classes"
    if not isinstance(answer.tensor.shape[-1], int):
        return f"the number of classes of the answer {answer.type} is not fixed"
    if answer.tensor.rank < 2 or (answer.tensor.rank > 3 and score != "agreement"):
        return f"the answer {answer.type} is not [rows, classes] or [rows, positions, classes]"
    return ""


def score_of(emit: Emitter, score: str, answer: Value, previous: Value | None, memory: Memory) -> tuple[Value, Memory]:
    """The score f32 ``[rows]`` of an answer, and what to remember.

    Args:
        emit: where to compute it.
        score: one of ``SCORES``.
        answer: floating ``[rows, ...]``.
        previous: the answer of the exit before; for agreement.
        memory: from the exit before; empty at the first.
    """
    if score == "agreement":
        assert previous is not None
        a, b = (_f32(emit, emit("flatten.using_ints", v, 1) if v.tensor.rank > 2 else v) for v in (answer, previous))
        dot, first, second = (
            emit("sum.dim_IntList", emit("mul.Tensor", x, y), (1,)) for x, y in ((a, b), (a, a), (b, b))
        )
        norm = emit("clamp_min.default", emit("sqrt.default", emit("mul.Tensor", first, second)), 1e-30)
        return emit("div.Tensor", dot, norm, called="score"), {}
    x = _f32(emit, emit("select.int", answer, 1, -1) if answer.tensor.rank == 3 else answer)
    return _LOGITS[score](emit, x, memory)


def gate_of(emit: Emitter, feature: Value, weight: Value, bias: Value) -> Value:
    """What a gate, f32 ``[1, width]`` and ``[1]``, says of features ``[rows, width]``; of a sequence, of its last."""
    x = _f32(emit, emit("select.int", feature, 1, -1) if feature.tensor.rank == 3 else feature)
    opened = emit("sigmoid.default", emit("linear.default", x, weight, bias), called="gate")
    return emit("select.int", opened, 1, 0, called="score")


def _f32(emit: Emitter, x: Value) -> Value:
    return x if x.tensor.dtype is torch.float32 else emit("to.dtype", x, torch.float32)


def _largest(emit: Emitter, x: Value) -> Value:
    return emit("amax.default", emit("softmax.int", x, -1), (-1,), called="score")


def _from_one(emit: Emitter, x: Value) -> Value:
    return emit("add.Tensor", emit("mul.Tensor", x, -1.0), 1.0, called="left")


def _confidence(emit: Emitter, x: Value, memory: Memory) -> tuple[Value, Memory]:
    return _largest(emit, x), memory


def _entropy(emit: Emitter, x: Value, memory: Memory) -> tuple[Value, Memory]:
    logs = emit("log_softmax.int", x, -1)
    # a class of no probability adds nothing, where 0 * -inf would be NaN
    terms = emit("mul.Tensor", emit("exp.default", logs), emit("clamp_min.default", logs, -1e30))
    return emit("sum.dim_IntList", terms, (-1,), called="score"), memory


def _margin(emit: Emitter, x: Value, memory: Memory) -> tuple[Value, Memory]:
    p = emit("softmax.int", x, -1)
    count = x.tensor.shape[-1]
    assert isinstance(count, int)
    classes = emit("arange.default", count)
    chosen = emit("eq.Tensor", emit("argmax.default", p, -1, True), classes)
    second = emit("amax.default", emit("masked_fill.Scalar", p, chosen, 0.0), (-1,))
    return emit("sub.Tensor", emit("amax.default", p, (-1,)), second, called="score"), memory


def _patience(emit: Emitter, x: Value, memory: Memory) -> tuple[Value, Memory]:
    choice = emit("argmax.default", x, -1, called="choice")
    if memory:
        alike = emit("to.dtype", emit("eq.Tensor", choice, memory["choice"]), torch.float32)
        count = emit("add.Tensor", emit("mul.Tensor", alike, memory["count"]), 1.0, called="score")
    else:
        count = emit("full_like.default", choice, 1.0, called="score", dtype=torch.float32)
    return count, {"choice": choice, "count": count}


def _q(emit: Emitter, x: Value, memory: Memory) -> tuple[Value, Memory]:
    left = _from_one(emit, _largest(emit, x))
    if memory:
        left = emit("mul.Tensor", memory["left"], left, called="left")
    # below one, so that q = 1 lets nobody go even where a probability rounds to one
    return emit("clamp_max.default", _from_one(emit, left), _BELOW_ONE, called="score"), {"left": left}


_LOGITS: Mapping[str, Callable[[Emitter, Value, Memory], tuple[Value, Memory]]] = {
    "confidence": _confidence, "entropy": _entropy, "margin": _margin, "patience": _patience, "q": _q,
}  # fmt: skip
