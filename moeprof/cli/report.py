"""`moeprof report`: one page that says whether a placement is worth it, and why."""

from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.options import Force, Seed, TraceArgument
from moeprof.errors import TraceError


def report(
    trace: TraceArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Page to write, as HTML.")],
    plan: Annotated[
        Path | None, typer.Option(metavar="PLAN", help="Placement to show, made by moeprof plan.")
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.0001, max=1.0, help="Share of cells in a hot set.")
    ] = 0.2,
    folds: Annotated[int, typer.Option(min=2, help="Folds for held-out figures.")] = 5,
    resamples: Annotated[
        int, typer.Option(min=2, help="Bootstrap resamples behind each interval.")
    ] = 200,
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Write one HTML page with the verdict and everything it rests on.

    The page needs no network and no other file, so that it can be sent to others as it is.

    Example:
        moeprof report traces/demo --plan placements/demo.json -o report.html
    """
    from moeprof.analyze import AnalysisSettings, analyze
    from moeprof.placement import check_free, read_placement, write_whole
    from moeprof.report.page import PageInputs, policy_curves, report_page
    from moeprof.trace import open_trace

    check_free(output, force)
    settings = AnalysisSettings(share=share, folds=folds, resamples=resamples, seed=seed)
    placement = None if plan is None else read_placement(plan)
    opened = open_trace(trace)
    reasons: dict[str, str] = {}
    policies = None
    try:
        policies = policy_curves(opened, folds, seed)
    except TraceError as error:
        reasons["policies"] = str(error).removeprefix(f"{opened.path}: ")
    page = report_page(
        PageInputs(
            metadata=opened.metadata,
            cells=opened.cell_counts(),
            analysis=analyze(opened, settings),
            placement=placement,
            policies=policies,
            reasons=reasons,
        )
    )
    write_whole(output, page.encode())
    typer.echo(f"wrote {output}", err=True)
