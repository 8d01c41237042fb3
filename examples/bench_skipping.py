"""Does skipping pay? ``python -m examples.bench_skipping [--engines onnxruntime,openvino] [--batch 1,8]``.

An encoder of MiniLM's size (6 layers of width 384, random weights) whose branch after the third layer skips the other
three, on every engine that runs here, and as segments of it. A threshold that is an input decides; the time of the
exit path over that of the full path should come near one half, and near that of an encoder of three layers alone.
Another graph, of nothing but tiny branches, tells what one dispatch of a segment costs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention

from backends import BACKENDS, Backend, backend
from backends.segments import build_segments, cut, load_segments, unsupported_segments
from compiler.capture.capture import capture
from compiler.pipeline.recipe import recipe
from compiler.select.lowering import lower
from compiler.select.measure import torch_threads
from compiler.select.skipping import Limits
from compiler.spec import Dim, ModelSpec
from ir import COND, Block, Graph, Output, TensorType, Value, op
from ir.errors import PenstockError
from ir.weights import save

WIDTH, HEADS, DEPTH, EXIT, SEQ = 384, 12, 6, 3, 128
ALWAYS, NEVER = -1.0, 2.0
GOAL = 0.55
_BRANCHES = 16


class Layer(nn.Module):
    """One of BERT's: attention and a feed-forward part, each added and normed."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [batch, seq, 384]."""
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        attended = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = layer_norm(x + self.out(attended), (WIDTH,))
        return layer_norm(x + self.down(gelu(self.up(x))), (WIDTH,))


class Straight(nn.Module):
    """Layers and nothing else."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [batch, seq, 384]."""
        return self.layers(x)


class Exiting(nn.Module):
    """Leaves after the third layer when a small head is surer of every row than a threshold."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.first, self.rest = nn.Sequential(*layers[:EXIT]), nn.Sequential(*layers[EXIT:])
        self.head = nn.Linear(WIDTH, 8)

    def forward(self, x: Tensor, threshold: Tensor) -> Tensor:
        """Float32 [batch, seq, 384], and a number: below 0 leaves always, above 1 never."""
        y = self.first(x)
        sure = self.head(y.mean(1)).softmax(-1).amax(-1).min() > threshold
        return torch.cond(sure, lambda y: y.clone(), self.rest, (y,))


def graphs() -> dict[str, Graph]:
    """The encoder that may exit, and straight ones of three and of six layers over the same weights."""
    torch.manual_seed(0)
    layers = [Layer() for _ in range(DEPTH)]
    x, threshold = torch.randn(2, SEQ, WIDTH), torch.tensor(0.5)
    dims = {"x": {0: Dim("batch", 1, 64), 1: Dim("seq", 2, 512)}}
    specs = {
        "exiting": ModelSpec(Exiting(layers).eval(), {"x": x, "threshold": threshold}, dims, name="exiting"),
        "half": ModelSpec(Straight(layers[:EXIT]).eval(), {"x": x}, dims, name="half"),
        "whole": ModelSpec(Straight(layers).eval(), {"x": x}, dims, name="whole"),
    }
    made = {}
    for name, spec in specs.items():
        made[name] = capture(spec)
        recipe("fp32").pipelines()["fp32"].run(made[name])
    return made


def engines(made: Mapping[str, Graph], one: Backend, cuts: bool, folder: Path, threads: int | None) -> dict[str, Any]:
    """The three graphs on one backend; the first as segments, or as a compile would choose."""
    found: dict[str, Any] = {}
    for name, graph in made.items():
        place = folder / f"{one.name}-{cuts}-{name}"
        if name == "exiting" and cuts:
            place.mkdir()
            save(graph.weights, place / "weights.safetensors")
            build_segments(graph, place, one)
            found[name] = load_segments(place, one, threads)
            continue
        inputs = {"x": torch.randn(1, SEQ, WIDTH), "threshold": torch.tensor(NEVER)}
        lowered = lower(graph, one, place, inputs, Limits(threads=threads))
        found[name] = lowered.engine
        if name == "exiting":
            found["lowered"] = lowered
    return found


def figures(found: Mapping[str, Any], batch: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of each path, and their ratios."""
    x = torch.randn(batch, SEQ, WIDTH)
    exits, stays = ({"x": x, "threshold": torch.tensor(t)} for t in (ALWAYS, NEVER))
    calls: dict[str, Callable[[], object]] = {
        "exit": lambda: found["exiting"](exits),
        "full": lambda: found["exiting"](stays),
        "half": lambda: found["half"]({"x": x}),
        "whole": lambda: found["whole"]({"x": x}),
    }
    wall, cpu = _timed(calls, seconds)
    least = {name: min(times) * 1e3 for name, times in wall.items()}
    work = {name: min(times) * 1e3 for name, times in cpu.items()}
    return {
        "batch": batch,
        "rounds": len(wall["exit"]),
        "median_ms": {name: round(statistics.median(times) * 1e3, 3) for name, times in wall.items()},
        "least_ms": {name: round(ms, 3) for name, ms in least.items()},
        "cpu_ms": {name: round(ms, 3) for name, ms in work.items()},
        "exit_to_full": round(least["exit"] / least["full"], 3),
        "exit_to_full_cpu": round(work["exit"] / work["full"], 3),
        "exit_to_half": round(least["exit"] / least["half"], 3),
        "exit_to_half_cpu": round(work["exit"] / work["half"], 3),
        "full_to_whole": round(least["full"] / least["whole"], 3),
        "meets_goal": least["exit"] / least["full"] <= GOAL,
    }


def _timed(
    calls: Mapping[str, Callable[[], object]], seconds: float, least: int = 12
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds by the clock and of processor time, interleaved. On a shared machine the second is the quieter one."""
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while len(wall["exit"]) < least or time.perf_counter() < end:
        for name, call in calls.items():
            time.sleep(0.01)  # threads of the engine before it stop spinning
            call()
            start, worked = time.perf_counter(), time.process_time()
            call()
            cpu[name].append(time.process_time() - worked)
            wall[name].append(time.perf_counter() - start)
    return wall, cpu


def dispatch_us(one: Backend, folder: Path) -> dict[str, float]:
    """Processor time, in microseconds, of one dispatch of a segment that does next to nothing, its call included."""
    graph = _tiny_branches()
    save(graph.weights, folder / "weights.safetensors")
    build_segments(graph, folder, one)
    engine = load_segments(folder, one, 1)
    alone = one.load(folder, 1, "engine.0")
    inputs = {"x": torch.rand(1, 4)}
    count = len(cut(graph).segments) / 3 * 2  # of the three pieces of a branch two run
    found: dict[str, list[float]] = {"dispatch": [], "call": []}
    for _ in range(30):
        for name, call, runs in (("dispatch", lambda: engine(inputs), count), ("call", lambda: alone(inputs), 1)):
            call()
            start = time.process_time()
            for _ in range(10):
                call()
            found[name].append((time.process_time() - start) / 10 / runs * 1e6)
    return {name: round(min(times), 1) for name, times in found.items()}


def _tiny_branches() -> Graph:
    graph = Graph("tiny")
    x = graph.add_input("input", "x", TensorType(torch.float32, (1, 4)))
    for _ in range(_BRANCHES):
        test = graph.insert(op("aten.gt.Scalar"), graph.insert(op("aten.amax.default"), x).result, 0.0).result
        regions = []
        for name in ("aten.sigmoid.default", "aten.exp.default"):
            block = Block([Value(x.type, "x")])
            graph.returns(graph.insert(op(name), block.args[0], block=block).result, block=block)
            regions.append(block)
        x = graph.insert(COND, test, (x,), regions=tuple(regions)).result
    graph.returns(x, outputs=[Output("output", "y")])
    return graph


def run(
    made: Mapping[str, Graph], name: str, batches: Sequence[int], threads: int | None, seconds: float
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows of one engine, natively and as segments, and what a dispatch costs it."""
    one = backend(name)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch, torch_threads(threads):
        for cuts in (False, True) if not unsupported_segments(made["exiting"], one) else (False,):
            row: dict[str, Any] = {"engine": name, "version": one.version(), "lowering": "segments" if cuts else ""}
            try:
                found = engines(made, one, cuts, Path(scratch), threads)
            except PenstockError as error:
                rows.append({**row, "refused": error.what.splitlines()[0]})
                print(f"{name}: {rows[-1]['refused']}")
                continue
            if "lowered" in found:
                lowered = found["lowered"]
                row |= {"lowering": lowered.lowering, "proofs": [f"{p.evidence}: {p.detail}" for p in lowered.flow]}
            for batch in batches:
                rows.append({**row, **figures(found, batch, seconds)})
                _say(rows[-1])
        place = Path(scratch) / "tiny"
        place.mkdir()
        return rows, dispatch_us(one, place)


def _say(row: Mapping[str, Any]) -> None:
    ms = row["least_ms"]
    print(
        f"{row['engine']:12} {row['lowering']:9} batch {row['batch']}: exit {ms['exit']:.2f} ms, "
        f"full {ms['full']:.2f} ms, exit/full {row['exit_to_full']:.3f} (processor {row['exit_to_full_cpu']:.3f}), "
        f"exit/3 layers {row['exit_to_half']:.3f} ({row['exit_to_half_cpu']:.3f}), "
        f"full/6 layers {row['full_to_whole']:.3f}",
        flush=True,
    )


def main() -> None:
    here = [b.name for b in BACKENDS if b.version() is not None and b.name != "reference" and not _elsewhere(b)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default=",".join(here))
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing per row")
    parser.add_argument("--json", type=Path, default=Path("bench_skipping.json"))
    given = parser.parse_args()
    batches = [int(b) for b in given.batch.split(",")]
    made = graphs()
    found: dict[str, Any] = {
        "model": f"{DEPTH} layers of width {WIDTH}, exit after {EXIT}, seq {SEQ}, fp32, random weights",
        "machine": platform.processor() or platform.machine(),
        "threads": given.threads,
        "date": time.strftime("%Y-%m-%d"),
        "goal": GOAL,
        "rows": [],
        "dispatch_us": {},
    }
    for name in given.engines.split(","):
        rows, cost = run(made, name, batches, given.threads, given.seconds)
        found["rows"] += rows
        found["dispatch_us"][name] = cost
        print(f"{name}: {cost['dispatch']} us per dispatch of a tiny segment, {cost['call']} us of them its call")
        given.json.write_text(json.dumps(found, indent=1) + "\n")  # what is measured is kept
    print(f"written: {given.json}")


def _elsewhere(one: Backend) -> bool:
    """Whether a backend builds for machines that are not here."""
    from backends import CPU

    return bool(one.why_not(CPU))


if __name__ == "__main__":
    main()
