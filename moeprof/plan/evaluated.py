"""The trials under one budget, compared: hit rates, tokens/s and gains with their intervals."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from moeprof.placement import Estimate
from moeprof.plan import advice
from moeprof.plan.cache_trials import cache_trials, oracle_trial
from moeprof.plan.evaluation import hit_share, is_clear, paired_gain, speed
from moeprof.plan.routed import DECODE, PREFILL
from moeprof.plan.trials import Situation, Trial, fixed_trials
from moeprof.plan.verdict import LEAST_EXTRA_HITS, LEAST_GAIN


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

    def tokens_per_s(self, trial: Trial, phase: int = DECODE) -> Estimate | None:
        """Of a single sequence; None where nothing prices it."""
        if not self.is_priced(phase):
            return None
        situation = self.situation
        return speed(situation.tokens(phase), trial.played.seconds[phase], situation.split)

    def gain(self, own: Trial, base: Trial, phase: int = DECODE) -> Estimate | None:
        """How much faster one is than another, less 1; None where nothing prices it."""
        if not self.is_priced(phase):
            return None
        base_s, own_s = base.played.seconds[phase], own.played.seconds[phase]
        return paired_gain(base_s, own_s, self.situation.split)

    def hit_rate(self, trial: Trial, phase: int = DECODE) -> Estimate:
        """Share of assignments whose expert is in VRAM."""
        situation = self.situation
        hits = trial.played.hits[phase]
        return hit_share(hits, situation.assignments(phase), situation.split)

    def extra_hits(self, own: Trial, base: Trial, phase: int = DECODE) -> Estimate:
        """Hit rate of one less that of another."""
        situation = self.situation
        hits = own.played.hits[phase] - base.played.hits[phase]
        return hit_share(hits, situation.assignments(phase), situation.split)

    def merit(self, own: Trial, base: Trial) -> Estimate:
        """The gain in decode; hit rates stand in for speed where nothing prices it."""
        gain = self.gain(own, base)
        return self.extra_hits(own, base) if gain is None else gain

    def is_clearly_better(self, own: Trial, base: Trial) -> bool:
        """Whether the interval excludes no gain, and the gain is larger than predictions err."""
        return is_clear(self.merit(own, base), self.least_merit)

    def over(self, merit: Estimate) -> str:
        """A merit in words that go on with what it is over: `1.4 times the speed of`."""
        if self.is_priced(DECODE):
            return f"{_bounded(merit, ' times', lambda gain: f'{1 + gain:.2f}')} the speed of"
        words = _bounded(merit, " points", lambda share: f"{100 * share:+.1f}")
        return f"{words} of hit rate over"

    @property
    def least_merit(self) -> float:
        """A merit below this is not told from none."""
        return LEAST_GAIN - 1 if self.is_priced(DECODE) else LEAST_EXTRA_HITS

    def outcomes(self) -> tuple[advice.StrategyOutcome, ...]:
        """Every trial as it is reported."""
        return tuple(self._outcome(trial) for trial in self.trials.values())

    def _outcome(self, trial: Trial) -> advice.StrategyOutcome:
        copied = trial.played.copied_bytes[DECODE].sum()
        return advice.StrategyOutcome(
            name=trial.name,
            description=trial.description,
            policy=trial.policy,
            vram_bytes=trial.vram_bytes,
            slots=trial.slots,
            ram_bytes=trial.ram_bytes,
            copied_bytes_per_token=round(float(copied / self.situation.tokens(DECODE).sum()), 1),
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


def evaluate(situation: Situation, room_bytes: int) -> Evaluated:
    """Try every strategy that the trace and the machine allow.

    Args:
        situation: what to try on.
        room_bytes: bytes of VRAM that are left for experts.
    """
    trials = list(fixed_trials(situation, room_bytes))
    if situation.routed is not None:
        if situation.total_bytes <= situation.ram_bytes:
            trials += cache_trials(situation, room_bytes)
        trials.append(oracle_trial(situation, room_bytes, trials))
    return Evaluated(situation, room_bytes, {trial.name: trial for trial in trials})


def _bounded(estimate: Estimate, unit: str, form: Callable[[float], str]) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{form(estimate.value)}{unit}"
    return f"{form(estimate.value)}{unit} [{form(estimate.low)} to {form(estimate.high)}]"
