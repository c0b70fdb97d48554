"""The section on domains: what a hot set chosen on one serves of another."""

import numpy as np
import pandas as pd

from moeprof.analyze import OVERALL
from moeprof.report.page.inputs import PageInputs
from moeprof.report.page.parts import (
    Cell,
    Column,
    Section,
    Table,
    absent,
    between,
    phase_words,
    share_cell,
)
from moeprof.report.tables import percent

_KEY, _TITLE = "domains", "Domains"


def domains_section(inputs: PageInputs) -> Section:
    """How far a hot set travels from one kind of text to another."""
    analysis = inputs.analysis
    if analysis.transfer.empty:
        return absent(
            _KEY,
            _TITLE,
            "The trace holds one kind of text, so nothing can be said on how a hot set travels to "
            "another; trace several: moeprof trace MODEL code=DATA prose=DATA.",
        )
    phases = list(dict.fromkeys(analysis.transfer["phase"]))
    share = percent(analysis.settings.share)
    rows = analysis.transfer[analysis.transfer["phase"] == phases[-1]]
    own = rows["trained_on"] == rows["scored_on"]
    finding = (
        f"A hot set of {share} of the cells serves {percent(rows['coverage'][own].mean())} of the "
        f"choices on its own kind of text, {percent(rows['coverage'][~own].mean())} on another "
        f"({phases[-1]})."
    )
    prose: tuple[str, ...] = (
        f"A set of {share} of the cells is chosen on the text of a row and scored on the text of a "
        "column: percent of choices served. The diagonal is held out. Where a row is pale off the "
        "diagonal, one placement will not do for both texts.",
    )
    lost = _merging(analysis.merging, phases[-1])
    if lost:
        prose += (lost,)
    highest = float(np.nanmax(analysis.transfer["coverage"]))
    tables = tuple(_transfer(analysis.transfer, phase, highest) for phase in phases)
    overlap = tuple(_jaccard(analysis.jaccard, phase, analysis.settings.share) for phase in phases)
    return Section(_KEY, _TITLE, finding, prose, (), tables + overlap)


def _merging(merging: pd.DataFrame, phase: str) -> str:
    """What one set for all kinds of text loses against a set for each."""
    rows = merging[(merging["domain"] == OVERALL) & (merging["phase"] == phase)]
    if rows.empty or np.isnan(rows["loss"].iloc[0]):
        return ""
    row = rows.iloc[0]
    ends = between(row["loss_low"], row["loss_high"])
    return (
        f"In {phase}, one set for all texts serves {percent(row['merged'])}, a set for each "
        f"{percent(row['specialist'])} of the same documents: merging loses "
        f"{100 * row['loss']:.1f} points{f' [{ends}]' if ends else ''}."
    )


def _transfer(transfer: pd.DataFrame, phase: str, highest: float) -> Table:
    rows = transfer[transfer["phase"] == phase]
    body = []
    for domain, found in rows.groupby("trained_on", sort=False):
        cells = [Cell(str(domain))]
        for _, row in found.iterrows():
            cell = share_cell(row["coverage"], row["coverage_low"], row["coverage_high"])
            shade = None if cell.value is None else float(row["coverage"]) / highest
            number = cell.text.removesuffix(" %")
            cells.append(Cell(number, cell.value, cell.note, shade))
        body.append(tuple(cells))
    caption = f"Percent of choices served, {phase_words(phase)}: chosen on row, scored on column"
    return Table(caption, _columns(rows["scored_on"], "chosen on"), tuple(body), is_matrix=True)


def _jaccard(jaccard: pd.DataFrame, phase: str, share: float) -> Table:
    rows = jaccard[jaccard["phase"] == phase]
    body = []
    for domain, found in rows.groupby("domain", sort=False):
        cells = [Cell(f"{value:.2f}", value, shade=value) for value in found["jaccard"]]
        body.append((Cell(str(domain)), *cells))
    # Two independent sets of share s: s^2 / (2 s - s^2).
    chance = share / (2 - share)
    caption = (
        f"Jaccard index of the hot sets, {phase_words(phase)}: 1 is the same set, "
        f"{chance:.2f} two sets at random"
    )
    columns = _columns(rows["other"], "")
    return Table(caption, columns, tuple(body), is_matrix=True, folded=True)


def _columns(names: "pd.Series[str]", corner: str) -> tuple[Column, ...]:
    unique = dict.fromkeys(str(name) for name in names)
    return (Column(corner, numeric=False), *(Column(name) for name in unique))
