"""Commands that only look: ``estimate``, ``inspect``, ``passes``, ``targets``, ``doctor``."""

from __future__ import annotations

from typing import Any

import click

from compiler.cli.options import common, emit_json, models_speak_aside, numbers, sizes, trust


def _console() -> Any:
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=100)


@click.command()
@click.argument("model")
@click.option("-t", "--target", "targets", default="cpu", show_default=True, help="Machines, such as l4,h100_sxm,cpu.")
@click.option("-b", "--batch", callback=numbers, help="Sizes of the dim batch, such as 1,8,64.  [1]")
@click.option("--seq", callback=numbers, help="Sizes of the dim seq.  [128]")
@click.option("-s", "--size", multiple=True, callback=sizes, help="NAME=SIZE of any other dim.")
@click.option("-r", "--recipe", default="fp32", show_default=True, help="Passes to run before pricing; none for none.")
@trust
@common
def estimate(
    model: str, targets: str, batch: tuple[int, ...], seq: tuple[int, ...], size: dict[str, int], recipe: str,
    trust_pickle: bool, as_json: bool, quiet: bool, verbose: bool,
) -> None:  # fmt: skip
    """Predict latency, memory and what bounds them, for machines that need not be here.

    MODEL is a FILE.py[:factory], a package.module:factory, an artifact, or an .ir file.
    """
    from compiler.cost.estimate import estimate_table, render
    from compiler.cost.targets import target
    from compiler.look import optimised, read_graph, sizes_to_price

    machines = [target(name.strip()) for name in targets.split(",")]
    with models_speak_aside():
        graph = optimised(read_graph(model, trust_pickle), recipe)
    batches = sizes_to_price(graph, "batch", batch, size, usual=1)
    seqs = sizes_to_price(graph, "seq", seq, size, usual=128)
    rows = estimate_table(graph, machines, batches, seqs, size)
    if as_json:
        emit_json({"rows": [row.to_dict() for row in rows]})
    else:
        render(rows, _console())


@click.command()
@click.argument("model")
@click.option("--ir", "as_ir", is_flag=True, help="Print the whole IR.")
@click.option("--ops", is_flag=True, help="List every operator with its count.")
@trust
@common
def inspect(model: str, as_ir: bool, ops: bool, trust_pickle: bool, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Show what a model is: inputs, dims, weights, operators, and what each engine cannot carry.

    MODEL is a FILE.py[:factory], a package.module:factory, an artifact, or an .ir file.
    """
    from compiler.look import describe, exits_of, read_graph
    from ir import show

    with models_speak_aside():
        graph = read_graph(model, trust_pickle)
    if as_ir:
        if as_json:
            emit_json({"ir": show(graph)})
        else:
            click.echo(show(graph), nl=False)
        return
    told = describe(graph)
    depth = exits_of(model)
    told |= {"depth": dict(depth)} if depth else {}
    if as_json:
        emit_json(told)
        return
    click.echo(f"{told['name']}: {told['nodes']} nodes, {told['weights']} weights, {told['weight_mb']:.1f} MB")
    for kind in ("inputs", "outputs"):
        for port in told[kind]:
            click.echo(f"  {kind[:-1]:<7} {port['name']:<28} {port['type']}")
    for name, bounds in told["dims"].items():
        click.echo(f"  dim     {name:<28} {bounds}")
    if depth:
        from compiler.report.terminal import adaptive_lines

        for line in adaptive_lines(depth):
            click.echo(f"  {line}")
    shown = list(told["operators"].items())[: None if ops else 12]
    click.echo("  operators " + ", ".join(f"{name} {count}" for name, count in shown))
    if len(told["operators"]) > len(shown):
        click.echo(f"  and {len(told['operators']) - len(shown)} more kinds (--ops lists them)")
    for engine, refused in told["engines"].items():
        click.echo(f"  {engine:<12} " + ("can carry it" if not refused else f"cannot carry {len(refused)}:"))
        for line in refused[: None if verbose else 5]:
            click.echo(f"      {line}")


@click.command()
@click.argument("name", required=False)
@common
def passes(name: str | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """List the passes, or explain the one named: what it does, when it declines, its options."""
    from compiler.look import describe_passes, explain_pass

    if name is not None:
        told = explain_pass(name)
        if as_json:
            emit_json(told)
        else:
            click.echo(told["text"])
        return
    rows = describe_passes()
    if as_json:
        emit_json({"passes": rows})
        return
    for row in rows:
        click.echo(f"{row['name']:<22} {row['summary']}")
        if row["options"] and not quiet:
            click.echo(" " * 23 + "options: " + ", ".join(f"{k}={v}" for k, v in row["options"].items()))


@click.command()
@common
def targets(as_json: bool, quiet: bool, verbose: bool) -> None:
    """List the machines that can be planned for, with their datasheet figures."""
    from compiler.look import describe_targets

    rows = describe_targets()
    if as_json:
        emit_json({"targets": rows})
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("name", "kind", "cc", "memory GB", "GB/s", "TFLOP/s", "int8 TOP/s", "efficiency", "engines"):
        table.add_column(title, justify="left" if title in ("name", "kind", "cc", "efficiency", "engines") else "right")
    for row in rows:
        table.add_row(
            *(
                str(row[k])
                for k in ("name", "kind", "cc", "memory_gb", "gb_s", "tflops", "int8_tops", "tier", "engines")
            )
        )
    _console().print(table)


@click.command()
@common
def doctor(as_json: bool, quiet: bool, verbose: bool) -> None:
    """Say what works on this machine, and the one command that adds each missing engine."""
    from compiler.doctor import diagnose, render

    findings = diagnose()
    if as_json:
        emit_json({"findings": [f.to_dict() for f in findings]})
    else:
        render(findings, _console())


COMMANDS = (estimate, inspect, passes, targets, doctor)
