"""The trials under one budget, compared: hit rates, tokens/s and gains with their intervals."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf

from moeprof.placement import Estimate
from moeprof.plan import advice
from moeprof.plan.cache_trials import cache_trials
from moeprof.plan.evaluation import Split, Total, gain, is_clear, ratio, total, within
from moeprof.plan.oracle import oracle_trial
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
        situation = self.situation
        has_clock = situation.clocks.decode is not None
        if phase == PREFILL:
            has_clock = situation.clocks.prefill is not None and situation.routed is not None
        return has_clock and bool(situation.assignments(phase).any())

    def tokens_per_s(self, trial: Trial, phase: int = DECODE) -> Estimate | None:
        """Of a single sequence; None where nothing prices it."""
        if not self.is_priced(phase):
            return None
        tokens = total(self.situation.tokens(phase), self.split)
        found = ratio(tokens, self._seconds(trial, phase), self.situation.degrees(phase))
        return within(found, 0.0, inf)

    def gain(self, own: Trial, base: Trial, phase: int = DECODE) -> Estimate | None:
        """How much faster one is than another, less 1; None where nothing prices it."""
        if not self.is_priced(phase):
            return None
        base_s, own_s = self._seconds(base, phase), self._seconds(own, phase)
        return gain(base_s, own_s, self.situation.degrees(phase))

    def hit_rate(self, trial: Trial, phase: int = DECODE) -> Estimate:
        """Share of assignments whose expert is in VRAM."""
        return within(self._share(self._hits(trial, phase), phase), 0.0, 1.0)

    def extra_hits(self, own: Trial, base: Trial, phase: int = DECODE) -> Estimate:
        """Hit rate of one less that of another."""
        more, less = (self._hits(trial, phase) for trial in (own, base))
        extra = Total(more.value - less.value, more.resampled - less.resampled)
        return self._share(extra, phase)

    @property
    def split(self) -> Split:
        """Folds and resamples of the document groups."""
        return self.situation.split

    def _share(self, hits: Total, phase: int) -> Estimate:
        assignments = total(self.situation.assignments(phase), self.split)
        return ratio(hits, assignments, self.situation.degrees(phase))

    def _hits(self, trial: Trial, phase: int) -> Total:
        kept = total(trial.played.hits[phase], self.split)
        if trial.anew is None:
            return kept
        return Total(kept.value, trial.anew[:, phase])

    def _seconds(self, trial: Trial, phase: int) -> Total:
        """Sets chosen anew hit more or less often, and each hit saves what it saves in the mean."""
        kept = total(trial.played.seconds[phase], self.split)
        hits = trial.played.hits[phase].sum()
        if trial.anew is None or hits == 0:
            return kept
        saved = self.trials[advice.ALL_RAM].played.seconds[phase].sum() - kept.value
        extra = trial.anew[:, phase] - total(trial.played.hits[phase], self.split).resampled
        return Total(kept.value, kept.resampled - extra * (saved / hits))

    def merit(self, own: Trial, base: Trial) -> Estimate:
        """The gain in decode; hit rates stand in for speed where nothing prices it."""
        found = self.gain(own, base)
        return self.extra_hits(own, base) if found is None else found

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

    @property
    def least_words(self) -> str:
        """The least merit in words."""
        if self.is_priced(DECODE):
            return f"the {LEAST_GAIN:g} times that a prediction may be off"
        return f"the {100 * LEAST_EXTRA_HITS:g} points from which hits are told to matter"

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
        trials.append(oracle_trial(situation, situation.routed, room_bytes, trials))
    return Evaluated(situation, room_bytes, {trial.name: trial for trial in trials})


def _bounded(estimate: Estimate, unit: str, form: Callable[[float], str]) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{form(estimate.value)}{unit}"
    return f"{form(estimate.value)}{unit} [{form(estimate.low)} to {form(estimate.high)}]"
