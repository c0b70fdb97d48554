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


def hold_out(
    trace: Trace, folds: int, seed: int, domain: str | None = None, phase: str | None = None
) -> HeldOut:
    """Deal the documents of a trace to folds.

    Args:
        trace: whose counts are learned from.
        folds: folds wished for, at least 2; never more than document groups.
        seed: of the shuffle.
        domain: learn from this domain's documents alone; None for all.
        phase: `prefill`, `decode`, `all`, or None for `training_phase`.

    Raises:
        TraceError: fewer than two documents have assignments to learn from.
    """
    cells = trace.cell_counts()
    chosen = phase or training_phase(trace)
    phases = slice(None) if chosen == "all" else [PHASES.index(chosen)]
    counts = cells.counts[:, phases].sum(axis=1)
    usable = counts.sum(axis=(1, 2)) > 0
    if domain is not None:
        usable &= cells.group_domain == cells.domains.index(domain)
    if usable.sum() < 2:
        what = "document" if chosen == "all" else f"document with {chosen} tokens"
        raise TraceError(
            f"{trace.path}: has {int(usable.sum())} {what}, two are needed to learn from some "
            "and score on others",
            "score on the documents learned from with --all-documents, or trace more documents",
        )
    fold = np.zeros(len(counts), np.int64)
    fold[usable] = deal_folds(cells.group_domain[usable], folds, np.random.default_rng(seed))
    num_folds = int(fold.max()) + 1
    learned = np.where(usable[:, None, None], counts, 0)
    training = np.stack([learned[fold != k].sum(axis=0) for k in range(num_folds)])
    return HeldOut(fold[group_of_sequence(trace)], training)
