"""The section on locality: how much a token's experts tell of those that come next."""

from typing import Any

import numpy as np
import pandas as pd

from moeprof.report.page.inputs import PageInputs
from moeprof.report.page.parts import Chart, Section, absent, phase_words
from moeprof.report.tables import percent

_KEY, _TITLE = "locality", "Locality"


def locality_section(inputs: PageInputs) -> Section:
    """What the next token reuses, and what the next layer's experts can be told from."""
    overlap, prediction = inputs.analysis.lag_overlap, inputs.analysis.prediction
    if overlap.empty and prediction.empty:
        return absent(_KEY, _TITLE, inputs.reason(_KEY))
    prose = [
        "A cache lives on experts that come back soon. The first chart shows how many of a token's "
        f"experts a later token chooses again, beside {_beside(overlap)}even routing."
    ]
    charts = []
    if not overlap.empty:
        charts.append(_overlap(overlap))
    if not prediction.empty:
        prose.append(
            "Prefetching lives on experts that can be told in advance. The second chart shows how "
            "many of the next layer's experts are among the best candidates, told from this "
            "layer's experts or from popularity alone, both learned on other documents."
        )
        charts.append(_prediction(prediction, inputs.analysis.shape.num_experts))
    finding = _finding(inputs, overlap, prediction)
    return Section(_KEY, _TITLE, finding, tuple(prose), tuple(charts))


def _beside(overlap: pd.DataFrame) -> str:
    is_known = not overlap.empty and overlap["unrelated"].notna().any()
    return "tokens of unrelated documents and " if is_known else ""


def _finding(inputs: PageInputs, overlap: pd.DataFrame, prediction: pd.DataFrame) -> str:
    phase = inputs.main_phase
    parts = []
    rows = _of(inputs, overlap, phase)
    if len(rows):
        row = rows.iloc[0]
        parts.append(
            f"the next token chooses {percent(row['overlap'])} of a token's experts again, where "
            f"even routing would choose {percent(row['uniform'])}"
        )
    rows = _of(inputs, prediction, phase)
    if len(rows):
        row = rows.iloc[0]
        parts.append(
            f"{percent(row['recall'])} of the next layer's experts can be told from this layer's, "
            f"{percent(row['popularity'])} from popularity"
        )
    if not parts:
        return f"In {phase}, nothing is known of what tokens share."
    return f"In {phase}, {'; '.join(parts)}."


def _of(inputs: PageInputs, frame: pd.DataFrame, phase: str) -> pd.DataFrame:
    if frame.empty:
        return frame
    return frame[(frame["domain"] == inputs.overall) & (frame["phase"] == phase)]


def _overlap(overlap: pd.DataFrame) -> Chart:
    lines = {"overlap": ("later token", "1"), "unrelated": ("unrelated tokens", "5")}
    lines["uniform"] = ("even routing", "floor")
    data = _panels(overlap, "lag", lines)
    data["x"] = {"name": "tokens later", "unit": "count", "log": True, "tight": True}
    data["y"] = {"name": "experts chosen again", "unit": "percent"}
    return Chart("overlap", "curves", "Share of experts chosen again by a later token", data)


def _prediction(prediction: pd.DataFrame, num_experts: int) -> Chart:
    lines = {"recall": ("told from this layer", "1"), "popularity": ("from popularity", "5")}
    data = _panels(prediction, "candidates", lines)
    for panel in data["panels"]:
        floor = np.minimum(1.0, np.asarray(panel["x"]) / num_experts)
        panel["lines"].append({"name": "even routing", "role": "floor", "y": floor})
    data["x"] = {"name": f"candidates of {num_experts} experts", "unit": "count", "tight": True}
    data["y"] = {"name": "the next layer's experts among them", "unit": "percent"}
    return Chart("prediction", "curves", "Share of the next layer's experts foretold", data)


def _panels(frame: pd.DataFrame, x: str, lines: dict[str, tuple[str, str]]) -> dict[str, Any]:
    panels = []
    for (phase, domain), rows in frame.groupby(["phase", "domain"], sort=False):
        drawn = []
        for column, (name, role) in lines.items():
            if rows[column].isna().all():
                continue
            line: dict[str, Any] = {"name": name, "role": role, "y": rows[column]}
            if f"{column}_low" in rows:
                line |= {"low": rows[f"{column}_low"], "high": rows[f"{column}_high"]}
            drawn.append(line)
        title = phase_words(str(phase))
        panels.append({"title": title, "choice": domain, "x": rows[x], "lines": drawn})
    choices = list(dict.fromkeys(str(name) for name in frame["domain"]))
    return {"choice": "text", "choices": choices, "panels": panels}
