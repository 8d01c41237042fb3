"""Engines that run here, on MiniLM: ``python -m examples.bench_engines [--engines tvm,openvino] [--batch 1,8]``.

The same graph of each recipe on each engine, timed interleaved with ONNX Runtime fp32; ratios of medians below one are
faster. Thread pools of several engines in one process disturb each other, so each engine is timed in a process of its
own, beside ONNX Runtime alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from backends import WEIGHTS_FILE, backend
from backends.rows import prepared
from compiler.capture.capture import capture
from compiler.capture.inputs import flatten_inputs
from compiler.pipeline.recipe import recipe
from compiler.select.measure import interleave, torch_threads
from compiler.select.reference import Reference
from examples.minilm import model
from ir import Graph
from ir.weights import save

BASE = "onnxruntime"
SEQ = 128


def built(graph: Graph, engine: str, threads: int, folder: Path) -> Any:
    """The engine of a graph."""
    folder.mkdir()
    made = backend(engine)
    ready = prepared(graph, made)
    save(ready.graph.weights, folder / WEIGHTS_FILE)
    made.build(ready.graph, folder)
    return made.load(folder, threads)


def measured(
    engine: str, variants: list[str], batches: list[int], threads: int, seconds: float
) -> list[dict[str, Any]]:
    """A row per variant and batch: median time over that of the base, which is fp32."""
    spec = model()
    graph = capture(spec)
    reference = Reference(spec, graph)
    graphs = {}
    for variant in {"fp32", *variants}:
        graphs[variant] = capture(spec)
        recipe(variant).pipelines()[variant].run(graphs[variant], samples=reference.samples)
    rows = []
    with tempfile.TemporaryDirectory() as scratch, torch_threads(threads):
        base = built(graphs["fp32"], BASE, threads, Path(scratch) / "base")
        for variant in variants:
            run = built(graphs[variant], engine, threads, Path(scratch) / variant)
            loss = reference.judge(run).loss
            for batch in batches:
                inputs = flatten_inputs(_inputs(spec.calibration[0], batch))
                times = interleave({"base": partial(base, inputs), "run": partial(run, inputs)}, seconds, most=60)
                rows.append({
                    "engine": engine, "variant": variant, "batch": batch, "threads": threads, "loss": loss,
                    "ms": times["run"].median * 1e3, "base_ms": times["base"].median * 1e3,
                    "ratio": times["run"].median / times["base"].median, "rounds": times["run"].rounds,
                })  # fmt: skip
    return rows


def _inputs(sample: Any, batch: int) -> dict[str, torch.Tensor]:
    """Real tokens of a calibration batch, repeated to ``[batch, 128]``."""
    return {name: tensor.repeat(batch, SEQ)[:batch, :SEQ].contiguous() for name, tensor in sample.items()}


def _told(row: dict[str, Any]) -> str:
    where = f"{row['engine']:<12} {row['variant']:<5} {row['threads']} thread(s) batch {row['batch']}"
    times = f"{row['ms']:8.2f} ms, {row['ratio']:.2f} of ONNX Runtime fp32 ({row['base_ms']:.2f} ms)"
    return f"{where}: {times}, loss {row['loss']:.2g}, {row['rounds']} rounds"


def main() -> None:
    """Measure and print; one child process per engine."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--engines", default="openvino,tvm,inductor")
    options.add_argument("--variants", default="fp32,int8")
    options.add_argument("--batch", default="1,8")
    options.add_argument("--threads", default="1,2")
    options.add_argument("--seconds", type=float, default=6.0)
    options.add_argument("--json", type=Path)
    options.add_argument("--one", help=argparse.SUPPRESS)
    asked = options.parse_args()
    batches = [int(b) for b in asked.batch.split(",")]
    if asked.one:
        found = measured(asked.one, asked.variants.split(","), batches, int(asked.threads), asked.seconds)
        print(json.dumps(found))
        return
    rows: list[dict[str, Any]] = []
    for engine in asked.engines.split(","):
        for threads in asked.threads.split(","):
            command = [sys.executable, "-m", __spec__.name, "--one", engine, "--variants", asked.variants]
            command += ["--batch", asked.batch, "--threads", threads, "--seconds", str(asked.seconds)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                print(f"{engine}, {threads} thread(s): failed")
                continue
            rows += (found := json.loads(done.stdout.splitlines()[-1]))
            for row in found:
                print(_told(row), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
