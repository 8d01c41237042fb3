"""Keys and values of the tokens so far: what one step hands to the next. Nothing in it is ever written over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compiler.artifact.generation import Generation
from ir.errors import UsageError


@dataclass(frozen=True, slots=True)
class KeyValues:
    """The cache of a batch. Its operations give new ones, and are exact: they move numbers, and compute none.

    Attributes:
        tensors: ``cache_k_0`` ...: [batch, kv heads, slots, head width], as the engines name them.
        mask: bool [batch, slots]; false where a row has a padding.
        positions: int64 [batch]: tokens of each row, which is the position of its next one.
    """

    tensors: Mapping[str, Tensor]
    mask: Tensor
    positions: Tensor

    @classmethod
    def empty(cls, batch: int, layout: Generation, dtype: torch.dtype) -> KeyValues:
        """Of rows without tokens."""
        none = torch.zeros(batch, layout.kv_heads, 0, layout.head_width, dtype=dtype)
        names = [f"cache_{kind}_{layer}" for kind in ("k", "v") for layer in range(layout.layers)]
        return cls(dict.fromkeys(names, none), torch.zeros(batch, 0, dtype=torch.bool), torch.zeros(batch).long())

    @property
    def slots(self) -> int:
        """Tokens and paddings of each row."""
        return self.mask.shape[1]

    @property
    def layers(self) -> int:
        """How many layers it is of."""
        return len(self.tensors) // 2

    @property
    def longest(self) -> int:
        """Tokens of the row that has most."""
        return int(self.positions.max())

    def accepted(self, before: int, counts: Tensor, waste: int) -> KeyValues:
        """Of the tokens after the first ``before`` slots only so many of each row, int64 [batch].

        Slots that some rows keep stay as paddings of the others; above ``waste`` of them the rows are packed.
        """
        most = int(counts.max())
        made = self.crop(before + most)
        mask = made.mask.clone()
        mask[:, before:] &= torch.arange(most) < counts[:, None]
        made = KeyValues(made.tensors, mask, made.positions - (most - counts))
        return made.packed() if made.slots - made.longest > waste else made

    def packed(self) -> KeyValues:
        """With all paddings on the left of each row, and no more of them than the longest row asks for."""
        order = self.mask.int().argsort(dim=1, stable=True)[:, self.slots - self.longest :]
        mask = self.mask.gather(1, order)
        wide = order[:, None, :, None]
        tensors = {n: t.gather(2, wide.expand(-1, t.shape[1], -1, t.shape[3])) for n, t in self.tensors.items()}
        return KeyValues(tensors, mask, self.positions)

    def where(self, rows: Tensor, other: KeyValues) -> KeyValues:
        """The other's keys and values for some rows, bool [batch], of the same tokens."""
        chosen = rows[:, None, None, None]
        return replace(self, tensors={n: torch.where(chosen, other.tensors[n], t) for n, t in self.tensors.items()})

    def fork(self) -> KeyValues:
        """One that lives on by itself: nothing is written over, so it can share what it has so far."""
        return replace(self, tensors=dict(self.tensors))

    def crop(self, slots: int) -> KeyValues:
        """Without what came after the first so many slots.

        Raises:
            UsageError: it has fewer.
        """
        if not 0 <= slots <= self.slots:
            raise UsageError(f"cannot crop to {slots}: the cache has {self.slots} slots")
        if slots == self.slots:
            return self
        mask = self.mask[:, :slots].contiguous()
        tensors = {name: t[:, :, :slots].contiguous() for name, t in self.tensors.items()}
        return KeyValues(tensors, mask, self.positions - self.mask[:, slots:].sum(1))

    def append(self, tensors: Mapping[str, Tensor], mask: Tensor) -> KeyValues:
        """With more tokens [batch, kv heads, new, head width] and their mask [batch, new] at the end."""
        grown = {name: torch.cat((t, tensors[name]), dim=2) for name, t in self.tensors.items()}
        return self.grown(grown, mask)

    def grown(self, tensors: Mapping[str, Tensor], mask: Tensor) -> KeyValues:
        """As an engine gave it back: old and new tokens together; mask bool [batch, new] of the new ones."""
        kept = {name: tensors[name] for name in self.tensors}
        return KeyValues(kept, torch.cat((self.mask, mask), dim=1), self.positions + mask.sum(1))

    def copied(self, shallow: KeyValues) -> KeyValues:
        """With the tokens that only the first layers have seen; the others get what the last of those has."""
        last = shallow.layers - 1
        new = {}
        for name in self.tensors:
            kind, layer = name.rpartition("_")[0], int(name.rpartition("_")[2])
            new[name] = shallow.tensors[f"{kind}_{min(layer, last)}"][:, :, self.slots :]
        return self.append(new, shallow.mask[:, self.slots :])

    def select(self, rows: Tensor) -> KeyValues:
        """Some rows, int64 [kept], without the slots that are paddings in all of them."""
        mask = self.mask[rows]
        used = mask.any(0)
        first = int(used.int().argmax()) if bool(used.any()) else 0
        tensors = {name: t[rows][:, :, first:].contiguous() for name, t in self.tensors.items()}
        return KeyValues(tensors, mask[:, first:].contiguous(), self.positions[rows])

    def first(self, layers: int) -> KeyValues:
        """Of the first so many layers."""
        names = [f"cache_{kind}_{layer}" for kind in ("k", "v") for layer in range(layers)]
        return replace(self, tensors={name: self.tensors[name] for name in names})
