"""What a run did: speed, hits and bytes, measured beside predicted."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from moeprof.placement.manifest import Estimate
from moeprof.placement.tier import Tier
from moeprof.runtime.formats import STORED
from moeprof.runtime.layer_times import LayerTimes
from moeprof.runtime.model import LoadedModel
from moeprof.runtime.vram import VramReport
from moeprof.trace.schema import PHASES

HOST_ONLY = (
    "no CUDA device is used: both tiers live in host memory, so speeds say nothing about a GPU"
)
_RUN_TIERS = (Tier.VRAM, Tier.RAM)


@dataclass(frozen=True, slots=True)
class PhaseReport:
    """What was measured in one phase, beside what the placement predicted.

    Attributes:
        tokens: tokens fed.
        prompt_tokens: of a prompt, on average; NaN for decode.
        seconds: spent in forwards of this phase, sampling included.
        tokens_per_s: NaN where nothing was fed.
        assignments: assignments of all layers.
        hits: of those, how many each tier served.
        hit_rate: share that the vram tier served; NaN without assignments.
        bytes_read_per_token: of experts, by tier; an expert is read once per forward.
        predicted_hit_rate: on new text, by the placement; None where it has none.
        predicted_coverage: in-sample, of the trace the placement was made from.
        predicted_tokens_per_s: None without a hardware profile.
        predicted_prompt_tokens: mean length of the prompts that this is for; None for decode, and
            where the placement does not say.
    """

    tokens: int
    prompt_tokens: float
    seconds: float
    tokens_per_s: float
    assignments: int
    hits: dict[str, int]
    hit_rate: float
    bytes_read_per_token: dict[str, float]
    predicted_hit_rate: Estimate | None
    predicted_coverage: float | None
    predicted_tokens_per_s: Estimate | None
    predicted_prompt_tokens: float | None


@dataclass(frozen=True, slots=True)
class TierReport:
    """One tier: its experts, where they are, and their bytes as planned and as allocated."""

    device: str
    experts: int
    planned_bytes: int
    allocated_bytes: int


@dataclass(frozen=True, slots=True)
class HitDifference:
    """A place where a replay did not hit what its trace says."""

    phase: str
    layer: int
    tier: str
    predicted: int
    measured: int


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """Whether a replay routed as its trace says.

    Attributes:
        trace: the trace's name.
        trace_dtype: element type in which it was recorded.
        documents: documents replayed.
        predicted_hits: for each phase and tier, from the trace's rows and the placement.
        measured_hits: for each phase and tier, as counted by the stores' experts.
        moved_assignments: assignments that went to another expert than in the trace.
        differences: phases, layers and tiers whose hits differ.
    """

    trace: str
    trace_dtype: str
    documents: int
    predicted_hits: dict[str, dict[str, int]]
    measured_hits: dict[str, dict[str, int]]
    moved_assignments: int
    differences: tuple[HitDifference, ...]

    @property
    def equal(self) -> bool:
        """Whether every assignment went where the trace says."""
        return self.moved_assignments == 0


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run did.

    Attributes:
        model: the checkpoint's name.
        device: of everything outside the experts and of the vram tier.
        dtype: element type of activations and of the weights outside the experts.
        dense_format: of the linear layers outside the experts; `stored` for `dtype`.
        weight_format: of the experts; `stored` for `dtype` and torch's own arithmetic.
        host_only: whether both tiers lived in host memory.
        tiers: each tier's experts and bytes.
        phases: what was measured in each phase that occurred.
        layer_hits: phase -> tier -> assignments served in each MoE layer.
        moe_layers: checkpoint indices of those layers.
        token_ids: generated tokens, over all prompts.
        text: generated text, over all prompts.
        stopped_by: why the last generation ended: see `Generation`.
        replay: the comparison with a trace; None where none was replayed.
        vram: what loading took of the card beside the plan; None without a card.
        layer_times: where the time of decoding went; None where nobody asked.
    """

    model: str
    device: str
    dtype: str
    dense_format: str
    weight_format: str
    host_only: bool
    tiers: dict[str, TierReport]
    phases: dict[str, PhaseReport]
    layer_hits: dict[str, dict[str, list[int]]]
    moe_layers: tuple[int, ...]
    token_ids: tuple[int, ...] = ()
    text: str = ""
    stopped_by: str | None = None
    replay: ReplayReport | None = None
    vram: VramReport | None = None
    layer_times: LayerTimes | None = None

    @property
    def replay_is_exact(self) -> bool:
        """Whether a replay must hit what its trace predicts: both were in float32, with torch.

        In narrower types, selections depend on the batch and on the order of sums, so that the
        same model chooses other experts now and then.
        """
        return (
            self.replay is not None
            and self.weight_format == STORED
            and self.dtype == self.replay.trace_dtype == "float32"
        )

    def to_document(self) -> dict[str, Any]:
        """The report as JSON values; NaN becomes null."""
        document: dict[str, Any] = _plain(dataclasses.asdict(self))
        if self.replay is not None:
            document["replay"]["equal"] = self.replay.equal
        return document


def _plain(value: object) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def make_report(loaded: LoadedModel, seconds: list[float]) -> RunReport:
    """What a model measured since it was loaded.

    Args:
        loaded: the model.
        seconds: spent in each phase of `PHASES`.
    """
    loaded.meter.collect()
    hits = loaded.meter.hits(loaded.table.tier)
    used = [index for index in range(len(PHASES)) if loaded.meter.tokens[index]]
    return RunReport(
        model=loaded.checkpoint.name,
        device=str(loaded.device),
        dtype=str(loaded.dtype).removeprefix("torch."),
        dense_format=loaded.dense_format,
        weight_format=loaded.experts.weight_format,
        host_only=loaded.device.type == "cpu",
        tiers={
            tier.label: TierReport(
                device=str(loaded.stores[tier].device),
                experts=int((loaded.table.tier == tier).sum()),
                planned_bytes=loaded.placement.expert_bytes_in(tier),
                allocated_bytes=loaded.stores[tier].num_bytes,
            )
            for tier in _RUN_TIERS
        },
        phases={PHASES[index]: _phase(loaded, index, seconds[index]) for index in used},
        layer_hits={
            PHASES[index]: {
                tier.label: [int(count) for count in hits[index, :, tier]] for tier in _RUN_TIERS
            }
            for index in used
        },
        moe_layers=loaded.checkpoint.shape.moe_layers,
        vram=loaded.vram,
        layer_times=_layer_times(loaded, seconds),
    )


def _layer_times(loaded: LoadedModel, seconds: list[float]) -> LayerTimes | None:
    clock = loaded.experts.clock
    if clock is None:
        return None
    return clock.times(loaded.checkpoint.shape.moe_layers, seconds[PHASES.index("decode")])


def _phase(loaded: LoadedModel, index: int, seconds: float) -> PhaseReport:
    meter, table = loaded.meter, loaded.table
    hits = meter.hits(table.tier)[index].sum(axis=0)
    assignments = int(meter.assignments[index].sum())
    tokens = int(meter.tokens[index])
    read = meter.reads[index] * np.array(loaded.experts.expert_bytes)[:, None]
    predicted = loaded.placement.predicted.phase(PHASES[index])
    return PhaseReport(
        tokens=tokens,
        prompt_tokens=math.nan if index else tokens / int(meter.forwards[index]),
        seconds=seconds,
        tokens_per_s=tokens / seconds if seconds else math.nan,
        assignments=assignments,
        hits={tier.label: int(hits[tier]) for tier in _RUN_TIERS},
        hit_rate=int(hits[Tier.VRAM]) / assignments if assignments else math.nan,
        bytes_read_per_token={
            tier.label: float(read[table.tier == tier].sum()) / tokens for tier in _RUN_TIERS
        },
        predicted_hit_rate=None if predicted is None else predicted.hit_rate,
        predicted_coverage=None if predicted is None else predicted.in_sample_coverage,
        predicted_tokens_per_s=None if predicted is None else predicted.tokens_per_s,
        predicted_prompt_tokens=None if predicted is None else predicted.prompt_tokens,
    )
