"""What changed between two placements of one model."""

from dataclasses import dataclass

from moeprof.placement.manifest import Placement
from moeprof.placement.tier import Tier


@dataclass(frozen=True, slots=True)
class ExpertMove:
    """One expert that lives elsewhere.

    Attributes:
        layer: checkpoint index.
        expert_id: the expert.
        old: where it lived.
        new: where it lives.
        expert_bytes: what moves, in bytes, as stored in the checkpoint.
    """

    layer: int
    expert_id: int
    old: Tier
    new: Tier
    expert_bytes: int


@dataclass(frozen=True, slots=True)
class PlacementDiff:
    """What changed between two placements.

    Attributes:
        moves: experts that live elsewhere, by layer and expert.
        budget: parts of the budget that changed, as (field, old, new).
    """

    moves: tuple[ExpertMove, ...]
    budget: tuple[tuple[str, int, int], ...]

    @property
    def moved_bytes(self) -> int:
        """Bytes that must be transferred to turn the old placement into the new one."""
        return sum(move.expert_bytes for move in self.moves)


def diff(old: Placement, new: Placement) -> PlacementDiff:
    """What changed from `old` to `new`; predictions and notes are not compared.

    Raises:
        PlacementError: the two are for different models.
    """
    new.check_model(old.model.fingerprint, old.model.name)
    moves = tuple(
        ExpertMove(layer.layer, expert_id, before, after, layer.expert_bytes)
        for layer, other in zip(old.layers, new.layers, strict=True)
        for expert_id, (before, after) in enumerate(zip(layer.tiers, other.tiers, strict=True))
        if before != after
    )
    budget = tuple(
        (name, getattr(old.budget, name), getattr(new.budget, name))
        for name in old.budget.__dataclass_fields__
        if getattr(old.budget, name) != getattr(new.budget, name)
    )
    return PlacementDiff(moves, budget)
