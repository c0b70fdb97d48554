"""The section on policies: hit rates of caches of every size, on documents not learned from."""

from typing import Any

import numpy as np
import pandas as pd

from moeprof.policies import (
    Accesses,
    hold_out,
    parse_policy,
    read_accesses,
    replay_held_out,
)
from moeprof.report.page.inputs import PageInputs
from moeprof.report.page.parts import (
    Cell,
    Chart,
    Column,
    Section,
    Table,
    absent,
    share_cell,
)
from moeprof.report.tables import percent
from moeprof.trace import Trace
from moeprof.trace.schema import PHASES
from moeprof.units import format_size

_KEY, _TITLE = "policies", "Caches"
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# Each with the line that it has in the chart and the words it has beside it.
_POLICIES = {
    "static": ("1", "static list"),
    "lru": ("2", "LRU"),
    "lfu": ("3", "LFU with decay"),
    "lfru": ("4", "LFRU"),
    "optimum": ("bound", "optimum"),
}
_ADAPTIVE = ("lru", "lfu", "lfru")


def policy_curves(trace: Trace, folds: int, seed: int) -> pd.DataFrame:
    """Hit rates of the usual policies at `SHARES` of the bytes of all experts.

    Args:
        trace: what is replayed.
        folds: folds over documents, of what a policy learns.
        seed: of the folds.

    Returns:
        One row per policy, budget and phase: policy, share, budget_bytes, phase, hit_rate,
        bytes_read.

    Raises:
        TraceError: the trace does not say in which order its tokens came, or has one document.
    """
    trace.require("order", "a cache cannot be replayed")
    accesses = read_accesses(trace)
    held_out = hold_out(trace, folds=folds, seed=seed)
    shape = trace.shape
    cell_bytes = np.repeat(np.asarray(shape.expert_bytes, np.int64), shape.num_experts)
    phases = [phase for index, phase in enumerate(PHASES) if _has(accesses, index)]
    rows = []
    for name in _POLICIES:
        for share in SHARES:
            budget = int(share * shape.total_expert_bytes)
            found = replay_held_out(accesses, parse_policy(name), budget, cell_bytes, held_out)
            for phase in phases:
                moved = found.total_bytes_read(phase)
                rows.append((name, share, budget, phase, found.hit_rate(phase), moved))
    columns = ["policy", "share", "budget_bytes", "phase", "hit_rate", "bytes_read"]
    return pd.DataFrame(rows, columns=columns)


def _has(accesses: Accesses, phase: int) -> bool:
    return bool(np.any(accesses.step_phase == phase))


def policies_section(inputs: PageInputs) -> Section:
    """What a cache of each size would hit."""
    curves = inputs.policies
    if curves is None:
        return absent(_KEY, _TITLE, inputs.reason(_KEY))
    phases = list(dict.fromkeys(curves["phase"]))
    prose = [
        "A static list of experts in VRAM against caches that change with the text, at every size: "
        "share of lookups that find their expert in VRAM. The list is chosen on other documents "
        "than it is scored on; caches start empty and learn as they go. No policy can be above "
        "the optimum, which knows the future; a list chosen blindly lies on the floor. Hits are "
        "not yet speed: a cache copies what it misses.",
    ]
    if "prefill" in phases:
        prose.append("In prefill an expert is looked up once for all tokens of a prompt.")
    tables = tuple(_table(curves, phase) for phase in phases)
    return Section(_KEY, _TITLE, _finding(curves), tuple(prose), (_chart(inputs, curves),), tables)


def _finding(curves: pd.DataFrame) -> str:
    """Where the best cache overtakes the list, and what the optimum would add there."""
    phase = str(curves["phase"].iloc[-1])
    rates = curves[curves["phase"] == phase].pivot(
        index="share", columns="policy", values="hit_rate"
    )
    adaptive = rates[list(_ADAPTIVE)].max(axis=1)
    ahead = adaptive.index[adaptive > rates["static"]]
    if len(ahead) == len(rates):
        return f"In {phase}, a cache hits more than a static list at every size."
    if len(ahead) == 0:
        return f"In {phase}, a static list hits more than any cache at every size."
    gap = (adaptive - rates["static"]).to_numpy()
    best = rates.index.to_numpy(float)[gap.argmax()]
    return (
        f"In {phase}, a cache hits more than a static list at {len(ahead)} of {len(rates)} sizes, "
        f"by up to {100 * gap.max():.1f} points, with {percent(best)} of the experts in VRAM."
    )


def _chart(inputs: PageInputs, curves: pd.DataFrame) -> Chart:
    shape = inputs.analysis.shape
    panels = []
    for phase, of_phase in curves.groupby("phase", sort=False):
        shares = list(dict.fromkeys(of_phase["share"]))
        lines = [
            {"name": words, "role": role, "y": of_phase.loc[of_phase["policy"] == name, "hit_rate"]}
            for name, (role, words) in _POLICIES.items()
        ]
        lines.append({"name": "floor", "role": "floor", "y": shares})
        panel: dict[str, Any] = {"title": str(phase), "x": shares, "lines": lines}
        if phase == "decode":
            panel["mark"] = {"x": shape.top_k / shape.num_experts, "name": "one token's experts"}
        panels.append(panel)
    data: dict[str, Any] = {
        "x": {"name": "share of the experts' bytes in VRAM", "unit": "percent"},
        "y": {"name": "hit rate", "unit": "percent"},
        "panels": panels,
    }
    return Chart("policies", "curves", "Hit rate of each policy against its size", data)


def _table(curves: pd.DataFrame, phase: str) -> Table:
    rows = curves[curves["phase"] == phase]
    sizes = rows.drop_duplicates("share")
    columns = [Column("policy", numeric=False)]
    columns += [
        Column(percent(share), format_size(budget))
        for share, budget in zip(sizes["share"], sizes["budget_bytes"], strict=True)
    ]
    body = []
    for name, (_, words) in _POLICIES.items():
        rates = rows.loc[rows["policy"] == name, "hit_rate"]
        body.append((Cell(words, name), *(share_cell(rate) for rate in rates)))
    caption = f"{phase}: hit rate by share of the experts' bytes in VRAM"
    return Table(caption, tuple(columns), tuple(body), folded=True)
