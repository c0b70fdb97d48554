"""Policies replayed over a trace: hit rates, bytes and tokens/s of each under each budget."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeprof.analyze.hot_sets import cell_bytes
from moeprof.analyze.intervals import degrees_of_freedom, resampling_weights
from moeprof.errors import TraceError
from moeprof.hardware import HardwareProfile
from moeprof.model_shape import ModelShape
from moeprof.placement import Estimate
from moeprof.plan.budget import check_ram
from moeprof.plan.evaluation import NUM_RESAMPLES, Split, hit_share, speed
from moeprof.plan.played import Clocks, clocks_of, play_cache
from moeprof.plan.routed import Routed
from moeprof.plan.trace_facts import expert_bytes_in
from moeprof.policies import (
    HeldOut,
    Policy,
    ReplayResult,
    hold_out,
    parse_policy,
    read_accesses,
    replay,
    replay_held_out,
    training_counts,
)
from moeprof.trace import PHASES, Trace
from moeprof.trace.folds import group_of_sequence
from moeprof.trace.origin import UNSAID
from moeprof.units import format_count, format_size

USUAL_POLICIES = ("static", "lru", "lfu", "lfru", "belady", "optimum")
# Below this part of the uniform share a policy does worse than arbitrary experts by far.
_CLIFF = 0.5


@dataclass(frozen=True, slots=True)
class SimulationRequest:
    """What to replay.

    Attributes:
        policies: each is replayed under each budget; none for `USUAL_POLICIES`, without `static`
            where it cannot be held out.
        budgets: bytes that experts in VRAM may take.
        domain: the domain whose documents are replayed and learned from; None for all.
        phase: routing that a policy learns from: `decode`, `prefill` or `all`; None for decode
            where the trace has it, else prefill.
        held_out: whether a policy that learns is scored on other documents than it learned from.
        folds: folds of documents for that.
        restart: whether the cache starts anew with each document.
        bounded: whether `optimum` is replayed, too.
        hardware: prices it; None for no tokens/s.
        weight_format: of the experts; None as stored.
        seed: of folds and resamples.
        threads: replays at the same time.
    """

    policies: tuple[Policy, ...]
    budgets: tuple[int, ...]
    domain: str | None = None
    phase: str | None = None
    held_out: bool = True
    folds: int = 5
    restart: bool = False
    bounded: bool = False
    hardware: HardwareProfile | None = None
    weight_format: str | None = None
    seed: int = 0
    threads: int = 2


@dataclass(frozen=True, slots=True)
class Simulation:
    """What policies do under budgets.

    Attributes:
        trace: name of the trace.
        total_bytes: bytes of all experts.
        rows: one row per policy, budget and phase: `policy`, `budget_bytes`, `budget_share` (of
            all experts, at most 1), `phase`, `hit_rate` (share of lookups) with `hit_rate_low` and
            `hit_rate_high`, `coverage` (share of assignments), `floor` (hit rate of arbitrary
            experts, 0 where none fits), `bytes_read` (brought into the cache), `tokens`,
            `tokens_per_s` with its low and high. Low and high are the ends of 95 % intervals over
            documents. NaN is unknown.
        working_set_bytes: by phase, bytes of experts that one step looks up, in the median.
        warnings: policies that do worse than arbitrary experts, and where that starts.
        notes: how it was replayed.
        has_bytes: whether the trace says what an expert takes; without, one counts as a byte.
    """

    trace: str
    total_bytes: int
    rows: pd.DataFrame
    working_set_bytes: dict[str, int]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    has_bytes: bool = True

    def size_text(self, num_bytes: float) -> str:
        """A size in words: in bytes, or in experts where their bytes are not known."""
        return format_size(num_bytes) if self.has_bytes else _in_experts(num_bytes)

    def to_json(self) -> str:
        """One JSON document; NaN becomes null."""
        rows = json.loads(self.rows.to_json(orient="records", double_precision=15))
        document = {
            "trace": self.trace,
            "has_bytes": self.has_bytes,
            "total_bytes": self.total_bytes,
            "rows": rows,
            "working_set_bytes": self.working_set_bytes,
            "warnings": self.warnings,
            "notes": self.notes,
        }
        return json.dumps(document, indent=1, ensure_ascii=False)


def simulate(trace: Trace, request: SimulationRequest) -> Simulation:
    """Replay policies over the documents of a trace.

    Args:
        trace: which says the order and the phase of its tokens.
        request: what to replay.

    Raises:
        TraceError: the trace cannot be replayed, has no such domain, or too few documents to learn
            from some and score on others.
        CapacityError: the hardware profile does not know the format, or its RAM cannot hold what
            a policy needs there: a cache all experts, to bring them in from, `static` those that
            VRAM does not hold.
        MoeprofError: a policy of a user failed.
    """
    if request.domain is not None and request.domain not in trace.domains:
        raise TraceError(
            f"trace {trace.name}: no domain {request.domain!r}",
            f"its domains are {', '.join(trace.domains)}",
        )
    policies = _policies(trace, request)
    replays = _Replays(trace, request, policies)
    _check_ram(policies, request, int(replays.cell_bytes.sum()))
    pairs = list(product(policies, request.budgets))
    with ThreadPoolExecutor(request.threads) as pool:
        rows = list(pool.map(lambda pair: replays.rows(*pair), pairs))
    table = pd.DataFrame([row for of_pair in rows for row in of_pair])
    return Simulation(
        trace=trace.name,
        total_bytes=int(replays.cell_bytes.sum()),
        rows=table,
        working_set_bytes=replays.working_set_bytes,
        warnings=tuple(_cliffs(table, replays)),
        notes=tuple(_notes(trace, request, replays)),
        has_bytes=replays.has_bytes,
    )


def _policies(trace: Trace, request: SimulationRequest) -> tuple[Policy, ...]:
    policies = list(request.policies) or [parse_policy(text) for text in USUAL_POLICIES]
    if not request.policies and request.held_out:
        documents = training_counts(trace, request.domain, request.phase).any(axis=(1, 2))
        if documents.sum() < 2:
            policies = [policy for policy in policies if not policy.learns]
    if request.bounded:
        policies.append(parse_policy("optimum"))
    return tuple({policy.name: policy for policy in policies}.values())


def _check_ram(policies: tuple[Policy, ...], request: SimulationRequest, total_bytes: int) -> None:
    smallest = min(request.budgets, default=0)
    for policy in policies:
        if policy.order == "static":
            outside = max(0, total_bytes - smallest)
            check_ram(outside, request.hardware, "raise --budget, or state more memory")
        else:
            check_ram(
                total_bytes,
                request.hardware,
                "use a machine with more memory, or replay static, which copies nothing",
            )


class _Replays:
    """What all replays share."""

    def __init__(
        self, trace: Trace, request: SimulationRequest, policies: tuple[Policy, ...]
    ) -> None:
        self.request = request
        self.policies = policies
        self.foreseeing = {one.name for one in policies if one.knows_future}
        domains = None if request.domain is None else (request.domain,)
        accesses = read_accesses(trace, domains)
        cells = trace.cell_counts()
        group = group_of_sequence(trace)[accesses.sequence]
        num_groups = len(cells.group_domain)
        self.routed = Routed(accesses, group, num_groups)
        self.lookups = self.routed.sums(accesses.lookups)
        self.splits = _resamples(self.lookups, cells.group_domain, request.seed)
        self.has_bytes = "expert_bytes" not in trace.metadata.missing
        self.size_text = format_size if self.has_bytes else _in_experts
        self.expert_bytes = expert_bytes_in(trace.shape, request.weight_format)
        self.cell_bytes = cell_bytes(self.expert_bytes, trace.shape.num_experts)
        self.clocks = self._clocks(trace.shape)
        self.training: NDArray[np.int64] | None = None
        self.held_out: HeldOut | None = None
        if any(policy.learns for policy in policies):
            self._learn(trace)
        self.working_set_bytes = self._working_set_bytes()

    def num_steps(self, phase: str) -> int:
        """Tokens decoded, or windows of prompts."""
        return int((self.routed.accesses.step_phase == PHASES.index(phase)).sum())

    def rows(self, policy: Policy, budget_bytes: int) -> list[dict[str, object]]:
        """A policy under a budget: a row for each phase."""
        replayed = self._replay(policy, budget_bytes)
        played = play_cache(self.routed, replayed, self.clocks)
        hits = self.routed.sums(replayed.hits)
        made: list[dict[str, object]] = []
        for index, phase in enumerate(PHASES):
            if not self.lookups[index].any():
                continue
            split = self.splits[index]
            share = min(1.0, budget_bytes / int(self.cell_bytes.sum()))
            row = {
                "policy": policy.name,
                "budget_bytes": budget_bytes,
                "budget_share": share,
                "phase": phase,
                **_columns("hit_rate", hit_share(hits[index], self.lookups[index], split)),
                "coverage": replayed.coverage(phase),
                "floor": share if budget_bytes >= self.cell_bytes.min() else 0.0,
                "bytes_read": int(played.copied_bytes[index].sum()),
                "tokens": int(self.routed.tokens[index].sum()),
                **_columns("tokens_per_s", self._speed(index, played.seconds[index])),
            }
            made.append(row)
        return made

    def _speed(self, phase: int, seconds: NDArray[np.float64]) -> Estimate | None:
        priced = not np.isnan(seconds).any()
        return speed(self.routed.tokens[phase], seconds, self.splits[phase]) if priced else None

    def _replay(self, policy: Policy, budget_bytes: int) -> ReplayResult:
        accesses, restart = self.routed.accesses, self.request.restart
        given = (accesses, policy, budget_bytes, self.cell_bytes)
        if self.held_out is None:
            return replay(*given, self.training, restart)
        return replay_held_out(*given, self.held_out, restart)

    def _learn(self, trace: Trace) -> None:
        """Folds of documents, or the counts of all."""
        request = self.request
        chosen = (trace, request.domain, request.phase)
        if request.held_out:
            self.held_out = hold_out(*chosen, request.folds, request.seed)
        else:
            self.training = training_counts(*chosen).sum(axis=0)

    def _clocks(self, shape: ModelShape) -> Clocks:
        request = self.request
        weight_format = request.weight_format or shape.dtype
        return clocks_of(request.hardware, shape, weight_format, self.expert_bytes)

    def _working_set_bytes(self) -> dict[str, int]:
        accesses = self.routed.accesses
        by_row = accesses.lookups.reshape(accesses.num_steps, -1) @ np.array(self.expert_bytes)
        medians = {}
        for index, phase in enumerate(PHASES):
            chosen = by_row[accesses.step_phase == index]
            if len(chosen):
                medians[phase] = int(np.median(chosen))
        return medians


def _columns(name: str, figure: Estimate | None) -> dict[str, float]:
    """A figure and the ends of its interval; NaN where they are unknown."""
    values = (None,) * 3 if figure is None else (figure.value, figure.low, figure.high)
    names = (name, f"{name}_low", f"{name}_high")
    return {
        key: float("nan") if value is None else value
        for key, value in zip(names, values, strict=True)
    }


def _resamples(
    lookups: NDArray[np.float64], group_domain: NDArray[np.int64], seed: int
) -> list[Split]:
    """For each phase, resamples of the document groups that look anything up.

    Folds are dealt elsewhere.
    """
    used = lookups.sum(axis=0) > 0
    rng = np.random.default_rng(seed)
    weights = np.zeros((NUM_RESAMPLES, len(used)))
    weights[:, used] = resampling_weights(group_domain[used], NUM_RESAMPLES, rng)
    none = np.zeros(len(used), np.int64)
    return [
        Split(0, none, weights, degrees_of_freedom(group_domain[of_phase > 0]))
        for of_phase in lookups
    ]


def _cliffs(rows: pd.DataFrame, replays: "_Replays") -> Iterator[str]:
    """Policies that do far worse than arbitrary experts, each at the largest such budget."""
    fallen = rows[rows["hit_rate"] < _CLIFF * rows["floor"]].sort_values("budget_bytes")
    for worst in fallen.drop_duplicates(["policy", "phase"], keep="last").to_dict("records"):
        phase, budget = str(worst["phase"]), int(worst["budget_bytes"])
        needed = replays.working_set_bytes[phase]
        if worst["policy"] in replays.foreseeing or replays.num_steps(phase) < 2:
            continue
        text = (
            f"{worst['policy']}, {phase}: hits {worst['hit_rate']:.1%} at "
            f"{replays.size_text(budget)}, where arbitrary experts would hit {worst['floor']:.1%}"
        )
        if budget < needed:
            step = "token" if phase == "decode" else "prompt"
            text += (
                f"; the cliff starts below {replays.size_text(needed)}, what one {step} looks up: "
                "a smaller cache has given an expert up before it comes round again"
            )
        yield text


def _notes(trace: Trace, request: SimulationRequest, replays: _Replays) -> Iterator[str]:
    documents = len(np.unique(replays.routed.accesses.step_sequence))
    if replays.held_out is not None:
        folds = len(replays.held_out.training)
        yield (
            f"what a policy learns is held out: the documents of each of {folds} folds are "
            "replayed with what was used in the others, and an empty cache for each fold"
        )
    elif replays.training is not None:
        yield "what a policy learns is not held out: it is scored on what it learned from"
    if replays.held_out is not None or replays.training is not None:
        yield "lists of cells are in VRAM from the start: loading them is not counted as read"
    where = "starts anew with each document" if request.restart else "goes on across documents"
    yield f"{format_count(documents, 'document')}; the cache {where}"
    yield from _notes_on_budgets(request.budgets, replays)
    few = [
        phase
        for index, phase in enumerate(PHASES)
        if replays.lookups[index].any() and replays.splits[index].degrees < 1
    ]
    if few:
        yield f"no intervals in {' and '.join(few)}: they are over documents, and there are too few"
    if not request.policies and not any(policy.learns for policy in replays.policies):
        yield (
            "static is left out: one document has tokens to learn from, two are needed to learn "
            "from some and score on others"
        )
    if any(policy.order == "optimum" for policy in replays.policies):
        yield (
            "optimum begins each phase with what it will need, which is not counted as copied, and "
            "may leave a missed expert outside"
        )
    if request.hardware is not None:
        yield from _notes_on_speed(trace, request, request.hardware)
    else:
        yield "tokens/s are not predicted: no hardware profile was given"
    if "documents" in trace.metadata.missing:
        yield "where documents begin is not known; the trace counts as it is divided"


def _notes_on_budgets(budgets: tuple[int, ...], replays: "_Replays") -> Iterator[str]:
    """Budgets that hold nothing, or everything."""
    smallest, total = int(replays.cell_bytes.min()), int(replays.cell_bytes.sum())
    text = replays.size_text
    nothing = [text(one) for one in budgets if one < smallest]
    everything = [text(one) for one in budgets if one >= total]
    if nothing:
        yield f"no expert fits into {', '.join(nothing)}: the smallest has {text(smallest)}"
    if everything:
        yield (
            f"all experts fit into {', '.join(everything)}: a cache that begins empty misses each "
            "of them once"
        )


def _in_experts(number: float) -> str:
    return f"{number:,.4g} expert{'' if number == 1 else 's'}"


def _notes_on_speed(
    trace: Trace, request: SimulationRequest, profile: HardwareProfile
) -> Iterator[str]:
    capacity = profile.tiers["vram"].capacity_bytes
    if any(budget > capacity for budget in request.budgets):
        yield (
            f"{profile.name} has {format_size(capacity)} of VRAM: tokens/s under a larger budget "
            "are as if it had more"
        )
    if "dense_bytes" in trace.metadata.missing:
        yield (
            "tokens/s leave out what lies outside the experts: the trace does not say "
            f"{UNSAID['dense_bytes']}"
        )
