"""The section on the plan: which tier holds each expert, what the budget is spent on."""

import numpy as np

from moeprof.placement import PhasePrediction, Placement, Prediction, Tier
from moeprof.report.page.inputs import PageInputs
from moeprof.report.page.parts import (
    UNKNOWN,
    Cell,
    Chart,
    Column,
    Section,
    Table,
    absent,
    estimate_cell,
    share_cell,
)
from moeprof.report.placement_tables import placement_title
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
    title = placement_title(placement)
    held = f"{title[0].upper()}{title[1:]}."
    prose = [
        f"Of a budget of {format_size(placement.budget.total_bytes)} of VRAM, "
        f"{format_size(placement.budget.experts_available_bytes)} remain for experts. Solved for "
        f"{placement.solver.phase} by {placement.solver.name}"
        f"{_gap(placement.solver.optimality_gap)}.",
    ]
    if placement.trace.name != inputs.analysis.name:
        prose.append(f"The plan was made from another trace, {placement.trace.name}.")
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
    tables = (_predictions(placement), _tiers(placement), _budget(placement))
    return Section(_KEY, _TITLE, held, tuple(prose), (chart,), tables)


def _gap(gap: float) -> str:
    return ", proven optimal" if gap == 0 else f", at most {100 * gap:.2g} % short of the optimum"


def _predictions(placement: Placement) -> Table:
    """The plan beside the baselines: coverage and, with a machine, tokens/s."""
    entries = [("this plan", "", placement.predicted)]
    entries += [(one.name, one.description, one.predicted) for one in placement.baselines]
    columns = [
        Column("placement", numeric=False),
        Column("phase", numeric=False),
        Column("held-out", "percent of choices served from VRAM on new text"),
        Column("in-sample", "the same on the text the placement was chosen on"),
        Column("floor", "the same had routing been even"),
    ]
    if placement.hardware is not None:
        columns.append(Column("tokens/s", "predicted, of one sequence"))
    rows = []
    for name, description, prediction in entries:
        for phase, predicted in _phases(prediction):
            cells = [
                Cell(name.replace("_", " "), name, description),
                Cell(phase),
                _coverage(predicted),
                share_cell(predicted.in_sample_coverage),
                share_cell(_or_nan(predicted.uniform_floor)),
                estimate_cell(predicted.tokens_per_s),
            ]
            rows.append(tuple(cells[: len(columns)]))
    machine = placement.hardware
    priced = "" if machine is None else f"; tokens/s on {machine.name} ({machine.source})"
    caption = f"The plan and simpler placements in as much VRAM{priced}"
    return Table(caption, tuple(columns), tuple(rows))


def _coverage(predicted: PhasePrediction) -> Cell:
    known = predicted.coverage
    if known is None:
        return Cell(UNKNOWN)
    return share_cell(known.value, _or_nan(known.low), _or_nan(known.high))


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def _phases(prediction: Prediction) -> list[tuple[str, PhasePrediction]]:
    both = (("prefill", prediction.prefill), ("decode", prediction.decode))
    return [(phase, predicted) for phase, predicted in both if predicted is not None]


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
    unused = budget.experts_available_bytes - budget.experts_used_bytes
    rows = []
    for name, size in (
        ("weights outside the experts", budget.dense_bytes),
        (cache, budget.kv_cache_bytes),
        ("workspace", budget.workspace_bytes),
        ("device context", budget.device_context_bytes),
        ("experts", budget.experts_used_bytes),
        ("unused", unused),
        ("budget", budget.total_bytes),
    ):
        share = size / max(budget.total_bytes, 1)
        rows.append((Cell(name), Cell(format_size(size), size), share_cell(share)))
    columns = (Column("spent on", numeric=False), Column("size"), Column("share"))
    return Table("What the VRAM budget is spent on", columns, tuple(rows), folded=True)
