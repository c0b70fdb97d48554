import dataclasses
from pathlib import Path

import numpy as np
import pytest
from advising import advise_on, make_machine, make_routed, situation_of
from synthetic import Routing

from moeprof.plan import advice as words
from moeprof.plan.evaluated import Evaluated
from moeprof.plan.judgement import Judgement, judge
from moeprof.plan.trials import fixed_trials

ZIPF = Routing(exponent=1.2, spread=0.5)


def judged(path: Path, factors: dict[str, float | np.ndarray]) -> Judgement:
    """The verdict where strategies take such a part of the seconds of whole layers.

    Where a part is an array, it is that of each of the twelve documents.
    """
    situation = situation_of(make_routed(path, ZIPF))
    trials = {one.name: one for one in fixed_trials(situation, 24_000)}
    base = trials[words.WHOLE_LAYERS]
    trials[words.ANY_EXPERTS] = dataclasses.replace(base, name=words.ANY_EXPERTS)
    for name, factor in factors.items():
        played = dataclasses.replace(base.played, seconds=factor * base.played.seconds)
        described = {"name": name, "policy": "lru", "description": f"the {name}"}
        trials[name] = dataclasses.replace(base, **described, played=played)
    return judge(Evaluated(situation, 24_000, trials))


@pytest.mark.parametrize(
    ("hot_set", "cache", "both", "answer"),
    [
        (0.8, 0.76, 0.74, words.PIN_IT),  # 5 % and 8 % faster than pinning
        (0.8, 0.7, 0.66, words.CACHE_IT),  # 14 % faster; 6 % more with pins
        (0.8, 0.7, 0.6, words.BOTH),  # 17 % more
        (0.95, 0.8, 0.75, words.CACHE_IT),  # pinning gains 5 %, which is not told from none
        (0.95, 0.95, 0.85, words.BOTH),
        (0.95, 0.93, 0.92, words.DO_NOT_BOTHER),
    ],
)
def test_what_takes_more_effort_has_to_be_clearly_faster_than_what_takes_less(
    tmp_path: Path, hot_set: float, cache: float, both: float, answer: str
) -> None:
    found = judged(
        tmp_path, {words.HOT_SET: hot_set, words.CACHE: cache, words.HOT_SET_AND_CACHE: both}
    )
    assert found.answer == answer
    assert found.lost_above is None


@pytest.mark.parametrize(
    ("hot_set", "cache", "both", "said"),
    [
        (0.8, 0.76, 0.74, "The hot_set_and_cache would have 1.08 times [1.08 to 1.08]"),  # 80 / 74
        (0.8, 0.76, 0.79, "The cache would have 1.05 times [1.05 to 1.05]"),  # 80 / 76
        (0.8, 0.7, 0.66, "The hot_set_and_cache would have 1.06 times [1.06 to 1.06]"),  # 70 / 66
        (0.8, 0.81, 0.82, None),
        (0.8, 0.7, 0.6, None),
    ],
)
def test_what_is_a_little_faster_than_what_stands_first_is_named_with_the_reason(
    tmp_path: Path, hot_set: float, cache: float, both: float, said: str | None
) -> None:
    sentence = judged(
        tmp_path, {words.HOT_SET: hot_set, words.CACHE: cache, words.HOT_SET_AND_CACHE: both}
    ).sentence
    end = "stands first"
    if said is None:
        assert end not in sentence
        return
    assert sentence.endswith(
        f". {said} the speed of that, less than the 1.1 times that a prediction may be off, so "
        f"that what takes less effort {end}"
    )


def test_what_is_much_faster_in_some_documents_only_may_be_chance(tmp_path: Path) -> None:
    """A mean of 0.5 of the seconds against 0.8, but 0.05 in half of the documents, 0.95 in half."""
    uneven = np.tile([0.05, 0.95], 6)[None]
    found = judged(tmp_path, {words.HOT_SET: 0.8, words.CACHE: uneven})
    assert found.answer == words.PIN_IT
    assert found.sentence.endswith(
        "the speed of that, which may be chance, so that what takes less effort stands first"
    )


def test_without_a_machine_hits_that_are_too_few_to_matter_are_named(tmp_path: Path) -> None:
    """A cache that hits a twentieth of the hot set's misses in addition."""
    situation = situation_of(make_routed(tmp_path, Routing(exponent=1.6)), priced=False)
    trials = {one.name: one for one in fixed_trials(situation, 24_000)}
    hot_set = trials[words.HOT_SET]
    missed = situation.routed.sums(situation.routed.accesses.lookups) - hot_set.played.hits
    played = dataclasses.replace(hot_set.played, hits=hot_set.played.hits + missed / 20)
    trials[words.CACHE] = dataclasses.replace(
        hot_set, name=words.CACHE, description="a cache", played=played, anew=None
    )
    found = judge(Evaluated(situation, 24_000, trials))
    assert found.answer == words.PIN_IT
    assert "of hit rate over that, less than the 5 points from which hits are told to matter" in (
        found.sentence
    )


def test_of_two_documents_nothing_can_be_told(tmp_path: Path) -> None:
    """Every resample leaves one of them without the other to choose on."""
    found = advise_on(make_routed(tmp_path, ZIPF, documents=2), 24, make_machine())
    assert found.finding.answer == words.CANNOT_TELL
    assert found.finding.sentence == "there are too few documents to tell gain from chance"
    hot_set = found.strategy(words.HOT_SET)
    assert hot_set is not None
    for outcome in (hot_set.prefill, hot_set.decode):
        assert outcome is not None
        for figure in (outcome.hit_rate, outcome.extra_hits, outcome.tokens_per_s, outcome.gain):
            assert figure is not None
            assert (figure.low, figure.high) == (None, None)
    assert "NaN" not in found.to_json()
