import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from advising import DENSE, SHAPE, advise_on, make_machine, make_routed, without_batches
from builders import make_counts, make_shape
from builders import make_trace as make_block_trace
from planning import make_facts
from synthetic import Routing
from test_plan import routed as block_of

from moeprof.hardware import HardwareProfile, LinkProfile, Time
from moeprof.plan import PlanRequest, plan
from moeprof.plan import advice as words
from moeprof.plan.cost import DecodeClock, decode_clock
from moeprof.plan.evaluated import Evaluated
from moeprof.plan.evaluation import gain, split_documents, total
from moeprof.plan.oracle import lower_envelope
from moeprof.plan.played import Clocks, clocks_of, play_counts, play_sets
from moeprof.plan.prefill_cost import prefill_clock
from moeprof.plan.routed import DECODE, PREFILL, read_routed
from moeprof.plan.trials import Situation, fixed_trials
from moeprof.trace import Trace

ZIPF = Routing(exponent=1.6)
STICKY = Routing(keep=0.9, spread=0.3)
DRIFTING = Routing(exponent=2.0, drift=1.0, keep=0.3)


def linked(bytes_per_s: float) -> HardwareProfile:
    """The machine with another link, over which an expert of 1000 bytes is copied."""
    return make_machine(links={"ram-vram": LinkProfile(0.0, bytes_per_s)})


class TestDecodeClock:
    def test_copies_take_part_of_the_ram_and_at_least_their_own_time(self) -> None:
        clock = DecodeClock(
            0, 2.0, np.array([1.0]), np.array([4.0]), copy=Time(1.0, 0.01), ram_s_per_byte=0.002
        )
        hits, misses = np.array([2, 1, 2, 0]), np.array([0, 1, 0, 2])
        copied = np.array([0, 1000, 1000, 100])
        # RAM parts: 0; 2 + 4 + 2; 2; 2 + 8 + 0.2. Copies: 0; 1 + 10; 1 + 10; 1 + 1.
        found = clock.layer_seconds(0, hits, misses, copied)
        assert found.tolist() == pytest.approx([2, 11, 11, 10.2])

    def test_copies_are_added_where_tiers_do_not_overlap(self) -> None:
        clock = DecodeClock(0, 0.0, np.array([1.0]), np.array([4.0]), False, Time(1.0, 0.01), 0.002)
        found = clock.layer_seconds(0, np.array([1]), np.array([1]), np.array([1000]))
        assert found.tolist() == [1 + 4 + 1 + 10]

    @pytest.mark.parametrize("hit_rate", [0.0, 0.3, 1.0])
    def test_expected_seconds_are_the_mean_over_all_ways_to_hit(self, hit_rate: float) -> None:
        clock = DecodeClock(0, 2.0, np.array([1.0]), np.array([4.0]), copy=Time(0, 0.01))
        mean = 0.0
        for ways in itertools.product([0, 1], repeat=3):
            odds = np.prod([hit_rate if hit else 1 - hit_rate for hit in ways])
            hits, misses = np.array([sum(ways)]), np.array([3 - sum(ways)])
            mean += odds * clock.layer_seconds(0, hits, misses, misses * 500)[0]
        assert clock.expected_seconds(0, 3, np.array(hit_rate), 500) == pytest.approx(mean)

    def test_thelower_envelope_is_convex_falls_and_touches_the_values(self) -> None:
        rng = np.random.default_rng(2)
        for _ in range(50):
            values = rng.random(rng.integers(2, 9))
            found = lower_envelope(values)
            assert (found <= values + 1e-12).all()
            assert (np.diff(found) <= 1e-12).all()
            assert (np.diff(found, 2) >= -1e-12).all()
            # No larger function is convex and falls: at every bend it touches a value.
            bends = np.flatnonzero(np.diff(found, 2) > 1e-9) + 1
            assert np.isclose(found[bends], np.minimum.accumulate(values)[bends]).all()
            assert found[0] == values[0]


class TestPrefillClock:
    # In VRAM 1 s + 0.1 s a token, in RAM 3 s + 1 s a token, a copy 5 s.
    clock = prefill_clock(make_machine(), SHAPE, "bfloat16", SHAPE.expert_bytes)

    def seconds(self, tokens: list[int], in_vram: list[int], copied: int = 0) -> float:
        assert self.clock is not None
        (found,) = self.clock.batch_seconds(
            np.array([0]),
            np.array([0, len(tokens)]),
            np.array(tokens),
            np.array(in_vram, bool),
            np.array([copied]),
        )
        return float(found)

    def test_an_expert_of_few_tokens_is_computed_in_ram_and_one_of_many_is_copied(self) -> None:
        # 2 tokens: 5 s in RAM, 5 + 1.2 copied. 10 tokens: 13 s in RAM, 5 + 2 copied.
        assert self.seconds([2], [0]) == pytest.approx(2 + 5)
        assert self.seconds([10], [0]) == pytest.approx(5 + 2)

    def test_a_layer_takes_the_longer_of_both_parts(self) -> None:
        # VRAM: 4 tokens resident 1.4, 10 tokens copied 7. RAM: 2 + 5 of the 2 tokens.
        assert self.seconds([4, 10, 2], [1, 0, 0]) == pytest.approx(1.4 + 7)
        assert self.seconds([4, 2, 1], [1, 0, 0]) == pytest.approx(2 + 5 + 4)

    def test_a_cache_pays_for_copies_beyond_those_that_are_made_anyway(self) -> None:
        assert self.seconds([10, 2], [0, 0], copied=2000) == pytest.approx(7 + 5)
        assert self.seconds([10, 2], [0, 0], copied=1000) == pytest.approx(2 + 5)

    def test_without_a_link_everything_is_computed_where_it_lies(self) -> None:
        found = prefill_clock(make_machine(links={}), SHAPE, "bfloat16", SHAPE.expert_bytes)
        assert found is not None
        in_ram = found.batch_seconds(
            np.array([0]), np.array([0, 1]), np.array([100]), np.array([False])
        )
        assert in_ram.tolist() == [2 + 103]

    def test_a_profile_without_times_of_batches_prices_nothing(self) -> None:
        machine = without_batches(make_machine())
        assert prefill_clock(machine, SHAPE, "bfloat16", SHAPE.expert_bytes) is None

    def test_the_prompts_of_a_trace_take_as_long_as_counted_by_hand(self, tmp_path: Path) -> None:
        shape = make_shape((0, 2), num_experts=4)
        experts = [
            [[0, 1], [0, 2], [0, 1], [3, 1]],  # layer 0: 3, 2, 1 tokens; then a decoded one
            [[2, 3], [2, 3], [2, 3], [0, 1]],  # layer 2: 3 and 3 tokens
        ]
        block = block_of(experts, [0, 0, 0, 0], [0, 0, 0, 1])
        trace = make_block_trace(tmp_path / "t", {"a": block}, shape, weights=False)
        machine = make_machine(dense_batch_time=Time(1.0, 0.0, 0.25))
        clocks = clocks_of(machine, shape, shape.dtype, shape.expert_bytes)
        in_vram = np.array([[1, 0, 0, 0], [0, 0, 0, 0]], bool)
        played = play_sets(
            read_routed(trace, trace.cell_counts()), in_vram[None], np.array([0]), clocks
        )
        # Layer 0: 1.3 beside 2 + 5 + 4. Layer 2: twice 6.3 copied (7 in RAM: 6).
        layers = max(1.3, 2 + 5 + 4) + (2 + 6 + 6)
        assert played.seconds[PREFILL].tolist() == pytest.approx([3 * 1 + 3 * 0.25 + layers])
        assert played.hits[PREFILL].tolist() == [3]


def situation_of(counts: np.ndarray, machine_overlaps: bool = False, seed: int = 0) -> Situation:
    """Counts [G, L, E] of decode as a situation without lookups."""
    cells = make_counts({"a": np.zeros_like(counts)}, {"a": counts}, top_k=2)
    clocks = clocks_of(
        make_machine(machine_overlaps), cells.shape, "bfloat16", cells.shape.expert_bytes
    )
    return Situation(
        shape=cells.shape,
        expert_bytes=np.asarray(cells.shape.expert_bytes, np.int64),
        counts=cells,
        split=split_documents(cells.group_domain, np.ones(len(counts), bool), 5, seed),
        routed=None,
        clocks=clocks,
        policies=[],
        ram_bytes=float("inf"),
        seed=seed,
    )


class TestIntervals:
    def test_gains_of_even_routing_hold_zero_as_often_as_they_promise(self) -> None:
        rng = np.random.default_rng(11)
        held = {words.HOT_SET: 0, words.ANY_EXPERTS: 0}
        values, halves, runs = [], [], 120
        for run in range(runs):
            counts = rng.multinomial(60, np.full(16, 1 / 16), size=(20, 4))
            situation = situation_of(counts, seed=run)
            found = Evaluated(
                situation, 20_000, {one.name: one for one in fixed_trials(situation, 20_000)}
            )
            for name in held:
                gain = found.gain(found.trials[name], found.trials[words.WHOLE_LAYERS])
                assert gain is not None
                assert gain.low is not None
                assert gain.high is not None
                held[name] += gain.low <= 0 <= gain.high
                values.append(gain.value)
                halves.append((gain.high - gain.low) / 2)
        # Binomial with 120 runs at 95 %: 106 or fewer has a chance of about 1 in 1000.
        assert min(held.values()) > 106
        # Not by being so wide that they say nothing: 2.1 standard deviations would do.
        assert np.mean(halves) < 3 * np.std(values)

    def test_a_gain_that_is_the_same_in_every_document_has_no_width(self) -> None:
        split = split_documents(np.zeros(4, np.int64), np.ones(4, bool), 2, 0)
        base, own = (total(np.array(one), split) for one in ([6.0, 3, 9, 30], [4.0, 2, 6, 20]))
        found = gain(base, own, split.degrees)
        assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


class TestCounts:
    def test_counts_hit_what_a_replay_hits_and_take_as_long_where_time_follows_hits(
        self, tmp_path: Path
    ) -> None:
        trace = make_routed(tmp_path, ZIPF)
        counts = trace.cell_counts()
        clock = decode_clock(make_machine(False), SHAPE, SHAPE.dtype, SHAPE.expert_bytes)
        sets = np.random.default_rng(0).random((1, 4, 16)) < 0.4
        groups = np.zeros(len(counts.counts), np.int64)
        counted = play_counts(counts, sets, groups, clock)
        replayed = play_sets(read_routed(trace, counts), sets, groups, Clocks(clock))
        assert counted.hits.tolist() == replayed.hits.tolist()
        assert counted.seconds[DECODE] == pytest.approx(replayed.seconds[DECODE])

    def test_independent_choices_take_about_as_long_as_counts_say(self, tmp_path: Path) -> None:
        trace = make_routed(tmp_path, ZIPF, tokens=(0, 400))
        counts = trace.cell_counts()
        clock = decode_clock(make_machine(), SHAPE, SHAPE.dtype, SHAPE.expert_bytes)
        sets = np.random.default_rng(0).random((1, 4, 16)) < 0.4
        groups = np.zeros(len(counts.counts), np.int64)
        counted = play_counts(counts, sets, groups, clock).seconds[DECODE].sum()
        replayed = play_sets(read_routed(trace, counts), sets, groups, Clocks(clock))
        assert counted == pytest.approx(replayed.seconds[DECODE].sum(), rel=0.02)


class TestVerdict:
    def test_even_routing_is_not_worth_it_and_no_gain_is_claimed(self, tmp_path: Path) -> None:
        trace = make_routed(tmp_path, Routing(), tokens=(40, 120))
        for machine in (make_machine(False), make_machine(), None):
            found = advise_on(trace, 24, machine)
            assert found.finding.answer == words.DO_NOT_BOTHER
            assert found.finding.strategy is None
        linear = advise_on(trace, 24, make_machine(False))
        for one in linear.strategies:
            if one.name in (words.ORACLE, words.ALL_RAM):
                continue
            assert one.decode is not None
            assert one.decode.gain is not None
            assert one.decode.gain.low is not None
            assert one.decode.gain.low <= 0
        for name in (words.HOT_SET, words.ANY_EXPERTS):
            (one,) = (one for one in linear.strategies if one.name == name)
            assert one.decode is not None
            assert one.decode.gain is not None
            assert one.decode.gain.high is not None
            assert one.decode.gain.high >= 0

    def test_strong_skew_is_pinned(self, tmp_path: Path) -> None:
        found = advise_on(make_routed(tmp_path, ZIPF), 24, make_machine())
        assert found.finding.answer == words.PIN_IT
        assert found.finding.strategy == words.HOT_SET
        assert found.finding.sentence.startswith("keep the 24 busiest of 64 experts in VRAM")

    @pytest.mark.parametrize("routing", [STICKY, DRIFTING])
    def test_replies_that_stay_with_some_experts_for_a_while_are_cached(
        self, tmp_path: Path, routing: Routing
    ) -> None:
        trace = make_routed(tmp_path, routing, documents=20, tokens=(10, 100))
        found = advise_on(trace, 16, linked(1000.0))
        assert found.finding.answer == words.CACHE_IT
        assert found.finding.strategy == words.CACHE
        assert "16 of 64 experts in VRAM, chosen while running by" in found.finding.sentence

    def test_copies_that_take_too_long_make_a_cache_not_worth_it(self, tmp_path: Path) -> None:
        trace = make_routed(tmp_path, STICKY)
        found = advise_on(trace, 24, linked(10.0), policies=("lru",))
        cache = found.strategy(words.CACHE)
        assert cache is not None
        assert cache.decode is not None
        assert cache.decode.extra_hits is not None
        assert cache.decode.gain is not None
        assert cache.decode.extra_hits.value > 0.2
        assert cache.decode.gain.value < 0
        assert found.finding.answer == words.DO_NOT_BOTHER

    def test_everything_and_nothing_need_no_trace(self, tmp_path: Path) -> None:
        trace = make_routed(tmp_path, ZIPF)
        full, empty = (advise_on(trace, number, make_machine()) for number in (64, 0))
        assert full.finding.sentence.startswith("all 64 experts fit into VRAM")
        assert full.finding.would_change == ()
        assert empty.finding.sentence.startswith("not one expert fits")
        assert empty.finding.would_change[0].startswith("more VRAM: with ")
        for found in (full, empty):
            assert found.finding.answer == words.DO_NOT_BOTHER
        assert len({one.decode.tokens_per_s.value for one in full.strategies[1:]}) == 1
        assert len({one.decode.tokens_per_s.value for one in empty.strategies}) == 1

    def test_domains_that_share_no_expert_pay_for_sets_of_their_own(self, tmp_path: Path) -> None:
        routing = {
            "low": Routing(exponent=0.7, experts=range(8)),
            "high": Routing(exponent=0.7, experts=range(8, 16)),
        }
        trace = make_routed(tmp_path, routing, tokens=(40, 120))
        found = advise_on(trace, 24, make_machine(False), policies=())
        sets = found.domain_sets
        assert sets is not None
        assert sets.pays
        assert set(sets.by_domain) == {"low", "high"}
        # A token's two experts take 8 s less 3 s a hit in each of four layers, which take 1 s
        # besides. A domain's best set serves what its 24 busiest cells are chosen by; of the
        # merged one, half are of the other domain.
        chance = np.sort(routing["low"].expected(SHAPE), axis=None)[::-1]
        merged, apart = (4 + 4 * 8 - 3 * chance[:size].sum() for size in (12, 24))
        assert sets.gain.value == pytest.approx(merged / apart - 1, rel=0.1)
        # A switch copies all 24 experts at 5 s each.
        assert sets.switch_bytes == 24_000
        assert sets.switch_tokens == pytest.approx(24 * 5 / (merged - apart), rel=0.1)

    def test_domains_that_route_alike_do_not_pay_for_sets_of_their_own(
        self, tmp_path: Path
    ) -> None:
        routing = {"a": ZIPF, "b": ZIPF}
        found = advise_on(make_routed(tmp_path, routing), 24, make_machine())
        assert found.domain_sets is not None
        assert not found.domain_sets.pays

    def test_prompts_that_lose_more_than_replies_gain_change_the_verdict(
        self, tmp_path: Path
    ) -> None:
        trace = _two_phased(tmp_path)
        machine = make_machine(False)
        kept = advise_on(trace, 8, machine)
        assert kept.finding.answer == words.PIN_IT
        tiers = dict(machine.tiers)
        slow = {"bfloat16": Time(400.0, 0.0, 0.0)}
        tiers["ram"] = dataclasses.replace(tiers["ram"], expert_batch_time=slow)
        found = advise_on(trace, 8, dataclasses.replace(machine, tiers=tiers, links={}))
        # Whole layers hold half of layer 0: experts 0 and 1 of replies, and 2 to 7 of prompts,
        # where 16 tokens are 3 or 2 on each. The hot set holds what replies need in four layers.
        gained, lost = 3 * 2 * (4 - 1), 6 * 400 - (6 + 0.1 * (4 * 3 + 2 * 2))
        assert found.break_even is not None
        assert found.break_even.prompt_per_output == pytest.approx(gained / (lost / 16), rel=1e-3)
        assert found.finding.answer == words.DO_NOT_BOTHER
        assert found.finding.sentence.startswith("prompts lose in prefill what replies gain")
        (change,) = found.finding.would_change
        assert change == "longer replies: at least 8.31 times as long as their prompts"


def _two_phased(path: Path) -> Trace:
    """Twelve documents: 16 prompt tokens on experts 2 to 15 in turn, 4 reply tokens on 0 and 1."""
    experts = np.empty((4, 12 * 20, 2), np.uint16)
    phase = []
    for document in range(12):
        for token in range(20):
            at = document * 20 + token
            is_reply = token >= 16
            phase.append(int(is_reply))
            first = 0 if is_reply else 2 + 2 * (token % 7)
            experts[:, at] = [first, first + 1]
    sequence = np.repeat(np.arange(12), 20).tolist()
    block = block_of(experts.tolist(), sequence, phase)
    return make_block_trace(path / "t", {"a": block}, SHAPE, weights=False)


def test_a_plan_predicts_prefill_as_the_clock_prices_it(tmp_path: Path) -> None:
    trace = make_routed(tmp_path, ZIPF)
    machine = make_machine(dense_batch_time=Time(1.0, 0.0, 0.25))
    found = plan(trace, make_facts(SHAPE), PlanRequest(DENSE + 500 + 24_000, hardware=machine))
    (in_ram,) = (one for one in found.baselines if one.name == "all_ram")
    assert in_ram.predicted.prefill is not None
    assert in_ram.predicted.prefill.tokens_per_s is not None
    # By hand: twelve prompts of 40 tokens, 1 s and 0.25 s a token a layer set; an expert of n
    # tokens takes the shorter of 3 + n in RAM and 5 + 1 + 0.1 n copied; the longer part counts.
    rows = trace.rows(phase="prefill")
    seconds = 12 * (4 * 1.0) + 12 * 40 * 0.25
    for _, some in rows.groupby(["sequence", "layer"]):
        used = np.bincount(np.concatenate(some["experts"].to_numpy()))
        used = used[used > 0]
        copied = 6 + 0.1 * used < 3 + used
        ram = (3 + used[~copied]).sum()
        seconds += max((6 + 0.1 * used[copied]).sum(), ram + 2.0 * bool((~copied).any()))
    speed = in_ram.predicted.prefill.tokens_per_s.value
    assert speed == pytest.approx(12 * 40 / seconds, rel=1e-5)
    assert found.predicted.prefill is not None
    assert found.predicted.prefill.tokens_per_s is not None
    assert found.predicted.prefill.tokens_per_s.value > speed
