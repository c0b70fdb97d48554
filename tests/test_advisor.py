import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from advising import (
    DENSE,
    SHAPE,
    advise_on,
    counts_of,
    make_machine,
    make_routed,
    situation_of,
    without_batches,
)
from builders import make_shape
from builders import make_trace as make_block_trace
from planning import make_facts
from synthetic import Routing
from test_plan import routed as block_of

from moeprof.errors import CapacityError, MoeprofError, PlacementError
from moeprof.plan import Advice, AdviceRequest, PlanRequest, advise
from moeprof.plan import advice as words
from moeprof.plan.advice import StrategyOutcome
from moeprof.plan.oracle import oracle_trial
from moeprof.plan.routed import DECODE, PREFILL, read_sample
from moeprof.plan.sweep import sweep_budgets
from moeprof.plan.warm_replay import Part, hottest_last, replay_warm
from moeprof.policies import parse_policy

ZIPF = Routing(exponent=1.2, spread=0.5)
STICKY = Routing(keep=0.8, spread=0.3)


def speeds(advice: Advice | tuple[StrategyOutcome, ...]) -> dict[str, float]:
    """Tokens/s in decode of each strategy."""
    strategies = advice.strategies if isinstance(advice, Advice) else advice
    found = {}
    for one in strategies:
        assert one.decode is not None
        assert one.decode.tokens_per_s is not None
        found[one.name] = one.decode.tokens_per_s.value
    return found


class TestOracle:
    @pytest.mark.parametrize("routing", [Routing(), ZIPF, STICKY])
    @pytest.mark.parametrize("overlap", [True, False])
    def test_nothing_is_faster_and_more_vram_never_makes_it_slower(
        self, tmp_path: Path, routing: Routing, overlap: bool
    ) -> None:
        trace = make_routed(tmp_path, routing)
        sweep = tuple(DENSE + 1000 * number for number in range(0, 65, 8))
        found = advise_on(trace, 10, make_machine(overlap), sweep=sweep)
        oracle = []
        for strategies in (found.strategies, *(point.strategies for point in found.sweep)):
            by_name = speeds(strategies)
            assert max(by_name.values()) == by_name[words.ORACLE]
            oracle.append(by_name[words.ORACLE])
        assert (np.diff(oracle[1:]) >= -1e-9).all()

    def test_its_hits_are_the_most_that_any_way_to_keep_two_experts_can_have(
        self, tmp_path: Path
    ) -> None:
        shape = make_shape((0,), num_experts=4, top_k=1)
        order = [0, 1, 2, 0, 3, 1, 0, 2, 3, 0]
        block = block_of([[[one] for one in order]], [0] * 10, [1] * 10)
        trace = make_block_trace(tmp_path / "t", {"a": block}, shape, weights=False)
        situation = situation_of(trace)
        assert situation.routed is not None
        found = oracle_trial(situation, situation.routed, 2000, [])
        best = _most_hits(order, 2)
        assert found.played.hits[DECODE].sum() == best
        # Times of hits and misses are 1 s and 2 + 4 s, beside 1 s of the layer.
        assert found.played.seconds[DECODE].sum() == pytest.approx(10 + best + (10 - best) * 6)


def _most_hits(order: list[int], room: int) -> int:
    """By trying every set to begin with, and after each use every set to go on with."""
    sets = [frozenset(one) for one in itertools.combinations(range(4), room)]
    return max(_hits_from(order, 0, one, room, {}) for one in sets)


def _hits_from(
    order: list[int],
    at: int,
    kept: frozenset[int],
    room: int,
    known: dict[tuple[int, frozenset[int]], int],
) -> int:
    if at == len(order):
        return 0
    if (at, kept) not in known:
        hit = int(order[at] in kept)
        pool = kept | {order[at]}
        after = [frozenset(one) for one in itertools.combinations(sorted(pool), room)]
        best = max(_hits_from(order, at + 1, one, room, known) for one in after)
        known[at, kept] = hit + best
    return known[at, kept]


class TestWarmUp:
    def test_a_cache_begins_with_the_hot_set(self, tmp_path: Path) -> None:
        trace = make_routed(tmp_path, ZIPF)
        situation = situation_of(trace)
        assert situation.routed is not None
        training = situation.training.sum(axis=0)
        part = Part(situation.routed, training)
        for policy in ("lru", "lfu:uploads=1:hysteresis=0.5", "lru+pinned:share=0.5"):
            warm_up = hottest_last(training, situation.expert_bytes, 24_000)
            found = replay_warm(part, parse_policy(policy), 24_000, situation.expert_bytes, warm_up)
            cells = situation.routed.accesses.cells[: len(found.is_hit)]
            chosen = set(np.concatenate(warm_up).tolist())
            assert len(chosen) == 24
            first = slice(0, int(situation.routed.batch_start[1]))
            assert found.is_hit[first].tolist() == [int(c) in chosen for c in cells[first]]
            assert len(found.hits) == len(situation.routed.row)

    def test_the_hot_set_is_looked_up_once_each_cell(self) -> None:
        training = np.array([[5, 0, 9, 1], [0, 7, 0, 0]])
        steps = hottest_last(training, np.array([10, 10]), 40)
        # The four busiest: 3 of layer 0, of which 1 goes first, and one of layer 1.
        assert [step.tolist() for step in steps] == [[3, 5], [0], [2]]


class TestWithoutDocuments:
    def test_a_single_document_is_cut_and_the_advice_says_so(self, tmp_path: Path) -> None:
        trace = make_routed(tmp_path, ZIPF, documents=1, tokens=(40, 400))
        sample = read_sample(trace)
        assert sample.pieces == 8
        assert sample.routed is not None
        assert sample.routed.tokens[DECODE].tolist() == [50] * 8
        assert sample.routed.tokens[PREFILL].tolist() == [40] + [0] * 7
        whole = trace.cell_counts().counts
        assert (sample.counts.counts.sum(axis=0) == whole[0]).all()
        assert sample.counts.counts[:, DECODE].sum(axis=(1, 2)).tolist() == [50 * 4 * 2] * 8
        found = advise_on(trace, 24, make_machine())
        assert found.pieces == 8
        assert found.finding.answer == words.CANNOT_TELL
        assert found.finding.strategy is None
        assert "For more of the same text it would be pin it: keep the 24" in found.finding.sentence
        assert any(line.startswith("more documents") for line in found.finding.would_change)
        assert any("cut into 8 pieces" in line for line in found.missing)

    def test_pieces_change_nothing_where_all_experts_fit(self, tmp_path: Path) -> None:
        trace = make_routed(tmp_path, ZIPF, documents=1, tokens=(40, 400))
        found = advise_on(trace, trace.shape.num_cells, make_machine())
        assert found.pieces == 8
        assert found.finding.answer == words.DO_NOT_BOTHER

    def test_prompts_stand_in_for_replies_one_token_at_a_time(self, tmp_path: Path) -> None:
        trace = make_routed(tmp_path, ZIPF, tokens=(60, 0))
        found = advise_on(trace, 24, make_machine())
        assert any(line.startswith("replies: ") for line in found.missing)
        for one in found.strategies:
            assert one.prefill is None
            assert one.decode is not None
        again = make_routed(tmp_path / "again", ZIPF, tokens=(0, 60))
        assert speeds(found) == speeds(advise_on(again, 24, make_machine()))

    def test_counts_alone_give_hits_and_times_of_what_does_not_move(self, tmp_path: Path) -> None:
        trace = make_routed(tmp_path, ZIPF)
        counts = counts_of(trace, tmp_path / "counts")
        counted = advise_on(counts, 24, make_machine(False))
        full = advise_on(trace, 24, make_machine(False))
        assert [one.name for one in counted.strategies] == [
            words.ALL_RAM, words.WHOLE_LAYERS, words.ANY_EXPERTS, words.HOT_SET,
        ]  # fmt: skip
        for one in counted.strategies:
            assert speeds(counted)[one.name] == pytest.approx(speeds(full)[one.name], rel=1e-5)
        assert counted.finding.answer == words.PIN_IT
        assert any(
            line.startswith("caches, the oracle and a closer workload: ")
            for line in counted.missing
        )

    def test_one_document_of_counts_can_only_say_that_there_is_no_skew(
        self, tmp_path: Path
    ) -> None:
        answers = {}
        for name, routing in {"even": Routing(), "skewed": ZIPF}.items():
            trace = make_routed(tmp_path / name, routing, documents=1, tokens=(0, 3000))
            counted = advise_on(
                counts_of(trace, tmp_path / name / "counts"), 24, make_machine(False)
            )
            answers[name] = counted.finding.answer
        assert answers == {"even": words.DO_NOT_BOTHER, "skewed": words.CANNOT_TELL}


class TestFewDocuments:
    def test_a_phase_of_one_document_has_figures_without_intervals(self, tmp_path: Path) -> None:
        """The only document's replies are cut into pieces; its prompt is one."""
        trace = make_routed(tmp_path, ZIPF, documents=1, tokens=(40, 400))
        found = advise_on(trace, 24, make_machine())
        for one in found.strategies:
            for phase, is_known in (("prefill", False), ("decode", True)):
                outcome = one.phase(phase)
                assert outcome is not None
                for figure in (outcome.hit_rate, outcome.tokens_per_s):
                    assert figure is not None
                    assert (figure.low is not None) == is_known

    def test_one_token_is_said_to_tell_nothing(self, tmp_path: Path) -> None:
        found = advise_on(make_routed(tmp_path, ZIPF, documents=1, tokens=(0, 1)), 24)
        assert found.finding.answer == words.CANNOT_TELL
        assert found.rests_on[0].startswith("1 reply token of 1 document in 1 domain of routed;")
        assert "documents: there is one token to go by, which tells nothing of others" in (
            found.missing
        )
        assert any("is chosen on the text that it is scored on" in line for line in found.rests_on)


class TestFacts:
    def test_the_trace_alone_leaves_the_kv_cache_out_and_says_so(self, tmp_path: Path) -> None:
        trace = make_routed(tmp_path, ZIPF)
        plan = PlanRequest(DENSE + 24_500, hardware=make_machine())
        alone = advise(trace, None, AdviceRequest(plan))
        named = advise(trace, make_facts(trace.shape), AdviceRequest(plan))
        assert alone.budget.experts_available_bytes == 24_500
        assert named.budget.experts_available_bytes == 24_500 - 300 - 200
        assert any(line.startswith("KV cache") for line in alone.missing)
        assert not any(line.startswith("KV cache") for line in named.missing)
        assert named.strategies == alone.strategies

    def test_a_trace_of_another_model_is_refused(self, tmp_path: Path) -> None:
        trace = make_routed(tmp_path, ZIPF)
        facts = make_facts(trace.shape, fingerprint="another")
        with pytest.raises(PlacementError, match="fingerprint"):
            advise(trace, facts, AdviceRequest(PlanRequest(10**6)))

    def test_another_format_scales_the_experts_of_a_trace(self, tmp_path: Path) -> None:
        shape = make_shape(tuple(range(4)), num_experts=16, expert_bytes=6400)
        trace = make_routed(tmp_path, ZIPF, shape)
        request = AdviceRequest(PlanRequest(DENSE + 18_000, weight_format="q4_0"))
        found = advise(trace, None, request)
        # 3200 values are 100 blocks of 18 bytes.
        assert found.strategy(words.HOT_SET).slots == 10
        assert found.weight_format == "q4_0"

    def test_a_format_whose_size_is_unknown_is_refused(self, tmp_path: Path) -> None:
        shape = dataclasses.replace(SHAPE, dtype="float8_e4m3fn")
        trace = make_routed(tmp_path, ZIPF, shape)
        with pytest.raises(CapacityError, match="stored as float8_e4m3fn") as caught:
            advise(trace, None, AdviceRequest(PlanRequest(10**6, weight_format="q8_0")))
        assert "--model" in caught.value.hint

    def test_without_a_machine_hit_rates_decide(self, tmp_path: Path) -> None:
        found = advise_on(make_routed(tmp_path, Routing(exponent=1.6)), 24)
        assert found.finding.answer == words.PIN_IT
        assert "of new replies" in found.finding.sentence
        assert found.break_even is None
        assert found.missing[0].startswith("tokens/s: name a machine")
        for one in found.strategies:
            assert one.decode is not None
            assert one.decode.tokens_per_s is None
            assert one.decode.extra_hits is not None

    def test_ram_that_cannot_hold_all_experts_leaves_caches_out(self, tmp_path: Path) -> None:
        machine = make_machine()
        tiers = dict(machine.tiers)
        tiers["ram"] = dataclasses.replace(tiers["ram"], capacity_bytes=50_000)
        small = dataclasses.replace(machine, tiers=tiers)
        trace = make_routed(tmp_path, ZIPF)
        found = advise_on(trace, 24, small, sweep=(DENSE + 10_000, DENSE + 24_000))
        assert found.strategy(words.CACHE) is None
        assert "caches: RAM cannot hold all experts, 62.5 KiB" in found.missing
        # 54 of 64 experts do not fit into RAM.
        assert [point.vram_bytes for point in found.sweep] == [DENSE + 24_000]
        with pytest.raises(CapacityError, match="has to hold take 52"):
            advise_on(trace, 10, small)

    def test_a_sweep_into_which_nothing_fits_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CapacityError, match="fits into none of the budgets"):
            advise_on(make_routed(tmp_path, ZIPF), 24, sweep=(1024, 2048))

    def test_a_profile_without_batches_leaves_prefill_unpriced_and_says_so(
        self, tmp_path: Path
    ) -> None:
        found = advise_on(make_routed(tmp_path, ZIPF), 24, without_batches(make_machine()))
        assert any(line.startswith("prefill tokens/s") for line in found.missing)
        assert all(one.prefill.tokens_per_s is None for one in found.strategies if one.prefill)
        assert found.break_even is not None
        assert found.break_even.prompt_per_output is None

    def test_an_unknown_policy_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(MoeprofError, match="there is no policy 'mru'"):
            advise_on(make_routed(tmp_path, ZIPF), 24, policies=("mru",))

    @pytest.mark.parametrize(
        ("policy", "message"),
        [
            ("belady", "policy belady: belady knows the future"),
            ("static", "policy static: keeps what it begins with, which is no cache"),
        ],
    )
    def test_what_is_no_cache_is_refused(self, tmp_path: Path, policy: str, message: str) -> None:
        with pytest.raises(MoeprofError, match=message):
            advise_on(make_routed(tmp_path, ZIPF), 24, policies=(policy,))

    def test_a_policy_that_is_named_twice_is_one(self, tmp_path: Path) -> None:
        found = advise_on(make_routed(tmp_path, ZIPF), 24, policies=("lru", "lru:scope=global"))
        assert any(line.startswith("the cache begins with") for line in found.rests_on)


class TestBreakEven:
    def test_where_time_follows_hits_it_is_the_hit_rate_of_whole_layers(
        self, tmp_path: Path
    ) -> None:
        found = advise_on(make_routed(tmp_path, ZIPF), 32, make_machine(False))
        assert found.break_even is not None
        assert found.break_even.hit_rate == pytest.approx(0.5, abs=1e-3)

    def test_a_round_trip_counts_where_any_expert_is_missed(self, tmp_path: Path) -> None:
        found = advise_on(make_routed(tmp_path, ZIPF), 32, make_machine())
        assert found.break_even is not None
        # Two of four layers in VRAM: 2 + 2 + 10 + 10 s a token, so 6 s a layer. With p and q
        # hits and misses: 2 pp + 2 pq (2 + 4) + qq (2 + 8), which is 10 - 8 p.
        assert found.break_even.hit_rate == pytest.approx(0.5, abs=1e-3)

    def test_no_hit_rate_is_enough_where_vram_is_slower(self, tmp_path: Path) -> None:
        machine = make_machine(False)
        tiers = dict(machine.tiers)
        tiers["vram"] = dataclasses.replace(
            tiers["vram"], expert_time=machine.tiers["ram"].expert_time
        )
        tiers["ram"] = dataclasses.replace(
            tiers["ram"], expert_time=machine.tiers["vram"].expert_time
        )
        found = advise_on(
            make_routed(tmp_path, ZIPF), 24, dataclasses.replace(machine, tiers=tiers)
        )
        assert found.break_even is not None
        assert found.break_even.hit_rate is None
        assert found.finding.answer == words.DO_NOT_BOTHER


class TestJson:
    def test_it_is_one_document_with_what_the_dataclasses_hold(self, tmp_path: Path) -> None:
        routing = {"a": ZIPF, "b": Routing(exponent=1.0, order=1)}
        found = advise_on(make_routed(tmp_path, routing), 24, make_machine(), sweep=(DENSE + 8000,))
        document = json.loads(found.to_json())
        assert document["format"] == "moeprof-advice"
        assert document["finding"]["answer"] == found.finding.answer
        assert [one["name"] for one in document["strategies"]] == [
            "all_ram", "whole_layers", "any_experts", "hot_set", "cache", "hot_set_and_cache",
            "oracle",
        ]  # fmt: skip
        assert set(document["domain_sets"]["by_domain"]) == {"a", "b"}
        assert document["sweep"][0]["vram_bytes"] == DENSE + 8000

    def test_equal_requests_give_equal_advice(self, tmp_path: Path) -> None:
        trace = make_routed(tmp_path, ZIPF)
        assert advise_on(trace, 24, make_machine()) == advise_on(trace, 24, make_machine())


class TestSweepText:
    def test_budgets_grow_by_one_factor(self) -> None:
        assert sweep_budgets("vram=1GB..16GB:5") == tuple(10**9 * 2**n for n in range(5))
        found = sweep_budgets("vram=4GB..96GB")
        assert (len(found), found[0], found[-1]) == (13, 4 * 10**9, 96 * 10**9)
        assert sweep_budgets("vram = 1.5GiB..22.5GiB:2") == (3 * 2**29, 45 * 2**29)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("4GB..96GB", "is no range of VRAM"),
            ("vram=4GB", "is no range of VRAM"),
            ("ram=1GB..2GB", "is no range of VRAM"),
            ("vram=96GB..4GB", "does not ascend"),
            ("vram=0..4GB", "does not ascend"),
            ("vram=1GB..2GB:1", "has 1 budgets, expected 2 to 1000"),
        ],
    )
    def test_what_is_no_range_is_refused_with_an_example(self, text: str, message: str) -> None:
        with pytest.raises(CapacityError, match=message) as caught:
            sweep_budgets(text)
        assert "vram=4GB..96GB" in caught.value.hint

    def test_a_size_that_is_none_is_refused(self) -> None:
        with pytest.raises(CapacityError, match="'much' is not a size"):
            sweep_budgets("vram=4GB..much")
