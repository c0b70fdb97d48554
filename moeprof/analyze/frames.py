"""Data frames of what counts say: samples, coverage, hot sets, overlap of domains, skew."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeprof.analyze.hot_sets import hot_set, hot_set_size
from moeprof.analyze.intervals import interval
from moeprof.analyze.merging import merging
from moeprof.analyze.overlap import hot_cells, jaccard, transfer
from moeprof.analyze.sample import CoverageLines, Sample
from moeprof.analyze.settings import BOTH_PHASES, OVERALL
from moeprof.analyze.skew import CARRIED, cells_carrying, gini, normalised_entropy, used_share
from moeprof.trace.schema import PHASES

ENDINGS = ("", "_low", "_high")


def with_interval(name: str, values: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Columns `name`, `name_low` and `name_high` of [3, rows]: estimate, low, high."""
    return {f"{name}{ending}": values[index] for index, ending in enumerate(ENDINGS)}


def sample_frame(samples: Sequence[Sample]) -> pd.DataFrame:
    """The frame `Analysis.samples`."""
    return pd.DataFrame(
        {
            "domain": [sample.domain for sample in samples],
            "phase": [sample.phase for sample in samples],
            "document_groups": [sample.num_groups for sample in samples],
            "folds": [sample.num_folds for sample in samples],
            "tokens": [sample.tokens for sample in samples],
            "assignments": [sample.assignments for sample in samples],
        }
    )


def curve_frame(sample: Sample) -> pd.DataFrame:
    """Rows of `Analysis.curve`, of which `Analysis.coverage` is a selection."""
    cells = sample.shape.num_cells
    shares = sample.curve_shares
    head = {
        "domain": sample.domain,
        "phase": sample.phase,
        "share": shares,
        "cells": [hot_set_size(share, cells) for share in shares],
    }
    return pd.DataFrame(head | _line_columns(sample.curve, np.s_[0, :]))


def layer_frame(sample: Sample) -> pd.DataFrame:
    """Rows of `Analysis.layers`."""
    share = sample.settings.share
    head = {
        "domain": sample.domain,
        "phase": sample.phase,
        "layer": sample.shape.moe_layers,
        "share": share,
        "experts": hot_set_size(share, sample.shape.num_experts),
    }
    return pd.DataFrame(head | _line_columns(sample.layer_coverage(share), np.s_[:, 0]))


def _line_columns(lines: CoverageLines, where: Any) -> dict[str, NDArray[np.float64]]:  # noqa: ANN401
    return {
        f"{name}{ending}": getattr(lines, name)[index][where]
        for name in ("in_sample", "held_out", "floor")
        for index, ending in enumerate(ENDINGS)
    }


def hot_set_frame(sample: Sample) -> pd.DataFrame:
    """Rows of `Analysis.hot_sets`."""
    pooled = sample.counts.sum(axis=0)
    row, expert = hot_set(pooled, sample.shape.expert_bytes, sample.settings.share).T
    return pd.DataFrame(
        {
            "domain": sample.domain,
            "phase": sample.phase,
            "rank": np.arange(len(row)),
            "layer": np.asarray(sample.shape.moe_layers)[row],
            "expert": expert,
            "assignments": pooled[row, expert],
        }
    )


def overlap_frames(samples: Sequence[Sample]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The frames `Analysis.jaccard` and `Analysis.transfer`; empty with a single domain."""
    indices, moves = [], []
    for phase in (*PHASES, BOTH_PHASES):
        found = [one for one in samples if one.phase == phase and one.domain != OVERALL]
        if len(found) < 2:
            continue
        index = jaccard(np.stack([hot_cells(sample) for sample in found]))
        moved = transfer(found)
        for row, one in enumerate(found):
            for column, other in enumerate(found):
                indices.append((phase, one.domain, other.domain, index[row, column]))
                moves.append((phase, one.domain, other.domain, *moved[:, row, column]))
    ends = [f"coverage{ending}" for ending in ENDINGS]
    return (
        pd.DataFrame(indices, columns=["phase", "domain", "other", "jaccard"]),
        pd.DataFrame(moves, columns=["phase", "trained_on", "scored_on", *ends]),
    )


def merging_frame(samples: Sequence[Sample], domains: Sequence[str]) -> pd.DataFrame:
    """The frame `Analysis.merging`; empty with a single domain."""
    found = []
    for overall in (sample for sample in samples if sample.domain == OVERALL):
        values = merging(overall, len(domains))
        head = {"phase": overall.phase, "domain": [*domains, OVERALL]}
        names = ("specialist", "merged", "loss")
        columns = [with_interval(*pair) for pair in zip(names, values, strict=True)]
        frame = pd.DataFrame(head | columns[0] | columns[1] | columns[2])
        found.append(frame[frame["merged"].notna()])
    return stacked(found)


def stacked(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One frame of many; without columns where there is none."""
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def concentration_frame(samples: Sequence[Sample]) -> pd.DataFrame:
    """The frame `Analysis.concentration`."""
    pooled = np.stack([sample.counts.sum(axis=0).ravel() for sample in samples])
    carrying = cells_carrying(pooled) / pooled.shape[1]
    head = {
        "domain": [sample.domain for sample in samples],
        "phase": [sample.phase for sample in samples],
        "used": used_share(pooled),
    }
    shares = {f"cells_{share * 100:.0f}": carrying[:, at] for at, share in enumerate(CARRIED)}
    return pd.DataFrame(head | shares)


def skew_frame(sample: Sample) -> pd.DataFrame:
    """Rows of `Analysis.skew`."""
    pooled = sample.counts.sum(axis=0)
    groups = sample.counts.reshape(sample.num_groups, -1)
    resampled = (sample.weights @ groups).reshape(-1, *pooled.shape)
    head = {"domain": sample.domain, "phase": sample.phase, "layer": sample.shape.moe_layers}
    columns: dict[str, NDArray[np.float64]] = {}
    for name, measure in (("gini", gini), ("entropy", normalised_entropy)):
        columns |= with_interval(
            name, interval(measure(pooled), measure(resampled), sample.degrees)
        )
        columns[f"{name}_floor"] = measure(sample.simulated).mean(axis=0)
    columns["used"] = used_share(pooled)
    carrying = cells_carrying(pooled)
    columns |= {f"experts_{share * 100:.0f}": carrying[:, at] for at, share in enumerate(CARRIED)}
    return pd.DataFrame(head | columns)
