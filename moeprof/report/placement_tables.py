"""A placement on the terminal: what the budget is spent on, where experts live, what to expect."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moeprof.placement import Estimate, PhasePrediction, Placement, Prediction, Tier
from moeprof.report.table_parts import headed_table, is_too_wide, spent_on
from moeprof.units import format_size

_UNKNOWN = "-"
_KEY = (
    "Coverage: share of assignments whose expert is in vram. held-out: placed without the "
    "documents it is scored on; in-sample: on the same; floor: in-sample, had as many "
    "assignments been drawn evenly. first_layers: whole ones only, where moeprof advise fills one "
    "more in part."
)


def placement_tables(placement: Placement) -> RenderableType:
    """Budget, tiers and predictions beside the baselines, then verdict and notes."""
    judged = {True: "worthwhile", False: "do not bother", None: "cannot tell"}
    verdict = placement.verdict
    return Group(
        _budget_table(placement),
        _tier_table(placement),
        _prediction_table(placement),
        Text(_KEY, style="dim"),
        Text(f"verdict: {judged[verdict.worthwhile]}: {verdict.reason}"),
        *(Text(f"note: {note}") for note in placement.notes),
    )


def placement_title(placement: Placement) -> str:
    """The finding that a picture of the placement shows, in one line."""
    vram = [layer.num_experts_in(Tier.VRAM) for layer in placement.layers]
    num_cells = placement.model.num_experts * len(placement.layers)
    held = f"vram holds {sum(vram)} of {num_cells} experts"
    coverages = [
        f"{_percent(predicted.coverage.value)} of {phase}"
        for phase, predicted in _phases(placement.predicted)
        if predicted.coverage is not None
    ]
    return f"{held} and serves {' and '.join(coverages)}, held out" if coverages else held


def _budget_table(placement: Placement) -> Table:
    budget = placement.budget
    table = _table("VRAM budget", "spent on", "size", "share")
    cache = f"KV cache, {budget.context_tokens} tokens x {budget.batch_size}"
    for name, size in spent_on(budget, cache):
        table.add_row(name, format_size(size), _percent(size / max(budget.total_bytes, 1)))
    table.add_row("budget", format_size(budget.total_bytes), _percent(1), style="bold")
    return table


def _tier_table(placement: Placement) -> Table:
    table = _table("Experts by tier", "tier", "experts", "size", "per layer")
    num_experts = placement.model.num_experts
    for tier in Tier:
        per_layer = [layer.num_experts_in(tier) for layer in placement.layers]
        if any(per_layer):
            table.add_row(
                tier.label,
                f"{sum(per_layer)} of {num_experts * len(placement.layers)}",
                format_size(placement.expert_bytes_in(tier)),
                f"{min(per_layer)} to {max(per_layer)} of {num_experts}",
            )
    return table


def _prediction_table(placement: Placement) -> Table:
    entries = [("this plan", placement.predicted)]
    entries += [(baseline.name, baseline.predicted) for baseline in placement.baselines]
    columns = ["phase", "held-out", "in-sample", "floor"]
    if placement.hardware is not None:
        columns.append("tokens/s")
    title = f"Coverage in percent with 95 % intervals, solved for {placement.solver.phase}"
    table = _table(title, "placement", *columns)
    for name, prediction in entries:
        for phase, predicted in _phases(prediction):
            floor = predicted.uniform_floor
            cells = [
                phase,
                _interval(predicted.coverage, 100),
                _number(100 * predicted.in_sample_coverage),
                _UNKNOWN if floor is None else _number(100 * floor),
                _interval(predicted.tokens_per_s, 1),
            ]
            table.add_row(name, *cells[: len(columns)])
            name = ""
    return table


def _phases(prediction: Prediction) -> list[tuple[str, PhasePrediction]]:
    both = (("prefill", prediction.prefill), ("decode", prediction.decode))
    return [(phase, predicted) for phase, predicted in both if predicted is not None]


def _table(title: str, *columns: str) -> Table:
    table = headed_table(title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=index > 0)
    return table


def _percent(share: float) -> str:
    return f"{_number(100 * share)} %"


def _number(value: float) -> str:
    return f"{value:.1f}"


def _interval(estimate: Estimate | None, scale: float) -> str:
    """The figure, and its bounds where they are known, times `scale`."""
    if estimate is None:
        return _UNKNOWN
    value = _number(scale * estimate.value)
    if estimate.low is None or estimate.high is None:
        return value
    if is_too_wide(estimate.low, estimate.high, is_share=scale == 100):
        return f"{value} [too wide to say]"
    return f"{value} [{_number(scale * estimate.low)} to {_number(scale * estimate.high)}]"
