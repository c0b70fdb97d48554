"""`moeprof compare`: does what was learned on one trace hold on another?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moeprof.cli.options import Json, Seed, table_console
from moeprof.errors import MoeprofError, TraceError

if TYPE_CHECKING:
    from moeprof.analyze import AnalysisSettings
    from moeprof.analyze.comparison import Comparison


def compare(
    first: Annotated[
        Path, typer.Argument(metavar="A", help="A trace, or a placement file: what was learned.")
    ],
    second: Annotated[Path, typer.Argument(metavar="B", help="The trace that it is scored on.")],
    phase: Annotated[
        str | None,
        typer.Option(help="prefill, decode, or all to add them. [default: each apart]"),
    ] = None,
    domain: Annotated[str | None, typer.Option(help="One domain of both. [default: all]")] = None,
    share: Annotated[
        float | None,
        typer.Option(
            min=0.0001,
            max=1.0,
            help="Share of cells in a hot set. [default: 0.2, or what the placement has in VRAM]",
        ),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Folds for held-out coverage.")] = 5,
    resamples: Annotated[
        int, typer.Option(min=2, help="Bootstrap resamples behind each interval.")
    ] = 200,
    permutations: Annotated[
        int, typer.Option(min=19, help="Splits of the documents behind each p-value.")
    ] = 999,
    fail_under: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="SHARE",
            help="Exit with 1 if less than this share of B's own held-out coverage is kept in "
            "some phase; for continuous integration.",
        ),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Score the hot set of one trace, or a placement, on another trace.

    The hot set is chosen on all of A, and what it keeps is set against a hot set of B's own, held
    out. Whether two traces differ at all is tested by dealing their documents to the two sides at
    random.

    Example:
        moeprof compare placements/demo.json traces/demo --fail-under 0.9
    """
    from moeprof.analyze import AnalysisSettings

    if phase is not None and phase not in ("prefill", "decode", "all"):
        raise typer.BadParameter(f"{phase!r} is not one of prefill, decode, all")
    if share is not None and first.is_file():
        raise typer.BadParameter("--share is of a trace; a placement says itself what is in VRAM")
    settings = AnalysisSettings(
        domain=domain,
        phase=phase,
        share=0.2 if share is None else share,
        folds=folds,
        resamples=resamples,
        seed=seed,
    )
    comparison = _compare(first, second, settings, permutations)
    if as_json:
        typer.echo(comparison.to_json())
    else:
        from moeprof.report.comparison_tables import comparison_tables

        table_console().print(comparison_tables(comparison), highlight=False)
    if fail_under is not None:
        _check(comparison, fail_under)


def _compare(
    first: Path, second: Path, settings: "AnalysisSettings", permutations: int
) -> "Comparison":
    from moeprof.analyze.comparison import compare_placement, compare_traces
    from moeprof.placement import read_placement
    from moeprof.trace import open_trace

    if second.is_file():
        raise TraceError(
            f"{second}: is a file, B must be a trace",
            f"moeprof compare {second} {first}" if first.is_dir() else "name a trace directory",
        )
    scored = open_trace(second)
    if first.is_file():
        return compare_placement(first.stem, read_placement(first), scored, settings)
    return compare_traces(open_trace(first), scored, settings, permutations)


def _check(comparison: "Comparison", fail_under: float) -> None:
    """Refuse a comparison that keeps less than was asked for, or of which nobody knows."""
    kept = comparison.least_retained
    if kept >= fail_under:
        return
    found = "cannot be said" if kept != kept else f"is {kept:.3f}"
    raise MoeprofError(
        f"{comparison.first}: the share of {comparison.second}'s own coverage that it keeps "
        f"{found}, {fail_under:g} was asked for",
        f"plan anew on {comparison.second}, or trace more documents",
    )
