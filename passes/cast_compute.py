"""y = matmul(x, w)  ->  y = to(matmul(to(x, bf16), to(w, bf16)), f32)

Matmuls, attention and convolutions compute in a narrower float; everything between keeps its precision. The
casts stand in the graph, so every engine computes the same thing, and weights are kept narrow.

Sound: up to the rounding of the narrow type.
Profitable: where the target multiplies it faster (AMX-bf16, tensor cores); half the weight bytes.
Declines nodes under a path in ``skip``, and those that are not float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import ClassVar

import torch

from ir import Arg, Graph, Node, TensorType, Value, map_values, op
from passes.base import Pass, Remark, Samples, Tolerance, remark
from passes.canonicalize_scalars import CAST
from passes.canonicalize_views import PERMUTE, RESHAPE
from passes.rewrite import forward, only_user, producer, rewrite

_COMPUTE = {
    "aten.linear.default", "aten.addmm.default", "aten.mm.default", "aten.bmm.default", "aten.matmul.default",
    "aten.scaled_dot_product_attention.default", "aten.conv1d.default", "aten.conv2d.default",
}  # fmt: skip
_MOVES = {RESHAPE, PERMUTE, "aten.unsqueeze.default", "aten.squeeze.dim", "aten.slice.Tensor", "aten.select.int"}
_DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


@dataclass(frozen=True)
class CastCompute(Pass):
    """Computes matmuls, attention and convolutions in a narrower float."""

    name: ClassVar[str] = "cast-compute"
    summary: ClassVar[str] = "matmul(x, w) in f32 -> in bf16 or f16, with explicit casts"
    tolerance: ClassVar[Tolerance] = Tolerance(cosine=0.99)
    dtype: str = "bf16"
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a type that is no narrow float."""
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype is one of {', '.join(_DTYPES)}, not {self.dtype!r}")

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        """See the module."""
        said = [found for node in list(graph.walk()) if (found := self._narrow(graph, node)) is not None]
        if any(r.applied for r in said):
            said += rewrite(graph, (_through_move, _keep_narrow))
            _narrow_weights(graph)
        return said

    def _narrow(self, graph: Graph, node: Node) -> Remark | None:
        if node.op.name not in _COMPUTE:
            return None
        if any(fnmatch(node.origin.path, pattern) for pattern in self.skip):
            return remark(node, False, "its path is in skip")
        if node.result.tensor.dtype is not torch.float32:
            return None if node.result.tensor.dtype is _DTYPES[self.dtype] else remark(node, False, "it is not float32")
        narrow = _DTYPES[self.dtype]

        def cast(value: Value) -> Arg:
            if not isinstance(value.type, TensorType) or value.type.dtype is not torch.float32:
                return value
            to = TensorType(narrow, value.type.shape)
            return graph.insert(op(CAST), value, narrow, before=node, types=(to,)).result

        args = tuple(map_values(a, cast) for a in node.args)
        kwargs = {k: map_values(a, cast) for k, a in node.kwargs.items()}
        wide = node.result.tensor
        made = graph.insert(node.op, *args, before=node, types=(TensorType(narrow, wide.shape),),
                            name=node.result.name, kwargs=kwargs)  # fmt: skip
        back = graph.insert(op(CAST), made.result, torch.float32, before=node, types=(wide,))
        forward(graph, node, back.result)
        return remark(made, True, f"computes in {self.dtype}")


def _through_move(graph: Graph, node: Node) -> Remark | None:
    """to(move(y), narrow)  ->  move(to(y, narrow)) where y comes, by moves alone, from a narrow value.

    Moving data does not round it; the cast climbs until it meets the one that widened, and both go.
    """
    if node.op.name != CAST:
        return None
    move = producer(node.args[0], *_MOVES)
    if move is None or not only_user(move.result) or not _was_narrow(move.args[0], node.result.tensor.dtype):
        return None
    source = move.args[0]
    assert isinstance(source, Value)
    narrow = TensorType(node.result.tensor.dtype, source.tensor.shape)
    cast = graph.insert(op(CAST), source, narrow.dtype, before=node, types=(narrow,))
    made = graph.insert(move.op, cast.result, *move.args[1:], before=node, origin=move.origin,
                        types=(node.result.type,), name=move.result.name, kwargs=move.kwargs)  # fmt: skip
    forward(graph, node, made.result)
    graph.erase(move)
    return remark(made, True, "data moves without a cast")


def _was_narrow(value: Arg, dtype: torch.dtype) -> bool:
    while (move := producer(value, *_MOVES)) is not None and only_user(move.result):
        value = move.args[0]
    wide = producer(value, CAST)
    if wide is None or wide.result.tensor.dtype is not torch.float32:
        return False
    x = wide.args[0]
    return isinstance(x, Value) and x.tensor.dtype is dtype


def _keep_narrow(graph: Graph, node: Node) -> Remark | None:
    """to(to(x, f32), narrow) is x."""
    wide = producer(node.args[0], CAST) if node.op.name == CAST else None
    if wide is None or not isinstance(wide.args[0], Value) or wide.args[0].type != node.result.type:
        return None
    if wide.result.tensor.dtype is not torch.float32:
        return None
    said = remark(node, True, "the value is narrow already")
    forward(graph, node, wide.args[0])
    if not wide.result.uses:
        graph.erase(wide)
    return said


def _narrow_weights(graph: Graph) -> None:
    """A weight that is read only through one cast is kept narrow."""
    for name, value in list(graph.arguments("param")):
        casts = [user for user in value.uses if user.op.name == CAST]
        if len(casts) != len(value.uses) or not casts or name not in graph.weights:
            continue
        kinds = {c.result.tensor.dtype for c in casts}
        if len(kinds) != 1:
            continue
        kept = graph.add_param(
            f"{name}.{kinds.pop()}".replace("torch.", ""), graph.weights[name].to(casts[0].result.tensor.dtype)
        )
        for c in casts:
            forward(graph, c, kept)
        graph.drop_argument(value)
