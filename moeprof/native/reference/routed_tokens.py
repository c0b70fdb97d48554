"""Statistics over the tokens of one layer: what successive tokens share, what goes together.

Everywhere experts are [num_tokens, top_k] uint16, distinct in a row, 65535 where a slot is empty.
"""

import numpy as np
from numpy.typing import NDArray

from moeprof.native._core import NO_EXPERT


def lag_overlap(
    experts: NDArray[np.uint16],
    runs: NDArray[np.int64],
    groups: NDArray[np.uint32],
    num_groups: int,
    num_experts: int,
    max_lag: int,
) -> NDArray[np.int64]:
    """How many of a token's experts the token `lag` places later chooses, too.

    Args:
        experts: [T, K] uint16.
        runs: [R + 1] int64, from 0 to T: run r is tokens runs[r] to runs[r + 1] - 1, which follow
            each other; pairs of tokens lie in one run.
        groups: [R] uint32, the group of each run.
        num_groups: groups in the result.
        num_experts: every id is below it.
        max_lag: lags are 1 to `max_lag`.

    Returns:
        [2, num_groups, max_lag] int64, summed over the pairs of tokens that both chose some
        expert: experts that both chose, and experts of the earlier token.

    Raises:
        ValueError: an id, a run or a group is out of range.
    """
    found = np.zeros((2, num_groups, max_lag), np.int64)
    sets = [set(row) - {NO_EXPERT} for row in experts.tolist()]
    if any(max(chosen, default=0) >= num_experts for chosen in sets):
        raise ValueError("experts: an id is out of range")
    for start, end, group in zip(runs[:-1], runs[1:], groups, strict=True):
        for lag in range(1, max_lag + 1):
            pairs = [(sets[t], sets[t + lag]) for t in range(start, end - lag)]
            kept = [(earlier, later) for earlier, later in pairs if earlier and later]
            found[0, group, lag - 1] += sum(len(earlier & later) for earlier, later in kept)
            found[1, group, lag - 1] += sum(len(earlier) for earlier, _ in kept)
    return found


def pair_counts(
    first: NDArray[np.uint16],
    second: NDArray[np.uint16],
    groups: NDArray[np.uint32],
    num_groups: int,
    num_experts: int,
) -> NDArray[np.int64]:
    """How often a token chooses expert e in one layer and expert f in another, or the same.

    Args:
        first: [T, K] uint16.
        second: [T, J] uint16, of the same tokens.
        groups: [T] uint32.
        num_groups: groups in the result.
        num_experts: every id is below it.

    Returns:
        [num_groups, num_experts, num_experts] int64, [group, e, f].

    Raises:
        ValueError: an id or a group is out of range.
    """
    counts = np.zeros((num_groups, num_experts, num_experts), np.int64)
    for ones, others, group in zip(first, second, groups, strict=True):
        for one in ones[ones != NO_EXPERT]:
            for other in others[others != NO_EXPERT]:
                counts[group, one, other] += 1
    return counts


def candidate_ranks(
    given: NDArray[np.uint16],
    chosen: NDArray[np.uint16],
    evidence: NDArray[np.float32],
    tables: NDArray[np.uint32],
    groups: NDArray[np.uint32],
    num_groups: int,
) -> NDArray[np.int64]:
    """At which rank the experts that a token chooses stand among candidates by score.

    The score of candidate f is evidence[table, E, f], what speaks for it from the outset, plus
    evidence[table, e, f] for every e in `given`, added in float32 in the order of the slots.
    Candidates of one score are ranked by their id. Tokens without a given expert are left out.

    Args:
        given: [T, K] uint16, the experts that are known.
        chosen: [T, J] uint16, those that are looked for.
        evidence: [N, E + 1, E] float32, finite.
        tables: [T] uint32, which of the N tables scores each token.
        groups: [T] uint32.
        num_groups: groups in the result.

    Returns:
        [num_groups, E] int64, chosen experts by rank.

    Raises:
        ValueError: an id, a table or a group is out of range.
    """
    num_experts = evidence.shape[2]
    found = np.zeros((num_groups, num_experts), np.int64)
    for known, sought, table, group in zip(given, chosen, tables, groups, strict=True):
        known = known[known != NO_EXPERT]
        if len(known) == 0:
            continue
        score = evidence[table, num_experts].copy()
        for expert in known:
            score += evidence[table, expert]
        order = np.argsort(-score, kind="stable")
        for expert in sought[sought != NO_EXPERT]:
            found[group, int(np.flatnonzero(order == expert)[0])] += 1
    return found


def chosen_pairs(
    experts: NDArray[np.uint16],
    marked: NDArray[np.uint8],
    tables: NDArray[np.uint32],
    groups: NDArray[np.uint32],
    num_groups: int,
) -> NDArray[np.int64]:
    """How often two experts of a token are a marked pair.

    Args:
        experts: [T, K] uint16.
        marked: [N, E, E] uint8, symmetric, 1 where a pair is marked.
        tables: [T] uint32, which of the N tables is asked for each token.
        groups: [T] uint32.
        num_groups: groups in the result.

    Returns:
        [num_groups] int64, unordered pairs.

    Raises:
        ValueError: an id, a table or a group is out of range.
    """
    found = np.zeros(num_groups, np.int64)
    for row, table, group in zip(experts, tables, groups, strict=True):
        known = row[row != NO_EXPERT]
        inside = marked[table][np.ix_(known, known)]
        found[group] += int(np.triu(inside, 1).sum())
    return found
