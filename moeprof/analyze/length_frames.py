"""Data frames of what more text would change: drift along the trace, and sufficiency."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeprof.analyze.drift import AGES, PARTS, AgeCounts, part_of_groups, trace_drift
from moeprof.analyze.hot_sets import cell_bytes, hot_set_size
from moeprof.analyze.sample import Sample
from moeprof.analyze.settings import OVERALL
from moeprof.analyze.sufficiency import (
    LearningCurve,
    documents_needed,
    learning_curve,
    loss_from_shortness,
)


def trace_drift_frame(
    sample: Sample, ages: AgeCounts | None, domains: Sequence[str]
) -> pd.DataFrame:
    """Rows of `Analysis.trace_drift`; none with fewer documents than parts.

    Args:
        sample: the sample.
        ages: counts by age where document groups are not in the order of tracing, else None.
        domains: of the trace.
    """
    counts, group_domain = _in_order(sample, ages, domains)
    if len(np.unique(part_of_groups(group_domain))) < PARTS:
        return pd.DataFrame()
    found = trace_drift(
        counts.reshape(len(counts), -1),
        group_domain,
        _bytes_of(sample),
        _size(sample),
        sample.rng("drift"),
        sample.settings.resamples,
    )
    low, high = np.quantile(found.shuffled, [0.025, 0.975], axis=0)
    return pd.DataFrame(
        {
            "domain": sample.domain,
            "phase": sample.phase,
            "part": np.arange(2, PARTS + 1),
            "parts": PARTS,
            "coverage": found.coverage,
            "shuffled": found.shuffled.mean(axis=0),
            "shuffled_low": low,
            "shuffled_high": high,
            "p_value": found.p_value,
        }
    )


def _in_order(
    sample: Sample, ages: AgeCounts | None, domains: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if ages is None:
        return sample.counts, sample.group_domain
    keys = np.arange(len(ages.counts))
    kept = ages.counts.any(axis=(1, 2))
    if sample.domain != OVERALL:
        kept &= keys // AGES == domains.index(sample.domain)
    return ages.counts[kept], keys[kept] // AGES


def learning_frames(sample: Sample, documents: int | None) -> dict[str, pd.DataFrame]:
    """Rows of `Analysis.learning` and the row of `Analysis.sufficiency`, by name.

    Args:
        sample: the sample.
        documents: of the sample; None where it is not known.
    """
    groups = sample.num_groups
    documents = groups if documents is None else documents
    head: dict[str, object] = {"domain": sample.domain, "phase": sample.phase}
    row: dict[str, object] = head | {"documents": documents, "tokens": sample.tokens}
    row["enough"] = False
    unknown: dict[str, object] = dict.fromkeys(("half_width", "loss", "jaccard"), np.nan)
    more: dict[str, object] = {"more_documents": None, "more_tokens": None}
    if groups < 2:
        return {"sufficiency": _one_row(row | unknown | more)}
    curve = learning_curve(
        sample.counts.reshape(groups, -1),
        sample.group_domain,
        _bytes_of(sample),
        _size(sample),
        sample.rng("learning"),
    )
    at = sample.curve_shares.index(sample.settings.share)
    _, low, high = sample.curve.held_out[:, 0, at]
    loss = loss_from_shortness(curve, groups)
    half = float(high - low) / 2
    row |= {"half_width": half, "loss": loss, "jaccard": _last(curve)}
    if not np.isnan([half, loss]).any():
        tolerance = sample.settings.tolerance
        needed = documents_needed(half, loss, groups, sample.degrees, tolerance) / groups
        more["more_documents"] = round((needed - 1) * documents)
        more["more_tokens"] = round((needed - 1) * sample.tokens)
        row["enough"] = needed == 1
    points = {
        "documents": curve.documents * max(documents // groups, 1),
        "coverage": curve.coverage,
        "jaccard": curve.jaccard,
    }
    return {"learning": pd.DataFrame(head | points), "sufficiency": _one_row(row | more)}


def _last(curve: LearningCurve) -> float:
    known = curve.jaccard[~np.isnan(curve.jaccard)]
    return float(known[-1]) if len(known) else float("nan")


def _one_row(row: dict[str, object]) -> pd.DataFrame:
    frame = pd.DataFrame([row])
    return frame.astype({"more_documents": "Int64", "more_tokens": "Int64"})


def _bytes_of(sample: Sample) -> NDArray[np.int64]:
    return cell_bytes(sample.shape.expert_bytes, sample.shape.num_experts).reshape(-1)


def _size(sample: Sample) -> int:
    return hot_set_size(sample.settings.share, sample.shape.num_cells)
