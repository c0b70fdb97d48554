"""`moeprof advise`: is a placement worth it, and of which kind."""

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
    vram_bytes,
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
    context_for,
    table_console,
)

if TYPE_CHECKING:
    from moeprof.plan import Advice, ModelFacts, PlanRequest


def advise(
    trace: TraceArgument,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model directory or hub id that was traced. [default: what the trace says of it, "
            "which leaves the KV cache out]"
        ),
    ] = None,
    vram: Annotated[
        str | None,
        typer.Option(
            help="Budget for everything: 24GB, 22.5GiB, 900MB. [default: all that the machine has]"
        ),
    ] = None,
    hardware: Hardware = None,
    gpu: GpuName = None,
    ram: RamName = None,
    nvme: NvmeClass = None,
    weight_format: RunFormat = None,
    dense_format: DenseFormat = "stored",
    context: Context = None,
    batch: Annotated[
        int, typer.Option(min=1, max=2**16, help="Sequences the KV cache must hold.")
    ] = 1,
    device_context: DeviceContext = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="A cache to try, as of moeprof simulate; again for more. [default: eight]"
        ),
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(help="Further budgets to try: vram=4GB..96GB.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Picture of the sweep to write. [default: sweep.png]")
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Folds for held-out figures.")] = 5,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    r"""Say whether it is worth it: pin it, cache it, both, or don't bother.

    Every strategy is played over documents that it was not chosen on: all experts in RAM, whole
    layers in VRAM, the busiest experts, caches, and an oracle. Speeds are of a machine, a measured
    one (--hardware) or one from data sheets (--gpu and --ram).

    Example:
        moeprof advise traces/demo --model moeprof/demo/model --vram 6MB --context 256 \
            --gpu "RTX 3090" --ram ddr5-6000x2 --device-context 0
    """
    from moeprof.placement import check_free, write_whole
    from moeprof.plan import AdviceRequest, PlanRequest
    from moeprof.plan import advise as make_advice
    from moeprof.plan.request import CACHE_POLICIES
    from moeprof.plan.sweep import sweep_budgets
    from moeprof.trace import open_trace

    check_format(weight_format)
    if dense_format != "stored" and model is None:
        raise typer.BadParameter("--dense-format needs the checkpoint: name it with --model")
    budgets = () if sweep is None else sweep_budgets(sweep)
    if plot is not None and not budgets:
        raise typer.BadParameter("--plot draws a sweep; name one as in --sweep vram=4GB..96GB")
    picture = (plot or Path("sweep.png")) if budgets else None
    if picture is not None:
        check_free(picture, force)
    profile = machine(hardware, gpu, ram, nvme)
    budget = vram_bytes(vram, profile)
    if budget is None:
        raise typer.BadParameter("without a machine a budget is needed: --vram 24GB")
    request = PlanRequest(
        vram_bytes=budget,
        context_tokens=context_for(context, model),
        batch_size=batch,
        device_context_bytes=device_context_bytes(device_context, profile),
        folds=folds,
        seed=seed,
        hardware=profile,
        weight_format=weight_format,
        dense_format=dense_format,
    )
    opened = open_trace(trace)
    facts = None if model is None else _facts(model, request)
    policies = CACHE_POLICIES if policy is None else tuple(policy)
    found = make_advice(opened, facts, AdviceRequest(request, policies, budgets))
    if picture is not None:
        write_whole(picture, _picture(found))
    if as_json:
        typer.echo(found.to_json())
    else:
        _print_tables(found)
    if picture is not None:
        typer.echo(f"wrote {picture}", err=True)


def _print_tables(found: "Advice") -> None:
    from moeprof.report.advice_tables import advice_tables

    table_console().print(advice_tables(found), highlight=False)


def _picture(found: "Advice") -> bytes:
    """The sweep as a PNG file."""
    from moeprof.report.advice_figures import sweep_figure
    from moeprof.report.figures import png

    return png(sweep_figure(found))


def _facts(model: str, request: "PlanRequest") -> "ModelFacts":
    """The facts on the checkpoint; only they need torch."""
    from moeprof.checkpoint.facts import model_facts

    check_dense_format(request.dense_format)
    return model_facts(model, request)
