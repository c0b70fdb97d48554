"""Placements written down by hand: only the tier of each cell matters to these tests."""

import numpy as np

from moeprof.checkpoint import Checkpoint
from moeprof.model_shape import ModelShape
from moeprof.placement.manifest import (
    AS_STORED,
    Budget,
    LayerPlacement,
    PlacedModel,
    Placement,
    Prediction,
    SolverRecord,
    TraceOrigin,
    Verdict,
)
from moeprof.placement.tier import Tier


def make_tiers(shape: ModelShape, seed: int = 0, vram_share: float = 0.5) -> np.ndarray:
    """[L, E] uint8 tiers, drawn evenly."""
    rng = np.random.default_rng(seed)
    drawn = rng.random((shape.num_moe_layers, shape.num_experts))
    return np.where(drawn < vram_share, Tier.VRAM, Tier.RAM).astype(np.uint8)


def make_placement(
    checkpoint: Checkpoint,
    tier_of: np.ndarray | None = None,
    predicted: Prediction | None = None,
    weight_format: str = AS_STORED,
    spare_bytes: int = 0,
) -> Placement:
    """A valid placement of a checkpoint with the given tier of each cell."""
    shape = checkpoint.shape
    if tier_of is None:
        tier_of = make_tiers(shape)
    layers = tuple(
        LayerPlacement(
            layer=layer,
            expert_bytes=size,
            tiers=tuple(Tier(int(tier)) for tier in row),
            formats=(weight_format,) * shape.num_experts,
        )
        for layer, size, row in zip(shape.moe_layers, shape.expert_bytes, tier_of, strict=True)
    )
    used = sum(layer.expert_bytes * layer.num_experts_in(Tier.VRAM) for layer in layers)
    return Placement(
        model=PlacedModel(
            str(checkpoint.path), checkpoint.fingerprint, shape.num_experts, shape.moe_layers
        ),
        trace=TraceOrigin("none", "0" * 64, ("none",)),
        hardware=None,
        budget=Budget(
            total_bytes=shape.dense_bytes + used + spare_bytes,
            dense_bytes=shape.dense_bytes,
            kv_cache_bytes=0,
            workspace_bytes=0,
            device_context_bytes=0,
            experts_available_bytes=used,
            experts_used_bytes=used,
            context_tokens=1024,
            batch_size=1,
        ),
        layers=layers,
        cache_policy=None,
        predicted=predicted or Prediction(None, None),
        baselines=(),
        solver=SolverRecord("hand", "all", 0.0, 0, 0),
        verdict=Verdict(None, "written by hand"),
    )
