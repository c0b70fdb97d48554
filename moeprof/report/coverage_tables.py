"""Coverage on the terminal: the three lines side by side, layers, hot sets, overlap of domains."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType

from moeprof.analyze import Analysis
from moeprof.report.table_parts import UNKNOWN, brief, percent, phase_words, plain_table, titled

LINES = {"held_out": "held-out", "in_sample": "in-sample", "floor": "floor"}
_HOTTEST = 4


def coverage_table(analysis: Analysis, phase: str) -> RenderableType:
    """The three coverages of every domain at the shares of `SHARES` and the one asked for."""
    frame = analysis.coverage[analysis.coverage["phase"] == phase]
    shares = list(dict.fromkeys(frame["share"]))
    title = f"Coverage in percent, {phase_words(phase)}, by share of cells kept"
    table = plain_table(["domain", "coverage"], [percent(share) for share in shares])
    for domain, rows in frame.groupby("domain", sort=False):
        for index, (line, label) in enumerate(LINES.items()):
            cells = [brief(row, line) for _, row in rows.iterrows()]
            name = str(domain) if index == 0 else ""
            table.add_row(name, label, *cells, style=None if index == 0 else "dim")
        table.add_section()
    return titled(title, table)


def layer_table(analysis: Analysis, phases: Sequence[str]) -> RenderableType:
    """The three coverages of a set in each layer, for all domains together."""
    share = analysis.settings.share
    first = analysis.samples["domain"].iloc[0]
    frame = analysis.layers[analysis.layers["domain"] == first]
    columns = [f"{phase}\n{label}" for phase in phases for label in LINES.values()]
    title = f"Coverage in percent, {first}, by layer, of a set of {percent(share)} in each layer"
    table = plain_table(["layer"], columns)
    for layer, rows in frame.groupby("layer"):
        by_phase = {row["phase"]: row for _, row in rows.iterrows()}
        cells = [
            brief(by_phase[phase], line) if phase in by_phase else UNKNOWN
            for phase in phases
            for line in LINES
        ]
        table.add_row(str(layer), *cells)
    return titled(title, table)


def hot_set_table(analysis: Analysis) -> RenderableType:
    """Size, spread over layers and busiest cells of every hot set."""
    share = analysis.settings.share
    title = f"Hot sets of {percent(share)} of the cells; all of them with --json"
    columns = ["cells", "per layer"]
    table = plain_table(["phase", "domain"], columns)
    table.add_column("busiest, as layer:expert")
    for (phase, domain), cells in analysis.hot_sets.groupby(["phase", "domain"], sort=False):
        per_layer = cells["layer"].value_counts().reindex(analysis.shape.moe_layers, fill_value=0)
        busiest = cells.nlargest(_HOTTEST, "assignments")
        names = [f"{layer}:{expert}" for layer, expert in busiest[["layer", "expert"]].to_numpy()]
        spread = f"{per_layer.min()} to {per_layer.max()}"
        table.add_row(str(phase), str(domain), str(len(cells)), spread, ", ".join(names))
    return titled(title, table)


def overlap_tables(analysis: Analysis, phase: str) -> Iterator[RenderableType]:
    """Transfer and Jaccard of one phase; none with a single domain."""
    moved = analysis.transfer[analysis.transfer["phase"] == phase]
    if moved.empty:
        return
    words, share = phase_words(phase), percent(analysis.settings.share)
    domains = list(dict.fromkeys(moved["trained_on"]))
    title = (
        f"Coverage transfer in percent, {words}: {share} of cells chosen on row, scored on column"
    )
    table = plain_table(["chosen on"], domains)
    for domain, rows in moved.groupby("trained_on", sort=False):
        table.add_row(str(domain), *[brief(row, "coverage") for _, row in rows.iterrows()])
    yield titled(title, table)
    index = analysis.jaccard[analysis.jaccard["phase"] == phase]
    title = f"Jaccard index of the hot sets, {words}; two sets at random have {_chance(analysis)}"
    table = plain_table([""], domains)
    for domain, rows in index.groupby("domain", sort=False):
        table.add_row(str(domain), *[f"{value:.2f}" for value in rows["jaccard"]])
    yield titled(title, table)


def _chance(analysis: Analysis) -> str:
    """Jaccard index of two independent sets of share s: s^2 / (2 s - s^2)."""
    share = analysis.settings.share
    return f"{share / (2 - share):.2f}"
