"""Measures Penstock on MiniLM against other CPU engines: time and what it costs in quality.

    python -m examples.bench [--quick] [--threads 1,2] [--batch 1,8] [--seq 128] [--rounds N]
                             [--only REGEX] [--peers-only] [--json FILE]

All engines live in one process and take turns in every round, so that a slow minute of the
machine hits all of them. Ratios are medians of the ratios within a round. Every number of time
stands beside its loss: the cosine to fp32 eager embeddings and the accuracy of a linear probe.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import platform, python_version
from statistics import median, quantiles
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

import penstock
from examples import minilm
from examples.bench_peers import EAGER, Engine, Peer, peers
from examples.sentences import MODULES, Sentence, Split, split

LEVEL = 0.97
"""Of a peer's speed: from here on ours counts as equally fast, and below as behind."""

SAME_COSINE = 1e-6
"""Means of cosines that differ by less are equal: rounding of float32."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What an engine's embeddings of the held-out sentences are worth.

    `cosine_mean` and `cosine_min` are to the fp32 eager embeddings; `accuracy` is the share of
    sentences whose module the probe names, 0 to 1.
    """

    cosine_mean: float
    cosine_min: float
    accuracy: float

    def is_at_most(self, other: Loss) -> bool:
        """Whether this loses no more than the other, by mean cosine and by the probe."""
        return self.cosine_mean >= other.cosine_mean - SAME_COSINE and self.accuracy >= other.accuracy


@dataclass(frozen=True, slots=True)
class Row:
    """One engine in one cell; `seconds` per call, one per round, or `reason` why there is none."""

    engine: str
    precision: str
    is_ours: bool
    threads: int
    batch: int
    seq: int
    seconds: tuple[float, ...] = ()
    loss: Loss | None = None
    reason: str = ""

    def speed(self, other: Row) -> float:
        """How many times as fast as the other, the median over the rounds that both ran."""
        return median(b / a for a, b in zip(self.seconds, other.seconds, strict=False))


class Judge:
    """Tells the loss of an engine by sentences that neither calibration nor probe have seen."""

    def __init__(self, model: nn.Module, encode: minilm.Encoder, sentences: Split) -> None:
        train = sorted(sentences.train, key=_length)
        held_out = sorted(sentences.held_out, key=_length)  # batches with little padding
        self._batches = encode.batches(held_out, 8)
        self._want = minilm.embed(model, self._batches)
        self._labels = torch.tensor([sentence.label for sentence in held_out])
        self._probe = _ridge(
            minilm.embed(model, encode.batches(train, 8)),
            torch.tensor([sentence.label for sentence in train]),
        )

    def __call__(self, engine: Engine) -> Loss:
        """Embed the held-out sentences and compare."""
        got = minilm.embed(engine, self._batches)
        cosine = torch.cosine_similarity(got.double(), self._want.double(), dim=-1)
        right = (_with_one(got) @ self._probe).argmax(dim=-1) == self._labels
        return Loss(cosine.mean().item(), cosine.min().item(), right.double().mean().item())


def _length(sentence: Sentence) -> int:
    return len(sentence.text)


def _with_one(x: Tensor) -> Tensor:
    """Append a column of ones [rows, d + 1], for the bias."""
    return torch.cat([x, torch.ones(len(x), 1)], dim=-1)


def _ridge(x: Tensor, labels: Tensor) -> Tensor:
    """Weights [d + 1, classes] of a linear probe in closed form; rows of x have length 1."""
    x, y = _with_one(x).double(), torch.eye(len(MODULES), dtype=torch.double)[labels]
    return torch.linalg.solve(x.T @ x + torch.eye(x.shape[1]), x.T @ y).float()


def measure(
    engines: Mapping[str, Engine], inputs: Mapping[str, Tensor], rounds: int, budget: float
) -> dict[str, tuple[float, ...]]:
    """Seconds per call of each engine, one figure per round, all engines in every round.

    An engine whose rounds would take more than `budget` seconds takes part in fewer: in 3 if a
    call is slow, and in none but the first trial if a single call is beyond the budget.
    """
    trial = {name: _trial(engine, inputs) for name, engine in engines.items()}
    seconds = {name: [time_] if time_ > budget else [] for name, time_ in trial.items()}
    for turn in range(rounds):
        names = [name for name, time_ in trial.items() if time_ <= budget and turn < max(3, budget / _block(time_))]
        random.Random(turn).shuffle(names)  # no engine always follows the same one
        for name in names:
            seconds[name].append(_turn(engines[name], inputs, _calls(trial[name])))
    return {name: tuple(times) for name, times in seconds.items()}


def _trial(engine: Engine, inputs: Mapping[str, Tensor]) -> float:
    """Seconds of the second call; the first of a shape may compile or allocate."""
    engine(**inputs)
    return _once(engine, inputs)


def _calls(trial: float) -> int:
    """Calls to time in a round: as many as fit in 0.2 seconds, 1 to 10."""
    return max(1, min(10, int(0.2 / trial)))


def _block(trial: float) -> float:
    """Seconds that a round takes, with its call that is not timed."""
    return trial * (_calls(trial) + 1)


def _turn(engine: Engine, inputs: Mapping[str, Tensor], calls: int) -> float:
    """Median seconds of some calls, after the threads of the engine before have gone to sleep."""
    time.sleep(0.02)
    engine(**inputs)
    return median(_once(engine, inputs) for _ in range(calls))


def _once(engine: Engine, inputs: Mapping[str, Tensor]) -> float:
    start = time.perf_counter()
    engine(**inputs)
    return time.perf_counter() - start


def inputs_of(encode: minilm.Encoder, sentences: Split, batch: int, seq: int) -> dict[str, Tensor]:
    """Rows of real text without padding, int64 [batch, seq]: each begins at another sentence."""
    texts = [sentence.text for sentence in sentences.train]
    return encode([" ".join(texts[row:] + texts[:row]) for row in range(batch)], seq)


def run(chosen: Sequence[Peer], args: argparse.Namespace, log: Console) -> list[Row]:
    """Measure the chosen peers at every number of threads and every batch size.

    The loss of a peer does not depend on its threads and is taken once; Penstock compiles for a
    number of threads, so each of its engines is judged anew.
    """
    spec, encode, sentences = minilm.model(), minilm.Encoder(), split()
    judge = Judge(spec.model, encode, sentences)
    rows: list[Row] = []
    losses: dict[str, Loss] = {}
    for threads in args.threads:
        engines, reasons = {}, {}
        for peer in chosen:
            start = time.perf_counter()
            try:
                engine = build_quietly(peer, spec, threads)
                if peer.is_ours or peer.name not in losses:
                    losses[peer.name] = judge(engine)
                engines[peer.name] = engine
            except Exception as error:  # noqa: BLE001 - one engine's failure is a row of the table
                reasons[peer.name] = f"{type(error).__name__}: {error}".split("\n")[0][:200]
            took = time.perf_counter() - start
            log.print(f"threads {threads}: {peer.name} built and judged in {took:.0f} s")
        torch.set_num_threads(threads)
        for batch in args.batch:
            inputs = inputs_of(encode, sentences, batch, args.seq)
            with torch.no_grad():
                seconds = measure(engines, inputs, args.rounds, args.budget)
            log.print(f"threads {threads}: {batch} x {args.seq} tokens measured")
            rows += [
                Row(
                    *(peer.name, peer.precision, peer.is_ours, threads, batch, args.seq),
                    seconds=seconds.get(peer.name, ()),
                    loss=losses.get(peer.name),
                    reason=reasons.get(peer.name, ""),
                )
                for peer in chosen
            ]
    return rows


def build_quietly(peer: Peer, spec: penstock.ModelSpec, threads: int) -> Engine:
    """Build with all progress on the error stream, so that the table is all of the output."""
    with redirect_stdout(sys.stderr):
        return peer.build(spec, threads)


def environment() -> dict[str, Any]:
    """The machine, the versions and the moment, as far as they can move a number."""
    cpu = torch.cpu.get_capabilities()
    wanted = ("avx2", "avx512_f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform(),
        "cpu": cpu.get("cpu_name", "unknown"),
        "cores": os.cpu_count(),
        "flags": {flag: bool(cpu.get(flag)) for flag in wanted},
        "load": os.getloadavg()[0],
        "python": python_version(),
        "versions": {
            name: _version(name)
            for name in (
                *("penstock", "torch", "transformers", "onnx", "onnxscript", "onnxruntime"),
                *("openvino", "nncf"),
            )
        },
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def show(rows: Sequence[Row], found: Mapping[str, Any], rounds: int) -> None:
    """Print the environment, and per cell a table by precision and a verdict per precision."""
    is_terminal = sys.stdout.isatty()
    console = Console(width=None if is_terminal else 160, highlight=False)
    for key, value in found.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {_word(what)}" for name, what in value.items())
        console.print(f"{key}: {value}", soft_wrap=True)
    if not any(found["flags"][flag] for flag in ("avx512_bf16", "amx_bf16")):
        console.print("This CPU has no bf16 instructions: all bf16 engines emulate them, slowly.")
    for cell in dict.fromkeys((row.threads, row.batch, row.seq) for row in rows):
        threads, batch, seq = cell
        here = [row for row in rows if (row.threads, row.batch, row.seq) == cell]
        console.print(f"\nthreads {threads}, {batch} x {seq} tokens", style="bold")
        console.print(_table(here, rounds, box.SIMPLE_HEAD if is_terminal else box.MARKDOWN))
        for precision in dict.fromkeys(row.precision for row in here):
            if line := verdict([row for row in here if row.precision == precision]):
                console.print(f"{precision}: {line}", soft_wrap=True)


def _word(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _table(rows: Sequence[Row], rounds: int, style: box.Box) -> Table:
    """The rows of one cell by precision, fastest first, those without a time last."""
    table = Table(box=style)
    table.add_column("class")
    table.add_column("engine", no_wrap=True)
    for title in ("ms", "spread", "x eager", "cosine mean", "cosine min", "probe", "rounds"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("note")
    (eager,) = (row for row in rows if row.engine == EAGER)
    for precision in dict.fromkeys(row.precision for row in rows):
        group = [row for row in rows if row.precision == precision]
        best = best_peer(group)
        for row in sorted(group, key=lambda row: median(row.seconds or (float("inf"),))):
            table.add_row(precision, *_cells(row, eager, row is best, rounds))
        table.add_section()
    return table


def _cells(row: Row, eager: Row, is_best: bool, rounds: int) -> tuple[str, ...]:
    """What the table says about one engine, without its class."""
    name = f"[bold]{row.engine}[/bold]" if row.is_ours else row.engine
    if not row.seconds or row.loss is None:
        return (name, *("",) * 7, escape(row.reason))
    notes = ["best peer"] * is_best
    if len(row.seconds) == 1:
        notes.append("one call: slower than the budget of a cell")
    elif len(row.seconds) < rounds:
        notes.append("fewer rounds: slow")
    return (
        name,
        f"{median(row.seconds) * 1e3:.2f}",
        f"{_spread(row.seconds):.0%}",
        f"{row.speed(eager):.2f}",
        f"{row.loss.cosine_mean:.6f}",
        f"{row.loss.cosine_min:.6f}",
        f"{row.loss.accuracy:.1%}",
        str(len(row.seconds)),
        "; ".join(notes),
    )


def _spread(seconds: Sequence[float]) -> float:
    """Half of the distance between the quartiles, as a share of the median."""
    if len(seconds) < 2:
        return 0.0
    low, _, high = quantiles(seconds, n=4, method="inclusive")
    return (high - low) / 2 / median(seconds)


def best_peer(rows: Sequence[Row]) -> Row | None:
    """The fastest of others' engines that ran."""
    others = [row for row in rows if row.seconds and not row.is_ours]
    return min(others, key=lambda row: median(row.seconds), default=None)


def verdict(rows: Sequence[Row]) -> str:
    """Whether ours reaches the best peer of a class, in speed and in loss, as a sentence.

    The goal is the peer's speed within 3 %, for int8 more than that, at equal or lower loss.
    """
    ours = next((row for row in rows if row.is_ours and row.seconds), None)
    best = best_peer(rows)
    if ours is None or best is None or ours.loss is None or best.loss is None:
        return ""
    speed, is_lossless = ours.speed(best), ours.loss.is_at_most(best.loss)
    place = "ahead of" if speed > 1 else "within 3 % of" if speed >= LEVEL else "behind"
    is_met = is_lossless and (speed > 1 if ours.precision == "int8" else speed >= LEVEL)
    return (
        f"{ours.engine} is {place} {best.engine} ({speed:.3f}x as fast) "
        f"at {'equal or lower' if is_lossless else 'HIGHER'} loss "
        f"(cosine {ours.loss.cosine_mean:.6f} against {best.loss.cosine_mean:.6f}, "
        f"probe {ours.loss.accuracy:.1%} against {best.loss.accuracy:.1%}): "
        f"goal {'met' if is_met else 'missed'}"
    )


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="5 rounds, 3 seconds per cell")
    parser.add_argument("--threads", type=_numbers, default=[1, 2], help="such as 1,2")
    parser.add_argument("--batch", type=_numbers, default=[1, 8], help="such as 1,8")
    parser.add_argument("--seq", type=int, default=128, help="tokens per row, 2 to 512")
    parser.add_argument("--rounds", type=int, help="rounds per cell; 25, or 5 if quick")
    parser.add_argument("--budget", type=float, help="seconds per engine and cell; 15, 3 if quick")
    parser.add_argument("--only", type=re.compile, default="", help="engines whose name matches")
    parser.add_argument("--peers-only", action="store_true", help="leave Penstock out")
    parser.add_argument("--json", type=Path, help="also write every measured time to this file")
    args = parser.parse_args(argv)
    args.rounds = args.rounds or (5 if args.quick else 25)
    args.budget = args.budget or (3.0 if args.quick else 15.0)
    return args


def main() -> None:
    """Measure, print, and write the file asked for."""
    args, log, found = parse(), Console(stderr=True), environment()
    with tempfile.TemporaryDirectory() as folder:
        chosen = [
            peer
            for peer in peers(Path(folder))
            if peer.name == EAGER or (re.search(args.only, peer.name) and not (peer.is_ours and args.peers_only))
        ]
        rows = run(chosen, args, log)
    show(rows, found, args.rounds)
    if args.json:
        data = {"environment": found, "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
