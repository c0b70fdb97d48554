"""The section on caches: hit rates of policies at every size, on documents not learned from."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from moeprof.plan import PlanRequest
from moeprof.plan.simulation import Simulation, SimulationRequest
from moeprof.plan.trace_facts import expert_bytes_in
from moeprof.report.page.inputs import PageInputs
from moeprof.report.page.parts import (
    Cell,
    Chart,
    Column,
    Section,
    Table,
    absent,
    sentence,
    share_cell,
)
from moeprof.report.table_parts import is_too_wide
from moeprof.report.tables import percent
from moeprof.trace import Trace
from moeprof.units import format_size

_KEY, _TITLE = "policies", "Caches"
SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9)
_WORDS = {
    "static": "static list",
    "lru": "LRU",
    "lfu": "LFU with decay",
    "lfru": "LFRU",
    "optimum": "optimum",
}
_ADAPTIVE = ("lru", "lfu", "lfru")
_SIZE_OR_SPEED = re.compile(r"\d ([KMGT]i)?B\b|tokens/s")


def simulation_request(trace: Trace, plan: PlanRequest) -> SimulationRequest:
    """What to replay for a page: the usual policies at `SHARES` of the bytes of all experts."""
    total = sum(expert_bytes_in(trace.shape, plan.weight_format)) * trace.shape.num_experts
    return SimulationRequest(
        policies=(),
        budgets=tuple(int(share * total) for share in SHARES),
        folds=plan.folds,
        hardware=plan.hardware,
        weight_format=plan.weight_format,
        seed=plan.seed,
    )


def policies_section(inputs: PageInputs) -> Section:
    """What a cache of each size would hit."""
    simulation = inputs.simulation
    if simulation is None:
        return absent(_KEY, _TITLE, inputs.reason(_KEY))
    rows = simulation.rows[simulation.rows["policy"].isin(list(_WORDS))]
    phases = list(dict.fromkeys(rows["phase"]))
    prose = [
        "A static list of experts in VRAM against caches that change with the text, at every size: "
        "share of lookups that find their expert in VRAM. No policy can hit more than the optimum, "
        "which knows the future; experts kept blindly lie on the floor. Hits are not yet speed: a "
        "cache copies what it misses.",
    ]
    if "prefill" in phases:
        prose.append("In prefill an expert is looked up once for all tokens of a prompt.")
    minds = [f"Mind {text}." for text in _known(simulation.warnings, inputs.has_bytes)]
    prose += [text for text in minds if f", {phases[-1]}:" in text]
    size = f"{format_size(simulation.total_bytes)} of experts" if inputs.has_bytes else "experts"
    charts = [_chart(simulation, rows, "hit_rate", size)]
    if inputs.has_bytes and rows["tokens_per_s"].notna().any():
        charts.append(_chart(simulation, rows, "tokens_per_s", size))
    tables = tuple(_table(rows, phase, inputs.has_bytes) for phase in reversed(phases))
    notes = [sentence(note) for note in _known(simulation.notes, inputs.has_bytes)]
    notes += [one for one in minds if one not in prose]
    return Section(_KEY, _TITLE, _finding(rows), tuple(prose), tuple(charts), tables, tuple(notes))


def _known(texts: Sequence[str], has_bytes: bool) -> list[str]:
    """Those that speak of no size or speed, where bytes are not known."""
    return [text for text in texts if has_bytes or not _SIZE_OR_SPEED.search(text)]


def _finding(rows: pd.DataFrame) -> str:
    """Whether a cache overtakes the list, and where by most."""
    phase = str(rows["phase"].iloc[-1])
    rates = rows[rows["phase"] == phase].pivot(
        index="budget_share", columns="policy", values="hit_rate"
    )
    policies = [name for name in _ADAPTIVE if name in rates]
    adaptive = rates[policies].max(axis=1).to_numpy()
    shares = rates.index.to_numpy(float)
    if "static" not in rates:
        best = adaptive.max()
        return f"In {phase}, the best cache hits up to {percent(best)} of the lookups."
    gap = adaptive - rates["static"].to_numpy()
    best, worst = int(gap.argmax()), int(gap.argmin())
    if gap[best] <= 0:
        return f"In {phase}, a static list hits more than any cache, at every size."
    if gap[worst] > 0:
        lead = f"In {phase}, a cache hits more than a static list at every size"
    else:
        lead = (
            f"In {phase}, a cache hits more than a static list at {(gap > 0).sum()} of "
            f"{len(gap)} sizes"
        )
    points = f"{100 * gap[best]:.1f}".removesuffix(".0")
    return (
        f"{lead}, by {points} points at most, with {percent(shares[best])} of the experts in VRAM."
    )


def _chart(simulation: Simulation, every: pd.DataFrame, figure: str, size: str) -> Chart:
    panels = []
    for phase, rows in every.groupby("phase", sort=False):
        if rows[figure].isna().all():
            continue
        lines = []
        for index, (name, curve) in enumerate(rows.groupby("policy", sort=False)):
            if curve[figure].isna().all():
                continue
            low, high = _band(curve, figure)
            role = "bound" if name == "optimum" else str(index % 6 + 1)
            words = _WORDS.get(str(name), str(name))
            lines.append(
                {"name": words, "role": role, "y": curve[figure], "low": low, "high": high}
            )
        of_one = rows.drop_duplicates("budget_share")
        if figure == "hit_rate":
            lines.append({"name": "floor", "role": "floor", "y": of_one["floor"]})
        step = "token" if phase == "decode" else "prompt"
        needed = simulation.working_set_bytes[str(phase)]
        mark = {"x": needed / simulation.total_bytes, "name": f"one {step}"}
        x = of_one["budget_share"]
        panels.append({"title": str(phase), "x": x, "lines": lines, "mark": mark})
    is_rate = figure == "hit_rate"
    name = "hit rate" if is_rate else "tokens/s"
    data: dict[str, Any] = {
        "x": {"name": f"share of {size} in VRAM", "unit": "percent"},
        "y": {"name": name, "unit": "percent" if is_rate else "rate"},
        "panels": panels,
    }
    key = "policies" if is_rate else "policies-speed"
    return Chart(key, "curves", f"{name} of each policy against its size", data)


def _band(curve: pd.DataFrame, figure: str) -> tuple["pd.Series[float]", "pd.Series[float]"]:
    """Both ends of the intervals of a figure; NaN where they are too wide to say anything."""
    low, high = curve[f"{figure}_low"], curve[f"{figure}_high"]
    is_share = figure == "hit_rate"
    wide = [is_too_wide(*ends, is_share=is_share) for ends in zip(low, high, strict=True)]
    return low.mask(np.array(wide)), high.mask(np.array(wide))


def _table(every: pd.DataFrame, phase: str, has_bytes: bool) -> Table:
    rows = every[every["phase"] == phase]
    sizes = rows.drop_duplicates("budget_bytes")
    columns = [Column("policy", numeric=False)]
    columns += [
        Column(percent(share), format_size(budget) if has_bytes else "")
        for share, budget in zip(sizes["budget_share"], sizes["budget_bytes"], strict=True)
    ]
    body = []
    for name, curve in rows.groupby("policy", sort=False):
        cells = [
            share_cell(row["hit_rate"], row["hit_rate_low"], row["hit_rate_high"])
            for _, row in curve.iterrows()
        ]
        body.append((Cell(_WORDS.get(str(name), str(name)), str(name)), *cells))
    caption = f"{phase}: hit rate by share of the experts' bytes in VRAM, with 95 % intervals"
    return Table(caption, tuple(columns), tuple(body), folded=True)
