"""Placements, machines and model facts to test planning on; every figure is a round one."""

import json
from typing import Any

from moeprof.hardware import HardwareProfile, LinkProfile, TierProfile, Time
from moeprof.model_shape import ModelShape
from moeprof.placement import (
    AS_STORED,
    Baseline,
    Budget,
    Estimate,
    HardwareOrigin,
    LayerPlacement,
    PhasePrediction,
    PlacedModel,
    Placement,
    Prediction,
    SolverRecord,
    Tier,
    TraceOrigin,
    Verdict,
    placement_text,
)
from moeprof.plan import ModelFacts

V, R, N = Tier.VRAM, Tier.RAM, Tier.NVME


def make_facts(
    shape: ModelShape, kv_cache_bytes: int = 300, workspace_bytes: int = 200, **changes: Any
) -> ModelFacts:
    return ModelFacts(
        name=changes.get("name", "model"),
        fingerprint=changes.get("fingerprint", "fingerprint"),
        shape=shape,
        expert_bytes=shape.expert_bytes,
        dense_bytes=shape.dense_bytes,
        kv_cache_bytes=kv_cache_bytes,
        workspace_bytes=workspace_bytes,
    )


def make_hardware(vram_bytes: int = 10**9, ram_bytes: int = 10**9) -> HardwareProfile:
    """An expert of 1000 bytes takes 1 s in vram and 4 s in ram; a round trip 2 s; a layer 1 s."""
    return HardwareProfile(
        name="round numbers",
        source="data-sheet",
        date="2026-01-31",
        tiers={
            "vram": TierProfile(vram_bytes, 1e9, {"bfloat16": Time(0.5, 0.0005, 0.1)}),
            "ram": TierProfile(ram_bytes, 1e8, {"bfloat16": Time(1.0, 0.003, 0.2)}),
        },
        links={"ram-vram": LinkProfile(1e-5, 1e10)},
        round_trip_s=2.0,
        device_context_bytes=100,
        dense_time=Time(1.0, 0.0),
    )


def make_placement(
    tiers: tuple[tuple[Tier, ...], ...] = ((V, V, R, R), (R, V, R, N)), **changes: Any
) -> Placement:
    """Layers 1, 2, ... of experts of 1000 bytes with the given tier of each."""
    layers = tuple(
        LayerPlacement(index, 1000, row, (AS_STORED,) * len(row))
        for index, row in enumerate(tiers, start=1)
    )
    used = sum(1000 * layer.num_experts_in(V) for layer in layers)
    phase = PhasePrediction(
        assignments=200,
        hits=150,
        in_sample_coverage=0.75,
        coverage=Estimate(0.7, 0.6, 0.8),
        uniform_floor=0.5,
        hit_rate=Estimate(0.7, 0.6, 0.8),
        tokens_per_s=Estimate(12.5, None, None),
    )
    fields: dict[str, Any] = {
        "model": PlacedModel(
            "org/model", "fingerprint", len(tiers[0]), tuple(range(1, len(tiers) + 1))
        ),
        "trace": TraceOrigin("first", "digest", ("code", "prose")),
        "hardware": HardwareOrigin("desk", "measured"),
        "budget": Budget(8000, 2000, 300, 200, 500, 5000, used, 4096, 1),
        "layers": layers,
        "cache_policy": None,
        "predicted": Prediction(None, phase),
        "baselines": (Baseline("all_ram", "every expert in RAM", 0, Prediction(None, phase)),),
        "solver": SolverRecord("greedy", "decode", 0.0, 5, 0),
        "verdict": Verdict(True, "it is worth it"),
        "notes": ("a note",),
    }
    return Placement(**(fields | changes))


def make_document() -> dict[str, Any]:
    """The manifest of `make_placement()`, to be damaged."""
    document: dict[str, Any] = json.loads(placement_text(make_placement()))
    return document
