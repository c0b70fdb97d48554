"""The command line: one file per command; a command parses, calls the library and reports."""

import errno
import inspect as inspect_module
import os
import sys
from collections.abc import Callable, Sequence

import typer

from moeprof.cli.advise import advise
from moeprof.cli.analyze import analyze
from moeprof.cli.bench import bench
from moeprof.cli.compare import compare
from moeprof.cli.demo import demo
from moeprof.cli.export import export
from moeprof.cli.hardware import hardware
from moeprof.cli.import_ import import_
from moeprof.cli.inspect import inspect
from moeprof.cli.plan import plan
from moeprof.cli.report import report
from moeprof.cli.run import run
from moeprof.cli.simulate import simulate
from moeprof.cli.trace import trace
from moeprof.errors import MoeprofError

# Read when torch is imported. Threads that wait actively for a core that another program holds
# slow small models down tenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The loading bars of transformers are for people; in a log they are noise.
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")

app = typer.Typer(
    name="moeprof",
    help="Which experts does a Mixture-of-Experts model use, and where should each of them live?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
COMMANDS = (
    trace,
    import_,
    export,
    inspect,
    analyze,
    advise,
    compare,
    report,
    hardware,
    simulate,
    plan,
    run,
    bench,
    demo,
)


def _help(command: Callable[..., None]) -> str:
    """The docstring, its example kept from being wrapped like prose (a line of backspace)."""
    text = inspect_module.cleandoc(command.__doc__ or "")
    return text.replace("Example:\n", "\b\nExample:\n")


for _command in COMMANDS:
    app.command(_command.__name__.rstrip("_"), help=_help(_command))(_command)


def main(args: Sequence[str] | None = None) -> None:
    """Run one command; a known failure is two lines on stderr and exit 1, a bug a traceback."""
    try:
        app(args)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        typer.echo(f"error: no space left where output goes ({error})", err=True)
        typer.echo("hint: free some space, or write elsewhere", err=True)
        raise SystemExit(1) from error
    except MoeprofError as error:
        typer.echo(f"error: {error}", err=True)
        if error.hint:
            typer.echo(f"hint: {error.hint}", err=True)
        raise SystemExit(1) from error
