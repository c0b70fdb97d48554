"""`moeprof plan`: decide which experts live in VRAM under one budget."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moeprof.cli.machine import (
    DeviceContext,
    GpuName,
    Hardware,
    NvmeClass,
    RamName,
    device_context_bytes,
    machine,
)
from moeprof.cli.options import (
    Context,
    DenseFormat,
    Force,
    Json,
    RunFormat,
    Seed,
    TraceArgument,
    check_dense_format,
    check_format,
    table_console,
)

if TYPE_CHECKING:
    from moeprof.placement import Placement


def plan(
    trace: TraceArgument,
    model: Annotated[str, typer.Option(help="Model directory or hub id that was traced.")],
    vram: Annotated[str, typer.Option(help="Budget for everything: 24GB, 22.5GiB, 900MB.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Placement file to write.")],
    context: Context = None,
    batch: Annotated[
        int, typer.Option(min=1, max=2**16, help="Sequences the KV cache must hold.")
    ] = 1,
    hardware: Hardware = None,
    gpu: GpuName = None,
    ram: RamName = None,
    nvme: NvmeClass = None,
    phase: Annotated[
        str | None,
        typer.Option(
            help="Routing to optimise for: decode, prefill or all. [default: decode "
            "where the trace has it, else prefill]"
        ),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Folds for held-out figures.")] = 5,
    weight_format: RunFormat = None,
    dense_format: DenseFormat = "stored",
    device_context: DeviceContext = None,
    plot: Annotated[
        Path | None, typer.Option(help="Picture to write. [default: OUTPUT with .png]")
    ] = None,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    r"""Decide which experts live in VRAM under one budget, and say what to expect.

    The budget is for everything: weights outside the experts, KV cache, workspace and device
    context; what remains is for experts. No weights are loaded. Speed is predicted for a machine:
    a measured one (--hardware), or one from data sheets (--gpu and --ram).

    Example:
        moeprof plan traces/demo --model moeprof/demo/model --vram 6MB --context 256 \
            --device-context 0 -o plan.json
    """
    from moeprof.checkpoint.facts import context_notes, model_facts, usual_context
    from moeprof.placement import check_free, placement_text, write_placement, write_whole
    from moeprof.plan import PHASE_CHOICES, PlanRequest
    from moeprof.plan import plan as make_plan
    from moeprof.trace import open_trace
    from moeprof.units import parse_size

    if phase is not None and phase not in PHASE_CHOICES:
        raise typer.BadParameter(f"{phase!r} is not one of {', '.join(PHASE_CHOICES)}")
    check_format(weight_format)
    check_dense_format(dense_format)
    picture = plot or output.with_suffix(".png")
    if picture == output:
        raise typer.BadParameter(f"{output} cannot hold both manifest and picture; name it .json")
    check_free(output, force)
    check_free(picture, force)
    profile = machine(hardware, gpu, ram, nvme)
    request = PlanRequest(
        vram_bytes=parse_size(vram),
        context_tokens=usual_context(model) if context is None else context,
        batch_size=batch,
        device_context_bytes=device_context_bytes(device_context, profile),
        phase=phase,
        folds=folds,
        seed=seed,
        hardware=profile,
        weight_format=weight_format,
        dense_format=dense_format,
    )
    opened = open_trace(trace)
    placement = make_plan(opened, model_facts(model, request), request)
    notes = (*placement.notes, *context_notes(model, request.context_tokens))
    placement = replace(placement, notes=notes)
    drawn = _picture(placement)
    write_placement(placement, output, force)
    typer.echo(f"wrote {output}", err=True)
    write_whole(picture, drawn)
    typer.echo(f"wrote {picture}", err=True)
    if as_json:
        typer.echo(placement_text(placement), nl=False)
    else:
        _print_tables(placement)


def _print_tables(placement: "Placement") -> None:
    from moeprof.report.placement_tables import placement_tables

    table_console().print(placement_tables(placement), highlight=False)


def _picture(placement: "Placement") -> bytes:
    """The placement as a PNG file."""
    from moeprof.report.figures import placement_figure, png
    from moeprof.report.placement_tables import placement_title

    title = placement_title(placement)
    return png(placement_figure(placement.tier_of, placement.model.moe_layers, title))
