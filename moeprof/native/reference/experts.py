"""One expert, one layer of experts, and the sum over a token's slots."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.native.reference.dots import project
from moeprof.native.reference.units import GatedUnit

NO_EXPERT = 65535


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """The stored weights of one expert, F rows of H values twice, then H rows of F values.

    Args:
        gate: [F, H / 32 * BLOCK_BYTES[weight_format]] uint8.
        up: as `gate`.
        down: [H, F / 32 * BLOCK_BYTES[weight_format]] uint8.
        weight_format: "q8_0", "q4_0" or "bf16".
        gate_bias: [F] float32 or None; the three biases are given together or not at all.
        up_bias: [F] float32 or None.
        down_bias: [H] float32 or None.
    """

    gate: NDArray[np.uint8]
    up: NDArray[np.uint8]
    down: NDArray[np.uint8]
    weight_format: str
    gate_bias: NDArray[np.float32] | None = None
    up_bias: NDArray[np.float32] | None = None
    down_bias: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        given = {bias is not None for bias in (self.gate_bias, self.up_bias, self.down_bias)}
        if len(given) > 1:
            raise ValueError("biases: some of gate, up and down have one, expected all or none")


def expert_forward(
    expert: ExpertWeights, rows: NDArray[np.float32], unit: GatedUnit
) -> NDArray[np.float32]:
    """down(unit(gate(x), up(x))); a bias is added, rounded, to the finished sum of its row.

    Args:
        expert: its weights.
        rows: [num_tokens, H] float32.
        unit: the gated unit.

    Returns:
        [num_tokens, H] float32.

    Raises:
        ValueError: an activation, given or between the projections, is not finite.
    """
    gate = _biased(project(expert.gate, rows, expert.weight_format), expert.gate_bias)
    up = _biased(project(expert.up, rows, expert.weight_format), expert.up_bias)
    hidden = unit(gate, up)
    return _biased(project(expert.down, hidden, expert.weight_format), expert.down_bias)


def slot_sum(
    outputs: NDArray[np.float32], ids: NDArray[np.uint16], weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """From +0, slot after slot: total + (weight * output), both operations rounded to float32.

    Args:
        outputs: [num_tokens, top_k, H] float32.
        ids: [num_tokens, top_k] uint16; a slot with 65535 is left out of the sum.
        weights: [num_tokens, top_k] float32.

    Returns:
        [num_tokens, H] float32.
    """
    total = np.zeros((outputs.shape[0], outputs.shape[2]), np.float32)
    for slot in range(outputs.shape[1]):
        chosen = ids[:, slot] != NO_EXPERT
        total[chosen] += weights[chosen, slot, None] * outputs[chosen, slot]
    return total


def decode_layer(
    experts: list[ExpertWeights],
    rows: NDArray[np.float32],
    ids: NDArray[np.uint16],
    weights: NDArray[np.float32],
    unit: GatedUnit,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A whole layer of experts for a few tokens.

    Args:
        experts: the layer's experts; entry i has id i.
        rows: [num_tokens, H] float32.
        ids: [num_tokens, top_k] uint16; 65535 marks a slot that is not computed.
        weights: [num_tokens, top_k] float32, the router's.
        unit: the gated unit.

    Returns:
        [num_tokens, H] float32, the sum, and [num_tokens, top_k, H] float32, what each slot's
        expert gave before weighting; 0 where there is none.

    Raises:
        ValueError: an activation, given or between the projections, is not finite.
    """
    outputs = np.zeros((*ids.shape, rows.shape[1]), np.float32)
    for expert_id in np.unique(ids[ids != NO_EXPERT]):
        tokens, slots = np.nonzero(ids == expert_id)
        outputs[tokens, slots] = expert_forward(experts[expert_id], rows[tokens], unit)
    return slot_sum(outputs, ids, weights), outputs


def _biased(sums: NDArray[np.float32], bias: NDArray[np.float32] | None) -> NDArray[np.float32]:
    return sums if bias is None else sums + bias
