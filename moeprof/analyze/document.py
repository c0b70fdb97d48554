"""An analysis as one JSON document, described by `analysis.schema.json`."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

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
        "merging": _records(analysis.merging),
        "concentration": _concentration(analysis.concentration),
        "skew": _records(analysis.skew),
        "locality": _locality(analysis),
        "prediction": _records(analysis.prediction),
        "prediction_layers": _records(analysis.prediction_layers),
        "coactivation": _records(analysis.coactivation),
        "pairs": _records(analysis.pairs),
        "place_drift": _records(analysis.place_drift),
        "trace_drift": _records(analysis.trace_drift),
        "learning": _records(analysis.learning),
        "sufficiency": _records(analysis.sufficiency),
        "notes": list(analysis.notes),
    }
    return json.dumps(document, allow_nan=False, ensure_ascii=False)


def headline_row(frame: pd.DataFrame) -> "pd.Series[Any]":
    """The first row of decode, or of prefill where there is none: that of the whole trace."""
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


def _locality(analysis: "Analysis") -> dict[str, Any] | None:
    lags = analysis.lag_overlap
    if lags.empty:
        return None
    headline = headline_row(lags)
    mine = lags[(lags["domain"] == headline["domain"]) & (lags["phase"] == headline["phase"])]
    by_lag = {str(row["lag"]): row["overlap"] for row in _records(mine)}
    head = {name: _records(mine)[0][name] for name in ("domain", "phase", "uniform", "unrelated")}
    return head | {
        "lag_overlap": by_lag,
        "lags": _records(lags),
        "lru": _records(analysis.lru),
        "layers": _records(analysis.locality_layers),
    }


def _hot_set_documents(analysis: "Analysis") -> Iterator[dict[str, Any]]:
    if analysis.hot_sets.empty:
        return
    by_sample = analysis.hot_sets.groupby(["domain", "phase"], sort=False)
    for (domain, phase), cells in by_sample:
        pairs = cells[["layer", "expert"]].to_numpy().tolist()
        yield {"domain": domain, "phase": phase, "cells": pairs}


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON values: floats to six decimals, what is missing as None."""
    columns = {}
    for name in frame.columns:
        missing = frame[name].isna()
        values = [
            None if gone else value
            for value, gone in zip(frame[name].tolist(), missing, strict=True)
        ]
        if frame[name].dtype.kind == "f":
            values = [None if value is None else round(value, 6) for value in values]
        columns[name] = values
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
