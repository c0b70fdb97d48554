"""Simpler placements under the same budget, which a plan has to beat."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class BaselineRule:
    """A way to place experts without a solver.

    Attributes:
        name: as in the manifest.
        description: what it places, in one clause.
    """

    name: str
    description: str


ALL_RAM = BaselineRule("all_ram", "every expert in RAM")
FIRST_LAYERS = BaselineRule("first_layers", "the first whole layers in VRAM, without a trace")
UNIFORM = BaselineRule("uniform", "the same number of experts of each layer, its busiest ones")
BASELINES = (ALL_RAM, FIRST_LAYERS, UNIFORM)


def place_baseline(
    rule: BaselineRule,
    benefit: NDArray[np.float64],
    expert_bytes: NDArray[np.int64],
    budget_bytes: int,
) -> NDArray[np.bool_]:
    """[L, E] bool, the cells that a baseline keeps in VRAM.

    Args:
        rule: which baseline.
        benefit: [L, E] float64, assignments of each cell; only `UNIFORM` looks at it.
        expert_bytes: [L] int64, bytes of one expert of each layer.
        budget_bytes: bytes that the cells may take together.
    """
    num_layers, num_experts = benefit.shape
    in_vram = np.zeros(benefit.shape, np.bool_)
    if rule is FIRST_LAYERS:
        whole_layers = np.cumsum(expert_bytes * num_experts) <= budget_bytes
        in_vram[whole_layers] = True
    elif rule is UNIFORM:
        per_layer = min(num_experts, budget_bytes // int(expert_bytes.sum()))
        busiest = np.argsort(-benefit, axis=1, kind="stable")[:, :per_layer]
        in_vram[np.arange(num_layers)[:, None], busiest] = True
    return in_vram
