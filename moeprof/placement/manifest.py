"""A placement as frozen facts; `placements/README.md` specifies the file they are written to."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import PlacementError
from moeprof.placement.tier import Tier, format_ranges

FORMAT = "moeprof-placement"
FORMAT_VERSION = 1
AS_STORED = "as_stored"
DENSE_AS_STORED = "stored"


@dataclass(frozen=True, slots=True)
class PlacedModel:
    """Which model the placement is for.

    Attributes:
        name: directory or hub id, as the user gave it.
        fingerprint: hash of the config and of the checkpoint's tensor headers.
        num_experts: routed experts of each MoE layer (E).
        moe_layers: checkpoint indices of the layers with a router, ascending.
    """

    name: str
    fingerprint: str
    num_experts: int
    moe_layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TraceOrigin:
    """Which trace the placement was made from.

    Attributes:
        name: the trace directory's name.
        digest: hash of the trace's rows.
        domains: the trace's domains, in its order.
    """

    name: str
    digest: str
    domains: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HardwareOrigin:
    """Which hardware profile priced the placement.

    Attributes:
        name: the profile's name.
        source: `measured` or `data-sheet`.
    """

    name: str
    source: str


@dataclass(frozen=True, slots=True)
class Budget:
    """What the VRAM budget is spent on; every `_bytes` is in bytes.

    Attributes:
        total_bytes: the budget, for everything.
        dense_bytes: weights outside the experts.
        kv_cache_bytes: KV cache for `context_tokens` and `batch_size`.
        workspace_bytes: intermediate values of a forward.
        device_context_bytes: what the driver takes before anything is loaded.
        experts_available_bytes: what remains for experts.
        experts_used_bytes: experts that the placement keeps in VRAM.
        context_tokens: tokens per sequence the KV cache is sized for.
        batch_size: sequences the KV cache is sized for.
    """

    total_bytes: int
    dense_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int
    device_context_bytes: int
    experts_available_bytes: int
    experts_used_bytes: int
    context_tokens: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class LayerPlacement:
    """Where the experts of one layer live.

    Attributes:
        layer: checkpoint index.
        expert_bytes: bytes of one expert in its format.
        tiers: [E] tier of each expert.
        formats: [E] format of each expert while running: `q8_0`, `q4_0`, `bf16`, or `as_stored`
            where it is left open and sized as in the checkpoint.
        cache_slots: further VRAM slots whose experts a cache policy chooses while running.
    """

    layer: int
    expert_bytes: int
    tiers: tuple[Tier, ...]
    formats: tuple[str, ...]
    cache_slots: int = 0

    def num_experts_in(self, tier: Tier) -> int:
        """Experts of this layer that live in `tier`."""
        return self.tiers.count(tier)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval; the bounds are None where they cannot be known."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class PhasePrediction:
    """What one placement is expected to do in one phase.

    Attributes:
        assignments: assignments of the trace in this phase.
        hits: of those, how many have their expert in the vram tier of this very placement; a
            teacher-forced replay of the traced documents gives exactly this number.
        in_sample_coverage: `hits / assignments`.
        coverage: held-out over documents; None where the trace has a single document.
        uniform_floor: coverage that the same solver reaches in-sample when as many assignments
            are drawn evenly; None where the placement does not follow from the counts.
        hit_rate: share of assignments expected to find their expert in VRAM on new text, cache
            slots included; equal to `coverage` while there are none.
        tokens_per_s: of one sequence; None without a hardware profile.
        prompt_tokens: mean length of the prompts that `tokens_per_s` of prefill is for; None where
            that is unknown, and for decode.
    """

    assignments: int
    hits: int
    in_sample_coverage: float
    coverage: Estimate | None
    uniform_floor: float | None
    hit_rate: Estimate | None
    tokens_per_s: Estimate | None
    prompt_tokens: float | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predictions for each phase; None for a phase that the trace does not have."""

    prefill: PhasePrediction | None
    decode: PhasePrediction | None

    def phase(self, name: str) -> PhasePrediction | None:
        """The prediction of the phase called `prefill` or `decode`."""
        return {"prefill": self.prefill, "decode": self.decode}[name]


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a simpler placement would do with the same VRAM.

    Attributes:
        name: `all_ram`, `first_layers` or `uniform`.
        description: what it places, in one clause.
        vram_bytes: bytes of experts that it keeps in VRAM.
        predicted: what it is expected to do.
    """

    name: str
    description: str
    vram_bytes: int
    predicted: Prediction


@dataclass(frozen=True, slots=True)
class SolverRecord:
    """How the placement was found.

    Attributes:
        name: the solver.
        phase: routing it was solved for: `prefill`, `decode` or `all`.
        optimality_gap: share of the best conceivable in-sample coverage that may be missing, in
            [0, 1]; 0 is proven optimal.
        folds: folds over documents of the held-out figures; 0 where nothing could be held out.
        seed: of the folds and of the bootstrap.
    """

    name: str
    phase: str
    optimality_gap: float
    folds: int
    seed: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the placement is worth its trouble.

    Attributes:
        worthwhile: None where the trace cannot tell.
        reason: one sentence.
    """

    worthwhile: bool | None
    reason: str


@dataclass(frozen=True, slots=True)
class Placement:
    """The map (layer, expert) to tier, with where it comes from and what it promises.

    Attributes:
        model: which model it is for.
        trace: which trace it was made from.
        hardware: which profile priced it; None without one.
        budget: what the VRAM is spent on.
        layers: one entry per MoE layer, ascending.
        cache_policy: name of the policy that fills the cache slots; None without slots.
        predicted: what is expected of it.
        baselines: what simpler placements would do with the same VRAM.
        solver: how it was found.
        verdict: whether it is worth its trouble.
        notes: sentences for the reader.
        dense_format: of the linear layers outside the experts while running: `q8_0`, or `stored`
            for the model's own type.
    """

    model: PlacedModel
    trace: TraceOrigin
    hardware: HardwareOrigin | None
    budget: Budget
    layers: tuple[LayerPlacement, ...]
    cache_policy: str | None
    predicted: Prediction
    baselines: tuple[Baseline, ...]
    solver: SolverRecord
    verdict: Verdict
    notes: tuple[str, ...] = ()
    dense_format: str = DENSE_AS_STORED

    @property
    def tier_of(self) -> NDArray[np.uint8]:
        """[L, E] uint8, the value of `Tier` of every cell; row `i` is layer `moe_layers[i]`."""
        return np.array([layer.tiers for layer in self.layers], np.uint8)

    def expert_bytes_in(self, tier: Tier) -> int:
        """Bytes of all experts that live in `tier`."""
        return sum(layer.expert_bytes * layer.num_experts_in(tier) for layer in self.layers)

    @property
    def planned_formats(self) -> frozenset[str]:
        """Formats that the plan asks for; none where it leaves the format open."""
        return frozenset(f for layer in self.layers for f in layer.formats) - {AS_STORED}

    def check_model(self, fingerprint: str, name: str) -> None:
        """Refuse a checkpoint that this placement was not made for.

        Raises:
            PlacementError: the fingerprints differ.
        """
        if fingerprint != self.model.fingerprint:
            raise PlacementError(
                f"placement: made for {self.model.name} with fingerprint "
                f"{self.model.fingerprint}, but {name} has {fingerprint}",
                f"make one for this checkpoint: moeprof plan TRACE --model {name}",
            )

    def check_cells(self, moe_layers: tuple[int, ...], num_experts: int, name: str) -> None:
        """Refuse a checkpoint with other MoE layers, or another number of experts in each.

        Args:
            moe_layers: of the checkpoint, ascending.
            num_experts: of each of these layers.
            name: of the checkpoint.

        Raises:
            PlacementError: it has others.
        """
        if (self.model.moe_layers, self.model.num_experts) != (moe_layers, num_experts):
            raise PlacementError(
                f"placement: places {_cells(self.model.moe_layers, self.model.num_experts)}, but "
                f"{name} has {_cells(moe_layers, num_experts)}",
                "undo what was edited by hand, or make it anew: moeprof plan TRACE --model "
                f"{name} --vram SIZE",
            )


def _cells(moe_layers: tuple[int, ...], num_experts: int) -> str:
    return f"{num_experts} experts in each of the layers {format_ranges(moe_layers)}"
