"""Commands that make something: ``compile``, ``build-on-target`` and ``opt``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from compiler.cli.options import BUILD_SECONDS, BYTES, SECONDS, THREADS, common, emit_json, level, models_speak_aside


@click.command()
@click.argument("model")
@click.option("-t", "--target", help="Machine to compile for, several by commas, or all.  [cpu]")
@click.option("--task", help="generate: a language model, with a cache.  [inputs to outputs]")
@click.option("--draft", type=click.IntRange(0), help="With --task generate: layers of a drafting engine.  [0: none]")
@click.option("-r", "--recipe", help="auto, presets such as fp32+int8, a recipe.yaml, or passes as text.  [auto]")
@click.option("-e", "--engine", help="auto, all, or the name of one (penstock doctor lists them).  [auto]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Artifact directory.  [NAME.penstock]")
@click.option("--threads", type=THREADS, help="Threads of the engine and of the baseline.  [every core]")
@click.option("--max-loss", type=click.FloatRange(0, 2), help="Largest loss of quality against the original.  [0.01]")
@click.option("--max-drop", metavar="SHARE", help="Let easy rows leave early, for a mean loss such as 0.5%.  [none do]")
@click.option("--check", help="none, each, full: how closely passes are watched.  [each]")
@click.option("--seconds", type=SECONDS, help="To spend on timing each candidate.  [2]")
@click.option("--build-timeout", type=BUILD_SECONDS, help="Seconds that one builder may take.  [1800]")
@click.option("--build-memory", type=BYTES, help="Memory that one builder may hold, such as 4g.  [no bound]")
@click.option("--force", is_flag=True, help="Replace an artifact that is there.")
@click.option("--allow-nonfinite", is_flag=True, help="Compile although weights hold NaN or infinity.")
@click.option("--no-cache", is_flag=True, help="Compile anew although an equal compile is at hand.")
@click.option("--dry-run", is_flag=True, help="Stop before engines are built; write nothing.")
@click.option("--dump", type=click.Path(path_type=Path), help="Write the IR after each pass into this folder.")
@click.option("--print-ir-after", metavar="PASS", help="Print the IR after this pass, on stderr.")
@common
def compile(
    model: str,
    output: Path | None,
    force: bool,
    no_cache: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **given: Any,
) -> None:
    """Compile MODEL: a FILE.py[:factory] or package.module:factory.

    Captures the model, runs the passes of the recipe, builds every usable engine, verifies each against the
    original, measures it, keeps the fastest within the loss bound, and writes NAME.penstock.
    """
    from compiler.capture.model_file import load_spec
    from compiler.cli.progress import Progress
    from compiler.compile import compile as compile_model
    from compiler.events import Phases

    settings = {key: value for key, value in given.items() if value is not None and value is not False}
    settings["cache"] = not no_cache
    with models_speak_aside(), Progress(f"compile {model}", level(quiet or as_json, verbose)) as progress:
        with Phases(progress).phase("load", model) as say:
            spec = load_spec(model)
            say(f"{spec.name or type(spec.model).__name__} from {model}")
        # the default place is ours to renew; a place that was named is replaced on request only
        result = compile_model(spec, output=output, on_event=progress, force=force or output is None, **settings)
    if as_json:
        emit_json({**result.report, "path": str(result.path) if result.path else None, "id": result.id})
    elif not quiet:
        _show(result, verbose)
        if result.path is not None:
            click.echo(f"artifact  {result.path}")
            click.echo(f"next      penstock run {result.path}")
    elif result.path is not None:
        click.echo(result.path)
    result.raise_for_goal()


def _show(result: Any, verbose: bool) -> None:
    from rich.console import Console

    from compiler.report import render, render_targets

    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=100)
    if result.rows:
        render_targets(result.report["rows"], console)
    else:
        render(result.report, console)
    if verbose:
        for name, records in result.records.items():
            for record in records:
                for line in record.lines():
                    console.print(f"{name}: {line}", markup=False, soft_wrap=True)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-p", "--passes", "text", default="", help='Passes, such as "fold-constants{max-bytes=0}, drop-dead-nodes".'
)
@click.option("-w", "--weights", type=click.Path(path_type=Path), help="safetensors file of the params.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write here instead of stdout.")
@click.option("--print-ir-after", metavar="PASS", help="Print the IR after this pass, on stderr.")
@click.option("--dump", type=click.Path(path_type=Path), help="Write the IR after each pass into this folder.")
@common
def opt(
    file: Path, text: str, weights: Path | None, output: Path | None, print_ir_after: str | None, dump: Path | None,
    as_json: bool, quiet: bool, verbose: bool,
) -> None:  # fmt: skip
    """Run passes on IR text and print the result, as mlir-opt does; "-" reads stdin."""
    from compiler.files import decode, read_text, writing
    from compiler.pipeline.opt import optimise_text

    source = decode(sys.stdin.buffer.read(), "stdin") if str(file) == "-" else read_text(file)
    result = optimise_text(source, text, weights, dump, print_ir_after or "", _aside)
    if output is not None:
        with writing(output) as place:
            place.write_text(result.text)
    if as_json:
        emit_json({"ir": result.text, "passes": result.rows()})
    elif output is None:
        click.echo(result.text, nl=False)
    if verbose:
        for line in result.remarks():
            click.echo(line, err=True)


def _aside(text: str) -> None:
    click.echo(text, err=True, nl=False)


@click.command("build-on-target")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("-t", "--target", help="Of several targets, the one to finish.  [the GPU that is here]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Artifact directory.  [NAME-TARGET.penstock]")
@click.option("--build-timeout", "timeout", type=BUILD_SECONDS, default=1800.0, show_default=True, help="Seconds.")
@click.option("--force", is_flag=True, help="Replace an artifact that is there.")
@common
def build_on_target(
    artifact: Path, target: str | None, output: Path | None, timeout: float, force: bool,
    as_json: bool, quiet: bool, verbose: bool,
) -> None:  # fmt: skip
    """Finish a kit: build the engine that could not be built ahead of time, on the machine that has the GPU."""
    from compiler.cli.progress import Progress
    from compiler.events import Phases
    from compiler.runtime.finish import finish_kit

    with Progress(f"build-on-target {artifact}", level(quiet or as_json, verbose)) as progress:
        phases = Phases(progress)
        with phases.phase("build", "the engine for this GPU"):
            path, identity = finish_kit(
                artifact, output, target=target, force=force, timeout=timeout,
                progress=lambda phase, fraction: phases.note("progress", f"{phase} {fraction:.0%}"),
            )  # fmt: skip
    if as_json:
        emit_json({"path": str(path), "id": identity})
    else:
        click.echo(path)


COMMANDS = (compile, opt, build_on_target)
