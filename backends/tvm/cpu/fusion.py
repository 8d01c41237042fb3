"""What is computed with a product, before its result is stored: an activation, or a residual."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from backends.tvm.cpu.functions import like
from backends.tvm.cpu.gemm import Epilogue
from backends.tvm.scalars import Functions
from backends.tvm.scope import Scope, Tensor
from ir import Node, Value

_F32 = torch.float32


def epilogue_of(s: Scope, node: Node) -> tuple[Epilogue, list[Node]]:
    """What follows a product and is computed with it: an activation, or the addition of a residual."""
    users = list(node.result.uses)
    if len(users) != 1 or users[0].block is not node.block:
        return Epilogue(), []
    user, dtype = users[0], node.result.tensor.dtype
    if len(user.results) != 1 or user.result.type != node.result.type or dtype != _F32:
        return Epilogue(), []
    if (activation := _activation(s.math, user)) is not None:
        return Epilogue(activation), [user]
    if user.op.name == "aten.add.Tensor" and user.arg(2, "alpha", 1) == 1:
        other = user.args[1] if user.args[0] is node.result else user.args[0]
        if isinstance(other, Value) and other is not node.result and isinstance(s.values.get(other), Tensor):
            tensor = s[other]
            if tensor.shape == node.result.tensor.shape and tensor.dtype == _F32:
                return Epilogue(residual=tensor), [user]
    return Epilogue(), []


def _activation(m: Functions, user: Node) -> Callable[[Any], Any] | None:
    """An activation over vectors."""
    from tvm import tirx

    name = user.op.name
    if name == "aten.gelu.default":
        by_tanh = user.arg(1, "approximate", "none") == "tanh"

        def gelu(x: Any) -> Any:
            if by_tanh:
                inner = like(math.sqrt(2 / math.pi), x) * (x + like(0.044715, x) * x * x * x)
                return like(0.5, x) * x * (like(1, x) + m.tanh(inner))
            return like(0.5, x) * x * (like(1, x) + m.erf(x * like(math.sqrt(0.5), x)))

        return gelu
    if name == "aten.relu.default":
        return lambda x: tirx.Select(x < like(0, x), like(0, x), x)
    if name == "aten.silu.default":
        return lambda x: x / (like(1, x) + m.exp(like(0, x) - x))
    if name == "aten.tanh.default":
        return m.tanh
    return None
