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
    from moeprof.interop import FORMATS, placed
    from moeprof.trace import open_trace

    writers = {name: one.write for name, one in FORMATS.items() if one.write is not None}
    if format_name not in writers:
        raise typer.BadParameter(f"{format_name!r} is not one of {', '.join(writers)}")
    opened = open_trace(trace)

    def free(path: Path) -> None:
        if path.is_dir():
            raise TraceError(f"{path}: is a folder, which is not replaced", "choose another -o")
        if path.exists() and not force:
            raise TraceError(f"{path}: already exists", "choose another -o, or add --force")

    with placed(output, free, "exported") as unfinished:
        writers[format_name](opened, unfinished)
    typer.echo(f"wrote {output}", err=True)
