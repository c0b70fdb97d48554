"""`moeprof inspect`: what a trace holds, and whether it is intact."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from moeprof.cli.options import Json, TraceArgument

if TYPE_CHECKING:
    from moeprof.trace.origin import Origin


def inspect(
    trace: TraceArgument,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every row and hash, not only the frame.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a trace holds: the model, the domains, how it was made.

    Example:
        moeprof inspect traces/demo --verify
    """
    from moeprof.trace import open_trace

    opened = open_trace(trace)
    if verify:
        opened.verify()
    if as_json:
        typer.echo(json.dumps(json.loads(opened.metadata.to_json()), indent=1))
        return
    metadata, shape = opened.metadata, opened.shape
    typer.echo(f"model      {metadata.model.name} ({shape.model_type})")
    typer.echo(
        f"shape      {shape.num_moe_layers} MoE layers of {shape.num_layers}, "
        f"{shape.num_experts} experts, top-{shape.top_k}"
    )
    capture = metadata.capture
    if metadata.origin is not None:
        _print_origin(metadata.origin)
    typer.echo(
        f"capture    {capture.dtype} on {capture.device}, context of {capture.sequence_length}, "
        f"{'with' if capture.weights else 'without'} weights"
    )
    for domain in metadata.domains:
        prefill, decode = domain.tokens
        typer.echo(
            f"domain     {domain.name}: {domain.documents} documents, {prefill} prefill and "
            f"{decode} decode tokens{'' if domain.complete else ' (unfinished)'}"
        )
    if not metadata.complete:
        typer.echo("unfinished: repeat the trace command with --resume", err=True)
    if verify:
        what = "hashes, ids and sums" if opened.has_rows else "hash and sums of the counts"
        typer.echo(f"verified: {what} are right", err=True)


def _print_origin(origin: "Origin") -> None:
    from moeprof.trace.origin import UNSAID

    typer.echo(f"origin     {origin.format}: {', '.join(origin.files)}")
    for word in origin.missing:
        typer.echo(f"  {word:<12} it does not say {UNSAID[word]}")
