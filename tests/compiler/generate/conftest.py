"""A small language model of random weights, compiled once for all tests of generation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import penstock
from compiler.select import race as select
from examples.tinylm import Config, TinyLM
from tests.compiler.command import clock

SIZES = Config(vocabulary=256, layers=3, width=32, heads=4, kv_heads=2, hidden=48, context=48)


@pytest.fixture(scope="session")
def small() -> TinyLM:
    """In eager mode; its answers are varied, not one token again and again."""
    torch.manual_seed(0)
    model = TinyLM(SIZES).eval()
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.25 if weight.shape[0] != 256 else 1.0)
    return model


@pytest.fixture(scope="session")
def written(small: TinyLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its artifact on ONNX Runtime, with a draft of one layer."""
    path = tmp_path_factory.mktemp("generate") / "small.penstock"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compiler.generate.compile.interleave", clock(1.0))
        patch.setattr(select, "interleave", clock(1.0))
        patch.setattr("compiler.generate.drafting.interleave", clock(1.0))
        penstock.compile(
            small, example_inputs={"tokens": torch.randint(0, 256, (2, 9))}, name="small", output=path,
            task="generate", draft=1, engine="onnxruntime", threads=1,
        )  # fmt: skip
    return path


@pytest.fixture(scope="session")
def engine(written: Path) -> penstock.LoadedModel:
    """The artifact, loaded."""
    return penstock.load(written)
