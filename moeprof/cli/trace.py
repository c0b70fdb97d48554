"""`moeprof trace`: record which experts a model chooses on your text."""

from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.options import Force, Seed


def trace(
    model: Annotated[str, typer.Argument(help="Model directory or hub id.")],
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="[DOMAIN=]DATA...",
            help="File, folder, glob, hub:NAME[:CONFIG][:SPLIT], or - for standard input.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Trace directory to write.")],
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Prompt tokens per domain; all by default.")
    ] = None,
    sequence_length: Annotated[
        int, typer.Option(min=1, help="Tokens after which the context restarts in a document.")
    ] = 2048,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences per forward.")] = 4,
    generate: Annotated[
        int, typer.Option(min=0, help="Tokens to generate after each document's prompt.")
    ] = 0,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, help="Length of that prompt; conversations keep theirs.")
    ] = 256,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Of sampling while generating; 0 is greedy.")
    ] = 1.0,
    weights: Annotated[
        bool, typer.Option("--weights/--no-weights", help="Record router weights, too.")
    ] = True,
    text_column: Annotated[
        str, typer.Option(help="Column of tables and data sets that holds the text.")
    ] = "text",
    skip_empty: Annotated[
        bool, typer.Option("--skip-empty", help="Leave documents without tokens out.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="bfloat16, float16, float32, or auto: as the checkpoint.")
    ] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a trace that was interrupted.")
    ] = False,
    commit_seconds: Annotated[
        float, typer.Option(min=0.0, help="Rows reach the disk at least this often.")
    ] = 30.0,
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Record which experts a model chooses on your text, per token and layer.

    DATA is a file or folder (one document per text file, one per row of .jsonl, .csv and
    .parquet), a quoted glob, a data set of the hub, or - for standard input. DOMAIN= before it
    names what kind of text it is; statistics are kept apart by domain.

    Example:
        moeprof trace moeprof/demo/model moeprof/demo/texts/python -o traces/first
    """
    from moeprof.capture.tracer import TraceRequest
    from moeprof.capture.tracer import trace as run_trace
    from moeprof.cli.progress import TraceProgress
    from moeprof.trace.schema import CaptureSettings

    settings = CaptureSettings(
        sequence_length=sequence_length,
        batch_size=batch_size,
        max_tokens=max_tokens,
        generate=generate,
        prompt_tokens=prompt_tokens,
        temperature=temperature,
        seed=seed,
        weights=weights,
        dtype=dtype,
        device=device,
        text_column=text_column,
    )
    request = TraceRequest(
        model=model,
        data=tuple(data),
        output=output,
        settings=settings,
        resume=resume,
        force=force,
        skip_empty=skip_empty,
        commit_seconds=commit_seconds,
    )
    if resume and not output.exists():
        typer.echo(f"{output}: nothing to resume, beginning it", err=True)
    try:
        with TraceProgress() as progress:
            finished = run_trace(request, progress)
    except KeyboardInterrupt:
        typer.echo(f"{output}: what was written is kept; continue with --resume", err=True)
        raise
    for domain in finished.metadata.domains:
        prefill, decode = domain.tokens
        typer.echo(
            f"{domain.name}: {domain.documents} documents, {prefill} prefill and {decode} decode "
            "tokens",
            err=True,
        )
    typer.echo(f"wrote {output}", err=True)
