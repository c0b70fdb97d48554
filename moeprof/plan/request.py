"""What a plan is asked for: the facts on the checkpoint, and the user's wishes."""

from dataclasses import dataclass

from moeprof.hardware import HardwareProfile
from moeprof.model_shape import ModelShape
from moeprof.placement import DENSE_AS_STORED

PHASE_CHOICES = ("decode", "prefill", "all")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What planning needs of a checkpoint; `moeprof.checkpoint` reads all of it from its headers.

    Attributes:
        name: directory or hub id, as the user gave it.
        fingerprint: hash of the config and of the checkpoint's tensor headers.
        shape: the model's numbers.
        expert_bytes: for each MoE layer the bytes of one expert in the request's format.
        dense_bytes: of the weights outside the experts while they run: those of a quantised
            checkpoint are decoded.
        kv_cache_bytes: of the KV cache for the request's context and batch.
        workspace_bytes: of the intermediate values of a forward.
    """

    name: str
    fingerprint: str
    shape: ModelShape
    expert_bytes: tuple[int, ...]
    dense_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int

    @property
    def total_expert_bytes(self) -> int:
        """Bytes of all experts in the request's format."""
        return sum(self.expert_bytes) * self.shape.num_experts


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the user wants.

    Attributes:
        vram_bytes: the budget, for everything.
        context_tokens: tokens per sequence that the KV cache is sized for.
        batch_size: sequences that the KV cache is sized for.
        device_context_bytes: what the driver takes before anything is loaded.
        phase: routing to optimise for, of `PHASE_CHOICES`; None for decode where the trace has
            it, else prefill.
        folds: folds over documents for held-out figures, at least 2.
        seed: of folds, bootstrap and uniform draws.
        hardware: the machine's profile; None leaves speeds unpredicted.
        weight_format: of the experts while running: `q8_0`, `q4_0` or `bf16`; None leaves it open
            and takes their size in the checkpoint.
        dense_format: of the linear layers outside the experts while running: `q8_0`, or `stored`.
    """

    vram_bytes: int
    context_tokens: int = 4096
    batch_size: int = 1
    device_context_bytes: int = 0
    phase: str | None = None
    folds: int = 5
    seed: int = 0
    hardware: HardwareProfile | None = None
    weight_format: str | None = None
    dense_format: str = DENSE_AS_STORED

    def __post_init__(self) -> None:
        if self.phase is not None and self.phase not in PHASE_CHOICES:
            raise ValueError(f"phase {self.phase!r}, expected one of {', '.join(PHASE_CHOICES)}")
        if self.folds < 2:
            raise ValueError(f"folds must be at least 2, got {self.folds}")
        if min(self.context_tokens, self.batch_size) < 1:
            raise ValueError("context_tokens and batch_size must be at least 1")
        if min(self.vram_bytes, self.device_context_bytes, self.seed) < 0:
            raise ValueError("vram_bytes, device_context_bytes and seed must not be negative")


# From no copies but those that surely pay to one for every miss.
CACHE_POLICIES = (
    "lru",
    "lfu",
    "lfru",
    "lru:uploads=1",
    "lfu:uploads=1:hysteresis=0.5",
    "lru+pinned:share=0.5",
    "lru+pinned:share=0.75",
    "lfu:uploads=1:hysteresis=0.5+pinned:share=0.5",
)


@dataclass(frozen=True, slots=True)
class AdviceRequest:
    """What advice is asked for.

    Attributes:
        plan: the budget and the wishes, as for a plan; its `phase` is not looked at.
        policies: of the caches to try, as `moeprof simulate --policy` takes them.
        sweep: further budgets in bytes, ascending.
    """

    plan: PlanRequest
    policies: tuple[str, ...] = CACHE_POLICIES
    sweep: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if list(self.sweep) != sorted(self.sweep):
            raise ValueError(f"sweep must ascend, got {self.sweep}")
