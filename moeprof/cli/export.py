"""`moeprof export`: write a trace in a format that other tools read."""

from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.options import Force, TraceArgument
from moeprof.errors import TraceError


def export(
    format_name: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="route-trace, tok-layers, topk-csv, layer-expert-csv, vllm, ktransformers or "
            "parquet.",
        ),
    ],
    trace: TraceArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write; for parquet a new folder.")
    ],
    force: Force = False,
) -> None:
    """Write a trace in a format that other tools read.

    Example:
        moeprof export ktransformers traces/demo -o demo.pt
    """
    from moeprof.interop import FORMATS
    from moeprof.trace import open_trace

    writers = {name: one.write for name, one in FORMATS.items() if one.write is not None}
    if format_name not in writers:
        raise typer.BadParameter(f"{format_name!r} is not one of {', '.join(writers)}")
    opened = open_trace(trace)
    if output.exists() and (output.is_dir() or not force):
        raise TraceError(f"{output}: already exists", "choose another -o, or add --force")
    unfinished = output.with_name(f".{output.name}.unfinished")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        writers[format_name](opened, unfinished)
        unfinished.replace(output)
    except OSError as error:
        raise TraceError(
            f"{output}: cannot be written ({error.strerror or error})", "write elsewhere"
        ) from error
    finally:
        _remove(unfinished)
    typer.echo(f"wrote {output}", err=True)


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
