"""`moeprof report`: one page that says whether a placement is worth it, and why."""

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
    vram_bytes,
)
from moeprof.cli.options import Force, RunFormat, Seed, TraceArgument, check_format, context_for
from moeprof.errors import CapacityError, TraceError

if TYPE_CHECKING:
    from moeprof.plan import Advice, PlanRequest
    from moeprof.plan.simulation import Simulation
    from moeprof.trace import Trace


def report(
    trace: TraceArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Page to write, as HTML.")],
    plan: Annotated[
        Path | None, typer.Option(metavar="PLAN", help="Placement to show, made by moeprof plan.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model directory or hub id that was traced.")
    ] = None,
    vram: Annotated[
        str | None,
        typer.Option(
            help="Budget for everything: 24GB, 22.5GiB, 900MB. [default: that of PLAN, else all "
            "that the machine has]"
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2**24,
            help="Tokens the KV cache must hold. [default: that of PLAN, else 4096, or what the "
            "model was made for if that is less]",
        ),
    ] = None,
    hardware: Hardware = None,
    gpu: GpuName = None,
    ram: RamName = None,
    nvme: NvmeClass = None,
    weight_format: RunFormat = None,
    device_context: DeviceContext = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            help="Further budgets to compare at: vram=4GB..96GB. [default: from no expert in VRAM "
            "to all]"
        ),
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.0001, max=1.0, help="Share of cells in a hot set.")
    ] = 0.2,
    folds: Annotated[int, typer.Option(min=2, help="Folds for held-out figures.")] = 5,
    resamples: Annotated[
        int, typer.Option(min=2, help="Bootstrap resamples behind each interval of coverage.")
    ] = 200,
    seed: Seed = 0,
    force: Force = False,
) -> None:
    r"""Write one HTML page with the verdict and everything it rests on.

    The page needs no network and no other file, so that it can be sent to others as it is. With
    a budget (--vram) it compares ways to use it, with a machine (--hardware, or --gpu and --ram)
    it prices them.

    Example:
        moeprof report traces/demo --plan placements/demo.json --model moeprof/demo/model \
            --gpu "RTX 3090" --ram ddr5-6000x2 --device-context 0 -o report.html
    """
    from moeprof.analyze import AnalysisSettings, analyze
    from moeprof.placement import check_free, read_placement, write_whole
    from moeprof.plan import PlanRequest
    from moeprof.report.page import PageInputs, report_page
    from moeprof.trace import open_trace

    check_format(weight_format)
    check_free(output, force)
    placement = None if plan is None else read_placement(plan)
    opened = open_trace(trace)
    profile = machine(hardware, gpu, ram, nvme)
    planned = None if placement is None else placement.budget
    budget = vram_bytes(vram, None if planned else profile)
    if budget is None and planned is not None:
        budget = planned.total_bytes
    if budget is None and model is not None:
        raise typer.BadParameter("--model needs a budget: --vram 24GB, --plan, or a machine")
    if context is None and planned is not None:
        tokens = planned.context_tokens
    else:
        tokens = context_for(context, model)
    request = PlanRequest(
        vram_bytes=budget or 0,
        context_tokens=tokens,
        batch_size=planned.batch_size if planned else 1,
        folds=folds,
        seed=seed,
        hardware=profile,
        weight_format=weight_format,
    )
    advice = None
    # A plan alone brings its own predictions.
    if budget is None or all(option is None for option in (vram, model, profile)):
        _refuse_without_budget(sweep=sweep, context=context, device_context=device_context)
    else:
        driver = device_context_bytes(device_context, profile)
        request = replace(request, device_context_bytes=driver)
        advice = _advice(opened, model, request, sweep)
    simulation, reason = _simulation(opened, request)
    settings = AnalysisSettings(share=share, folds=folds, resamples=resamples, seed=seed)
    page = report_page(
        PageInputs(
            metadata=opened.metadata,
            cells=opened.cell_counts(),
            analysis=analyze(opened, settings),
            placement=placement,
            advice=advice,
            simulation=simulation,
            reasons={"policies": reason, "locality": _unsaid(opened)},
        )
    )
    write_whole(output, page.encode())
    typer.echo(f"wrote {output}", err=True)


def _refuse_without_budget(**given: object) -> None:
    """Refuse options that say nothing where no ways to use a budget are compared."""
    for name, value in given.items():
        if value is not None:
            raise typer.BadParameter(
                "asks about a budget: name one with --vram 24GB, or a model or machine with --plan",
                param_hint=f"--{name.replace('_', '-')}",
            )


def _advice(
    trace: "Trace", model: str | None, request: "PlanRequest", sweep: str | None
) -> "Advice":
    """The strategies at the budget and around it."""
    from moeprof.checkpoint.facts import model_facts
    from moeprof.plan import AdviceRequest, advise
    from moeprof.plan.sweep import sweep_budgets
    from moeprof.plan.trace_facts import facts_of_trace
    from moeprof.report.page import swept_budgets

    facts = None if model is None else model_facts(model, request)
    if sweep is None:
        budgets = swept_budgets(facts or facts_of_trace(trace, request), request)
    else:
        budgets = sweep_budgets(sweep)
    return advise(trace, facts, AdviceRequest(request, sweep=budgets))


def _simulation(trace: "Trace", request: "PlanRequest") -> "tuple[Simulation | None, str]":
    """What caches hit, or why that cannot be said."""
    from moeprof.plan.simulation import simulate
    from moeprof.report.page import simulation_request

    try:
        return simulate(trace, simulation_request(trace, request)), ""
    except (CapacityError, TraceError) as error:
        return None, str(error).removeprefix(f"{trace.path}: ")


def _unsaid(trace: "Trace") -> str:
    """Why nothing can be said of consecutive tokens; empty where it can."""
    try:
        trace.require("order", "nothing can be said of consecutive tokens")
    except TraceError as error:
        return str(error).removeprefix(f"{trace.path}: ")
    return ""
