"""What it saves that rows leave early: ``python -m examples.bench_rows [--batch 8] [--length 128] [--threads 1]``.

MiniLM, six layers; after the third only the live rows go on. Time by number of live rows, on each engine and in each
lowering of ``rows``, as a ratio to the same model without any exit on the same engine, timed interleaved.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import penstock
from backends import backend
from backends.base import WEIGHTS_FILE, Engine
from compiler.capture.capture import capture
from compiler.pipeline.pipeline import Pipeline
from compiler.pipeline.recipe import PRESETS
from compiler.select.measure import interleave
from examples.minilm import LONGEST, model
from ir import ROWS, Graph, interpret
from ir import weights as weight_files
from ir.rows import MODES, lowered
from passes import PASSES, parse_passes

_HALF = 3
_ENGINES = ("onnxruntime", "openvino")


class LeavesEarly(nn.Module):
    """The second half of the encoder for rows that are alive; ``exits=False``: for all of them."""

    def __init__(self, encoder: nn.Module, exits: bool) -> None:
        super().__init__()
        self.encoder, self.exits = encoder, exits

    def forward(self, input_ids: Tensor, attention_mask: Tensor, live: Tensor) -> Tensor:
        """Hidden states ``[batch, seq, 384]``; ``live``: bool ``[batch]``."""
        h = self.encoder.embeddings(input_ids)
        mask = attention_mask[:, None, None, :] > 0
        h = self._layers(slice(0, _HALF), h, mask)
        if not self.exits:
            return self._layers(slice(_HALF, None), h, mask) + 0 * live[:, None, None]
        index = live.nonzero().squeeze(-1)
        done = self._layers(slice(_HALF, None), h.index_select(0, index), mask.index_select(0, index))
        return h.index_copy(0, index, done)

    def _layers(self, part: slice, h: Tensor, mask: Tensor) -> Tensor:
        for layer in self.encoder.encoder.layer[part]:
            made = layer(h, mask)
            h = made[0] if isinstance(made, tuple) else made
        return h


def captured(encoder: nn.Module, exits: bool, batch: int, length: int) -> Graph:
    """The optimised graph; ``rows`` stands where the live rows go on."""
    axes = {0: penstock.Dim("batch", 1, 64), 1: penstock.Dim("seq", 2, LONGEST)}
    spec = penstock.ModelSpec(
        LeavesEarly(encoder, exits).eval(),
        inputs(batch, length, batch // 2),
        {"input_ids": axes, "attention_mask": axes, "live": {0: axes[0]}},
        name="leaves_early",
    )
    graph = capture(spec)
    Pipeline(*parse_passes(PRESETS["fp32"], PASSES)).run(graph)
    assert any(node.op is ROWS for node in graph) == exits
    return graph


def inputs(batch: int, length: int, live: int) -> dict[str, Tensor]:
    """Random tokens; the first ``live`` rows go on."""
    tokens = torch.randint(1000, 20000, (batch, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "live": torch.arange(batch) < live}


def built(graph: Graph, engine: str, folder: Path, threads: int) -> Engine:
    """Build and load."""
    folder.mkdir()
    weight_files.save(graph.weights, folder / WEIGHTS_FILE)
    chosen = backend(engine)
    chosen.build(graph, folder)
    return chosen.load(folder, threads)


def bench(engine: str, batch: int, length: int, threads: int, seconds: float) -> None:
    """Print a table for one engine."""
    encoder = model().model.encoder
    whole, graph = (captured(encoder, exits, batch, length) for exits in (False, True))
    counts = sorted({batch, batch // 2, batch // 4, 1, 0}, reverse=True)
    cases = {count: inputs(batch, length, count) for count in counts}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        full = built(whole, engine, folder / "full", threads)
        engines = {mode: built(lowered(graph, mode), engine, folder / mode, threads) for mode in MODES}
        calls: dict[str, Callable[[], object]] = {"full": partial(full, cases[batch])}
        off = 0.0
        for mode, run in engines.items():
            for count, given in cases.items():
                calls[f"{mode} {count}"] = partial(run, given)
                want = interpret(graph, given)["output"]
                off = max(off, float((run(given)["output"] - want).abs().max()))
        found = interleave(calls, seconds)
    base = found["full"].median
    print(f"{engine} {backend(engine).version()}, {batch}x{length}, {threads} thread(s): full {base * 1e3:.1f} ms")
    print(f"  largest difference to the reference {off:.1e}")
    print(f"  {'live of ' + str(batch):>12} {'compacted':>10} {'masked':>10} {'ideal':>10}")
    for count in cases:
        row = [base / found[f"{mode} {count}"].median for mode in MODES]
        ideal = 1 / (0.5 + 0.5 * count / batch)
        print(f"  {count:12d} {row[0]:9.2f}x {row[1]:9.2f}x {ideal:9.2f}x")


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engine", choices=_ENGINES, action="append", help="one or more; all of them when absent")
    parser.add_argument("--seconds", type=float, default=30.0, help="of timing per engine")
    chosen = parser.parse_args()
    for engine in chosen.engine or _ENGINES:
        bench(engine, chosen.batch, chosen.length, chosen.threads, chosen.seconds)


if __name__ == "__main__":
    main()
