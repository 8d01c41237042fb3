"""Commands on artifacts: ``run``, ``bench``, ``verify``."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import click

from compiler.cli.options import SECONDS, THREADS, common, emit_json, models_speak_aside, sizes


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("-i", "--inputs", type=click.Path(path_type=Path), help="safetensors file with a tensor per input.")
@click.option("-s", "--size", multiple=True, callback=sizes, help="NAME=SIZE of a dim, for random inputs.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the outputs here (safetensors).")
@click.option("--threads", type=THREADS, help="Threads of the engine.")
@click.option("--expect", metavar="ID", help="Accept only the artifact of this id.")
@click.option("-t", "--target", help="Of several targets, the one to run.  [the device that is here]")
@click.option("-p", "--prompt", help="Of a language model: write on after this text (or token numbers: 1,2,3).")
@click.option("--max-new-tokens", type=int, help="With --prompt: tokens at most.  [128]")
@click.option("--temperature", type=float, help="With --prompt: 0 is greedy.  [0]")
@click.option("--top-k", type=int, help="With --prompt: of so many likeliest tokens; 0: of all.  [0]")
@click.option("--top-p", type=float, help="With --prompt: of the likeliest with this probability together.  [1]")
@click.option("--seed", type=int, help="With --prompt: of the random numbers.  [0]")
@click.option("--stop", multiple=True, help="With --prompt: text that ends the answer.")
@click.option("--draft", type=int, help="With --prompt: tokens to draft at once; 0: none.  [as compiled]")
@common
def run(
    artifact: Path, inputs: Path | None, size: dict[str, int], output: Path | None, threads: int | None,
    expect: str | None, target: str | None, prompt: str | None, as_json: bool, quiet: bool, verbose: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Run an ARTIFACT once, on given or on random inputs; with --prompt let it write."""
    from compiler.files import read_tensors
    from compiler.runtime.trial import random_inputs, summary, write_outputs
    from ir.errors import UsageError

    given_options = {key: value for key, value in options.items() if value not in (None, ())}
    if prompt is not None:
        if inputs is not None or size or output is not None:
            raise UsageError("--prompt does not go with --inputs, --size or --output")
        _write_on(_load(artifact, threads, expect, target), prompt, given_options, as_json, quiet)
        return
    if given_options:
        raise UsageError(f"--{next(iter(given_options)).replace('_', '-')} goes with --prompt only")
    if inputs is not None and size:
        raise UsageError("--size makes random inputs; it does not go with --inputs")
    model = _load(artifact, threads, expect, target)
    states = model.initial_state()
    given = states | dict(read_tensors(inputs)) if inputs is not None else random_inputs(model.manifest, size, states)
    outputs = model(**given)
    if output is not None:
        write_outputs(outputs, output)
    rows = summary(outputs)
    if as_json:
        emit_json({"inputs": summary(given), "outputs": rows, "facts": model.facts()})
    elif not quiet:
        told = "given" if inputs is not None else "random"
        click.echo(f"{model.manifest.name} on {model.manifest.engine.name}, {told} inputs "
                   + ", ".join(f"{r['name']} {r['type']}" for r in summary(given)))  # fmt: skip
        for row in rows:
            click.echo(f"  {row['name']:<24} {row['type']:<20} mean {row['mean']:.4g}  norm {row['norm']:.4g}")


def _write_on(model: Any, prompt: str, options: dict[str, Any], as_json: bool, quiet: bool) -> None:
    """Show an answer while it is written."""
    from compiler.runtime.trial import read_prompt, shown_tokens

    given, options = read_prompt(model, prompt, options)
    shown = shown_tokens(model)
    show = not as_json and not quiet
    begun: list[bool] = []  # the prompt is shown with the first token: not before an error

    def hear(_: int, tokens: tuple[int, ...]) -> None:
        click.echo(("" if begun else prompt) + shown(tokens), nl=False)
        begun.append(True)

    start = perf_counter()
    (answer,) = model.generate(given, stream=hear if show else None, **options)
    seconds = perf_counter() - start
    told = {"tokens": list(answer.tokens), "text": answer.text, "finish": answer.finish, "calls": answer.calls,
            "seconds": seconds, "tokens_per_second": len(answer.tokens) / seconds}  # fmt: skip
    if as_json:
        emit_json(told)
        return
    if quiet:
        click.echo(shown(answer.tokens))
        return
    click.echo(("" if begun else prompt) + shown(()) + "\n")
    calls = ", ".join(f"{name} {count}" for name, count in answer.calls.items())
    rate = told["tokens_per_second"]
    click.echo(
        f"{len(answer.tokens)} tokens in {seconds:.2f} s, {rate:.0f}/s ({answer.finish}; runs: {calls})", err=True
    )


def _load(artifact: Path, threads: int | None, expect: str | None = None, target: str | None = None) -> Any:
    from compiler.runtime.loaded import load

    return load(artifact, threads=threads, expect=expect, target=target)


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--vs", "against", metavar="MODEL", help="Time the original as well, interleaved: FILE.py[:factory].")
@click.option("-s", "--size", multiple=True, callback=sizes, help="NAME=SIZE of a dim.")
@click.option("--threads", type=THREADS, help="Threads of the engine and of the original.")
@click.option("--seconds", type=SECONDS, default=3.0, show_default=True, help="How long to measure.")
@common
def bench(
    artifact: Path, against: str | None, size: dict[str, int], threads: int | None, seconds: float,
    as_json: bool, quiet: bool, verbose: bool,
) -> None:  # fmt: skip
    """Time an ARTIFACT on this machine: medians, spread, and the ratio to the original with --vs."""
    from compiler.capture.model_file import load_spec
    from compiler.runtime.trial import time_artifact

    with models_speak_aside():
        spec = load_spec(against) if against else None
        row = time_artifact(_load(artifact, threads), spec, size, threads, seconds)
    if as_json:
        emit_json(row)
        return
    click.echo(f"{row['name']} on {row['engine']}, {row['inputs']}, {row['threads']} threads, {row['rounds']} rounds")
    for name, time in row["times"].items():
        click.echo(f"  {name:<10} {time['ms']:9.3f} ms   (10 % to 90 %: {time['low_ms']:.3f} to {time['high_ms']:.3f})")
    if "speedup" in row:
        click.echo(f"  {row['speedup']:.2f}x vs torch eager, same inputs, same threads, interleaved")


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--against", metavar="MODEL", help="The original: FILE.py[:factory]. Without it: digests only.")
@click.option(
    "--max-loss", type=click.FloatRange(0, 2), default=0.01, show_default=True, help="Largest loss of quality."
)
@click.option("--threads", type=THREADS, help="Threads of the engine.")
@click.option("--expect", metavar="ID", help="Accept only the artifact of this id.")
@common
def verify(
    artifact: Path, against: str | None, max_loss: float, threads: int | None, expect: str | None,
    as_json: bool, quiet: bool, verbose: bool,
) -> None:  # fmt: skip
    """Check every byte of an ARTIFACT, and its answers against the original with --against."""
    from compiler.artifact import open_artifact
    from compiler.capture.model_file import load_spec
    from compiler.runtime.trial import verify_artifact
    from ir.errors import VerificationError

    opened = open_artifact(artifact, expect)
    row: dict[str, Any] = {"id": opened.id, "files": len(opened.manifest.files), "digests": "match"}
    if against is not None:
        with models_speak_aside():
            row |= verify_artifact(_load(artifact, threads, expect), load_spec(against))
    loss = row.get("loss", 0.0)
    row["ok"] = loss <= max_loss  # a loss of NaN is not
    if as_json:
        emit_json(row)
    elif not quiet:
        click.echo(f"{artifact}: {row['files']} files match their digests, id {opened.id[:16]}")
        if against is not None:
            told = f", metric {row['metric']:.4f} (original {row['base']:.4f})" if row["metric"] is not None else ""
            click.echo(f"loss {loss:.3g} (bound {max_loss:g}), worst cosine {row['cosine']:.6f}{told}")
    if not row["ok"]:
        raise VerificationError(f"the loss {loss:.3g} is more than {max_loss:g}")


COMMANDS = (run, bench, verify)
