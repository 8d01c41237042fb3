"""Does depth pay? ``python -m examples.bench_depth [--parts curve,budget,generate] [--json FILE]``.

curve     one engine with exits, sent out at each of its exits in turn: time against the share of layers that ran
budget    exits calibrated to a budget, fp32 and int8, on held-out inputs, against our own full-depth engines, eager and
          torch.compile; quality with standard errors, and what bounds it: the oracle's layers, the cost of exits
generate  tokens a second: plain decoding, self-speculation, exits per token by each fill, eager with its cache,
          torch.compile; and how unlikely the model itself finds the text, in bits a byte

All of a part is timed in one process, interleaved; medians. ``layers / all`` is the ideal: a curve above it shows what
the head, the gather and the branch cost.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch.nn.functional import pad

import penstock
from backends import WEIGHTS_FILE, BuildOptions, backend
from compiler.artifact.generation import Generation
from compiler.capture.capture import capture
from compiler.depth.tapped import Run, loss_kind, row_losses
from compiler.pipeline.recipe import recipe
from compiler.report.environment import environment
from compiler.select.measure import torch_threads
from examples.trained import write_aside
from ir import Graph
from ir.errors import PenstockError
from ir.weights import save
from passes.depth_exits import LAYERS, THRESHOLDS, insert_exits

Call = Callable[[], object]
INF = float("inf")


def in_turns(
    calls: Mapping[str, Call], seconds: float, least: int = 9, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median milliseconds of each call by a clock, all taking turns."""
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while min(map(len, taken.values())) < least or time.perf_counter() < end:
        for name, call in calls.items():
            time.sleep(0.005)  # threads of the engine before it stop spinning
            start = clock()
            call()
            taken[name].append(1e3 * (clock() - start))
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


# --- exits to a budget ---------------------------------------------------------------------------


EXITS: Mapping[str, str] = {"exits": "fp32", "int8-exits": "int8"}
"""Recipes with exits, each with the one that computes the same at all blocks."""


def budget(args: argparse.Namespace) -> list[dict[str, Any]]:
    """MiniLM and the classifier on their report parts: inputs that no fit, threshold or choice has seen."""
    rows = []
    for model in args.models.split(","):
        spec = import_module(f"examples.{model}").model()
        with tempfile.TemporaryDirectory() as scratch:
            engines: dict[str, Any] = {}
            every = [(r, e) for r in EXITS.values() for e in args.engines.split(",")]  # texts differ in length: no race
            for made_by, engine in [*every, *((r, "auto") for r in EXITS)]:
                name = made_by if engine == "auto" else f"{made_by} on {engine}"
                path = Path(scratch) / f"{name}.penstock"
                try:
                    made = penstock.compile(
                        spec, output=path, recipe=made_by, engine=engine, threads=args.threads, max_drop=args.max_drop
                    )
                except PenstockError as error:  # int8 may lose more than is allowed
                    print(f"budget {model:10} {name}: {error.what}")
                else:
                    engines[name] = penstock.load(made.path, threads=args.threads)
            quality = {name: _quality(spec, engine) for name, engine in engines.items()}
            for name, told in quality.items():
                print(f"budget {model:10} {name}: {told}")
            rows += [_timed(model, spec, engines, quality, batch, args) for batch in (1, 8)]
    return rows


@runtime_checkable
class RowMetric(Protocol):
    """A metric that tells its rows apart, as those of the examples do."""

    def rows(self, engine: Callable[..., Mapping[str, torch.Tensor]]) -> torch.Tensor:
        """Quality of each row, larger is better: float32 [rows]."""
        ...


def _quality(spec: penstock.ModelSpec, engine: Any) -> dict[str, Any]:
    """What an engine says on the report part, each number with its standard error.

    ``drop`` is the metric's, row by row, ``changed`` the loss, both against the original in eager mode; ``by_exits`` is
    the loss against the engine's own answers at all blocks.
    """
    report, metric = spec.exit_samples["report"], spec.metric
    assert isinstance(metric, RowMetric)
    with torch.no_grad():
        drop = metric.rows(spec.model) - metric.rows(engine)
        want = [spec.model(**inputs) for inputs in report]
    got = [engine.trace(**inputs) for inputs in report]
    kind = loss_kind([Run(report[0], want[0])], list(want[0]))

    def lost(full: Sequence[Mapping[str, torch.Tensor]]) -> tuple[float, float]:
        return _mean(torch.cat([
            row_losses(f, g, i, kind, None) for f, (g, _), i in zip(full, got, report, strict=True)
        ]))  # fmt: skip

    found: dict[str, Any] = {
        "engine": engine.facts()["engine"],
        "rows": len(drop),
        "drop": _mean(drop),
        kind: lost(want),
    }
    if section := engine.manifest.depth:
        layers = torch.cat([trace[LAYERS] for _, trace in got])
        found |= {
            "by_exits": lost([engine(effort=1, **inputs) for inputs in report]), "layers": _mean(layers),
            "oracle_layers": round(section["oracle"], 2), "blocks": section["blocks"], "exits": section["exits"],
        }  # fmt: skip
    return found


def _mean(rows: torch.Tensor) -> tuple[float, float]:
    """With its standard error."""
    rows = rows.double()
    return round(float(rows.mean()), 4), round(float(rows.std() / len(rows) ** 0.5), 4)


def _timed(
    model: str, spec: penstock.ModelSpec, engines: Mapping[str, Any], quality: Mapping[str, Any], batch: int,
    args: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    """Time over held-out inputs in turn; engines with exits also at all blocks, to see what the exits cost."""
    given = _batched(spec.exit_samples["report"], batch, args.texts)
    compiled = torch.compile(spec.model, dynamic=True)
    calls: dict[str, Call] = {"eager": lambda: [spec.model(**i) for i in given]}
    calls["torch.compile"] = lambda: [compiled(**i) for i in given]
    for name, engine in engines.items():
        calls[name] = lambda e=engine: [e(**i) for i in given]
        if engine.manifest.depth:
            calls[f"{name}, all blocks"] = lambda e=engine: [e(effort=1, **i) for i in given]
    with torch.no_grad():
        times = in_turns(calls, args.seconds, 5)
        spent = in_turns(calls, args.seconds, 5, time.process_time)
    full = min((n for n in engines if n not in EXITS), key=times.__getitem__)
    row: dict[str, Any] = {
        "part": "budget", "model": model, "batch": batch, "max_drop": args.max_drop, "quality": quality,
        "ms": {name: round(ms / len(given), 3) for name, ms in times.items()},
        "process_ms": {name: round(ms / len(given), 3) for name, ms in spent.items()},
        "full": full, "over_full": {}, "over_same": {}, "overhead": {}, "check_of_a_block": {},
    }  # fmt: skip
    for name, recipe_ in EXITS.items():
        if name not in engines or not engines[name].manifest.depth:
            continue
        same = f"{recipe_} on {engines[name].manifest.engine.name}"
        told = quality[name]
        row["over_full"][name] = round(times[full] / times[name], 3)
        line = (
            f"budget {model:10} batch {batch} {name}: {times[full] / times[name]:.2f}x {full}, our best at all blocks"
        )
        if same in engines:
            over = times[f"{name}, all blocks"] / times[same]
            row["over_same"][name] = round(times[same] / times[name], 3), round(spent[same] / spent[name], 3)
            row["overhead"][name] = round(over - 1, 3)
            row["check_of_a_block"][name] = round((over - 1) * told["blocks"] / len(told["exits"]), 3)
            line += (
                f"; {row['over_same'][name][0]}x {same} ({row['over_same'][name][1]}x by process time); exits cost "
                f"{over - 1:.1%} at all blocks, {row['check_of_a_block'][name]:.0%} of a block each"
            )
        print(f"{line}; {told['layers'][0]} layers, {told['oracle_layers']} if the first good answer were known")
    return row


def _batched(report: Sequence[Mapping[str, torch.Tensor]], batch: int, most: int) -> list[dict[str, torch.Tensor]]:
    """At most so many rows, evenly from all, as batches of texts of about one length."""
    rows = [{n: t[i : i + 1] for n, t in one.items()} for one in report for i in range(len(one["input_ids"]))]
    count = min(most, len(rows)) // batch * batch
    rows = [rows[i * len(rows) // count] for i in range(count)]
    found = []
    for start in range(0, count, batch):
        chosen = rows[start : start + batch]
        longest = max(int(row["attention_mask"].sum()) for row in chosen)
        found.append({
            name: torch.cat([pad(row[name], (0, longest))[:, :longest] for row in chosen]) for name in chosen[0]
        })  # fmt: skip
    return found


# --- tokens a second -----------------------------------------------------------------------------


def generate(args: argparse.Namespace) -> list[dict[str, Any]]:
    """TinyLM writes on after held-out sources: plainly, by drafts, by exits, and the same loop over eager mode."""
    from compiler.generate.step import step_of
    from compiler.runtime.decoding import FILLS
    from compiler.runtime.generate import Generator
    from examples.tinylm import load_tinylm, model
    from examples.tinylm_data import read_corpus, windows

    prompts = [bytes(w[:64].tolist()) for w in windows(read_corpus().held_out, 256, 8)]
    network = load_tinylm()
    ways: dict[str, Callable[[], list[tuple[int, ...]]]] = {}
    plans: dict[str, str] = {}

    def add(name: str, one: Any, **options: Any) -> None:
        ways[name] = lambda: [tuple(one.generate(p, args.tokens, **options)[0].tokens) for p in prompts]

    with tempfile.TemporaryDirectory() as scratch:
        for depth in args.draft:
            path, name = Path(scratch) / f"lm{depth}.penstock", f"{depth} layers draft, planned"
            made = penstock.compile(
                model(), output=path, task="generate", draft=depth, threads=args.threads, max_drop=args.max_drop
            )
            engine = penstock.load(made.path, threads=args.threads)
            if "plain" not in ways:
                add("plain", engine)
            add(name, engine, draft=True)
            exits = made.report["token_exits"]
            if exits["rows"]:
                alone = f"{depth} layers alone, planned"
                add(alone, engine, exit_at=True)
                plans[alone] = (
                    f"from {exits['threshold']:.3f} on, {exits['left']:.0%} of tokens, expected {exits['gains']}"
                )
            told = made.report["drafts"]
            plans[name] = f"{told['ahead']} ahead, floor {told['floor']:g}, expected {told['gain']:.2f}x"
            for ahead in args.ahead:
                add(f"{depth} layers draft, {ahead} ahead", engine, draft=ahead)
            for sure, fill in itertools.product(args.exit_at, FILLS):
                add(f"{depth} layers alone from {sure:g} on, {fill}", engine, exit_at=sure, fill=fill)
        layout, step = network.cache_layout(), step_of(network, network.config.layers)
        layout = Generation(**asdict(layout))
        for name, decode in (("eager", step), ("torch.compile", torch.compile(step, dynamic=True))):
            add(name, Generator({"engine": _Eager(step, step.depth), "decode": _Eager(decode, step.depth)}, layout,
                                torch.float32))  # fmt: skip
        texts = {name: way() for name, way in ways.items()}
        times = in_turns(ways, args.seconds, 3)
    count, rows = sum(map(len, texts["plain"])), []
    for name, ms in times.items():
        rows.append({"part": "generate", "way": name, "tokens_per_s": round(1e3 * count / ms, 1),
                     "over_plain": round(times["plain"] / ms, 3), "exact": texts[name] == texts["plain"],
                     "bits_a_byte": round(_surprise(network, prompts, texts[name]), 4),
                     "plan": plans.get(name, "")})  # fmt: skip
        print(f"generate {rows[-1]}")
    return rows


def _surprise(network: torch.nn.Module, prompts: Sequence[bytes], texts: Sequence[Sequence[int]]) -> float:
    """How unlikely the original finds what was written after the prompts; greedy text of its own is the least."""
    losses = []
    for prompt, text in zip(prompts, texts, strict=True):
        tokens = torch.tensor([[*prompt, *text]])
        with torch.no_grad():
            logits = network(tokens[:, :-1])[0, len(prompt) - 1 :]
        losses.append(float(torch.nn.functional.cross_entropy(logits, tokens[0, len(prompt) :])))
    return sum(losses) / len(losses) / math.log(2)


class _Eager:
    """A step as an engine."""

    def __init__(self, step: Callable[..., Any], depth: int) -> None:
        self.step, self.depth = step, depth

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Any:
        cache = {kind: [inputs[f"cache_{kind}_{i}"] for i in range(self.depth)] for kind in "kv"}
        with torch.no_grad():
            return self.step(cache=cache, **{n: t for n, t in inputs.items() if not n.startswith("cache_")})


PARTS: Mapping[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "curve": curve,
    "budget": budget,
    "generate": generate,
}


def numbers(text: str) -> list[int]:
    """``2,3``."""
    return [int(part) for part in text.split(",")]


def shares(text: str) -> list[float]:
    """``0.8,0.9``."""
    return [float(part) for part in text.split(",")]


def main(arguments: list[str]) -> int:
    """Run the parts, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--engines", default="onnxruntime,openvino")
    parser.add_argument("--models", default="minilm,classifier", help="of part budget")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8.0, help="of timing per row")
    parser.add_argument("--max-drop", type=float, default=0.01, help="loss that exits may cost")
    parser.add_argument("--texts", type=int, default=64, help="held-out texts that part budget is timed on")
    parser.add_argument("--draft", type=numbers, default=[2, 3], help="layers of drafting engines")
    parser.add_argument("--ahead", type=numbers, default=[4])
    parser.add_argument("--exit-at", type=shares, default=[0.9], help="probability from which the first layers suffice")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    with torch_threads(args.threads):
        rows = [row for part in args.parts.split(",") for row in PARTS[part](args)]
    if args.json:
        found = {"environment": environment(args.threads), "rows": rows}
        write_aside(args.json, json.dumps(found, indent=1).encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
