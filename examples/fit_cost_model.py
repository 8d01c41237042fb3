"""Fits the cost model to tables of measured GPU kernels and prints how well it does on rows it never saw.

    python -m examples.fit_cost_model --data TABLES --out compiler/calibration.yaml

``TABLES`` holds gemm.parquet, attention_prefill.parquet and attention_decode.parquet of measured kernels
(see their README). Needs pyarrow and scipy, which the compiler itself does not. Only parameters and
accuracies are written, never rows.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.optimize import minimize

from compiler.cost.kernels import (
    AttentionFit,
    GemmFit,
    Machine,
    attention_seconds,
    gemm_seconds,
    quantize_seconds,
    roofline,
)
from compiler.cost.targets import Target, load_targets

Array = NDArray[np.float64]
SYSTEMS = {"a100_sxm": "a100_80", "l40s": "l40s", "h100_sxm": "h100_sxm", "b200_sxm": "b200"}
FORMATS = {"bfloat16": ("bf16", 2.0), "fp8": ("fp8", 1.0), "nvfp4": ("fp4", 0.5625)}
SEED, HELD_OUT, FITTED_ROWS, STEPS = 0, 0.25, 700, 1400
GEMM_START = {
    "t0": 3e-6, "compute": 0.8, "memory": 0.8, "tile_loss": 2.0, "step": 9e-8, "fill": 0.2, "split": 2e-6,
    "norm": 3.0, "quantize": 0.5, "row": 3e-9,
}  # fmt: skip
GEMM_LIMIT = {
    "t0": 1e-4, "compute": 1.0, "memory": 1.0, "tile_loss": 60.0, "step": 1e-6, "fill": 3.0, "split": 2e-5,
    "norm": 12.0, "quantize": 1.0, "row": 1e-7,
}  # fmt: skip
ATTENTION_START = {
    "t0": 5e-6, "compute": 0.5, "memory": 0.7, "step": 3e-7, "fill": 0.5, "wave": 1e-7, "norm": 3.0,
}  # fmt: skip
ATTENTION_LIMIT = {
    "t0": 1e-4, "compute": 1.0, "memory": 1.0, "step": 1e-5, "fill": 8.0, "wave": 2e-5, "norm": 12.0,
}  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """Kernels of one table, one GPU and one format that pass the hygiene rule."""

    machine: Machine
    seconds: Array
    bound: Array
    columns: dict[str, Array]

    def __len__(self) -> int:
        return len(self.seconds)

    def at(self, index: Array) -> Rows:
        return Rows(
            self.machine,
            self.seconds[index],
            self.bound[index],
            {k: v[index] for k, v in self.columns.items()},
        )


def table(path: Path) -> dict[str, NDArray]:
    import pyarrow.parquet

    return {k: np.array(v) for k, v in pyarrow.parquet.read_table(path).to_pydict().items()}


def clean(rows: Rows, bytes_: Array, target: Target) -> Rows:
    """Without rows that no GPU can have run: faster than 0.9 of the roofline, unless the L2 explains it."""
    return rows.at(np.flatnonzero((rows.seconds >= 0.9 * rows.bound) | (bytes_ <= target.l2)))


def gemm_rows(data: dict[str, NDArray], system: str, name: str) -> Rows | None:
    target, (format_, width) = load_targets()[SYSTEMS[system]], FORMATS[name]
    pick = (data["system"] == system) & (data["gemm_dtype"] == name)
    if not pick.any() or format_ not in target.peak:
        return None
    m, n, k = (data[c][pick].astype(float) for c in "mnk")
    core = (m * k + n * k) * width + 2 * m * n
    machine = Machine(target.peak[format_], target.bandwidth, target.units)
    columns = {"m": m, "n": n, "k": k, "core": core, "quantized": m * k * (2 + width)}
    rows = Rows(machine, data["latency"][pick] * 1e-3, roofline(2 * m * n * k, core, machine), columns)
    return clean(rows, core, target)


def gemm_prediction(rows: Rows, fit: GemmFit) -> Array:
    c = rows.columns
    seconds = gemm_seconds(fit, rows.machine, np.ones(len(rows)), c["m"], c["n"], c["k"], c["core"])
    return np.maximum(seconds + quantize_seconds(fit, rows.machine, c["m"], c["k"], c["quantized"]), rows.bound)


def attention_rows(data: dict[str, NDArray], system: str, decode: bool) -> Rows:
    target = load_targets()[SYSTEMS[system]]
    window = np.array([w or 0 for w in data["window_size"]], dtype=float)
    pick = (data["system"] == system) & (data["kv_cache_dtype"] == "bfloat16") & (window == 0)
    batch, heads, kv, width, length, step = (
        data[c][pick].astype(float)
        for c in ("batch_size", "num_heads", "num_key_value_heads", "head_dim", "isl", "step")
    )
    queries, keys = (np.ones_like(step), step + 1) if decode else (length, length)
    flops = batch * heads * queries * keys * 2 * width * (2 if decode else 1)
    bytes_ = 2 * width * batch * (2 * heads * queries + 2 * kv * keys)
    machine = Machine(target.peak["bf16"], target.bandwidth, target.units)
    columns = {"batch": batch * heads, "queries": queries, "keys": keys, "flops": flops, "bytes": bytes_}
    rows = Rows(machine, data["latency"][pick] * 1e-3, roofline(flops, bytes_, machine), columns)
    return clean(rows, bytes_, target)


def attention_prediction(rows: Rows, fit: AttentionFit) -> Array:
    c = rows.columns
    seconds = attention_seconds(fit, rows.machine, c["batch"], c["queries"], c["keys"], c["flops"], c["bytes"])
    return np.maximum(seconds, rows.bound)


def split(rows: Rows) -> tuple[Rows, Rows]:
    """Rows to fit and rows to judge, the same in every run."""
    order = np.random.default_rng(SEED).permutation(len(rows))
    held = int(len(rows) * HELD_OUT)
    return rows.at(order[held:]), rows.at(order[:held])


def fit_rows(rows: Rows, predict: Callable, kind: type, start: dict, limit: dict, free: list[str]):
    """Parameters that minimise the mean absolute log ratio; those not free keep the class default."""
    possible = rows.at(np.flatnonzero(rows.seconds >= rows.bound))  # an L2-hot row is no evidence on DRAM
    used = possible.at(np.arange(min(len(possible), FITTED_ROWS)))
    high = np.log([limit[name] for name in free])

    def made(x: Array):
        return kind(**dict(zip(free, map(float, np.exp(np.minimum(x, high))), strict=True)))

    def loss(x: Array) -> float:
        out = 0.05 * np.maximum(0, x - high).sum() + 0.01 * np.maximum(0, np.abs(x) - 30).sum()
        return float(np.abs(np.log(predict(used, made(x)) / used.seconds)).mean() + out)

    x = np.log([start[name] for name in free])
    for spread in (0.5, 0.25):  # a second simplex leaves the valley where the first one stalled
        simplex = np.vstack(
            [
                x,
                x + spread * np.eye(len(x)),
            ]
        )
        options = {"maxfev": STEPS // 2, "adaptive": True, "initial_simplex": simplex}
        x = minimize(loss, x, method="Nelder-Mead", options=options).x
    return made(x), len(used)


def accuracy(rows: Rows, prediction: Array) -> dict[str, float | int | dict[str, float]]:
    """Absolute percentage errors, as fractions."""
    error = np.abs(prediction / rows.seconds - 1)
    cold = error[rows.seconds >= rows.bound]
    share = len(cold) / len(error)
    return {
        "rows": len(rows),
        **rounded(quantiles([error])),
        "dram": rounded({"share": share, **quantiles([cold])}),
    }


def rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {k: float(f"{v:.3g}") for k, v in numbers.items()}


def regret(data: dict[str, NDArray], system: str, fits: dict[str, GemmFit]) -> dict[str, float | int] | None:
    """Time lost by choosing a format per shape as the model says, against the truly faster one."""
    sides = [gemm_rows(data, system, name) for name, (format_, _) in FORMATS.items() if format_ in fits]
    if len(sides) < 2:
        return None
    choices = [(rows, gemm_prediction(rows, fit)) for rows, fit in zip(sides, fits.values(), strict=True)]
    (one, told_one), (two, told_two) = choices[:2]
    shapes = {key: i for i, key in enumerate(zip(*(one.columns[c] for c in "mnk"), strict=True))}
    pairs = [
        (shapes[key], j) for j, key in enumerate(zip(*(two.columns[c] for c in "mnk"), strict=True)) if key in shapes
    ]
    i, j = (np.array(column) for column in zip(*pairs, strict=True))
    took = np.where(told_one[i] <= told_two[j], one.seconds[i], two.seconds[j])
    best = np.minimum(one.seconds[i], two.seconds[j])
    return {
        "shapes": len(i),
        **rounded({"right": float((took == best).mean()), "regret": float((took / best - 1).mean())}),
    }


def prior(target: Target, quantizes: bool) -> GemmFit:
    """What ``targets.yaml`` alone says of a machine that nobody measured."""
    return GemmFit(3e-6, 0.7, 0.85, 0.0, 1e-12, 1e-9, 0.0, 12.0, 0.5 if quantizes else 0.0)


def fit_gemm(path: Path) -> tuple[dict, dict, dict]:
    data = table(path)
    found: dict[str, dict] = {}
    decisions: dict[str, dict] = {}
    fits: dict[tuple[str, str], GemmFit] = {}
    judged: dict[tuple[str, str], Rows] = {}
    for system, name in SYSTEMS.items():
        for label, (format_, _) in FORMATS.items():
            rows = gemm_rows(data, system, label)
            if rows is None:
                continue
            train, test = split(rows)
            free = [f.name for f in fields(GemmFit) if format_ != "bf16" or f.name not in ("quantize", "row")]
            fit, used = fit_rows(train, gemm_prediction, GemmFit, GEMM_START, GEMM_LIMIT, free)
            fits[name, format_], judged[name, format_] = fit, test
            score = accuracy(test, gemm_prediction(test, fit))
            found.setdefault(name, {})[format_] = {
                **rounded(asdict(fit)),
                "fitted_rows": used,
                "held_out": score,
            }
            print(f"gemm {name:10} {format_:5} held out {score}", flush=True)
        mine = {f: fit for (n, f), fit in fits.items() if n == name}
        if (made := regret(data, system, mine)) is not None:
            decisions[name] = made
            print(f"decision bf16 or fp8 on {name}: {made}", flush=True)
    transferred, blind = [], []
    for (name, format_), rows in judged.items():
        blind.append(np.abs(gemm_prediction(rows, prior(load_targets()[name], format_ != "bf16")) / rows.seconds - 1))
        for (other, same), fit in fits.items():
            if other != name and same == format_:
                transferred.append(np.abs(gemm_prediction(rows, fit) / rows.seconds - 1))
    errors = {
        "transferred": rounded(quantiles(transferred)),
        "datasheet": rounded(quantiles(blind)),
    }
    print("errors", errors)
    return found, decisions, errors


def quantiles(errors: list[Array]) -> dict[str, float]:
    every = np.concatenate(errors)
    return {"mean": every.mean(), "median": float(np.median(every)), "p90": float(np.quantile(every, 0.9))}


def fit_attention(folder: Path) -> dict:
    found: dict[str, dict] = {}
    for phase in ("prefill", "decode"):
        data = table(folder / f"attention_{phase}.parquet")
        for system, name in SYSTEMS.items():
            train, test = split(attention_rows(data, system, phase == "decode"))
            free = [f.name for f in fields(AttentionFit)]
            fit, used = fit_rows(train, attention_prediction, AttentionFit, ATTENTION_START, ATTENTION_LIMIT, free)
            score = accuracy(test, attention_prediction(test, fit))
            found.setdefault(name, {})[phase] = {
                **rounded(asdict(fit)),
                "fitted_rows": used,
                "held_out": score,
            }
            print(f"attention {name:10} {phase:8} held out {score}", flush=True)
    return found


# Kernels that only move memory: `t0 + bytes / (share * bandwidth)` as fitted to Vidur's operator
# profiles (MIT), RMSNorm for norms and reductions, SiLU*mul for pointwise; `error` is twice the mean told.
PUBLISHED_MEMORY = {
    "a100_80": {
        "norm": {"t0": 2.3e-6, "memory": 0.36, "error": 0.3},
        "pointwise": {"t0": 2.1e-6, "memory": 0.50, "error": 0.2},
    },
    "h100_sxm": {
        "norm": {"t0": 2.7e-6, "memory": 0.46, "error": 0.3},
        "pointwise": {"t0": 1.8e-6, "memory": 0.58, "error": 0.25},
    },
}
HEADER = """\
# Parameters of compiler/kernels.py, fitted by examples/fit_cost_model.py; seconds and fractions.
# Rows: at most 700 of 1,500 per GPU and format, sampled from the public tables of ai-dynamo/aiconfigurator
# (Apache-2.0), newest vLLM kernels, timed in CUDA graphs with weights rotated. fp8 and fp4 include the
# quantization of activations.
# held_out: absolute errors, as fractions, on a quarter of the rows that no fit saw; `dram` leaves out rows
# faster than main memory allows, because the L2 still held their operands: estimates keep to the roofline.
# decisions: bf16 or fp8 per shape in both samples, fitted ones among them: share right, mean time lost.
# errors: of fits used on another GPU of the four (transferred), and of a fixed guess from the datasheet.
# memory: published fits to Vidur's operator profiles; error is twice the mean error told there.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the three parquet tables")
    parser.add_argument("--out", type=Path, help="write the parameters here")
    given = parser.parse_args()
    gemm, decisions, errors = fit_gemm(given.data / "gemm.parquet")
    made = {
        "schema": 1,
        "date": datetime.date.today().isoformat(),
        "gemm": gemm,
        "attention": fit_attention(given.data),
        "memory": PUBLISHED_MEMORY,
        "decisions": decisions,
        "errors": errors,
    }
    if given.out is not None:
        given.out.write_text(HEADER + yaml.safe_dump(made, sort_keys=False, default_flow_style=None, width=200))


if __name__ == "__main__":
    main()
