"""The trials under one budget, compared: hit rates, tokens/s and gains with their intervals."""

from collections.abc import Mapping
from dataclasses import dataclass

from moeprof.placement import Estimate
from moeprof.plan import advice
from moeprof.plan.evaluation import hit_share, paired_gain, speed
from moeprof.plan.routed import DECODE, PREFILL
from moeprof.plan.trials import Situation, Trial


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What was tried under one budget.

    Attributes:
        situation: what it was tried on.
        room_bytes: bytes of VRAM that were left for experts.
        trials: by name, in the order in which they are shown.
    """

    situation: Situation
    room_bytes: int
    trials: Mapping[str, Trial]

    def is_priced(self, phase: int) -> bool:
        """Whether tokens/s are known of a phase."""
        clocks = self.situation.clocks
        priced = {DECODE: clocks.decode, PREFILL: clocks.prefill}[phase]
        return priced is not None and bool(self.situation.assignments(phase).any())

    def tokens_per_s(self, trial: Trial, phase: int) -> Estimate | None:
        """Of a single sequence; None where nothing prices it."""
        if not self.is_priced(phase):
            return None
        situation = self.situation
        return speed(situation.tokens(phase), trial.played.seconds[phase], situation.split)

    def gain(self, own: Trial, base: Trial, phase: int) -> Estimate | None:
        """How much faster one is than another, less 1; None where nothing prices it."""
        if not self.is_priced(phase):
            return None
        base_s, own_s = base.played.seconds[phase], own.played.seconds[phase]
        return paired_gain(base_s, own_s, self.situation.split)

    def hit_rate(self, trial: Trial, phase: int) -> Estimate:
        """Share of assignments whose expert is in VRAM."""
        situation = self.situation
        hits = trial.played.hits[phase]
        return hit_share(hits, situation.assignments(phase), situation.split)

    def extra_hits(self, own: Trial, base: Trial, phase: int) -> Estimate:
        """Hit rate of one less that of another."""
        situation = self.situation
        hits = own.played.hits[phase] - base.played.hits[phase]
        return hit_share(hits, situation.assignments(phase), situation.split)

    def outcomes(self) -> tuple[advice.StrategyOutcome, ...]:
        """Every trial as it is reported."""
        return tuple(self._outcome(trial) for trial in self.trials.values())

    def _outcome(self, trial: Trial) -> advice.StrategyOutcome:
        tokens = self.situation.tokens(DECODE).sum()
        return advice.StrategyOutcome(
            name=trial.name,
            description=trial.description,
            policy=trial.policy,
            vram_bytes=trial.vram_bytes,
            slots=trial.slots,
            ram_bytes=trial.ram_bytes,
            copied_bytes_per_token=round(
                float(trial.played.copied_bytes[DECODE].sum() / tokens), 1
            ),
            prefill=self._phase(trial, PREFILL),
            decode=self._phase(trial, DECODE),
        )

    def _phase(self, trial: Trial, phase: int) -> advice.PhaseOutcome | None:
        if not self.situation.assignments(phase).any():
            return None
        base = self.trials[advice.WHOLE_LAYERS]
        return advice.PhaseOutcome(
            hit_rate=self.hit_rate(trial, phase),
            extra_hits=self.extra_hits(trial, base, phase),
            tokens_per_s=self.tokens_per_s(trial, phase),
            gain=self.gain(trial, base, phase),
        )
