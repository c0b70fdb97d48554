"""What means the same in every command: options, and reading a text that was named."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from moeprof.errors import MoeprofError

_PLAIN_WIDTH = 120

TraceArgument = Annotated[Path, typer.Argument(metavar="TRACE", help="A trace directory.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace files that are there.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        min=1,
        max=2**24,
        help="Tokens the KV cache must hold. [default: 4096, or what the model was made for if "
        "that is less]",
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of everything random.")
]

RunFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Format to run the experts in: q4_0, q8_0 or bf16. [default: left open, sized as in "
        "the checkpoint]",
    ),
]

DenseFormat = Annotated[
    str,
    typer.Option(
        "--dense-format",
        help="Of linear layers outside the experts: q8_0, or stored for the model's own type.",
    ),
]

PlannedDenseFormat = Annotated[
    str | None,
    typer.Option(
        "--dense-format",
        help="Of linear layers outside the experts: q8_0, or stored for the model's own type. "
        "[default: the plan's]",
    ),
]


def check_format(weight_format: str | None) -> None:
    """Refuse what `--format` does not know."""
    from moeprof.native.reference import BLOCK_BYTES

    if weight_format is not None and weight_format not in BLOCK_BYTES:
        raise typer.BadParameter(f"{weight_format!r} is not one of {', '.join(BLOCK_BYTES)}")


def check_dense_format(dense_format: str) -> None:
    """Refuse what `--dense-format` does not know."""
    from moeprof.checkpoint.dense_layers import DENSE_FORMATS

    if dense_format not in DENSE_FORMATS:
        raise typer.BadParameter(f"{dense_format!r} is not one of {', '.join(DENSE_FORMATS)}")


def table_console() -> Console:
    """Standard output for tables: as wide as the terminal, or wide enough where it is none."""
    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)


def read_text(path: Path, option: str) -> str:
    """A UTF-8 text file named with an option.

    Raises:
        MoeprofError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise MoeprofError(
            f"{path}: cannot be read ({error.strerror})", f"name a text file with {option}"
        ) from error
    except UnicodeDecodeError as error:
        raise MoeprofError(
            f"{path}: not UTF-8 text, byte {error.start} is 0x{error.object[error.start]:02x}",
            f"convert it, as in: iconv -f latin1 -t utf-8 {path}",
        ) from error


def context_for(context: int | None, model: str | None) -> int:
    """Tokens of context to plan for: as asked, else as usual; only a checkpoint's needs torch.

    A warning is shown where the model was made for fewer.
    """
    from moeprof.plan import PlanRequest

    if model is None:
        return PlanRequest(vram_bytes=0).context_tokens if context is None else context
    from moeprof.checkpoint.facts import context_notes, usual_context

    if context is None:
        return usual_context(model)
    for note in context_notes(model, context):
        typer.echo(f"warning: {note}", err=True)
    return context
