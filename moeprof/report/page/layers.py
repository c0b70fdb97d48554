"""The section on layers: one row each, to be sorted by any column."""

import numpy as np
import pandas as pd

from moeprof.placement import Tier
from moeprof.report.page.inputs import PageInputs
from moeprof.report.page.parts import UNKNOWN, Cell, Column, Section, Table, share_cell
from moeprof.report.tables import percent


def layers_section(inputs: PageInputs) -> Section:
    """How layers differ."""
    analysis = inputs.analysis
    phase = inputs.main_phase
    share = percent(analysis.settings.share)
    own = _of(inputs, analysis.layers, phase).set_index("layer")
    line = "in_sample" if own["held_out"].isna().all() else "held_out"
    known = own[line].dropna()
    least, most = percent(known.min()), percent(known.max())
    if least == most:
        finding = (
            f"In {phase}, the busiest {share} of any layer's experts serve {most} of its choices."
        )
    else:
        finding = (
            f"In {phase}, the busiest {share} of a layer's experts serve from {least} (layer "
            f"{known.idxmin()}) to {most} (layer {known.idxmax()}) of its choices."
        )
    prose = (
        f"Coverage here is that of the busiest {share} of each layer's own experts. The Gini index "
        "is 0 where all experts are used alike and 1 where one takes all. Click a heading to sort "
        "by it.",
    )
    tables = tuple(
        _table(inputs, phase, folded=phase != inputs.main_phase)
        for phase in reversed(inputs.phases)
    )
    return Section("layers", "Layers", finding, prose, (), tables)


def _table(inputs: PageInputs, phase: str, folded: bool) -> Table:
    share = percent(inputs.analysis.settings.share)
    num_experts = inputs.analysis.shape.num_experts
    columns = [
        Column("layer", "index in the checkpoint"),
        Column("held-out", "percent of choices served on new text"),
        Column("in-sample", "the same on the text the set was chosen on"),
        Column("floor", "the same had routing been even"),
        Column("busiest", "the busiest expert, and how many times its even share it takes"),
        Column("Gini", "unevenness of use; in brackets what even routing would show"),
        Column("for 80 %", f"fewest experts of {num_experts} that carry 80 % of the choices"),
        Column("used", "experts that were ever chosen"),
    ]
    next_of = _by_layer(_of(inputs, inputs.analysis.locality_layers, phase), "overlap")
    told = _by_layer(_of(inputs, inputs.analysis.prediction_layers, phase), "recall")
    if next_of:
        columns.append(Column("reused", "experts of a token that the next one chooses, too"))
    if told:
        columns.append(Column("foretold", "experts told from the layer before, of top-k tries"))
    if inputs.placement is not None:
        columns.append(Column("in vram", "experts that the plan keeps in VRAM"))
    counts = inputs.counts(phase, inputs.overall)
    covered = _of(inputs, inputs.analysis.layers, phase)
    skew = _of(inputs, inputs.analysis.skew, phase)
    body = []
    for row, layer in enumerate(inputs.analysis.shape.moe_layers):
        found, uneven = covered.iloc[row], skew.iloc[row]
        cells = [
            Cell(str(layer), layer),
            share_cell(found["held_out"], found["held_out_low"], found["held_out_high"]),
            share_cell(found["in_sample"]),
            share_cell(found["floor"]),
            _busiest(counts[row]),
            _number(uneven["gini"], ".2f", f"({uneven['gini_floor']:.2f})"),
            _number(uneven["experts_80"], ".0f"),
            _number(uneven["used"] * num_experts, ".0f"),
        ]
        cells += [known.get(layer, Cell(UNKNOWN)) for known in (next_of, told) if known]
        if inputs.placement is not None:
            kept = int(np.sum(inputs.placement.tier_of[row] == Tier.VRAM))
            cells.append(Cell(f"{kept} of {num_experts}", kept))
        body.append(tuple(cells))
    caption = f"{phase}: layers, {inputs.overall}, hot sets of {share} of each layer's experts"
    return Table(caption, tuple(columns), tuple(body), sortable=True, folded=folded)


def _by_layer(frame: pd.DataFrame, column: str) -> dict[int, Cell]:
    return {
        int(row["layer"]): share_cell(row[column], row[f"{column}_low"], row[f"{column}_high"])
        for _, row in frame.iterrows()
    }


def _of(inputs: PageInputs, frame: pd.DataFrame, phase: str) -> pd.DataFrame:
    """A frame's rows of all domains together in one phase; none of an empty frame."""
    if frame.empty:
        return frame
    return frame[(frame["domain"] == inputs.overall) & (frame["phase"] == phase)]


def _number(value: float, digits: str, note: str = "") -> Cell:
    return Cell(UNKNOWN) if np.isnan(value) else Cell(f"{value:{digits}}", float(value), note)


def _busiest(counts: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> Cell:
    total = int(counts.sum())
    if total == 0:
        return Cell(UNKNOWN)
    expert = int(counts.argmax())
    ratio = float(counts[expert]) * len(counts) / total
    return Cell(f"{expert}", ratio, f"{ratio:.1f} ×")
