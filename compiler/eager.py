"""The model itself, run as the user would, with nothing of it changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree


def run_eager(model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The model's own answer; it works on copies of its buffers and of the inputs."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    args, kwargs = pytree.tree_map(
        lambda x: x.clone() if isinstance(x, torch.Tensor) else x, (tuple(args), dict(kwargs))
    )
    with torch.no_grad():
        return torch.func.functional_call(model, buffers, args, kwargs)
