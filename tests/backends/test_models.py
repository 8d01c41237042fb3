"""Whole models on each engine against eager torch, at other sizes than those they were captured with."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree

from compiler.capture.capture import capture
from compiler.spec import ModelSpec
from ir import Graph
from tests.backends.cases import engine_of
from tests.zoo import ZOO

ENGINES = ("onnxruntime", "openvino")
QUICK = ("bert", "gpt2", "llama", "mixtral", "vit", "whisper_encoder", "resnet")
SLOW = ("qwen3", "llama_decode", "qwen3_moe", "t5_encoder", "mamba", "unet_block", "compaction", "tied", "running_mean")


@lru_cache(maxsize=1)
def _captured(name: str) -> tuple[ModelSpec, Graph]:
    spec = ZOO[name]()
    return spec, capture(spec)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_model_equals_eager(name: str, engine: str, tmp_path: Path) -> None:
    spec, graph = _captured(name)
    run = engine_of(engine, graph, tmp_path)
    for inputs in (*spec.calibration, spec.example_inputs):
        given = {**graph.initial, **_named(graph, inputs)}
        before = {k: v.clone() for k, v in spec.model.state_dict().items()}
        with torch.no_grad():
            want = [t for t in pytree.tree_leaves(spec.model(**inputs)) if isinstance(t, torch.Tensor)]
        spec.model.load_state_dict(before)
        got = [tensor for key, tensor in run(given).items() if not key.startswith("state:")]
        assert len(got) == len(want)
        for expected, found in zip(want, got, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def _named(graph: Graph, inputs: object) -> dict[str, torch.Tensor]:
    """Tensors of an example in the order of the graph's own inputs."""
    leaves = [t.clone() for t in pytree.tree_leaves(inputs) if isinstance(t, torch.Tensor)]
    names = [spec.name for spec in graph.inputs.values() if spec.kind != "param" and spec.name not in graph.initial]
    return dict(zip(names, leaves, strict=True))
