"""Dealing the documents of a trace to folds: every held-out split is by document."""

import numpy as np
from numpy.typing import NDArray

from moeprof.trace.reader import Trace


def deal_folds(
    group_domain: NDArray[np.int64], folds: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """The fold of each group: shuffled inside its domain, then dealt round robin.

    Dealing goes on from domain to domain, so that folds differ by at most one group in every
    domain and in total. With fewer groups than folds every group is its own fold.

    Args:
        group_domain: [G] int64.
        folds: at least 2.
        rng: of the shuffle.

    Returns:
        [G] int64 in [0, min(folds, G)).
    """
    shuffled = rng.permutation(len(group_domain))
    by_domain = shuffled[np.argsort(group_domain[shuffled], kind="stable")]
    fold = np.empty(len(group_domain), np.int64)
    fold[by_domain] = np.arange(len(group_domain)) % min(folds, len(group_domain))
    return fold


def group_of_sequence(trace: Trace) -> NDArray[np.int64]:
    """Index into the groups of `Trace.cell_counts` for every sequence number.

    Returns:
        [largest sequence number + 1] int64.
    """
    documents = trace.documents()
    documents["domain"] = documents["domain"].map(trace.domains.index)
    counted = trace.counts()[["domain", "document_group"]].drop_duplicates()
    counted["domain"] = counted["domain"].astype(object).map(trace.domains.index)
    counted = counted.astype(np.int64).sort_values(["domain", "document_group"])
    counted["group"] = np.arange(len(counted))
    known = documents.merge(counted, on=["domain", "document_group"])
    group_of = np.zeros(int(documents["sequence"].max()) + 1, np.int64)
    group_of[known["sequence"].to_numpy(np.int64)] = known["group"].to_numpy(np.int64)
    return group_of
