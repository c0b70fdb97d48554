"""`moeprof hardware`: measure this machine with a model, for predictions of speed."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moeprof.cli.options import Force, Json, check_format

if TYPE_CHECKING:
    from moeprof.hardware import HardwareProfile, TierProfile


def hardware(
    model: Annotated[str, typer.Argument(help="Model directory or hub id to measure with.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Profile file to write.")],
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="bfloat16, float16, float32, or auto: as the checkpoint.")
    ] = "auto",
    weight_format: Annotated[
        list[str] | None,
        typer.Option("--format", help="Time experts in q8_0, q4_0 or bf16, too; may be repeated."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What to call the machine. [default: its processor]")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure this machine with a model's own experts, so that plans can predict its speed.

    Close other programs first: what they take is measured, too.

    Example:
        moeprof hardware moeprof/demo/model -o hardware.json
    """
    from moeprof.placement import check_free, write_whole
    from moeprof.runtime.measurement import measure_hardware
    from moeprof.runtime.report import HOST_ONLY

    for chosen in weight_format or ():
        check_format(chosen)
    check_free(output, force)
    profile = measure_hardware(
        model, device=device, dtype=dtype, name=name, formats=weight_format or ()
    )
    try:
        write_whole(output, profile.to_json().encode())
        typer.echo(f"wrote {output}", err=True)
    finally:  # what took minutes to measure is shown even where the disk is full
        if as_json:
            typer.echo(profile.to_json(), nl=False)
        if "ram-vram" not in profile.links:
            typer.echo(f"note: {HOST_ONLY}", err=True)
        for line in _lines(profile):
            typer.echo(line, err=True)


def _lines(profile: "HardwareProfile") -> Iterator[str]:
    """The profile for people."""
    from moeprof.units import format_duration, format_size

    yield f"machine    {profile.name}"
    for tier, facts in profile.tiers.items():
        yield (
            f"{tier:10} {format_size(facts.capacity_bytes)}, "
            f"{format_size(facts.read_bytes_per_s)}/s"
        )
        for line in expert_lines(facts):
            yield f"  {line}"
    dense, batch_dense = profile.dense_time, profile.dense_batch_time
    yield f"layer      {format_duration(dense.fixed_s)} outside experts"
    if batch_dense is not None:
        yield f"prompt     {format_duration(batch_dense.s_per_token)} per token outside experts"


def expert_lines(tier: "TierProfile") -> list[str]:
    """What an expert takes in each format; formats that take the same share a line."""
    from moeprof.units import format_duration

    formats: dict[str, list[str]] = {}
    for stored, token in tier.expert_time.items():
        batch = tier.expert_batch_time[stored]
        takes = (
            f"one expert: {format_duration(token.fixed_s)} + "
            f"{format_duration(token.s_per_byte * 2**20)} per MiB; of a batch: "
            f"{format_duration(batch.fixed_s)} + "
            f"{format_duration(batch.s_per_byte * 2**20)} per MiB + "
            f"{format_duration(batch.s_per_token)} per token"
        )
        formats.setdefault(takes, []).append(stored)
    return [f"{', '.join(names):8} {takes}" for takes, names in formats.items()]
