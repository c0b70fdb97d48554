"""Measuring placements of one budget against each other, and against what memory allows."""

import math
import statistics
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from moeprof.placement.manifest import Placement
from moeprof.placement.tier import Tier
from moeprof.plan.advice import ANY_EXPERTS
from moeprof.plan.baselines import ALL_RAM, FIRST_LAYERS, UNIFORM, place_baseline
from moeprof.runtime.measurement import read_bandwidth
from moeprof.runtime.meter import hits_by_tier
from moeprof.runtime.model import SplitModel
from moeprof.runtime.sequence import Sequence
from moeprof.trace.schema import PHASES

STATES = ("cold", "warm")


@dataclass(frozen=True, slots=True)
class Case:
    """A placement to measure.

    Attributes:
        name: `plan`; `all_ram`, `first_layers` as in a placement; `any_experts` as in an advice.
        description: what it places, in one clause.
        tier_of: [L, E] uint8, the value of `Tier` of every cell.
    """

    name: str
    description: str
    tier_of: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Figure:
    """Tokens per second of one placement in one phase.

    Attributes:
        placement: the case's name.
        phase: of `PHASES`.
        state: `cold` for the first pass after the placement was brought in, else `warm`.
        tokens_per_s: median over the rounds.
        low: lower end of its interval.
        high: upper end of its interval.
        confidence: of that interval, from order statistics: with few rounds less than 0.95.
        roofline_tokens_per_s: what reading every byte once, at the measured bandwidths, allows.
        hit_rate: share of assignments that the vram tier served.
        bytes_per_token: of experts, by tier.
    """

    placement: str
    phase: str
    state: str
    tokens_per_s: float
    low: float
    high: float
    confidence: float
    roofline_tokens_per_s: float
    hit_rate: float
    bytes_per_token: dict[str, float]

    @property
    def of_roofline(self) -> float:
        """Share of the roofline that was reached."""
        return self.tokens_per_s / self.roofline_tokens_per_s


def cases_of(placement: Placement, expert_bytes: Items[int], seed: int = 0) -> list[Case]:
    """The plan, and the baselines under the bytes of VRAM that the plan's experts take.

    A placement does not say how busy its experts are, so a plan's `uniform` cannot be measured: in
    its place stand `any_experts`, as many of each layer, drawn at random.

    Args:
        placement: the plan.
        expert_bytes: for each MoE layer the bytes of one expert as it is run.
        seed: of the draw.
    """
    sizes = np.asarray(expert_bytes, np.int64)
    in_vram = placement.tier_of == Tier.VRAM
    room = int((in_vram.sum(axis=1) * sizes).sum())
    drawn = np.random.default_rng(seed).random(in_vram.shape)
    found = [Case("plan", "the placement as planned", placement.tier_of)]
    for rule, name, description in (
        (ALL_RAM, ALL_RAM.name, ALL_RAM.description),
        (FIRST_LAYERS, FIRST_LAYERS.name, FIRST_LAYERS.description),
        (UNIFORM, ANY_EXPERTS, "the same number of experts of each layer, drawn at random"),
    ):
        resident = place_baseline(rule, drawn, sizes, room)
        tier_of = np.where(resident, Tier.VRAM, Tier.RAM).astype(np.uint8)
        found.append(Case(name, description, tier_of))
    return found


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """What each pass does, and how often.

    Attributes:
        prompt: token ids of the prefill.
        continuation: token ids that are then fed one by one.
        rounds: how often each placement is measured; placements take turns.
    """

    prompt: list[int]
    continuation: list[int]
    rounds: int


def bench(
    loaded: SplitModel,
    cases: Items[Case],
    plan: BenchPlan,
    advance: Callable[[int, int], object] = lambda done, total: None,
) -> list[Figure]:
    """Measure every case in every round; which comes first changes from round to round.

    In each round a placement is brought in, then prompt and continuation are fed twice: the first
    pass is `cold`, the second `warm`.

    Args:
        loaded: a model whose experts can be moved.
        cases: the placements.
        plan: what is fed.
        advance: told of passes done and passes in all.
    """
    sequence = Sequence(loaded, len(plan.prompt) + len(plan.continuation))
    roofline = _roofline(loaded)
    passes: dict[tuple[str, str], list[_Pass]] = {}
    total = plan.rounds * len(cases) * len(STATES)
    done = 0
    for turn in range(plan.rounds):
        for index in range(len(cases)):
            case = cases[(index + turn) % len(cases)]
            loaded.experts.place(case.tier_of)
            for state in STATES:
                passes.setdefault((case.name, state), []).append(_one_pass(loaded, sequence, plan))
                done += 1
                advance(done, total)
    return [
        _figure(name, state, phase, found, partial(roofline.seconds, phase=phase))
        for (name, state), found in passes.items()
        for phase in range(len(PHASES))
    ]


@dataclass(frozen=True, slots=True)
class _Pass:
    """Seconds of each phase, and what it read: [2, L, 3] bytes and assignments by tier."""

    seconds: tuple[float, float]
    tokens: tuple[int, int]
    forwards: tuple[int, int]
    read_bytes: NDArray[np.int64]
    hits: NDArray[np.int64]


def _one_pass(loaded: SplitModel, sequence: Sequence, plan: BenchPlan) -> _Pass:
    loaded.meter.reset()
    loaded.synchronize()
    begun = time.perf_counter()
    sequence.prefill(plan.prompt)
    loaded.synchronize()
    filled = time.perf_counter()
    for token in plan.continuation:
        sequence.step(token)
    loaded.synchronize()
    ended = time.perf_counter()
    loaded.meter.collect()
    meter, tier_of = loaded.meter, loaded.table.tier
    read = meter.reads * np.asarray(loaded.experts.expert_bytes)[:, None]
    return _Pass(
        seconds=(filled - begun, ended - filled),
        tokens=(len(plan.prompt), len(plan.continuation)),
        forwards=(1, len(plan.continuation)),
        read_bytes=hits_by_tier(read, tier_of),
        hits=meter.hits(tier_of).sum(axis=1),
    )


def _figure(
    name: str, state: str, phase: int, passes: Items[_Pass], floor_s: Callable[[_Pass], float]
) -> Figure:
    speeds = sorted(one.tokens[phase] / one.seconds[phase] for one in passes)
    low, high, confidence = median_interval(speeds)
    tokens = passes[0].tokens[phase]
    hits = sum(one.hits[phase] for one in passes)
    read = sum(one.read_bytes[phase].sum(axis=0) for one in passes) / (tokens * len(passes))
    return Figure(
        placement=name,
        phase=PHASES[phase],
        state=state,
        tokens_per_s=statistics.median(speeds),
        low=low,
        high=high,
        confidence=confidence,
        roofline_tokens_per_s=tokens / statistics.median(floor_s(one) for one in passes),
        hit_rate=float(hits[Tier.VRAM] / hits.sum()),
        bytes_per_token={tier.label: float(read[tier]) for tier in (Tier.VRAM, Tier.RAM)},
    )


def median_interval(ordered: Items[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """The narrowest symmetric interval of order statistics that holds the median.

    Args:
        ordered: ascending values, drawn independently from one distribution.
        confidence: wanted; the widest interval is given where so few values cannot reach it.

    Returns:
        Its ends, and how sure it is: 1 - 2 P(Binomial(n, 1/2) < rank of the lower end).
    """
    count = len(ordered)
    for rank in range((count - 1) // 2, -1, -1):
        outside = 2 * sum(math.comb(count, below) for below in range(rank + 1)) / 2**count
        if 1 - outside >= confidence or rank == 0:
            return ordered[rank], ordered[count - 1 - rank], max(0.0, 1 - outside)
    raise ValueError("no values")


@dataclass(frozen=True, slots=True)
class _Roofline:
    """The shortest time in which memory can deliver what a pass reads.

    Attributes:
        vram_bytes_per_s: plain read of the device's memory.
        ram_bytes_per_s: plain read of host memory by the threads that compute.
        dense_bytes: read by each forward outside the experts.
        is_host_only: whether both tiers share host memory, one after the other.
    """

    vram_bytes_per_s: float
    ram_bytes_per_s: float
    dense_bytes: int
    is_host_only: bool

    def seconds(self, one: _Pass, phase: int) -> float:
        """Of one phase of a pass: dense weights, then for each layer the slower of its tiers."""
        read = one.read_bytes[phase]
        vram = read[:, Tier.VRAM] / self.vram_bytes_per_s
        ram = read[:, Tier.RAM] / self.ram_bytes_per_s
        layers = vram + ram if self.is_host_only else np.maximum(vram, ram)
        dense = one.forwards[phase] * self.dense_bytes / self.vram_bytes_per_s
        return float(layers.sum() + dense)


def _roofline(loaded: SplitModel) -> _Roofline:
    ram = loaded.experts.read_bandwidth()
    is_host_only = loaded.device.type == "cpu"
    return _Roofline(
        vram_bytes_per_s=ram if is_host_only else read_bandwidth(loaded.device),
        ram_bytes_per_s=ram,
        dense_bytes=_dense_bytes(loaded.model),
        is_host_only=is_host_only,
    )


def _dense_bytes(model: PreTrainedModel) -> int:
    """Bytes of the weights that every forward reads; of an embedding apart it reads single rows."""
    held = {id(p): p.nbytes for p in model.parameters()}
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if output is not None and output.weight is not embedding.weight:
        held.pop(id(embedding.weight), None)
    return sum(held.values())
