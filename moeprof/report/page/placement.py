"""The section on the plan: which tier holds each expert, what the budget is spent on."""

import numpy as np

from moeprof.placement import Placement, Tier
from moeprof.report.page.inputs import PageInputs
from moeprof.report.page.parts import (
    Cell,
    Chart,
    Column,
    Section,
    Table,
    absent,
    estimate_cell,
    estimated_share,
    share_cell,
)
from moeprof.report.table_parts import spent_on
from moeprof.report.tables import percent
from moeprof.trace.schema import PHASES
from moeprof.units import format_size

_KEY, _TITLE = "placement", "Placement"


def placement_section(inputs: PageInputs) -> Section:
    """Where every expert is to live, and what that is expected to do."""
    placement = inputs.placement
    if placement is None:
        return absent(
            _KEY,
            _TITLE,
            "No plan was given, so nothing is said on where each expert should live; make one with "
            "moeprof plan TRACE --model MODEL --vram SIZE -o PLAN, and name it with --plan PLAN.",
        )
    prose = [
        f"Of a budget of {format_size(placement.budget.total_bytes)} of VRAM, "
        f"{format_size(placement.budget.experts_available_bytes)} remain for experts. Solved for "
        f"{placement.solver.phase} by {placement.solver.name}"
        f"{_gap(placement.solver.optimality_gap)}.",
    ]
    if placement.trace.name != inputs.analysis.name:
        prose.append(f"The plan was made from another trace, called {placement.trace.name}.")
    machine = placement.hardware
    if machine is not None and not inputs.is_plan_priced:
        prose.append(
            f"Its speeds were predicted for another machine, {machine.name}, and are left out: all "
            "speeds of this page are of one."
        )
    if inputs.advice is not None:
        prose.append(
            "Its first layers are whole ones only; the split by whole layers among the strategies "
            "fills one more in part."
        )
    layers = inputs.analysis.shape.moe_layers
    data = {
        "layers": layers,
        "experts": inputs.analysis.shape.num_experts,
        "tiers": placement.tier_of,
        "names": [tier.label for tier in Tier],
        "counts": inputs.counts(inputs.main_phase, inputs.overall),
        "phase": inputs.main_phase,
    }
    chart = Chart(
        "placement", "tiers", "Map of layers and experts by the tier that holds them", data
    )
    predicted = [
        _predictions(placement, phase, inputs.is_plan_priced, folded=index > 0)
        for index, phase in enumerate(reversed(PHASES))
    ]
    tables = (*filter(None, predicted), _tiers(placement), _budget(placement))
    return Section(_KEY, _TITLE, _finding(placement), tuple(prose), (chart,), tables)


def _finding(placement: Placement) -> str:
    vram = sum(layer.num_experts_in(Tier.VRAM) for layer in placement.layers)
    held = f"VRAM holds {vram:,} of {placement.tier_of.size:,} experts"
    phases = [(phase, placement.predicted.phase(phase)) for phase in PHASES]
    served = [
        f"{percent(predicted.coverage.value)} of {phase}"
        for phase, predicted in phases
        if predicted is not None and predicted.coverage is not None
    ]
    return f"{held} and serves {' and '.join(served)} on new text." if served else f"{held}."


def _gap(gap: float) -> str:
    return ", proven optimal" if gap == 0 else f", at most {100 * gap:.2g} % short of the optimum"


def _predictions(placement: Placement, phase: str, is_priced: bool, folded: bool) -> Table | None:
    """The plan beside the baselines in one phase: coverage and, where it is priced, tokens/s."""
    entries = [("this plan", "", placement.predicted)]
    entries += [(one.name, one.description, one.predicted) for one in placement.baselines]
    found = [(name, text, made.phase(phase)) for name, text, made in entries]
    known = [(name, text, entry) for name, text, entry in found if entry is not None]
    if not known:
        return None
    priced = [entry.tokens_per_s for _, _, entry in known if is_priced]
    speeds = [one.value for one in priced if one is not None]
    columns = [
        Column("placement", numeric=False),
        Column("tokens/s", "predicted, of one sequence"),
        Column("held-out", "percent of choices served from VRAM on new text"),
        Column("in-sample", "the same on the text the placement was chosen on"),
        Column("floor", "the same had routing been even"),
    ]
    if not speeds:
        columns.pop(1)
    rows = []
    for name, description, entry in known:
        floor = entry.uniform_floor
        cells = [
            Cell(name.replace("_", " "), name, description),
            estimate_cell(entry.tokens_per_s, max(speeds, default=None)),
            estimated_share(entry.coverage),
            share_cell(entry.in_sample_coverage),
            share_cell(np.nan if floor is None else floor),
        ]
        if not speeds:
            cells.pop(1)
        rows.append(tuple(cells))
    caption = f"{phase}: the plan and simpler placements in as much VRAM"
    return Table(caption, tuple(columns), tuple(rows), folded=folded)


def _tiers(placement: Placement) -> Table:
    rows = []
    for tier in Tier:
        per_layer = [layer.num_experts_in(tier) for layer in placement.layers]
        if not any(per_layer):
            continue
        size = placement.expert_bytes_in(tier)
        experts = f"{sum(per_layer):,} of {placement.tier_of.size:,}"
        spread = f"{min(per_layer)} to {max(per_layer)} of {placement.model.num_experts}"
        rows.append(
            (
                Cell(tier.label),
                Cell(experts, sum(per_layer)),
                Cell(format_size(size), size),
                Cell(spread, min(per_layer)),
            )
        )
    columns = (
        Column("tier", numeric=False),
        Column("experts"),
        Column("size"),
        Column("per layer"),
    )
    return Table("Experts by tier", columns, tuple(rows))


def _budget(placement: Placement) -> Table:
    budget = placement.budget
    cache = f"KV cache, {budget.context_tokens:,} tokens × {budget.batch_size}"
    rows = []
    for name, size in (*spent_on(budget, cache), ("budget", budget.total_bytes)):
        share = size / max(budget.total_bytes, 1)
        rows.append((Cell(name), Cell(format_size(size), size), share_cell(share)))
    columns = (Column("spent on", numeric=False), Column("size"), Column("share"))
    return Table("What the VRAM budget is spent on", columns, tuple(rows), folded=True)
