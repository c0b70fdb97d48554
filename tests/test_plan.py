import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from advising import counts_of
from builders import make_block, make_shape, make_trace
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import make_facts, make_hardware

from moeprof.analyze.coverage import held_out_covered, training_orders
from moeprof.analyze.intervals import resampled_held_out
from moeprof.errors import CapacityError, PlacementError, TraceError
from moeprof.hardware import Time
from moeprof.model_shape import ModelShape
from moeprof.native import NO_EXPERT
from moeprof.placement import Placement, Tier, read_placement, write_placement
from moeprof.plan import PlanRequest, plan
from moeprof.plan.baselines import ALL_RAM, FIRST_LAYERS, UNIFORM, place_baseline
from moeprof.plan.budget import expert_budget
from moeprof.plan.cost import DecodeClock, decode_clock
from moeprof.plan.evaluation import held_out_coverage, speed, split_documents
from moeprof.plan.greedy import solve_greedy
from moeprof.plan.played import Clocks, Played, play_sets
from moeprof.plan.routed import DECODE, Routed, read_routed
from moeprof.trace import Trace
from moeprof.trace.writer import TokenBlock
from moeprof.units import parse_size

# Beside the experts, make_facts(make_shape()) needs 5000 + 300 + 200 bytes.
FIXED = 5500


def routed(
    experts: list[list[list[int]]], sequence: list[int], phase: list[int] | None = None
) -> TokenBlock:
    """A block whose experts [L, T, K] are given, one token per entry of `sequence`."""
    ids = np.array(experts, np.uint16)
    num_tokens = len(sequence)
    assert ids.shape[1] == num_tokens
    return TokenBlock(
        sequence=np.array(sequence, np.uint32),
        position=np.array([sequence[:i].count(s) for i, s in enumerate(sequence)], np.uint32),
        token_id=np.zeros(num_tokens, np.uint32),
        phase=np.array(phase or [0] * num_tokens, np.uint8),
        experts=ids,
        weights=None,
    )


def make_skewed(path: Path, num_documents: int = 12, decode: int = 5) -> Trace:
    """20 tokens per document; in each of three layers, two of eight experts take most."""
    shape = make_shape((0, 1, 3), num_experts=8)
    odds = np.full((3, 8), 0.03)
    odds[[0, 1, 2], [2, 5, 7]] = 0.5
    odds[[0, 1, 2], [3, 0, 1]] = 0.3
    sequence = np.repeat(np.arange(num_documents), 20).tolist()
    block = make_block(shape, sequence, decode, probabilities=odds)
    return make_trace(path / "skewed", {"code": block}, shape)


def plan_skewed(path: Path, num_experts_in_vram: int = 6, **request: object) -> Placement:
    trace = make_skewed(path)
    vram = FIXED + 1000 * num_experts_in_vram
    return plan(trace, make_facts(trace.shape), PlanRequest(vram, **request))


def best_benefit(benefit: np.ndarray, sizes: np.ndarray, room: int) -> int:
    """The optimum by trying every subset of cells."""
    flat, size = benefit.ravel(), np.repeat(sizes, benefit.shape[1])
    chosen = np.array(list(itertools.product([0, 1], repeat=flat.size)))
    return int((chosen @ flat)[chosen @ size <= room].max())


cells = st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=3)


class TestGreedy:
    @settings(deadline=None)
    @given(cells, st.integers(0, 12))
    def test_experts_of_one_size_are_chosen_optimally(
        self, benefit: list[list[int]], room: int
    ) -> None:
        counts = np.array(benefit, float)
        sizes = np.ones(len(benefit), np.int64)
        solution = solve_greedy(counts, sizes, room)
        assert solution.benefit == best_benefit(counts, sizes, room)
        assert solution.optimality_gap == 0
        assert solution.in_vram.sum() == min(room, counts.size)

    @settings(deadline=None)
    @given(cells, st.lists(st.integers(1, 5), min_size=3, max_size=3), st.integers(0, 40))
    def test_experts_of_several_sizes_come_within_the_gap_of_the_optimum(
        self, benefit: list[list[int]], sizes: list[int], room: int
    ) -> None:
        counts = np.array(benefit, float)
        bytes_of = np.array(sizes[: len(benefit)])
        solution = solve_greedy(counts, bytes_of, room)
        best = best_benefit(counts, bytes_of, room)
        assert (solution.in_vram.sum(axis=1) * bytes_of).sum() <= room
        assert solution.benefit <= best <= solution.bound + 1e-9
        assert 0 <= solution.optimality_gap <= 1
        assert solution.benefit >= (1 - solution.optimality_gap) * best - 1e-9

    def test_the_gap_of_a_knapsack_is_the_share_of_the_fractional_bound_that_is_missing(
        self,
    ) -> None:
        # Room 5: cell 0 (6 for 3 bytes) is taken, cell 1 (2 for 3 bytes) only as 2/3 of it.
        solution = solve_greedy(np.array([[6.0], [2.0]]), np.array([3, 4]), 5)
        assert solution.in_vram.tolist() == [[True], [False]]
        assert solution.bound == 6 + 2 * 2 / 4
        assert solution.optimality_gap == pytest.approx(1 / 7)

    def test_benefit_is_taken_per_byte(self) -> None:
        solution = solve_greedy(np.array([[9.0], [8.0]]), np.array([3, 2]), 3)
        assert solution.in_vram.tolist() == [[False], [True]]

    def test_equals_are_taken_by_layer_and_then_by_expert(self) -> None:
        solution = solve_greedy(np.full((2, 3), 7.0), np.array([10, 10]), 40)
        assert solution.in_vram.tolist() == [[True] * 3, [True, False, False]]


class TestBudget:
    def test_what_is_left_is_for_experts(self) -> None:
        request = PlanRequest(10_000, device_context_bytes=1500, context_tokens=7, batch_size=3)
        budget = expert_budget(make_facts(make_shape()), request)
        assert budget.experts_available_bytes == 10_000 - 5000 - 300 - 200 - 1500
        assert (budget.context_tokens, budget.batch_size) == (7, 3)

    def test_a_budget_without_room_for_the_rest_is_refused_with_its_parts(self) -> None:
        with pytest.raises(CapacityError) as caught:
            expert_budget(make_facts(make_shape()), PlanRequest(4096, device_context_bytes=100))
        assert str(caught.value) == (
            "vram: 5.5 KiB needed before the first expert, budget is 4.0 KiB: weights outside "
            "the experts 4.9 KiB, KV cache 300 B, workspace 200 B, device context 100 B; the "
            "largest part is the weights outside the experts"
        )
        assert caught.value.hint == "raise --vram to 5600B or more"

    def test_the_hint_says_when_the_kv_cache_is_the_largest_part(self) -> None:
        facts = make_facts(make_shape(), kv_cache_bytes=9000)
        with pytest.raises(CapacityError) as caught:
            expert_budget(facts, PlanRequest(4096))
        assert "--context 4096 --batch 1" in caught.value.hint

    @settings(deadline=None)
    @given(st.integers(0, 10**12))
    def test_the_budget_of_the_hint_works(self, kv_cache_bytes: int) -> None:
        facts = make_facts(make_shape(), kv_cache_bytes=kv_cache_bytes)
        with pytest.raises(CapacityError) as caught:
            expert_budget(facts, PlanRequest(0))
        size = re.search(r"raise --vram to (\S+)", caught.value.hint)
        assert size
        room = expert_budget(facts, PlanRequest(parse_size(size[1]))).experts_available_bytes
        assert room <= 0.01 * (5200 + kv_cache_bytes)

    def test_more_than_the_machine_has_is_refused(self) -> None:
        request = PlanRequest(20_000, hardware=make_hardware(vram_bytes=12_345))
        with pytest.raises(CapacityError, match=r"budget is 19\.5 KiB, round numbers has 12\.1"):
            expert_budget(make_facts(make_shape()), request)


class TestBaselines:
    counts = np.array([[1.0, 5, 9, 2], [4, 3, 8, 8]])
    sizes = np.array([10, 10])

    def test_all_ram_keeps_nothing(self) -> None:
        assert not place_baseline(ALL_RAM, self.counts, self.sizes, 1000).any()

    def test_first_layers_keeps_whole_layers_only(self) -> None:
        kept = place_baseline(FIRST_LAYERS, self.counts, self.sizes, 79)
        assert kept.tolist() == [[True] * 4, [False] * 4]

    def test_uniform_keeps_as_many_of_each_layer_its_busiest_and_first_among_equals(self) -> None:
        kept = place_baseline(UNIFORM, self.counts, self.sizes, 59)
        assert kept.tolist() == [[False, True, True, False], [False, False, True, True]]

    def test_no_baseline_keeps_more_than_there_is(self) -> None:
        assert place_baseline(UNIFORM, self.counts, self.sizes, 10**6).all()
        assert place_baseline(FIRST_LAYERS, self.counts, self.sizes, 10**6).all()


class TestHeldOut:
    @staticmethod
    def busiest(benefit: np.ndarray) -> np.ndarray:
        return solve_greedy(benefit, np.ones(len(benefit), np.int64), 1).in_vram

    def test_a_set_chosen_on_one_document_is_scored_on_the_other(self) -> None:
        # The busiest cell of document 0 is expert 0, that of document 1 is expert 2.
        counts = np.array([[[8, 1, 1]], [[3, 1, 6]]])
        split = split_documents(np.zeros(2, np.int64), np.ones(2, bool), folds=5, seed=0)
        (found,) = held_out_coverage(self.busiest, counts, counts[:, None], split)
        assert split.num_folds == 2
        assert found is not None
        assert found.value == (1 + 3) / 20

    def test_each_document_is_scored_without_it_and_the_folds_are_even(self) -> None:
        split = split_documents(np.repeat([0, 1], 10), np.ones(20, bool), folds=5, seed=3)
        assert np.bincount(split.fold).tolist() == [4] * 5
        assert np.bincount(split.fold[:10]).tolist() == [2] * 5

    def test_one_document_cannot_be_held_out(self) -> None:
        is_training = np.array([True, False, False])
        assert split_documents(np.zeros(3, np.int64), is_training, 5, 0).num_folds == 0

    def test_figures_equal_those_of_the_analysis_for_the_same_folds_and_resamples(self) -> None:
        rng = np.random.default_rng(5)
        counts = rng.poisson(rng.gamma(0.5, 20, size=(1, 3, 8)), size=(12, 3, 8))
        split = split_documents(np.repeat([0, 1, 2], 4), np.ones(12, bool), 4, seed=1)
        sizes = np.array([6])
        flat, ones = counts.reshape(12, 1, 24), np.ones((1, 24), np.int64)
        orders = training_orders(flat, ones, split.fold)
        served = held_out_covered(flat, orders, split.fold, sizes).sum()
        shares = resampled_held_out(split.weights, flat, ones, split.fold, sizes)

        def place(benefit: np.ndarray) -> np.ndarray:
            return solve_greedy(benefit, np.ones(3, np.int64), 6).in_vram

        (found,) = held_out_coverage(place, counts, counts[:, None], split)
        assert found is not None
        assert found.low is not None
        assert found.value == pytest.approx(served / counts.sum(), rel=1e-5)
        # Student's 0.975 quantile with 12 - 3 degrees of freedom, from printed tables.
        assert found.value - found.low == pytest.approx(2.262 * shares.std(), rel=1e-3)

    def test_speed_is_tokens_by_seconds_with_an_interval_around_it(self) -> None:
        split = split_documents(np.zeros(3, np.int64), np.ones(3, bool), 3, 0)
        found = speed(np.array([10.0, 10, 20]), np.array([5.0, 10, 5]), split)
        assert found is not None
        assert found.value == 2
        assert found.low is not None
        assert found.high is not None
        assert 0 <= found.low < 2 < found.high


def play(trace: Trace, sets: np.ndarray, set_of_group: list[int]) -> tuple[Routed, Played]:
    """Sets of cells played over a trace on the machine of round numbers."""
    shape = trace.shape
    clocks = Clocks(decode_clock(make_hardware(), shape, shape.dtype, shape.expert_bytes))
    found = read_routed(trace, trace.cell_counts())
    return found, play_sets(found, sets, np.array(set_of_group), clocks)


class TestClock:
    # Dense: 2 s. Expert: 1 s in vram, 4 s in ram. Round trip: 2 s.
    shape = make_shape((1, 2), num_experts=4)

    def test_a_layer_takes_the_longer_of_both_parts(self) -> None:
        clock = DecodeClock(0, 2.0, np.array([1.0]), np.array([4.0]))
        num_vram, num_ram = np.array([3, 2, 0, 9]), np.array([0, 1, 3, 1])
        assert clock.layer_seconds(0, num_vram, num_ram).tolist() == [3, 6, 14, 9]

    def test_a_layer_takes_the_sum_of_both_parts_where_tiers_do_not_overlap(self) -> None:
        clock = DecodeClock(0, 2.0, np.array([1.0]), np.array([4.0]), tiers_overlap=False)
        num_vram, num_ram = np.array([3, 2, 0, 9]), np.array([0, 1, 3, 1])
        assert clock.layer_seconds(0, num_vram, num_ram).tolist() == [3, 8, 14, 15]

    def test_a_trace_written_by_hand_takes_as_long_as_counted_by_hand(self, tmp_path: Path) -> None:
        experts = [
            [[0, 1], [0, 2], [2, 3], [1, 3]],  # layer 1: experts 0 and 1 in vram
            [[2, 3], [2, NO_EXPERT], [0, 1], [2, 3]],  # layer 2: expert 2 in vram
        ]
        block = routed(experts, [0, 0, 1, 1], [1, 1, 1, 0])
        trace = make_trace(tmp_path / "t", {"a": block}, self.shape, weights=False)
        in_vram = np.array([[1, 1, 0, 0], [0, 0, 1, 0]], bool)
        lookups, played = play(trace, in_vram[None], [0, 0])
        assert lookups.tokens[DECODE].tolist() == [2, 1]
        assert played.hits[DECODE].tolist() == [3 + 2, 0]
        # Each token: 3 layers x 1 s dense. Token 0: 2 + 6. Token 1: 6 + 1. Token 2: 10 + 10.
        assert played.seconds[DECODE].tolist() == [3 + 8 + 3 + 7, 3 + 20]

    def test_each_document_is_played_against_the_set_of_its_fold(self, tmp_path: Path) -> None:
        experts = [[[0, 1], [0, 1]], [[0, 1], [0, 1]]]
        trace = make_trace(
            tmp_path / "t", {"a": routed(experts, [0, 1], [1, 1])}, self.shape, weights=False
        )
        everything, nothing = np.ones((2, 4), bool), np.zeros((2, 4), bool)
        _, played = play(trace, np.stack([nothing, everything]), [1, 0])
        assert played.hits[DECODE].tolist() == [4, 0]

    def test_playing_all_documents_hits_what_the_counts_say(self, tmp_path: Path) -> None:
        trace = make_skewed(tmp_path)
        in_vram = np.random.default_rng(0).random((3, 8)) < 0.4
        _, played = play(trace, in_vram[None], [0] * 12)
        counts = trace.cell_counts().counts
        hits = (counts * in_vram).sum(axis=(2, 3))
        assert played.hits.tolist() == hits.T.tolist()

    def test_an_unknown_weight_format_is_refused(self) -> None:
        shape = dataclasses.replace(self.shape, dtype="float8_e4m3fn")
        with pytest.raises(CapacityError, match="tier vram has no expert_time for float8_e4m3fn"):
            decode_clock(make_hardware(), shape, shape.dtype, shape.expert_bytes)


class TestPlan:
    def test_the_busiest_cells_are_placed_in_vram(self, tmp_path: Path) -> None:
        tier_of = plan_skewed(tmp_path).tier_of
        assert np.argwhere(tier_of == Tier.VRAM).tolist() == [
            [0, 2], [0, 3], [1, 0], [1, 5], [2, 1], [2, 7],
        ]  # fmt: skip

    def test_hits_are_those_of_the_placement_on_the_whole_trace(self, tmp_path: Path) -> None:
        placement = plan_skewed(tmp_path)
        rows = make_skewed(tmp_path / "again").rows()
        row_of = {layer: row for row, layer in enumerate(placement.model.moe_layers)}
        for phase in ("prefill", "decode"):
            some = rows[rows["phase"] == phase]
            hits = sum(
                placement.tier_of[row_of[layer], expert_id] == Tier.VRAM
                for layer, experts in zip(some["layer"], some["experts"], strict=True)
                for expert_id in experts
            )
            predicted = placement.predicted.phase(phase)
            assert predicted is not None
            assert (predicted.hits, predicted.assignments) == (hits, 2 * len(some))

    def test_a_plan_is_written_and_read_back(self, tmp_path: Path) -> None:
        placement = plan_skewed(tmp_path, hardware=make_hardware())
        write_placement(placement, tmp_path / "plan.json")
        assert read_placement(tmp_path / "plan.json") == placement

    def test_equal_requests_give_equal_plans(self, tmp_path: Path) -> None:
        (tmp_path / "again").mkdir()
        assert plan_skewed(tmp_path) == plan_skewed(tmp_path / "again")

    def test_the_three_coverages_stand_in_order_on_a_skewed_trace(self, tmp_path: Path) -> None:
        placement = plan_skewed(tmp_path)
        decode = placement.predicted.decode
        assert decode is not None
        assert decode.coverage is not None
        assert decode.uniform_floor is not None
        # Six of 24 cells; chance alone finds a little more than their quarter.
        assert 0.25 < decode.uniform_floor < 0.45
        assert decode.uniform_floor < decode.coverage.value <= decode.in_sample_coverage
        assert placement.verdict.worthwhile is True
        assert placement.solver.optimality_gap == 0

    def test_decode_is_optimised_for_where_the_trace_has_it(self, tmp_path: Path) -> None:
        # Prefill goes to experts 0 and 1, decode to 2 and 3.
        experts = [[[0, 1]] * 3 + [[2, 3]], [[0, 1]] * 3 + [[2, 3]]] * 1
        blocks = {"a": routed(experts, [0, 0, 1, 1], [0, 0, 0, 1])}
        trace = make_trace(tmp_path / "t", blocks, weights=False)
        facts = make_facts(trace.shape)
        by_phase = {
            phase: plan(trace, facts, PlanRequest(FIXED + 2000, phase=phase))
            for phase in (None, "decode", "prefill", "all")
        }
        assert {phase: found.solver.phase for phase, found in by_phase.items()} == {
            None: "decode", "decode": "decode", "prefill": "prefill", "all": "all",
        }  # fmt: skip
        kept = {
            phase: np.argwhere(found.tier_of == Tier.VRAM).tolist()
            for phase, found in by_phase.items()
        }
        assert kept[None] == kept["decode"] == [[0, 2], [0, 3]]
        assert kept["prefill"] == kept["all"] == [[0, 0], [0, 1]]

    def test_prefill_is_optimised_for_where_the_trace_has_no_decode(self, tmp_path: Path) -> None:
        trace = make_skewed(tmp_path, decode=0)
        request = PlanRequest(FIXED + 6000, hardware=make_hardware())
        placement = plan(trace, make_facts(trace.shape), request)
        assert placement.solver.phase == "prefill"
        assert placement.predicted.decode is None
        assert any("no decode tokens" in note for note in placement.notes)

    def test_decode_asked_of_a_trace_without_it_is_refused(self, tmp_path: Path) -> None:
        trace = make_skewed(tmp_path, decode=0)
        request = PlanRequest(FIXED + 6000, phase="decode")
        with pytest.raises(TraceError, match="has no decode tokens") as caught:
            plan(trace, make_facts(trace.shape), request)
        assert "--generate" in caught.value.hint

    def test_a_trace_of_another_model_is_refused_with_both_fingerprints(
        self, tmp_path: Path
    ) -> None:
        trace = make_skewed(tmp_path)
        facts = make_facts(trace.shape, fingerprint="another")
        with pytest.raises(PlacementError, match="fingerprint fingerprint, but model has another"):
            plan(trace, facts, PlanRequest(FIXED))

    def test_baselines_keep_no_more_than_the_budget_and_first_layers_is_one_third(
        self, tmp_path: Path
    ) -> None:
        placement = plan_skewed(tmp_path, num_experts_in_vram=8)
        by_name = {baseline.name: baseline for baseline in placement.baselines}
        assert {name: one.vram_bytes for name, one in by_name.items()} == {
            "all_ram": 0, "first_layers": 8000, "uniform": 6000,
        }  # fmt: skip
        decode = by_name["first_layers"].predicted.decode
        assert decode is not None
        assert decode.in_sample_coverage == pytest.approx(1 / 3, abs=1e-6)

    def test_speed_in_ram_is_what_the_clock_says(self, tmp_path: Path) -> None:
        placement = plan_skewed(tmp_path, hardware=make_hardware())
        speeds = {
            one.name: one.predicted.decode.tokens_per_s
            for one in placement.baselines
            if one.predicted.decode is not None
        }
        # Four layers of 1 s, and in three of them a round trip of 2 s and two experts of 4 s.
        assert speeds["all_ram"] is not None
        assert speeds["all_ram"].value == pytest.approx(1 / (4 + 3 * (2 + 8)), rel=1e-5)
        assert placement.predicted.decode is not None
        assert placement.predicted.decode.tokens_per_s is not None
        assert placement.predicted.decode.tokens_per_s.value > speeds["all_ram"].value

    def test_without_a_hardware_profile_no_speed_is_predicted(self, tmp_path: Path) -> None:
        placement = plan_skewed(tmp_path)
        assert placement.hardware is None
        assert placement.predicted.decode is not None
        assert placement.predicted.decode.tokens_per_s is None

    def test_ram_that_cannot_hold_the_rest_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CapacityError, match=r"experts that it has to hold take 17\.6 KiB"):
            plan_skewed(tmp_path, hardware=make_hardware(ram_bytes=10_000))

    def test_a_single_document_gives_a_plan_that_cannot_tell(self, tmp_path: Path) -> None:
        trace = make_skewed(tmp_path, num_documents=1)
        placement = plan(trace, make_facts(trace.shape), PlanRequest(FIXED + 6000))
        assert placement.solver.folds == 0
        assert placement.verdict.worthwhile is None
        assert placement.predicted.decode is not None
        assert placement.predicted.decode.coverage is None
        write_placement(placement, tmp_path / "plan.json")

    def test_two_documents_give_a_plan_that_cannot_tell(self, tmp_path: Path) -> None:
        """Each is scored by the other's set, but every resample leaves one of them out."""
        trace = make_skewed(tmp_path, num_documents=2)
        placement = plan(trace, make_facts(trace.shape), PlanRequest(FIXED + 6000))
        assert placement.solver.folds == 2
        assert placement.verdict.worthwhile is None
        assert placement.predicted.decode is not None
        assert placement.predicted.decode.coverage is not None
        assert placement.predicted.decode.coverage.low is None
        write_placement(placement, tmp_path / "plan.json")

    def test_a_trace_that_does_not_say_its_phase_is_planned_for_with_a_note(
        self, tmp_path: Path
    ) -> None:
        trace = make_skewed(tmp_path)
        for also in ((), ("phase",)):
            counts = counts_of(trace, tmp_path / "counts" / str(len(also)), also)
            placement = plan(counts, make_facts(trace.shape), PlanRequest(FIXED + 6000))
            note = "the trace does not say whether its tokens were prefill or decode, all stand"
            assert any(one.startswith(note) for one in placement.notes) == bool(also)

    @pytest.mark.parametrize(("num_experts", "reason"), [(24, "every expert fits"), (0, "no exp")])
    def test_everything_and_nothing_are_not_worth_a_plan(
        self, tmp_path: Path, num_experts: int, reason: str
    ) -> None:
        placement = plan_skewed(tmp_path, num_experts)
        assert placement.budget.experts_used_bytes == 1000 * num_experts
        assert placement.verdict.worthwhile is False
        assert placement.verdict.reason.startswith(reason)

    def test_an_even_trace_is_not_worth_a_plan(self, tmp_path: Path) -> None:
        shape = make_shape((0, 1, 3), num_experts=8)
        block = make_block(shape, np.repeat(np.arange(12), 40).tolist())
        trace = make_trace(tmp_path / "even", {"code": block}, shape)
        placement = plan(trace, make_facts(shape), PlanRequest(FIXED + 6000))
        prefill = placement.predicted.prefill
        assert prefill is not None
        assert prefill.uniform_floor == pytest.approx(prefill.in_sample_coverage, abs=0.03)
        assert placement.verdict.worthwhile is False
        assert placement.verdict.reason.startswith("no clear gain")

    def test_more_hits_without_more_speed_are_not_worth_a_plan(self, tmp_path: Path) -> None:
        machine = make_hardware()
        slow = dataclasses.replace(machine.tiers["vram"], expert_time={"bfloat16": Time(30, 0)})
        machine = dataclasses.replace(machine, tiers={**machine.tiers, "vram": slow})
        verdict = plan_skewed(tmp_path, hardware=machine).verdict
        assert verdict.worthwhile is False
        assert verdict.reason.startswith("more hits but no clear gain in speed over all_ram")

    def test_experts_of_several_sizes_are_priced_by_their_own(self, tmp_path: Path) -> None:
        base = make_shape((0, 1, 3), num_experts=8)
        shape: ModelShape = dataclasses.replace(base, expert_bytes=(1000, 2000, 4000))
        block = make_block(shape, np.repeat(np.arange(6), 20).tolist())
        trace = make_trace(tmp_path / "t", {"code": block}, shape)
        placement = plan(trace, make_facts(shape), PlanRequest(FIXED + 9500))
        assert placement.budget.experts_used_bytes <= 9500
        assert 0 < placement.solver.optimality_gap < 0.2
        write_placement(placement, tmp_path / "plan.json")


@pytest.mark.parametrize(
    "wrong", [{"phase": "both"}, {"folds": 1}, {"batch_size": 0}, {"vram_bytes": -1}, {"seed": -1}]
)
def test_a_request_out_of_range_is_a_programmers_mistake(wrong: dict) -> None:
    with pytest.raises(ValueError):
        PlanRequest(**({"vram_bytes": 1} | wrong))
