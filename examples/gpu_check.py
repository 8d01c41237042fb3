"""The truth of a GPU: ``python -m examples.gpu_check`` on a CUDA machine.

Per model, dtype, batch and path through its branches: each engine's error against eager in float32, its latency by
CUDA events (median of rounds in which all engines take turns) against eager and ``torch.compile``, and against what
the cost model predicted. Prints a table and writes JSON and markdown. ``--device cpu`` is a dry run of the same code
with a processor's clock; its figures say nothing about a GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backends import WEIGHTS_FILE, BuildOptions, backend
from compiler.capture.capture import capture
from compiler.cost.cost import Flow, estimate
from compiler.cost.targets import Target, load_targets, target
from examples.gpu_models import Case, Inputs, cases
from examples.gpu_report import BASES, Row, environment, markdown
from ir import Graph
from ir import weights as weight_files
from ir.errors import PenstockError

NO_GPU = 4
ENGINES = ("inductor", "tvm", "tensorrt", "torch_tensorrt")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_SHIPPED = "shipped.json"
Call = Callable[[], object]


# --- clocks ---------------------------------------------------------------------------------------


def by_events(call: Call) -> float:
    """Milliseconds of one call on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def by_processor(call: Call) -> float:
    """Milliseconds of one call by the wall."""
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def in_turns(calls: Mapping[str, Call], clock: Callable[[Call], float], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call in each round; all take turns, after two calls that do not count."""
    for call in calls.values():
        call()
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(clock(call))
    return taken


def summary(times: Sequence[float]) -> tuple[float, float]:
    """Median and spread."""
    ordered = sorted(times)
    last, middle = len(ordered) - 1, statistics.median(ordered)
    return middle, (ordered[round(0.9 * last)] - ordered[round(0.1 * last)]) / 2 / middle


def error_of(want: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """The largest difference of any output, relative to its largest value; infinite where shapes differ or NaN is."""
    worst = 0.0
    for expected, found in zip(want, got, strict=True):
        if expected.shape != found.shape:
            return float("inf")
        gap = (expected.double() - found.double().to(expected.device)).abs().max()
        relative = float(gap / expected.double().abs().max().clamp_min(1e-30))
        worst = max(worst, relative if relative == relative else float("inf"))
    return worst


# --- engines --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One model in one dtype, captured.

    Attributes:
        model: in eval mode, on the device.
        graph: captured from it on the processor.
        machine: that the cost model and the backends know, ``None`` for an unknown GPU.
        key: names the model and the dtype.
    """

    case: Case
    model: nn.Module
    graph: Graph
    device: str
    machine: Target | None
    key: str = ""


Run = Callable[[Inputs], list[Tensor]]


def prepared(case: Case, dtype: torch.dtype, device: str, machine: Target | None, key: str = "") -> Job:
    """Capture a model in a dtype."""
    torch.manual_seed(0)
    model = case.make().to(dtype).eval()
    graph = capture(model, _cast(case.inputs(2, case.paths[0]), dtype), dynamic_shapes=case.shapes)
    return Job(case, model.to(device), graph, device, machine, key)


def build(name: str, job: Job, folder: Path) -> str:
    """Build an engine of ours into a folder, weights beside it; says what it holds."""
    with_ = backend(name)
    if job.machine is None:
        raise PenstockError("this GPU is not in the table of targets", hint="name one with --target")
    device = job.machine.device
    if why := with_.why_not(device):
        raise PenstockError(why)
    weight_files.save(job.graph.weights, folder / WEIGHTS_FILE)
    start = time.perf_counter()
    built = with_.build(job.graph, folder, BuildOptions(device=device))
    facts = ", ".join(f"{key} {value}" for key, value in built.facts.items())
    return f"built in {time.perf_counter() - start:.0f} s" + (f"; {facts}" if facts else "")


def ship(name: str, job: Job, folder: Path) -> str:
    """Build an engine for another machine: all but the weights, of which a digest goes along."""
    note = build(name, job, folder)
    weights = folder / WEIGHTS_FILE
    (folder / _SHIPPED).write_text(json.dumps({"note": note, "weights": _digest(weights), "torch": torch.__version__}))
    weights.unlink()
    return note


def unpack(job: Job, shipped: Path, folder: Path) -> str:
    """The folder of a shipped engine, whole again."""
    known = json.loads((shipped / _SHIPPED).read_text())
    shutil.copytree(shipped, folder, dirs_exist_ok=True)
    weight_files.save(job.graph.weights, folder / WEIGHTS_FILE)
    if _digest(folder / WEIGHTS_FILE) != known["weights"]:
        raise PenstockError(f"other weights here than where it was built (torch {known['torch']})")
    return f"on a machine without a GPU: {known['note']}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def engine(name: str, job: Job, folder: Path, prebuilt: Path | None) -> tuple[Run, str]:
    """An engine by name, and a note on what it holds. Whatever it raises becomes a row."""
    if name == "eager":
        return lambda inputs: _tensors(job.model(**inputs)), ""
    if name == "compile":
        compiled = torch.compile(job.model)
        return lambda inputs: _tensors(compiled(**inputs)), ""
    if name == "torch_tensorrt":
        import torch_tensorrt

        example = {n: t.to(job.device) for n, t in _cast(job.case.inputs(1, ""), _dtype(job.model)).items()}
        made = torch_tensorrt.compile(job.model, ir="dynamo", kwarg_inputs=example)
        return lambda inputs: _tensors(made(**inputs)), ""
    shipped = prebuilt / f"{job.key}-{name}" if prebuilt else folder
    note = unpack(job, shipped, folder) if (shipped / _SHIPPED).is_file() else build(name, job, folder)
    loaded = backend(name).load(folder)
    names = [output.name for output in job.graph.outputs]
    return lambda inputs: [loaded(inputs)[n] for n in names], note


def measure(
    job: Job,
    labels: tuple[str, str],
    engines: Sequence[str],
    batches: Sequence[int],
    rounds: int,
    prebuilt: Path | None = None,
) -> list[Row]:
    """Rows of one model in one dtype."""
    model, dtype = labels
    clock = by_events if job.device == "cuda" else by_processor
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        runs: dict[str, tuple[Run, str]] = {}
        failed: dict[str, str] = {}
        for name in engines:
            folder = Path(scratch) / name
            folder.mkdir()
            print(f"{time.strftime('%H:%M:%S')} {model} {dtype} {name}", file=sys.stderr, flush=True)
            try:
                runs[name] = engine(name, job, folder, prebuilt)
            except ImportError as error:
                failed[name] = f"not importable: {error}"
            except Exception as error:  # noqa: BLE001  (an engine that fails is a row of the table, not its end)
                failed[name] = _first(error)
        for batch in batches:
            for path in job.case.paths:
                base = Row(model, dtype, batch, path, "", predicted=_predicted(job, batch, path))
                inputs = {
                    n: t.to(job.device) for n, t in _cast(job.case.inputs(batch, path), _dtype(job.model)).items()
                }
                rows += _cell(base, job, runs, failed, inputs, clock, rounds)
    return rows


def _cell(
    base: Row,
    job: Job,
    runs: Mapping[str, tuple[Run, str]],
    failed: Mapping[str, str],
    inputs: Inputs,
    clock: Callable[[Call], float],
    rounds: int,
) -> list[Row]:
    want = _in_float32(job, inputs)
    rows = {name: replace(base, engine=name, note=why) for name, why in failed.items()}
    calls: dict[str, Call] = {}
    for name, (run, note) in runs.items():
        try:
            rows[name] = replace(base, engine=name, error=error_of(want, run(inputs)), note=note)
        except Exception as error:  # noqa: BLE001  (as above)
            rows[name] = replace(base, engine=name, note=_first(error))
        else:
            calls[name] = lambda run=run: run(inputs)
    for name, times in in_turns(calls, clock, rounds).items():
        middle, spread = summary(times)
        rows[name] = replace(rows[name], milliseconds=middle, spread=spread)
    return list(rows.values())


def _in_float32(job: Job, inputs: Inputs) -> list[Tensor]:
    dtype = _dtype(job.model)
    try:
        return [t.clone() for t in _tensors(job.model.float()(**_cast(inputs, torch.float32)))]
    finally:
        job.model.to(dtype)


def _predicted(job: Job, batch: int, path: str) -> float | None:
    if job.machine is None:
        return None
    given = _sizes(job, batch, path)
    flow = Flow(taken=job.case.probability.get(path))
    return 1e3 * estimate(job.graph, job.machine, given, flow).seconds


def _sizes(job: Job, batch: int, path: str) -> dict[str, int]:
    from compiler.select.reference import sizes_of

    return sizes_of(job.graph, job.case.inputs(batch, path))


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in inputs.items()}


def _tensors(result: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor)]


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


# --- the command ---------------------------------------------------------------------------------


def machine_of(device: str, name: str) -> Target | None:
    """The target of this machine: the one that was named, the processor, or the GPU by its name."""
    if name or device == "cpu":
        return target(name or "cpu")
    return by_name(torch.cuda.get_device_name())


def by_name(gpu: str) -> Target | None:
    """The target that a GPU's own name speaks of, ``None`` for one that is not in the table."""
    plain = (
        gpu.lower().replace(" ", "").replace("-", "").replace("geforce", "").replace("nvidia", "").replace("tesla", "")
    )
    if plain.startswith("h100") and "pcie" in plain:
        return load_targets()["h100_pcie"]
    if plain.startswith("a100"):
        return load_targets()["a100_80" if "80g" in plain else "a100_40"]
    known = {n.split("_")[0]: t for n, t in reversed(load_targets().items()) if t.kind == "gpu"}
    fits = [short for short in known if plain.startswith(short)]
    return known[max(fits, key=len)] if fits else None


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    words.add_argument("--models", default="encoder,early_exit,convolutions,bert", help="names, separated by commas")
    words.add_argument("--engines", default=",".join((*BASES, *ENGINES)), help="names, separated by commas")
    words.add_argument("--dtypes", default="fp32,fp16")
    words.add_argument("--batches", default="1,8")
    words.add_argument("--rounds", type=int, default=50)
    words.add_argument("--target", default="", help="the name of this GPU in the cost model, when it is not found")
    words.add_argument("--build", type=Path, help="build engines of --target into this folder and stop")
    words.add_argument("--prebuilt", type=Path, help="folder of engines that --build made elsewhere")
    words.add_argument("--out", type=Path, default=Path("examples"), help="folder of the report")
    return words.parse_args(argv)


def build_all(args: argparse.Namespace) -> int:
    """Engines for a GPU that is not here; returns the exit code."""
    failures = 0
    for model, dtype in itertools.product(args.models.split(","), args.dtypes.split(",")):
        job = prepared(cases()[model], DTYPES[dtype], "cpu", target(args.target), f"{model}-{dtype}")
        for name in [n for n in args.engines.split(",") if n in ENGINES and n != "torch_tensorrt"]:
            folder = args.build / f"{job.key}-{name}"
            folder.mkdir(parents=True, exist_ok=True)
            try:
                said = ship(name, job, folder)
            except PenstockError as error:
                said, failures = str(error), failures + 1
                shutil.rmtree(folder)
            print(f"{job.key}-{name}: {said}")
    return 1 if failures else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, write; returns the exit code."""
    args = parse(argv)
    if args.build:
        return build_all(args)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu_check needs a CUDA GPU and found none; --device cpu is a dry run", file=sys.stderr)
        return NO_GPU
    machine, known = machine_of(args.device, args.target), cases()
    found, rows = environment(args.device, args.rounds), []
    for model in args.models.split(","):
        if model not in known:
            rows.append(Row(model, "", 0, "", "", note=f"no such model here; known: {', '.join(known)}"))
            continue
        for dtype in args.dtypes.split(","):
            job = prepared(known[model], DTYPES[dtype], args.device, machine, f"{model}-{dtype}")
            batches = [int(n) for n in args.batches.split(",")]
            rows += measure(job, (model, dtype), args.engines.split(","), batches, args.rounds, args.prebuilt)
    text = markdown(rows, found)
    print(text)
    name = f"gpu_check_{found['date'][:10]}_{(machine.name if machine else 'gpu') if args.device == 'cuda' else 'dry'}"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{name}.md").write_text(text)
    (args.out / f"{name}.json").write_text(json.dumps({**found, "rows": [asdict(row) for row in rows]}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
