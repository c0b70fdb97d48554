"""The section on experts: every cell of the model by how busy it is."""

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze import OVERALL
from moeprof.report.page.inputs import PageInputs
from moeprof.report.page.parts import Chart, Section
from moeprof.report.tables import percent

# Numbers of cells over all maps of a page. A count takes five bytes or so, and a page must stay
# small enough to be sent.
_MOST_COUNTS = 120_000


def heat_map_section(inputs: PageInputs) -> Section:
    """Which experts are busy, in every layer."""
    phase = inputs.main_phase
    counts = inputs.counts(phase, inputs.overall)
    shape = inputs.analysis.shape
    prose = [
        "Every cell of the model, coloured by how often it is chosen relative to the even share "
        "of its layer. Point at a cell, or tap it, to read it.",
    ]
    shown = _shown(inputs)
    hidden = sum(len(inputs.domains(phase)) for phase in inputs.phases) - len(shown)
    if hidden:
        prose.append(
            f"{hidden} maps of single domains are left out to keep this page small; "
            "moeprof analyze --domain NAME --plots DIR draws them."
        )
    maps = [
        {"phase": phase, "domain": domain, "counts": inputs.counts(phase, domain)}
        for phase, domain in shown
    ]
    data = {
        "layers": shape.moe_layers,
        "experts": shape.num_experts,
        "topK": shape.top_k,
        "phases": inputs.phases,
        "maps": maps,
    }
    if inputs.placement is not None:
        data["tiers"] = inputs.placement.tier_of
    chart = Chart(
        "experts", "cells", "Heat map of layers and experts by how often they are chosen", data
    )
    return Section("experts", "Experts", _finding(inputs, counts), tuple(prose), (chart,))


def _finding(inputs: PageInputs, counts: NDArray[np.int64]) -> str:
    num_experts = counts.shape[1]
    totals = counts.sum(axis=1)
    routed = counts[totals > 0] / totals[totals > 0, None]
    busiest = float(np.median(routed.max(axis=1))) * num_experts
    frame = inputs.analysis.concentration
    in_phase = frame["phase"] == inputs.main_phase
    row = frame[in_phase & (frame["domain"] == inputs.overall)].iloc[0]
    unused = 1 - row["used"]
    never = f", {percent(unused)} are never chosen" if unused > 0 else ""
    return (
        f"In {inputs.main_phase}, {percent(row['cells_80'])} of the cells carry 80 % of the "
        f"choices{never}; in the median layer, the busiest of {num_experts} experts takes "
        f"{busiest:.1f} times its even share."
    )


def _shown(inputs: PageInputs) -> list[tuple[str, str]]:
    """Phases and domains that get a map: all domains together, then each while room is left."""
    every = [(phase, domain) for phase in inputs.phases for domain in inputs.domains(phase)]
    every.sort(key=lambda pair: pair[1] != OVERALL)
    room = max(len(inputs.phases), _MOST_COUNTS // inputs.analysis.shape.num_cells)
    return every[:room]
