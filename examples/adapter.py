"""Low-rank changes to the linears of an encoder (LoRA, 2106.09685): few weights to train, none more to run.

linear(x, W) + B A x   while training       linear(x, W + B A)   when it is loaded
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

RANK = 8
PLACES = ("query", "key", "value", "dense")
"""Last name of a linear that is changed; those of the embedding are left alone."""


class Low(nn.Module):
    """A frozen linear with a low-rank change; at first the change is nothing."""

    def __init__(self, frozen: nn.Linear, rank: int) -> None:
        super().__init__()
        self.frozen = frozen
        self.a = nn.Parameter(torch.randn(rank, frozen.in_features) * frozen.in_features**-0.5)
        self.b = nn.Parameter(torch.zeros(frozen.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return self.frozen(x) + linear(linear(x, self.a), self.b)


def linears(network: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linears that are changed, by path, in order."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in PLACES:
            yield name, module


def attach(network: nn.Module, rank: int = RANK) -> dict[str, Low]:
    """Freeze a network and give its linears changes, in place; they come back by path."""
    network.requires_grad_(False)
    found = {}
    for name, frozen in list(linears(network)):
        parent, _, last = name.rpartition(".")
        found[name] = Low(frozen, rank)
        setattr(network.get_submodule(parent), last, found[name])
    return found


def pack(changes: Mapping[str, Low]) -> dict[str, Tensor]:
    """Float16 tensors ``PATH.a`` [rank, in] and ``PATH.b`` [out, rank]."""
    return {
        f"{name}.{part}": getattr(low, part).detach().half().contiguous()
        for name, low in changes.items()
        for part in "ab"
    }


def wanted(network: nn.Module, rank: int = RANK) -> dict[str, Tensor]:
    """What ``pack`` gives for a network: names, shapes and dtype, on the meta device."""
    found = {}
    for name, one in linears(network):
        found[f"{name}.a"] = torch.empty(rank, one.in_features, dtype=torch.float16, device="meta")
        found[f"{name}.b"] = torch.empty(one.out_features, rank, dtype=torch.float16, device="meta")
    return found


@torch.no_grad()
def merge(network: nn.Module, packed: Mapping[str, Tensor]) -> None:
    """Add packed changes to the weights of a network without any, in place."""
    for name, one in linears(network):
        one.weight += packed[f"{name}.b"].float() @ packed[f"{name}.a"].float()
