"""Advice as frozen facts: what each way to use the VRAM would do, and which of them is worth it."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moeprof.placement import Budget, Estimate, HardwareOrigin, TraceOrigin

FORMAT = "moeprof-advice"
FORMAT_VERSION = 1

ALL_RAM = "all_ram"
WHOLE_LAYERS = "whole_layers"
ANY_EXPERTS = "any_experts"
HOT_SET = "hot_set"
CACHE = "cache"
HOT_SET_AND_CACHE = "hot_set_and_cache"
ORACLE = "oracle"

PIN_IT = "pin it"
CACHE_IT = "cache it"
BOTH = "both"
DO_NOT_BOTHER = "don't bother"
CANNOT_TELL = "cannot tell"
ANSWERS = (PIN_IT, CACHE_IT, BOTH, DO_NOT_BOTHER, CANNOT_TELL)


@dataclass(frozen=True, slots=True)
class PhaseOutcome:
    """What one strategy does in one phase, on documents that it was not chosen on.

    Attributes:
        hit_rate: share of assignments whose expert is in VRAM when it is needed.
        extra_hits: `hit_rate` less that of the best whole-layer split, in the same resamples.
        tokens_per_s: of a single sequence; None where nothing prices it.
        gain: tokens/s over those of the best whole-layer split, less 1, in the same resamples.
    """

    hit_rate: Estimate | None
    extra_hits: Estimate | None
    tokens_per_s: Estimate | None
    gain: Estimate | None


@dataclass(frozen=True, slots=True)
class StrategyOutcome:
    """One way to use the VRAM that is left for experts.

    Attributes:
        name: `all_ram`, `whole_layers`, `any_experts`, `hot_set`, `cache`, `hot_set_and_cache` or
            `oracle`.
        description: what it does, in one clause.
        policy: the cache's policy, as `moeprof simulate --policy` takes it; None without a cache.
        vram_bytes: bytes of VRAM that it uses for experts.
        slots: experts that these bytes hold.
        ram_bytes: bytes of experts that it keeps in RAM.
        copied_bytes_per_token: bytes copied into VRAM per decoded token.
        prefill: in prompts; None where the trace has none or nothing is known of them.
        decode: in replies; None likewise.
    """

    name: str
    description: str
    policy: str | None
    vram_bytes: int
    slots: int
    ram_bytes: int
    copied_bytes_per_token: float
    prefill: PhaseOutcome | None
    decode: PhaseOutcome | None

    def phase(self, name: str) -> PhaseOutcome | None:
        """The outcome in the phase called `prefill` or `decode`."""
        return {"prefill": self.prefill, "decode": self.decode}[name]


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict.

    Attributes:
        answer: one of `ANSWERS`.
        strategy: name of the strategy it recommends; None where it recommends none.
        sentence: the verdict in one sentence, figures included.
        would_change: what would make it another one, a sentence each.
        in_vain: what was tried for another one and gives none, a sentence each.
    """

    answer: str
    strategy: str | None
    sentence: str
    would_change: tuple[str, ...]
    in_vain: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Where a placement starts and stops to be faster than the best whole-layer split.

    Attributes:
        hit_rate: decode hit rate above which experts spread over the layers are faster; None where
            no hit rate is enough.
        cache_hit_rate: the same for a cache that copies each missed expert into VRAM.
        prompt_per_output: prompt tokens per reply token above which the recommended strategy (or
            the best one) loses in prefill what it gains in decode; None where it never does, or
            where prefill is not priced.
    """

    hit_rate: float | None
    cache_hit_rate: float | None
    prompt_per_output: float | None


@dataclass(frozen=True, slots=True)
class DomainSets:
    """Whether a hot set for each domain pays against one merged set, in decode.

    Attributes:
        gain: tokens/s with a set per domain over those with one set for all, less 1; hit rates
            instead of tokens/s where nothing prices them.
        by_domain: the same for each domain.
        over_untraced: the same over the best of what needs no trace.
        pays: whether the gain is beyond doubt and large enough to matter.
        switch_bytes: bytes copied when the domain changes, the mean over pairs of domains.
        switch_tokens: tokens after which such a switch has paid for its copies; None where it never
            does, or nothing prices it.
    """

    gain: Estimate
    by_domain: Mapping[str, Estimate]
    over_untraced: Estimate
    pays: bool
    switch_bytes: int
    switch_tokens: float | None


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """The strategies at another budget.

    Attributes:
        vram_bytes: the budget, for everything.
        experts_bytes: what of it is left for experts.
        answer: the verdict there, of `ANSWERS`.
        strategies: as in `Advice`.
    """

    vram_bytes: int
    experts_bytes: int
    answer: str
    strategies: tuple[StrategyOutcome, ...]


@dataclass(frozen=True, slots=True)
class Advice:
    """What each way to use a VRAM budget would do, and which of them is worth it.

    Attributes:
        model: directory or hub id, or what the trace calls it.
        trace: which trace it was made from.
        hardware: which profile priced it; None without one.
        weight_format: of the experts, as the hardware profile names it.
        budget: what the VRAM is spent on; `experts_used_bytes` is that of the hot set.
        num_cells: experts of the model, all layers together.
        folds: parts that documents were dealt to, each scored with what the others taught; 0 where
            nothing could be held out, and all is scored on what it was chosen on.
        pieces: into how many pieces the only document was cut, which stand for documents, so that
            all figures hold for more of the same text only; 0 where documents are documents.
        strategies: least demanding first, the oracle last.
        finding: the verdict.
        break_even: None where nothing prices a token.
        domain_sets: None with fewer than two domains, or where nothing can be held out.
        sweep: other budgets, ascending; empty where none was asked for.
        rests_on: sentences on what the figures were computed from.
        missing: sentences on what is not known, and what would tell.
    """

    model: str
    trace: TraceOrigin
    hardware: HardwareOrigin | None
    weight_format: str
    budget: Budget
    num_cells: int
    folds: int
    pieces: int
    strategies: tuple[StrategyOutcome, ...]
    finding: Finding
    break_even: BreakEven | None
    domain_sets: DomainSets | None
    sweep: tuple[SweepPoint, ...]
    rests_on: tuple[str, ...]
    missing: tuple[str, ...]

    def strategy(self, name: str) -> StrategyOutcome | None:
        """The strategy of this name; None where it could not be tried."""
        return next((one for one in self.strategies if one.name == name), None)

    def to_json(self) -> str:
        """One JSON document; what is not known is null."""
        document: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION}
        document |= dataclasses.asdict(self)
        return json.dumps(document, allow_nan=False, ensure_ascii=False)
