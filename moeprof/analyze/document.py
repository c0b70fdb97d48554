"""An analysis as one JSON document, described by `analysis.schema.json`."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moeprof.analyze.skew import CARRIED
from moeprof.trace.schema import PHASES

if TYPE_CHECKING:
    from moeprof.analyze.summary import Analysis

FORMAT_VERSION = 1


def to_json(analysis: "Analysis") -> str:
    """One JSON document; NaN is null, what was not asked for or cannot be said is empty.

    The curve is left out: it holds the coverage table at more shares.
    """
    shape = analysis.shape
    model = {
        "model_type": shape.model_type,
        "moe_layers": list(shape.moe_layers),
        "num_experts": shape.num_experts,
        "top_k": shape.top_k,
        "expert_bytes": list(shape.expert_bytes),
    }
    document: dict[str, Any] = {
        "format": "moeprof-analysis",
        "format_version": FORMAT_VERSION,
        "trace": analysis.name,
        "model": model,
        "settings": asdict(analysis.settings),
        "samples": _records(analysis.samples),
        "coverage": _records(analysis.coverage),
        "layers": _records(analysis.layers),
        "hot_sets": list(_hot_set_documents(analysis)),
        "jaccard": _records(analysis.jaccard),
        "transfer": _records(analysis.transfer),
        "concentration": _concentration(analysis.concentration),
        "skew": _records(analysis.skew),
        "notes": list(analysis.notes),
    }
    return json.dumps(document, allow_nan=False, ensure_ascii=False)


def headline_row(frame: pd.DataFrame) -> "pd.Series[Any]":
    """The first row of decode, or of prefill where there is no other: the whole trace's."""
    for phase in reversed(PHASES):
        rows = frame[frame["phase"] == phase]
        if len(rows):
            return rows.iloc[0]
    return frame.iloc[0]


def _concentration(frame: pd.DataFrame) -> dict[str, Any] | None:
    if frame.empty:
        return None

    def entry(row: dict[str, Any]) -> dict[str, Any]:
        shares = {str(share): row[f"cells_{share * 100:.0f}"] for share in CARRIED}
        head = {name: row[name] for name in ("domain", "phase", "used")}
        return head | {"cells_for_share": shares}

    records = _records(frame)
    headline = headline_row(frame.assign(at=range(len(frame))))["at"]
    return entry(records[headline]) | {"samples": [entry(row) for row in records]}


def _hot_set_documents(analysis: "Analysis") -> Iterator[dict[str, Any]]:
    by_sample = analysis.hot_sets.groupby(["domain", "phase"], sort=False)
    for (domain, phase), cells in by_sample:
        pairs = cells[["layer", "expert"]].to_numpy().tolist()
        yield {"domain": domain, "phase": phase, "cells": pairs}


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON values: floats to six decimals, NaN as None."""
    columns = {}
    for name in frame.columns:
        values = frame[name].tolist()
        if frame[name].dtype.kind == "f":
            values = [None if np.isnan(value) else round(value, 6) for value in values]
        columns[name] = values
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
