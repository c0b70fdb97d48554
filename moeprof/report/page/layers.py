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
    frame = analysis.layers[analysis.layers["domain"] == inputs.overall]
    phase = inputs.main_phase
    share = percent(analysis.settings.share)
    own = frame[frame["phase"] == phase].set_index("layer")
    line = "in_sample" if own["held_out"].isna().all() else "held_out"
    known = own[line].dropna()
    finding = (
        f"In {phase}, the busiest {share} of a layer's experts serve from "
        f"{percent(known.min())} (layer {known.idxmin()}) to {percent(known.max())} "
        f"(layer {known.idxmax()}) of its choices."
    )
    prose = (
        f"Coverage here is that of the busiest {share} of each layer's own experts. Click a "
        "heading to sort by it.",
    )
    return Section("layers", "Layers", finding, prose, (), (_table(inputs, frame, share),))


def _table(inputs: PageInputs, frame: pd.DataFrame, share: str) -> Table:
    columns = [Column("layer", "index in the checkpoint")]
    for phase in inputs.phases:
        columns += [
            Column(f"{phase}: held-out", "percent of choices served on new text"),
            Column("floor", "the same had routing been even"),
            Column("busiest expert", "and how many times its even share it takes"),
        ]
    if inputs.placement is not None:
        columns.append(Column("in vram", "experts that the plan keeps in VRAM"))
    layers = {phase: frame[frame["phase"] == phase] for phase in inputs.phases}
    counts = {phase: inputs.counts(phase, inputs.overall) for phase in inputs.phases}
    body = []
    for row, layer in enumerate(inputs.analysis.shape.moe_layers):
        cells = [Cell(str(layer), layer)]
        for phase in inputs.phases:
            found = layers[phase].iloc[row]
            cells += [
                share_cell(found["held_out"], found["held_out_low"], found["held_out_high"]),
                share_cell(found["floor"]),
                _busiest(counts[phase][row]),
            ]
        if inputs.placement is not None:
            kept = int(np.sum(inputs.placement.tier_of[row] == Tier.VRAM))
            cells.append(Cell(f"{kept} of {inputs.analysis.shape.num_experts}", kept))
        body.append(tuple(cells))
    caption = f"Layers of {inputs.overall}, hot sets of {share} of each layer's experts"
    return Table(caption, tuple(columns), tuple(body), sortable=True)


def _busiest(counts: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> Cell:
    total = int(counts.sum())
    if total == 0:
        return Cell(UNKNOWN)
    expert = int(counts.argmax())
    ratio = float(counts[expert]) * len(counts) / total
    return Cell(f"{expert}", ratio, f"{ratio:.1f} ×")
