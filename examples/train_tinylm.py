"""Train tinylm on the standard library's sources: ``python -m examples.train_tinylm``.

The loss is the next byte's cross entropy at full depth, and at one shallower depth, in turn, through the same norm
and head; whole blocks are left out at random, deeper ones more often (LayerSkip, 2404.16710). Shallow exits then
draft well. Writes the checkpoint, and beside it what made it: command, curve, and the quality of every depth.
The same command on the same device, torch and sources takes the same steps; ``--minutes`` only cuts short.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor, nn

from examples.tinylm import CHECKPOINT, Config, TinyLM, pack_tinylm
from examples.tinylm_data import SPLIT, Corpus, read_corpus, windows
from examples.trained import Tell, progress, write_aside

POINTS = 40
"""Of the loss curve."""


@dataclass(frozen=True)
class Settings:
    """How to train; `exit_share` is the part of the loss that the shallower depth has."""

    steps: int = 10_000
    minutes: float = 4.0
    batch: int = 128
    rate: float = 3e-3
    decay: float = 0.1
    warmup: int = 300
    clip: float = 1.0
    exit_share: float = 0.3
    layer_dropout: float = 0.1
    seed: int = 0
    windows: int = 256
    compile: bool = False


@dataclass
class History:
    """What happened: `curve` has step, seconds, train and validation loss in bits per byte."""

    curve: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    ended: str = "steps"


def initialise(model: TinyLM, seed: int) -> None:
    """Normal weights, the residual branches' last projections smaller with depth."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            nn.init.ones_(weight)
            continue
        spread = 0.02 if name.startswith(("embed", "head")) else weight.shape[1] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            spread /= math.sqrt(2 * len(model.layers))
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=generator) * spread)


def loss_of(model: TinyLM, x: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in nats of a hidden state [batch, seq, width] read through the shared norm and head."""
    return F.cross_entropy(model.logits(x).float().flatten(0, 1), targets.flatten())


class Trainer:
    """One model, its optimizer and its data on one device."""

    def __init__(self, model: TinyLM, corpus: Corpus, settings: Settings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.model = model.to(device)
        self.context = model.config.context
        self.text = corpus.fit.to(device)
        if self.text.numel() <= self.context + 1:
            raise ValueError(f"{self.text.numel()} bytes to learn from are too few for a context of {self.context}")
        self.judged = windows(corpus.validation, self.context, min(64, settings.windows)).to(device)
        matrices = [p for p in model.parameters() if p.dim() > 1]
        norms = [p for p in model.parameters() if p.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.decay}, {"params": norms, "weight_decay": 0.0}],
            lr=settings.rate, betas=(0.9, 0.95), fused=device.type == "cuda",
        )  # fmt: skip
        self.offsets = torch.Generator(device).manual_seed(settings.seed)
        self.drops = random.Random(settings.seed)
        wrap = torch.compile if settings.compile else lambda call: call
        self.blocks = [wrap(layer) for layer in model.layers]
        self.loss_of = wrap(loss_of)

    def train(self, tell: Tell) -> History:
        """All steps, or as many as the minutes allow; the rate falls to zero by then in either case.

        Raises:
            ArithmeticError: the loss is not finite any more.
        """
        settings, history = self.settings, History()
        every = max(1, settings.steps // POINTS)
        limit = settings.minutes * 60
        self._step(0)  # compiles, and grows the allocator's pool: not part of the time that decides
        began = time.monotonic()
        history.steps = 1
        summed, since = torch.zeros((), device=self.device), 0
        for step in range(1, settings.steps):
            history.seconds = time.monotonic() - began
            if history.seconds >= limit:
                history.ended = "minutes"
                break
            self._set_rate(max(step / settings.steps, history.seconds / limit), step)
            summed += self._step(step)
            since += 1
            history.steps = step + 1
            if since == every or step + 1 == settings.steps:
                self._note(history, summed.item() / since, began)
                tell(step + 1, _line(history.curve[-1]))
                summed, since = torch.zeros_like(summed), 0
            elif step % 20 == 0:
                tell(step + 1, "")
        if since:
            self._note(history, summed.item() / since, began)
        history.seconds = time.monotonic() - began
        return history

    def _step(self, step: int) -> Tensor:
        """One update; the loss at full depth in nats, still on the device."""
        rows = self._rows()
        with self._precision():
            full, shallow = self._losses(rows[:, :-1], rows[:, 1:], step)
            share = self.settings.exit_share
            loss = (1 - share) * full + share * shallow
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return full.detach()

    def _losses(self, tokens: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Of the full depth and of one other, in turn: every depth is as often the other as any."""
        count = len(self.blocks)
        exit_at = 1 + step % (count - 1) if count > 1 else 0
        cos, sin = self.model.cos[: self.context], self.model.sin[: self.context]
        x = shallow = self.model.embed(tokens)
        for depth, block in enumerate(self.blocks, 1):
            if self.drops.random() >= self.settings.layer_dropout * _rising(depth, count):
                x = block(x, cos, sin)
            if depth == exit_at:
                shallow = x
        return self.loss_of(self.model, x, targets), self.loss_of(self.model, shallow, targets)

    def _rows(self) -> Tensor:
        """Windows at random places, int64 [batch, context + 1]."""
        places = self.text.numel() - self.context
        starts = torch.randint(places, (self.settings.batch, 1), generator=self.offsets, device=self.device)
        return self.text[starts + torch.arange(self.context + 1, device=self.device)].long()

    def _set_rate(self, done: float, step: int) -> None:
        rate = 0.5 * self.settings.rate * (1 + math.cos(math.pi * min(1.0, done)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / max(1, self.settings.warmup))

    def _note(self, history: History, loss: float, began: float) -> None:
        if not math.isfinite(loss):
            raise ArithmeticError(f"the loss is {loss} by step {history.steps}; use a lower --rate")
        full = depths(self.model, self.judged, self.device)[-1]
        history.curve.append({
            "step": history.steps,
            "seconds": round(time.monotonic() - began, 2),
            "train_bits_per_byte": round(loss / math.log(2), 4),
            "validation_bits_per_byte": full["bits_per_byte"],
        })  # fmt: skip

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda")


def _rising(depth: int, count: int) -> float:
    """Share of the largest layer dropout at a depth: 0 at the first, 1 at the last, exponential between."""
    return 2 ** ((depth - 1) / max(1, count - 1)) - 1


@torch.no_grad()
def depths(model: TinyLM, rows: Tensor, device: torch.device) -> list[dict[str, float]]:
    """Quality of every depth through the shared norm and head, on windows [rows, seq + 1], in float32.

    Per depth: bits per byte, perplexity, accuracy of the likeliest byte, and how often it is the full model's.
    """
    loss, right, same = (torch.zeros(len(model.layers), device=device) for _ in range(3))
    for batch in rows.to(device).split(32):
        tokens, targets = batch[:, :-1], batch[:, 1:]
        cos, sin = model.cos[: tokens.shape[1]], model.sin[: tokens.shape[1]]
        x, choices = model.embed(tokens), []
        for depth, layer in enumerate(model.layers):
            x = layer(x, cos, sin)
            logits = model.logits(x).float()
            loss[depth] += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
            choices.append(logits.argmax(-1))
            right[depth] += (choices[-1] == targets).sum()
        same += torch.stack([(choice == choices[-1]).sum() for choice in choices])
    judged = rows[:, 1:].numel()
    return [
        {
            "depth": depth,
            "bits_per_byte": round(nats / judged / math.log(2), 4),
            "perplexity": round(math.exp(nats / judged), 4),
            "accuracy": round(hits / judged, 4),
            "agreement": round(equal / judged, 4),
        }
        for depth, (nats, hits, equal) in enumerate(zip(loss.tolist(), right.tolist(), same.tolist(), strict=True), 1)
    ]


# --- the command ----------------------------------------------------------------------------------


def _line(point: dict[str, float]) -> str:
    train, validation = point["train_bits_per_byte"], point["validation_bits_per_byte"]
    return f"bits per byte: train {train:.3f}, validation {validation:.3f}"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    defaults = Settings()
    parser = argparse.ArgumentParser(prog="examples.train_tinylm", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="the checkpoint; its .json is written beside it")
    parser.add_argument("--sources", type=Path, help="a standard library, by default the running Python's")
    for name, value in asdict(defaults).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            parser.add_argument(flag, action="store_true", help="use torch.compile for the blocks and the loss")
        else:
            parser.add_argument(flag, type=type(value), default=value, help=f"default {value}")
    given = parser.parse_args(arguments)
    for name in ("steps", "minutes", "batch", "rate", "windows"):
        if not getattr(given, name) > 0:
            parser.error(f"--{name} must be more than 0")
    if not 0 <= given.exit_share <= 0.5:
        parser.error("--exit-share must lie in 0..0.5: the full depth weighs at least half")
    if not 0 <= given.layer_dropout < 1:
        parser.error("--layer-dropout must lie in 0..1")
    return given


def main(arguments: Sequence[str]) -> int:
    given = parse(arguments)
    name = given.device if given.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        print("train_tinylm: torch sees no CUDA device; use --device cpu", file=sys.stderr)
        return 4
    device = torch.device(name)
    settings = Settings(**{key: getattr(given, key) for key in asdict(Settings())})
    try:
        corpus = read_corpus(given.sources)
        model = TinyLM(Config())
        initialise(model, settings.seed)
        with progress("training", settings.steps) as tell:
            history = Trainer(model, corpus, settings, device).train(tell)
    except (ValueError, ArithmeticError) as error:
        print(f"train_tinylm: {error}", file=sys.stderr)
        return 2
    with torch.no_grad():  # judged as it is stored
        for weight in model.parameters():
            weight.copy_(weight.half())
    packed = pack_tinylm(model, {"split": SPLIT, "sources_sha256": corpus.digest, "license": "Apache-2.0"})
    judged = windows(corpus.held_out, model.config.context, settings.windows)
    report = {
        "command": shlex.join(["python", "-m", "examples.train_tinylm", *arguments]),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "settings": asdict(settings),
        "model": {**asdict(model.config), "parameters": sum(p.numel() for p in model.parameters())},
        "checkpoint": {"bytes": len(packed), "sha256": sha256(packed).hexdigest()},
        "sources": {
            "sha256": corpus.digest,
            "split": SPLIT,
            "files": {part: len(names) for part, names in corpus.files.items()},
            "bytes": {part: getattr(corpus, part).numel() for part in corpus.files},
        },
        "steps": history.steps,
        "seconds": round(history.seconds, 2),
        "ended": history.ended,
        "bytes_read": history.steps * settings.batch * model.config.context,
        "curve": history.curve,
        "held_out": {"bytes": judged[:, 1:].numel(), "depths": depths(model, judged, device)},
    }
    write_aside(given.out, packed)
    write_aside(given.out.with_suffix(".json"), json.dumps(report, indent=2).encode() + b"\n")
    print(_summary(report))
    return 0


def _summary(report: dict) -> str:
    rate = report["bytes_read"] / max(report["seconds"], 1e-9) / 1e6
    lines = [
        f"{report['steps']} steps in {report['seconds']} s ({rate:.2f} million bytes a second), "
        f"ended by {report['ended']}; {report['checkpoint']['bytes']} bytes",
        "held out, depth: bits per byte, perplexity, accuracy, agreement with full depth",
    ]
    lines += [
        f"  {d['depth']:2}: {d['bits_per_byte']:.4f} {d['perplexity']:.4f} {d['accuracy']:.4f} {d['agreement']:.4f}"
        for d in report["held_out"]["depths"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
