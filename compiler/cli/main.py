"""``penstock``: the commands, and how an error becomes one message and an exit code.

Nothing heavy is imported before a command runs: ``penstock --help`` must feel instant.
"""

from __future__ import annotations

import errno
import sys

import click

from compiler.cli import artifacts, building, looking

EXIT_CODES = """\b
Exit codes: 0 done. 1 a bug in Penstock. 2 usage or recipe. 3 model not supported.
4 engine or package missing. 5 disk, memory or permission. 6 verification failed.
7 goal not met (artifact written). 8 untrusted or corrupted input. 9 an engine's builder failed.
130 interrupted."""

START = """A compiler for adaptive inference.

\b
  penstock compile examples/minilm.py           capture, optimise, verify, measure
  penstock estimate examples/minilm.py -t l4    predict for a GPU that is not here
  penstock doctor                               what works on this machine
"""

_MISNAMED = frozenset({errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG})
"""What the system answers to a path that cannot be meant; its other refusals are for lack of something."""


def _version(context: click.Context, parameter: click.Parameter, asked: bool) -> None:
    """Print the version; a bare checkout has none."""
    if asked:
        from importlib import metadata

        try:
            click.echo(f"penstock {metadata.version('penstock')}")
        except metadata.PackageNotFoundError:
            click.echo("penstock 0+checkout")
        context.exit()


@click.group(
    help=START,
    epilog=EXIT_CODES,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and exit."
)
@click.pass_context
def cli(context: click.Context) -> None:
    """See START."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _command in (*building.COMMANDS, *artifacts.COMMANDS, *looking.COMMANDS):
    cli.add_command(_command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; ends the process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = cli.main(args=arguments, prog_name="penstock", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _end("error: interrupted", 130)
    except click.ClickException as error:
        _end(_misused(error), 2)
    except Exception as error:  # noqa: BLE001  (the last door: every error becomes one message)
        _end(*_told(error, "-v" in arguments or "--verbose" in arguments))
    sys.exit(code if isinstance(code, int) else 0)


def _misused(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"\n  hint: {context.command_path} --help" if context else ""
    return f"error: {error.format_message()}{hint}"


def _told(error: Exception, verbose: bool) -> tuple[str, int]:
    """Message and exit code of an error."""
    notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
    code = getattr(error, "exit_code", 1)
    if code != 1:
        return f"error: {error}{notes}", code
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch raises a RuntimeError
        return "error: out of memory\n  hint: smaller inputs, or a machine with more memory", 5
    if isinstance(error, OSError) and error.errno is not None:
        path = f": {error.filename}" if error.filename is not None else ""
        return f"error: {error.strerror}{path}", 2 if error.errno in _MISNAMED else 5
    import traceback

    trace = "".join(traceback.format_exception(error)) if verbose else ""
    hint = "" if verbose else "\n  hint: run again with -v for the trace, and report it"
    return f"{trace}error: this is a bug in Penstock: {type(error).__name__}: {error}{notes}{hint}", 1


def _end(message: str, code: int) -> None:
    click.echo(message, err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
