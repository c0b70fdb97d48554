"""`moeprof analyze`: how uneven is the routing of a trace, and does it hold on new text?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moeprof.cli.options import Force, Json, Seed, TraceArgument
from moeprof.errors import TraceError

if TYPE_CHECKING:
    from moeprof.analyze import Analysis
    from moeprof.trace import Trace

_PLAIN_WIDTH = 120  # columns where standard output is no terminal


def analyze(
    trace: TraceArgument,
    phase: Annotated[
        str | None,
        typer.Option(help="prefill, decode, or all to add them. [default: each apart]"),
    ] = None,
    domain: Annotated[
        str | None, typer.Option(help="One domain. [default: each, and all together]")
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.0001, max=1.0, help="Share of cells in a hot set.")
    ] = 0.2,
    budget: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Bytes of a hot set, such as 2GB, instead of a share."),
    ] = None,
    section: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SECTION",
            help="Compute only this, and show all of it: coverage, skew, locality, prediction, "
            "coactivation, domains, drift or sufficiency; can be repeated. [default: all]",
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(min=0.001, max=0.5, help="Coverage to within which the trace should decide."),
    ] = 0.02,
    folds: Annotated[int, typer.Option(min=2, help="Folds for held-out coverage.")] = 5,
    resamples: Annotated[
        int, typer.Option(min=2, help="Bootstrap resamples behind each interval.")
    ] = 200,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to draw figures into, as PNG.")
    ] = None,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Show how few experts serve how much of a trace: coverage, hot sets, overlap of domains.

    Coverage always stands in three lines: held-out (on documents that the cells were not chosen
    on), in-sample, and the floor that even routing would reach. Intervals are over documents.

    Example:
        moeprof analyze traces/demo --plots plots/demo
    """
    from moeprof.analyze import SECTIONS, AnalysisSettings
    from moeprof.analyze import analyze as make_analysis
    from moeprof.trace import open_trace
    from moeprof.units import parse_size

    if phase is not None and phase not in ("prefill", "decode", "all"):
        raise typer.BadParameter(f"{phase!r} is not one of prefill, decode, all")
    unknown = set(section or ()) - set(SECTIONS)
    if unknown:
        raise typer.BadParameter(f"{unknown.pop()!r} is not one of {', '.join(SECTIONS)}")
    settings = AnalysisSettings(
        domain=domain,
        phase=phase,
        share=share,
        budget_bytes=None if budget is None else _positive(parse_size(budget)),
        folds=folds,
        resamples=resamples,
        tolerance=tolerance,
        sections=tuple(dict.fromkeys(section)) if section else SECTIONS,
        seed=seed,
    )
    opened = open_trace(trace)
    if plots is not None:
        _check_folder(plots, force)
    analysis = make_analysis(opened, settings)
    if as_json:
        typer.echo(analysis.to_json())
    else:
        _print_tables(analysis)
    if plots is not None:
        _draw(analysis, opened, plots)


def _positive(num_bytes: int) -> int:
    if num_bytes == 0:
        raise typer.BadParameter("a budget of nothing", param_hint="--budget")
    return num_bytes


def _print_tables(analysis: "Analysis") -> None:
    from rich.console import Console

    from moeprof.report.tables import analysis_tables

    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    console.print(analysis_tables(analysis), highlight=False)


def _figure_names(phases: tuple[str, ...] = ("prefill", "decode", "all")) -> list[str]:
    """Every file that `--plots` may write."""
    from moeprof.report.section_figures import FIGURE_NAMES

    maps = [f"heat_map_{phase}.png" for phase in phases]
    return ["coverage.png", "transfer.png", *maps, *FIGURE_NAMES]


def _check_folder(folder: Path, force: bool) -> None:
    """Refuse a folder that cannot be made, or a figure that would be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise TraceError(f"{folder}: is not a folder", "name another folder: --plots DIR")
    there = [name for name in _figure_names() if (folder / name).exists()]
    if there and not force:
        raise TraceError(
            f"{folder / there[0]}: already exists", "name another folder, or add --force"
        )


def _draw(analysis: "Analysis", trace: "Trace", folder: Path) -> None:
    from moeprof.placement import write_whole
    from moeprof.report.figures import coverage_figure, heat_map_figure, png, transfer_figure
    from moeprof.report.section_figures import section_figures

    figures = {} if analysis.curve.empty else {"coverage.png": coverage_figure(analysis)}
    if not analysis.transfer.empty:
        figures["transfer.png"] = transfer_figure(analysis)
    cells = trace.cell_counts()
    chosen = analysis.settings.domain
    for phase in dict.fromkeys(analysis.samples["phase"]):
        counts = cells.select(chosen, None if phase == "all" else phase).sum(axis=0)
        words = f"{phase}, {analysis.samples['domain'].iloc[0]}"
        drawn = heat_map_figure(counts, trace.shape.moe_layers, words)
        figures[f"heat_map_{phase}.png"] = drawn
    for name, figure in (figures | section_figures(analysis)).items():
        write_whole(folder / name, png(figure))
        typer.echo(f"wrote {folder / name}", err=True)
