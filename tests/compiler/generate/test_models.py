"""Models of Hugging Face with random weights, and the trained byte model: compiled text is eager text, in fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import penstock
from compiler.generate.step import layout_of, step_of
from compiler.runtime.decoding import FILLS
from compiler.runtime.sampling import Sampling
from examples.tinylm import load_tinylm
from tests.compiler.generate.eager import write_on
from tests.compiler.generate.families import small_causal_lm

END = 5
PROMPTS = [[7, 8, 9], [11] * 10, [40, 3, 60, 61, 20]]
CHANCE = {"temperature": 0.9, "top_k": 30, "top_p": 0.95, "seed": 1}


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_a_step_with_a_cache_is_the_model(family: str) -> None:
    """Left-padded rows, in two steps, at any depth that shares the weights."""
    model = small_causal_lm(family, END)
    layout = layout_of(model)
    tokens = torch.tensor([[0, 7, 8, 9, 10, 11], [20, 21, 22, 23, 24, 25]])
    mask = torch.tensor([[False] + [True] * 5, [True] * 6])
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    step = step_of(model, layout.layers)
    none = [torch.zeros(2, layout.kv_heads, 0, layout.head_width)] * layout.layers
    with torch.no_grad():
        first = step(tokens[:, :4], positions[:, :4], mask[:, :0], {"k": none, "v": none}, mask[:, :4])
        cache = {kind: [first[f"cache_{kind}_{i}"] for i in range(layout.layers)] for kind in "kv"}
        second = step(tokens[:, 4:], positions[:, 4:], mask[:, :4], cache, mask[:, 4:], torch.tensor([1]))
        torch.testing.assert_close(second["logits"][0, 0], model(tokens[:1, 1:]).logits[0, -1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(second["logits"][1, 0], model(tokens[1:]).logits[0, -1], rtol=1e-4, atol=1e-4)
    shallow = step_of(model, 1)
    own = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in shallow.parameters()} < own
    assert model.config.num_hidden_layers == layout.layers


FAMILIES = [
    *(
        pytest.param(f, e, marks=pytest.mark.slow)
        for f in ("llama", "qwen3", "gpt2")
        for e in ("onnxruntime", "openvino")
    ),
    pytest.param("llama", "tvm", marks=pytest.mark.slow),
    pytest.param("llama", "inductor", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("family", "engine"), FAMILIES)
def test_text_of_hugging_face(family: str, engine: str, tmp_path: Path) -> None:
    model = small_causal_lm(family, END)
    made = penstock.compile(
        model, example_inputs={"input_ids": torch.randint(6, 97, (2, 8))}, task="generate", draft=1, engine=engine,
        output=tmp_path / f"{family}.penstock", seconds=0.0, threads=1,
    )  # fmt: skip
    loaded = penstock.load(made.path or "")
    check(loaded, lambda tokens: model(tokens).logits, END)
    for fill in FILLS:
        never = loaded.generate(PROMPTS, 24, exit_at=1.01, fill=fill)
        assert [a.tokens for a in never] == [a.tokens for a in loaded.generate(PROMPTS, 24)]
        assert all(a.calls["engine"] == 1 for a in loaded.generate(PROMPTS, 24, exit_at=0.0, fill=fill))
    for prompt in PROMPTS:
        given = torch.tensor([prompt])
        with torch.no_grad():
            own = model.generate(given, max_new_tokens=24, do_sample=False, attention_mask=torch.ones_like(given))
        want = [t for t in own[0, len(prompt) :].tolist() if t != END]
        assert list(loaded.generate(prompt, 24)[0].tokens) == want


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_text_of_tinylm(engine: str, tmp_path: Path) -> None:
    model = load_tinylm()
    made = penstock.compile(
        model, example_inputs={"tokens": torch.tensor([list(b"def main(argv=None):")])}, task="generate", draft=2,
        engine=engine, output=tmp_path / "tinylm.penstock", seconds=0.0, threads=1,
    )  # fmt: skip
    loaded = penstock.load(made.path or "")
    check(loaded, model, None)
    (answer,) = loaded.generate("import os\n\ndef ", 100, draft=3)
    assert answer.calls["engine"] < 55  # drafts of the trained model are mostly right


def check(loaded: penstock.LoadedModel, logits: Callable[[torch.Tensor], torch.Tensor], end: int | None) -> None:
    """Greedy and sampled, single and in a batch, plain and drafted."""
    for options in ({}, CHANCE):
        want = []
        for number, prompt in enumerate(PROMPTS):
            tokens = write_on(logits, prompt, 24, Sampling(**options), number)
            want.append(tokens[: tokens.index(end)] if end in tokens else tokens)
        together = loaded.generate(PROMPTS, 24, **options)
        assert [list(a.tokens) for a in together] == want
        alone = [loaded.generate(p, 24, requests=[i], **options)[0] for i, p in enumerate(PROMPTS)]
        assert [list(a.tokens) for a in alone] == want
        if not options:
            drafted = [loaded.generate(p, 24, draft=3)[0] for p in PROMPTS]
            assert [list(a.tokens) for a in drafted] == want
