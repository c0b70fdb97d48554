"""`moeprof import`: make a trace of routing that others recorded."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moeprof.cli.options import Force

if TYPE_CHECKING:
    from moeprof.interop import KnownModel

_LAYERS = re.compile(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*")


def import_(
    format_name: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="route-trace, tok-layers, topk-csv, layer-expert-csv, imatrix, sglang, vllm, "
            "ktransformers or parquet.",
        ),
    ],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files to read.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Trace directory to write.")],
    model: Annotated[
        str | None,
        typer.Option(help="Model directory or hub id; says what the files do not, for plan."),
    ] = None,
    num_experts: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Experts of a layer.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Experts chosen per token.")
    ] = None,
    moe_layers: Annotated[
        str | None, typer.Option(metavar="LAYERS", help="MoE layers, such as 1-26 or 3,5-47.")
    ] = None,
    expert_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Bytes of one expert as stored.")
    ] = None,
    phase: Annotated[
        str | None, typer.Option(help="prefill or decode, where the files do not say.")
    ] = None,
    model_type: Annotated[str | None, typer.Option(help="Such as qwen3_moe.")] = None,
    domain: Annotated[str, typer.Option(help="What to file the tokens under.")] = "imported",
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens to take at most, from the beginning.")
    ] = None,
    document_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Length of every document of a stream that is not divided."),
    ] = None,
    force: Force = False,
) -> None:
    r"""Make a trace of routing that others recorded.

    What the files do not say is recorded as missing, and commands that need it refuse with the
    reason; the options say it. Every row is checked before the trace appears.

    Example:
        moeprof import tok-layers olmoe.jsonl.gz --num-experts 64 --phase decode \
            --expert-bytes 12MiB -o traces/olmoe
    """
    from moeprof.interop import FORMATS, Facts, import_trace
    from moeprof.trace.schema import PHASES
    from moeprof.units import parse_size

    if format_name not in FORMATS:
        raise typer.BadParameter(f"{format_name!r} is not one of {', '.join(FORMATS)}")
    if phase is not None and phase not in PHASES:
        raise typer.BadParameter(f"{phase!r} is not one of {', '.join(PHASES)}")
    facts = Facts(
        num_experts=num_experts,
        top_k=top_k,
        moe_layers=None if moe_layers is None else _layers(moe_layers),
        expert_bytes=None if expert_bytes is None else parse_size(expert_bytes),
        phase=phase,
        model_type=model_type,
        model=None if model is None else _known(model),
        domain=domain,
        max_tokens=max_tokens,
        document_tokens=document_tokens,
    )
    trace = import_trace(
        format_name,
        files,
        output,
        facts,
        force,
        tell=lambda note: typer.echo(f"note: {note}", err=True),
    )
    for entry in trace.metadata.domains:
        prefill, decode = entry.tokens
        typer.echo(
            f"{entry.name}: {entry.documents} documents, {prefill} prefill and {decode} decode "
            "tokens",
            err=True,
        )
    if trace.metadata.missing:
        typer.echo(f"missing: {', '.join(trace.metadata.missing)}", err=True)
    typer.echo(f"wrote {output}", err=True)


def _layers(text: str) -> tuple[int, ...]:
    from moeprof.interop.values import MAX_LAYER

    if not _LAYERS.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is no list of layers such as 1-26 or 3,5-47")
    layers: set[int] = set()
    for run in text.split(","):
        first, _, last = run.partition("-")
        layers |= set(range(int(first), int(last or first) + 1))
    if not layers:
        raise typer.BadParameter(f"{text!r} names no layer")
    if max(layers) > MAX_LAYER:
        raise typer.BadParameter(f"{text!r} names layer {max(layers)}, the last is {MAX_LAYER}")
    return tuple(sorted(layers))


def _known(model: str) -> "KnownModel":
    from moeprof.checkpoint import read_checkpoint
    from moeprof.interop import KnownModel
    from moeprof.trace.schema import ModelIdentity

    found = read_checkpoint(model)
    identity = ModelIdentity(found.name, found.fingerprint, found.tokenizer_hash)
    return KnownModel(identity, found.shape)
