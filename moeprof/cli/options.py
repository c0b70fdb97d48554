"""Options that mean the same in every command."""

from pathlib import Path
from typing import Annotated

import typer

TraceArgument = Annotated[Path, typer.Argument(metavar="TRACE", help="A trace directory.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace files that are there.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
