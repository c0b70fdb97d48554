"""What a policy may learn for each document: the uses of cells in documents of other folds."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.trace import PHASES, Trace
from moeprof.trace.folds import deal_folds, group_of_sequence


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Documents dealt to folds, and what was used in the others.

    Attributes:
        fold_of_sequence: [largest sequence number + 1] int64.
        training: [F, L, E] int64, assignments outside each fold.
    """

    fold_of_sequence: NDArray[np.int64]
    training: NDArray[np.int64]


def training_phase(trace: Trace) -> str:
    """What a policy learns from unless told otherwise: decode, where the trace has it."""
    has_decode = any(domain.tokens[PHASES.index("decode")] for domain in trace.metadata.domains)
    return "decode" if has_decode else "prefill"


def training_counts(
    trace: Trace, domain: str | None = None, phase: str | None = None
) -> NDArray[np.int64]:
    """Assignments that a policy learns from, of each document group.

    Args:
        trace: whose counts are taken.
        domain: the domain whose documents count; None for all.
        phase: `prefill`, `decode`, `all`, or None for `training_phase`.

    Returns:
        [G, L, E] int64, groups as in `Trace.cell_counts`.

    Raises:
        TraceError: there are none.
    """
    cells = trace.cell_counts()
    chosen = phase or training_phase(trace)
    phases = slice(None) if chosen == "all" else [PHASES.index(chosen)]
    counts: NDArray[np.int64] = cells.counts[:, phases].sum(axis=1)
    if domain is not None:
        counts[cells.group_domain != cells.domains.index(domain)] = 0
    if not counts.any():
        raise TraceError(
            f"{trace.path}: has no {'' if chosen == 'all' else chosen + ' '}tokens to learn from",
            "learn from another phase, or trace with --generate N to have decode",
        )
    return counts


def hold_out(
    trace: Trace,
    domain: str | None = None,
    phase: str | None = None,
    folds: int = 5,
    seed: int = 0,
) -> HeldOut:
    """Deal the documents of a trace to folds.

    Args:
        trace: whose counts are learned from.
        domain: as in `training_counts`.
        phase: as in `training_counts`.
        folds: folds wished for, at least 2; never more than document groups.
        seed: of the shuffle.

    Raises:
        TraceError: fewer than two documents have assignments to learn from.
    """
    counts = training_counts(trace, domain, phase)
    usable = counts.any(axis=(1, 2))
    if usable.sum() < 2:
        raise TraceError(
            f"{trace.path}: one document has tokens to learn from, two are needed to learn from "
            "some and score on others",
            "score on what is learned from with --all-documents, or trace more documents",
        )
    fold = np.zeros(len(counts), np.int64)
    dealt = deal_folds(trace.cell_counts().group_domain[usable], folds, np.random.default_rng(seed))
    fold[usable] = dealt
    training = [counts[fold != k].sum(axis=0) for k in range(int(dealt.max()) + 1)]
    return HeldOut(fold[group_of_sequence(trace)], np.stack(training))
