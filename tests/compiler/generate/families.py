"""Causal LMs of Hugging Face with random weights, spread so that their texts vary."""

from __future__ import annotations

import torch

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.4,
}  # fmt: skip


def small_causal_lm(family: str, end: int) -> torch.nn.Module:
    """Llama, Qwen3 or GPT-2 with the end token ``end``."""
    import transformers as t

    torch.manual_seed(0)
    ends = {"eos_token_id": end, "bos_token_id": end, "pad_token_id": end}
    if family == "llama":
        return t.LlamaForCausalLM(t.LlamaConfig(**SIZES, **ends)).eval()
    if family == "qwen3":
        return t.Qwen3ForCausalLM(t.Qwen3Config(**SIZES, head_dim=8, **ends)).eval()
    sizes = {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "initializer_range": 0.4}
    return t.GPT2LMHeadModel(t.GPT2Config(**sizes, **ends)).eval()
