"""Six residual blocks whose answer is often clear early: rows far from a border between classes need few."""

import torch
from torch import Tensor, nn

import penstock

BATCH = penstock.Dim("batch", 1, 64)
WIDTH, CLASSES = 128, 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.15 * self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


class Deep(nn.Module):
    def __init__(self, blocks: int = 6, unit: bool = False) -> None:
        super().__init__()
        self.inner = nn.Linear(16, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)
        self.unit = unit

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        x = self.inner(input)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return {"embedding": nn.functional.normalize(x, dim=-1)} if self.unit else {"logits": 4 * self.head(x)}


def inputs(rows: int, seed: int) -> dict[str, Tensor]:
    return {"input": 3 * torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed))}


def model(samples: int = 40, blocks: int = 6, unit: bool = False) -> penstock.ModelSpec:
    """Samples are batches of 32 rows."""
    torch.manual_seed(0)
    given = [inputs(32, seed) for seed in range(1, samples + 1)]
    return penstock.ModelSpec(Deep(blocks, unit), inputs(4, 0), {"input": {0: BATCH}}, given, name="deep")


def few() -> penstock.ModelSpec:
    return model(samples=2)


def without_samples() -> penstock.ModelSpec:
    return model(samples=0)
