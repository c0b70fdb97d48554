"""Counting of assignments."""

import numpy as np
from numpy.typing import NDArray


def count_assignments(
    experts: NDArray[np.uint16], groups: NDArray[np.uint32], num_groups: int, num_experts: int
) -> NDArray[np.int64]:
    """Assignments per expert of one layer, apart for each document group.

    Args:
        experts: [num_tokens, top_k] uint16, expert ids in the router's rank order; 65535 marks a
            slot in which the router chose no expert, which is not counted.
        groups: [num_tokens] uint32, the group that each token belongs to.
        num_groups: groups in the result; every entry of `groups` is below it.
        num_experts: experts of the layer; every id is below it.

    Returns:
        [num_groups, num_experts] int64.

    Raises:
        ValueError: an id or group is out of range, or an id stands twice in a row.
    """
    counts = np.zeros((num_groups, num_experts), np.int64)
    for row, (ids, group) in enumerate(zip(experts.tolist(), groups.tolist(), strict=True)):
        chosen = [expert_id for expert_id in ids if expert_id != 65535]
        if group >= num_groups:
            raise ValueError(f"row {row}: group {group}, expected below {num_groups}")
        if any(expert_id >= num_experts for expert_id in chosen):
            raise ValueError(f"row {row}: expert id {max(chosen)}, expected below {num_experts}")
        if len(set(chosen)) != len(chosen):
            raise ValueError(f"row {row}: an expert id stands twice")
        for expert_id in chosen:
            counts[group, expert_id] += 1
    return counts
