"""Does depth pay? ``python -m examples.bench_depth [--parts curve,budget,generate] [--json FILE]``.

curve     one engine with exits, sent out at each of its exits in turn: time against the share of layers that ran
budget    exits calibrated to a budget, on held-out inputs, against our own full-depth engine, eager and torch.compile
generate  tokens a second: plain decoding, self-speculation, eager with its cache, torch.compile

All of a part is timed in one process, interleaved; medians. ``layers / all`` is the ideal: a curve above it shows what
the head, the gather and the branch cost.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from backends import WEIGHTS_FILE, BuildOptions, backend
from compiler.capture.capture import capture
from compiler.pipeline.recipe import recipe
from compiler.select.measure import torch_threads
from examples.trained import write_aside
from ir import Graph
from ir.weights import save
from passes.depth_exits import LAYERS, THRESHOLDS, insert_exits

Call = Callable[[], object]
INF = float("inf")


def in_turns(calls: Mapping[str, Call], seconds: float, least: int = 9) -> dict[str, float]:
    """Median milliseconds of each call, all taking turns."""
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while min(map(len, taken.values())) < least or time.perf_counter() < end:
        for name, call in calls.items():
            time.sleep(0.005)  # threads of the engine before it stop spinning
            start = time.perf_counter()
            call()
            taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in taken.items()}


def loaded(graph: Graph, engine: str, folder: Path, threads: int) -> Any:
    """A graph on an engine."""
    folder.mkdir(parents=True)
    save(graph.weights, folder / WEIGHTS_FILE)
    one = backend(engine)
    one.build(graph, folder, BuildOptions())
    return one.load(folder, threads)


# --- time against layers -------------------------------------------------------------------------


def curve(args: argparse.Namespace) -> list[dict[str, Any]]:
    """MiniLM, exits after each layer but the last, 128 tokens."""
    from examples.minilm import Encoder, model

    spec = model()
    graph = capture(spec)
    recipe("fp32").pipelines()["fp32"].run(graph, samples=spec.calibration[:1])
    exiting = insert_exits(graph, (), "agreement")
    exits = exiting.initial[THRESHOLDS].numel()
    rows = []
    texts = ["the compute that an input needs, and no more " * 20]
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.engines.split(","):
            place = Path(scratch) / name
            whole, deep = (
                loaded(g, name, place / key, args.threads) for key, g in (("whole", graph), ("exits", exiting))
            )
            for batch in (1, 8):
                inputs = Encoder()(texts * batch, length=128)
                calls: dict[str, Call] = {"whole": lambda i=inputs, e=whole: e(i)}
                for layer in range(1, exits + 2):
                    tau = torch.full((exits,), INF)
                    tau[layer - 1 :] = -INF
                    given = {**inputs, THRESHOLDS: tau}
                    left = deep(given)[f"trace:{LAYERS}"]
                    assert (left == layer).all(), f"{name} left after {left}, not {layer}"
                    calls[str(layer)] = lambda i=given, e=deep: e(i)
                times = in_turns(calls, args.seconds)
                for layer in range(1, exits + 2):
                    share, ideal = times[str(layer)] / times["whole"], layer / (exits + 1)
                    rows.append({
                        "part": "curve", "engine": name, "batch": batch, "layers": layer,
                        "ms": round(times[str(layer)], 3),
                        "of_whole": round(share, 3), "ideal": round(ideal, 3), "above_ideal": round(share - ideal, 3),
                    })  # fmt: skip
                    print(f"curve {name:12} batch {batch}: {layer} layers {times[str(layer)]:8.2f} ms, "
                          f"{share:.3f} of the engine without exits (ideal {ideal:.3f})")  # fmt: skip
    return rows


PARTS: Mapping[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {"curve": curve}


def main(arguments: list[str]) -> int:
    """Run the parts, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--engines", default="onnxruntime,openvino")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8.0, help="of timing per row")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    with torch_threads(args.threads):
        rows = [row for part in args.parts.split(",") for row in PARTS[part](args)]
    if args.json:
        found = {"machine": platform.processor() or platform.machine(), "threads": args.threads, "rows": rows}
        write_aside(args.json, json.dumps(found, indent=1).encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
