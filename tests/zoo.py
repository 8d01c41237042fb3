"""Small models of the families that Penstock captures: random weights, the same in every run.

``calibration`` of each spec holds inputs of other sizes than the example inputs, for checks that a captured
graph holds beyond the sizes it was traced with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from compiler.spec import Dim, ModelSpec
from ir import Graph
from tests.zoo_modules import (
    Compaction,
    CustomOp,
    DecodeStep,
    EarlyExit,
    OnlyLogits,
    Recurrent,
    ResNet,
    RunningMean,
    Tied,
    UNetBlock,
    UntilSettled,
    define_custom_op,
)

BATCH = Dim("batch", 1, 64)
SEQ = Dim("seq", 1, 32)
_VOCABULARY = 96

Inputs = Mapping[str, Any]


def _spec(
    name: str,
    model: nn.Module,
    make: Callable[..., Inputs],
    sizes: Sequence[tuple[int, ...]],
    dims: Mapping[str, Mapping[int, Dim]],
) -> ModelSpec:
    """``make(*sizes[0])`` are the example inputs, the rest of the sizes make the others."""
    first, *others = [make(*s) for s in sizes]
    return ModelSpec(model.eval(), first, dims, calibration=others, name=name)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _tokens(batch: int, seq: int) -> Tensor:
    return torch.randint(0, _VOCABULARY, (batch, seq), generator=_seeded(batch * 100 + seq))


def _text(batch: int, seq: int) -> Inputs:
    mask = torch.ones(batch, seq, dtype=torch.int64)
    if batch > 1:
        mask[0, max(1, seq // 2) :] = 0
    return {"input_ids": _tokens(batch, seq), "attention_mask": mask}


_TEXT_SIZES = ((2, 6), (3, 9), (1, 1), (5, 32))
_TEXT_DIMS = {"input_ids": {0: BATCH, 1: SEQ}, "attention_mask": {0: BATCH, 1: SEQ}}


def _causal(name: str, **changes: Any) -> nn.Module:
    """A language model of transformers, tiny. ``name`` is that of its config class without ``Config``."""
    import transformers

    # the default loop over experts depends on the data; "grouped_mm" is an operator of transformers in float32
    experts = {"experts_implementation": "batched_mm"} if "num_experts_per_tok" in changes else {}
    sizes = {"vocab_size": _VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    config = getattr(transformers, f"{name}Config")(**sizes | changes)
    return _built(transformers.AutoModelForCausalLM, config, **experts)


def _built(auto: Any, config: Any, **options: str) -> nn.Module:
    torch.manual_seed(0)
    return auto.from_config(config, attn_implementation="sdpa", **options).eval()


def _language(name: str, model: nn.Module) -> ModelSpec:
    return _spec(name, OnlyLogits(model), _text, _TEXT_SIZES, _TEXT_DIMS)


def bert(layers: int = 2) -> ModelSpec:
    import transformers as t

    config = t.BertConfig(
        vocab_size=_VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        max_position_embeddings=64,
    )  # fmt: skip
    return _spec("bert", _built(t.AutoModel, config), _text, _TEXT_SIZES, _TEXT_DIMS)


def gpt2(layers: int = 1) -> ModelSpec:
    import transformers as t

    config = t.GPT2Config(
        vocab_size=_VOCABULARY, n_embd=32, n_layer=layers, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=1
    )
    return _language("gpt2", _built(t.AutoModelForCausalLM, config))


def llama(layers: int = 2) -> ModelSpec:
    return _language("llama", _causal("Llama", num_hidden_layers=layers))


def qwen3(layers: int = 1) -> ModelSpec:
    return _language("qwen3", _causal("Qwen3", num_hidden_layers=layers))


def mixtral(layers: int = 1) -> ModelSpec:
    return _language(
        "mixtral", _causal("Mixtral", num_hidden_layers=layers, num_local_experts=4, num_experts_per_tok=2)
    )


def qwen3_moe() -> ModelSpec:
    model = _causal("Qwen3Moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    return _language("qwen3_moe", model)


def vit(layers: int = 1) -> ModelSpec:
    import transformers as t

    config = t.ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=16,
        patch_size=4,
    )

    def images(batch: int) -> Inputs:
        return {"pixel_values": torch.randn(batch, 3, 16, 16, generator=_seeded(batch))}

    return _spec("vit", _built(t.AutoModel, config), images, ((2,), (3,), (1,)), {"pixel_values": {0: BATCH}})


def whisper_encoder(layers: int = 1) -> ModelSpec:
    import transformers as t

    config = t.WhisperConfig(
        d_model=32, encoder_layers=layers, encoder_attention_heads=4, encoder_ffn_dim=48, decoder_layers=1,
        decoder_attention_heads=4, decoder_ffn_dim=48, num_mel_bins=8, max_source_positions=12, vocab_size=_VOCABULARY,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip

    def sound(batch: int) -> Inputs:
        return {"input_features": torch.randn(batch, 8, 24, generator=_seeded(batch))}

    model = _built(t.AutoModel, config).get_encoder()
    return _spec("whisper_encoder", model, sound, ((2,), (3,), (1,)), {"input_features": {0: BATCH}})


def t5_encoder(layers: int = 1) -> ModelSpec:
    import transformers as t

    config = t.T5Config(
        vocab_size=_VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=layers, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = t.T5EncoderModel(config).eval()
    return _spec("t5_encoder", model, _text, _TEXT_SIZES, _TEXT_DIMS)


def mamba(layers: int = 1) -> ModelSpec:
    """Its scan is a Python loop over time: ``seq`` stays as traced."""
    import transformers as t

    config = t.MambaConfig(
        vocab_size=_VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=layers, conv_kernel=4, time_step_rank=4
    )

    class OnlyTokens(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.inner(input_ids=input_ids, use_cache=False)[0]

    torch.manual_seed(0)
    model = OnlyTokens(t.MambaModel(config))
    return _spec("mamba", model, lambda b: {"input_ids": _tokens(b, 5)}, ((2,), (3,), (1,)), {"input_ids": {0: BATCH}})


def llama_decode() -> ModelSpec:
    length = 16

    def step(batch: int, pos: int) -> Inputs:
        def cache(seed: int) -> Tensor:
            filled = torch.randn(batch, 2, length, 8, generator=_seeded(seed))
            filled[:, :, pos:] = 0
            return filled

        return {
            "input_ids": _tokens(batch, 1),
            "pos": torch.tensor([pos]),
            "ks": [cache(1), cache(2)],
            "vs": [cache(3), cache(4)],
        }

    dims = {"input_ids": {0: BATCH}, "ks": {0: BATCH}, "vs": {0: BATCH}}
    return _spec(
        "llama_decode", DecodeStep(_causal("Llama", num_hidden_layers=2), length), step, ((2, 5), (3, 0), (1, 9)), dims
    )


def unet_block() -> ModelSpec:
    def make(batch: int, height: int, width: int, words: int) -> Inputs:
        g = _seeded(batch)
        return {
            "sample": torch.randn(batch, 4, height, width, generator=g),
            "time": torch.randn(batch, 8, generator=g),
            "context": torch.randn(batch, words, 12, generator=g),
        }

    torch.manual_seed(0)
    dims = {
        "sample": {0: BATCH, 2: Dim("height", 2, 64), 3: Dim("width", 2, 64)},
        "time": {0: BATCH},
        "context": {0: BATCH, 1: Dim("words", 1, 77)},
    }
    return _spec("unet_block", UNetBlock(), make, ((2, 8, 12, 3), (3, 6, 4, 5), (1, 2, 2, 1)), dims)


def resnet() -> ModelSpec:
    torch.manual_seed(0)
    model = ResNet()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics as after training, not the neutral ones
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)

    def images(batch: int, side: int) -> Inputs:
        return {"images": torch.randn(batch, 3, side, side + 3, generator=_seeded(batch))}

    dims = {"images": {0: BATCH, 2: Dim("height", 16, 256), 3: Dim("width", 16, 256)}}
    return _spec("resnet", model, images, ((2, 32), (3, 21), (1, 16)), dims)


def recurrent() -> ModelSpec:
    torch.manual_seed(0)
    return _spec("recurrent", Recurrent(), _rows, ((2, 6), (3, 6), (1, 6)), {"x": {0: BATCH}})


def _rows(batch: int, seq: int) -> Inputs:
    return {"x": torch.randn(batch, seq, 8, generator=_seeded(batch * 10 + seq))}


def early_exit() -> ModelSpec:
    torch.manual_seed(0)
    return _spec("early_exit", EarlyExit(1), _rows, ((2, 6), (3, 9), (1, 1), (1, 4)), {"x": {0: BATCH, 1: SEQ}})


def nested_cond() -> ModelSpec:
    torch.manual_seed(3)
    return _spec("nested_cond", EarlyExit(3), _rows, ((2, 6), (3, 9), (1, 1), (1, 4)), {"x": {0: BATCH, 1: SEQ}})


def while_loop() -> ModelSpec:
    torch.manual_seed(0)
    return _spec("while_loop", UntilSettled(), _rows, ((2, 6), (3, 9), (1, 1)), {"x": {0: BATCH, 1: SEQ}})


def compaction() -> ModelSpec:
    torch.manual_seed(0)
    return _spec("compaction", Compaction(), _rows, ((2, 6), (3, 9), (1, 1)), {"x": {0: BATCH, 1: SEQ}})


def tied() -> ModelSpec:
    torch.manual_seed(0)
    dims = {"input_ids": {0: BATCH, 1: SEQ}}
    return _spec("tied", Tied(_VOCABULARY), lambda b, s: {"input_ids": _tokens(b, s)}, ((2, 6), (3, 9), (1, 1)), dims)


def custom_op() -> ModelSpec:
    define_custom_op()
    torch.manual_seed(0)
    return _spec("custom_op", CustomOp(), _rows, ((2, 6), (3, 9), (1, 1)), {"x": {0: BATCH, 1: SEQ}})


def running_mean() -> ModelSpec:
    return _spec("running_mean", RunningMean(), _rows, ((2, 6), (3, 9), (1, 1)), {"x": {0: BATCH, 1: SEQ}})


def minilm() -> ModelSpec:
    """The real one."""
    from examples.minilm import model

    return model()


ZOO: Mapping[str, Callable[[], ModelSpec]] = MappingProxyType(
    {
        make.__name__: make
        for make in (
            bert, gpt2, llama, qwen3, mixtral, qwen3_moe, vit, whisper_encoder, t5_encoder, mamba, llama_decode,
            unet_block, resnet, recurrent, early_exit, nested_cond, while_loop, compaction, tied, custom_op,
            running_mean,
        )
    }
)  # fmt: skip
"""Name -> factory. ``minilm`` stands apart: it needs the package of its weights."""


@cache
def captured(name: str) -> tuple[ModelSpec, Graph]:
    """A model and its graph, captured once for all tests of a process, which must not change it."""
    from compiler.capture.capture import capture

    spec = minilm() if name == "minilm" else ZOO[name]()
    return spec, capture(spec)
