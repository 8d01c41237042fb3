"""Which module of the standard library does a docstring come from? A linear head on MiniLM, trained with exits in mind.

`model()` is what `penstock compile examples/classifier.py` calls. The encoder comes from the installed package
(`examples.minilm`); the checkpoint holds the head and low-rank changes of the encoder's weights (`examples.adapter`),
both from ``python -m examples.train_classifier``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import penstock
from examples import adapter
from examples.docstrings import Text, read_texts
from examples.minilm import Encoder, SentenceEmbedding, sentence_embedding
from examples.trained import FOLDER, read_checkpoint

CHECKPOINT = FOLDER / "classifier.safetensors"
FORMAT = "docstring classifier 2"
LONGEST = 128
"""Tokens of a text; the rest is cut."""
WIDTH = 384
METRIC = 256
"""Held-out texts of the metric."""


class Classifier(nn.Module):
    """The sentence embedding of a text, and one logit per module."""

    def __init__(self, embedding: SentenceEmbedding, classes: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Int64 tokens [batch, seq], mask 1 for real ones -> `logits` [batch, classes]."""
        return {"logits": self.head(self.embedding(input_ids, attention_mask)["embedding"])}


@dataclass(frozen=True)
class Head:
    """A fitted head: weight float32 [classes, 384], bias [classes], the class of each row; changes of the encoder."""

    classes: tuple[str, ...]
    weight: Tensor
    bias: Tensor
    changes: Mapping[str, Tensor] = field(default_factory=dict)

    def pack(self, notes: Mapping[str, str]) -> bytes:
        """A safetensors file."""
        from safetensors.torch import save

        weights = {"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}
        weights |= {f"encoder.{name}": tensor for name, tensor in self.changes.items()}
        return save(weights, {"format": FORMAT, "classes": json.dumps(self.classes), **notes})


def load_head(path: Path | str = CHECKPOINT) -> Head:
    """The head of a checkpoint.

    Raises:
        ir.errors.UsageError: there is no such file.
        ir.errors.UntrustedError: it is no safetensors file, or not such a head.
    """
    metadata, weights = read_checkpoint(Path(path), FORMAT, _wanted, "python -m examples.train_classifier")
    changes = {name.removeprefix("encoder."): w for name, w in weights.items() if name.startswith("encoder.")}
    return Head(_read_classes(metadata), weights["weight"], weights["bias"], changes)


def _wanted(metadata: Mapping[str, str]) -> dict[str, Tensor]:
    count = len(_read_classes(metadata))
    changes = adapter.wanted(sentence_embedding().encoder)
    head = {"weight": torch.empty(count, WIDTH), "bias": torch.empty(count)}
    return head | {f"encoder.{name}": tensor for name, tensor in changes.items()}


def _read_classes(metadata: Mapping[str, str]) -> tuple[str, ...]:
    names = json.loads(metadata.get("classes", ""))
    if not isinstance(names, list) or not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise ValueError("its classes are not a list of modules")
    if not 2 <= len(names) == len(set(names)) <= 1000:
        raise ValueError("its classes are not 2 to 1000 different modules")
    return tuple(names)


class Accuracy:
    """The metric: the share of held-out texts whose module has the largest logit."""

    def __init__(self, batches: Sequence[Mapping[str, Tensor]], labels: Tensor) -> None:
        self._batches, self._labels = batches, labels

    def __call__(self, engine: Callable[..., Mapping[str, Tensor]]) -> float:
        """Run the engine on the held-out texts; 0 to 1."""
        return self.rows(engine).mean().item()

    @torch.no_grad()
    def rows(self, engine: Callable[..., Mapping[str, Tensor]]) -> Tensor:
        """Of each text 1 if it is right, else 0: float32 [texts]."""
        chosen = torch.cat([engine(**batch)["logits"].argmax(-1) for batch in self._batches])
        return (chosen == self._labels).float()


def batches(encode: Encoder, texts: Sequence[Text], size: int) -> list[dict[str, Tensor]]:
    """Inputs of `size` texts at a time, in order, each padded to its longest and cut at `LONGEST` tokens."""
    starts = range(0, len(texts), size)
    return [encode([text.text for text in texts[at : at + size]], most=LONGEST) for at in starts]


def by_length(texts: Sequence[Text]) -> list[Text]:
    """Shortest first, so that a batch pads little."""
    return sorted(texts, key=lambda text: (len(text.text), text.text))


def spread(texts: Sequence[Text], most: int) -> list[Text]:
    """At most `most` of the texts, evenly over their order."""
    count = min(most, len(texts))
    return [texts[index * len(texts) // count] for index in range(count)]


def classifier(head: Head) -> Classifier:
    """The encoder with this head and its changes, in eval mode."""
    made = Classifier(sentence_embedding(), len(head.classes))
    adapter.merge(made.embedding.encoder, head.changes)
    with torch.no_grad():
        made.head.weight.copy_(head.weight)
        made.head.bias.copy_(head.bias)
    return made.eval()


def metric(head: Head, texts: Sequence[Text], most: int) -> Accuracy:
    """Accuracy on at most `most` of the held-out ones among the texts."""
    held_out = by_length(spread([text for text in texts if text.part == "held_out"], most))
    labels = torch.tensor([head.classes.index(text.module) for text in held_out])
    return Accuracy(batches(Encoder(), held_out, 16), labels)


def model() -> penstock.ModelSpec:
    """The classifier with dynamic batch and length, calibration texts and its accuracy on held-out texts."""
    head, encode = load_head(), Encoder()
    texts = read_texts(head.classes)
    fit = [text for text in texts if text.part == "fit"]
    axes = {0: penstock.Dim("batch", 1, 64), 1: penstock.Dim("seq", 2, LONGEST)}
    return penstock.ModelSpec(
        model=classifier(head),
        example_inputs=batches(encode, spread(fit, 4), 4)[0],
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
        calibration=batches(encode, by_length(spread(fit, 64)), 8),
        metric=metric(head, texts, METRIC),
        name="classifier",
        exit_samples=exit_samples(encode, texts),
    )


def exit_samples(encode: Encoder, texts: Sequence[Text], fit: int = 900) -> dict[str, list[dict[str, Tensor]]]:
    """Inputs for early exits: maps from texts of the head's own fit part, thresholds from texts that it never saw.

    The head is surer of what it was fitted on than it should be, so thresholds come from the validation part and from
    held-out texts that the metric leaves alone; those of the metric are the report part.
    """
    held_out = [text for text in texts if text.part == "held_out"]
    judged = set(spread(held_out, METRIC))
    parts = {
        "fit": spread([text for text in texts if text.part == "fit"], fit),
        "threshold": [text for text in texts if text.part == "validation"] + [t for t in held_out if t not in judged],
        "report": [text for text in held_out if text in judged],
    }
    return {name: batches(encode, by_length(part), 16) for name, part in parts.items()}
