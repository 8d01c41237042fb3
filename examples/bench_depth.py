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
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import penstock
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


# --- exits to a budget ---------------------------------------------------------------------------


def budget(args: argparse.Namespace) -> list[dict[str, Any]]:
    """MiniLM and the classifier on inputs that no fit, threshold or choice has seen."""
    rows = []
    for model in ("minilm", "classifier"):
        spec = import_module(f"examples.{model}").model()
        with tempfile.TemporaryDirectory() as scratch:
            engines: dict[str, Any] = {}
            for name, recipe_, drop in (
                ("full", "fp32+int8", None),
                ("exits", "fp32+int8+exits+int8-exits", args.max_drop),
            ):
                made = penstock.compile(
                    spec, output=Path(scratch) / f"{name}.penstock", recipe=recipe_, threads=args.threads, max_drop=drop
                )
                engines[name] = penstock.load(made.path, threads=args.threads)
            told = engines["exits"].manifest.depth
            rows += [_on_held_out(model, spec, engines, told, batch, args) for batch in (1, 8)]
    return rows


def _on_held_out(
    model: str, spec: penstock.ModelSpec, engines: Mapping[str, Any], told: Any, batch: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Time over all held-out inputs in turn, and the quality on them."""
    given = _held_out(model, batch)
    compiled = torch.compile(spec.model, dynamic=True)
    calls: dict[str, Call] = {
        "eager": lambda: [spec.model(**i) for i in given],
        "torch.compile": lambda: [compiled(**i) for i in given],
        "full": lambda: [engines["full"](**i) for i in given],
        "exits": lambda: [engines["exits"](**i) for i in given],
    }
    with torch.no_grad():
        times = in_turns(calls, args.seconds, 5)
        assert spec.metric is not None
        metric = {name: float(spec.metric(engine)) for name, engine in engines.items()}
        metric["eager"] = float(spec.metric(spec.model))
    layers = float(torch.cat([engines["exits"].trace(**i)[1][LAYERS] for i in given]).double().mean()) if told else None
    row = {
        "part": "budget", "model": model, "batch": batch, "max_drop": args.max_drop,
        "ms": {name: round(ms / len(given), 3) for name, ms in times.items()},
        "over_full": round(times["full"] / times["exits"], 3), "metric": metric,
        "expected_layers": layers,
        "engines": {n: e.facts()["engine"] for n, e in engines.items()},
    }  # fmt: skip
    depth = "all" if layers is None else f"{layers:.2f}"
    print(
        f"budget {model:10} batch {batch}: {row['over_full']:.2f}x our full-depth engine, "
        f"{times['eager'] / times['exits']:.2f}x eager, {depth} layers, {metric}"
    )
    return row


def _held_out(model: str, batch: int) -> list[dict[str, torch.Tensor]]:
    from examples.minilm import Encoder
    from examples.sentences import split

    texts = split().held_out[64:128]
    return Encoder().batches(texts, batch)


# --- tokens a second -----------------------------------------------------------------------------


def generate(args: argparse.Namespace) -> list[dict[str, Any]]:
    """TinyLM writes on after held-out sources."""
    from examples.tinylm import load_tinylm, model
    from examples.tinylm_data import read_corpus, windows

    prompts = [bytes(w[:64].tolist()) for w in windows(read_corpus().held_out, 256, 8)]
    rows, network = [], load_tinylm()
    with tempfile.TemporaryDirectory() as scratch:
        made = penstock.compile(
            model(), output=Path(scratch) / "lm.penstock", task="generate", draft=args.draft, threads=args.threads
        )
        engine = penstock.load(made.path, threads=args.threads)

        def ours(draft: int | None) -> list[tuple[int, ...]]:
            return [tuple(engine.generate(p, max_new_tokens=args.tokens, draft=draft)[0].tokens) for p in prompts]

        plain = ours(None)
        exact = [ours(k) == plain for k in args.ahead]
        calls: dict[str, Call] = {"plain": lambda: ours(None)}
        calls |= {f"draft {k}": lambda k=k: ours(k) for k in args.ahead}
        calls["eager, no cache"] = lambda: _eager(network, prompts[0], args.tokens)
        times = in_turns(calls, args.seconds, 3)
    count = sum(map(len, plain))
    for name, ms in times.items():
        tokens = args.tokens if name.startswith("eager") else count
        rows.append({"part": "generate", "way": name, "tokens_per_s": round(1e3 * tokens / ms, 1),
                     "over_plain": round(times["plain"] / ms * tokens / count, 3),
                     "exact": dict(zip((f"draft {k}" for k in args.ahead), exact, strict=True)).get(name)})  # fmt: skip
        print(f"generate {rows[-1]}")
    return rows


@torch.no_grad()
def _eager(network: Any, prompt: bytes, count: int) -> list[int]:
    tokens = torch.tensor([list(prompt)])
    for _ in range(count):
        tokens = torch.cat((tokens, network(tokens)[:, -1:].argmax(-1)), 1)
    return tokens[0].tolist()


PARTS: Mapping[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "curve": curve,
    "budget": budget,
    "generate": generate,
}


def main(arguments: list[str]) -> int:
    """Run the parts, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--engines", default="onnxruntime,openvino")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8.0, help="of timing per row")
    parser.add_argument("--max-drop", type=float, default=0.01, help="loss that exits may cost")
    parser.add_argument("--draft", type=int, default=2, help="layers of the drafting engine")
    parser.add_argument("--ahead", type=lambda text: [int(k) for k in text.split(",")], default=[2, 3, 4])
    parser.add_argument("--tokens", type=int, default=128)
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
