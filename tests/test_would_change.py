from pathlib import Path

import numpy as np
import pytest
from advising import DENSE, SHAPE, advise_on, counts_of, make_machine, make_routed, situation_of
from builders import make_shape, make_trace
from synthetic import Routing
from test_plan import routed as block_of

from moeprof.plan import advice as words
from moeprof.plan.routed import DECODE, PREFILL, halved
from moeprof.plan.trials import closer_trial, in_sample_trial
from moeprof.trace import Trace

CLOSER = "a closer workload: chosen on other parts of the same documents, the busiest experts have "


def starting(lines: tuple[str, ...], word: str) -> list[str]:
    return [line for line in lines if line.startswith(word)]


def own_experts(path: Path, documents: int = 4, tokens: int = 20) -> Trace:
    """Documents of replies, each with two experts of each layer to itself."""
    first = np.repeat(2 * np.arange(documents), tokens)
    experts = np.stack([first, first + 1], axis=1)[None].repeat(SHAPE.num_moe_layers, axis=0)
    sequence = np.repeat(np.arange(documents), tokens).tolist()
    block = block_of(experts.tolist(), sequence, [1] * len(sequence))
    return make_trace(path / "own", {"a": block}, SHAPE, weights=False)


class TestHalves:
    def test_replies_of_each_document_are_cut_in_the_middle_and_prompts_stay_whole(
        self, tmp_path: Path
    ) -> None:
        shape = make_shape((0,), num_experts=8, top_k=1)
        # Document 0: a prompt of 1, replies of 4; document 1: a prompt of 2, replies of 3.
        experts = [[[7], [0], [1], [2], [3], [6], [5], [4], [4], [5]]]
        block = block_of(experts, [0] * 5 + [1] * 5, [0, 1, 1, 1, 1, 0, 0, 1, 1, 1])
        trace = make_trace(tmp_path / "t", {"a": block}, shape, weights=False)
        situation = situation_of(trace)
        counts, found = halved(situation.counts, situation.routed)
        assert found.tokens[DECODE].tolist() == [2, 2, 2, 1]
        assert found.tokens[PREFILL].tolist() == [1, 2, 0, 0]
        used = [np.flatnonzero(one).tolist() for one in counts.counts[:, DECODE, 0]]
        assert used == [[0, 1], [4], [2, 3], [5]]
        assert counts.group_domain.tolist() == [0, 0, 0, 0]
        whole = counts.counts.reshape(2, 2, 2, 1, 8).sum(axis=0)
        assert (whole == situation.counts.counts).all()

    def test_the_other_half_of_a_document_tells_of_the_experts_that_are_its_own(
        self, tmp_path: Path
    ) -> None:
        situation = situation_of(own_experts(tmp_path))
        closer = closer_trial(situation, 32_000)
        assert closer.played.hits[DECODE].tolist() == [20 * 4 * 2] * 4
        # An expert in VRAM takes 1 s, two of them in each of four layers, and a layer 1 s more.
        assert closer.played.seconds[DECODE].tolist() == pytest.approx([20 * 4 * (1 + 2)] * 4)

    def test_counts_cannot_be_cut(self, tmp_path: Path) -> None:
        situation = situation_of(counts_of(own_experts(tmp_path), tmp_path / "counts"))
        with pytest.raises(ValueError, match="counts alone"):
            closer_trial(situation, 32_000)


class TestCloserWorkload:
    def test_documents_with_experts_of_their_own_want_a_closer_workload(
        self, tmp_path: Path
    ) -> None:
        """A set of half of the cells has room for all that they use; whole layers serve half."""
        found = advise_on(own_experts(tmp_path), 32, policies=(), folds=4).finding
        assert found.answer == words.DO_NOT_BOTHER
        points = "+50.0 points [+50.0 to +50.0] of hit rate over whole layers in VRAM"
        assert f"{CLOSER}{points}" in found.would_change
        assert not starting(found.in_vain, CLOSER)

    @pytest.mark.parametrize("seed", range(4))
    def test_what_only_chance_makes_better_is_no_closer_workload(
        self, tmp_path: Path, seed: int
    ) -> None:
        trace = make_routed(tmp_path, Routing(), tokens=(0, 10), seed=seed)
        situation = situation_of(trace, priced=False)
        chosen_on = in_sample_trial(situation, 16_000).played.hits[DECODE].sum()
        chance = situation.assignments(DECODE).sum() * 16 / 64
        assert chosen_on > 1.2 * chance, "the very text flatters by chance"
        found = advise_on(trace, 16, policies=()).finding
        assert found.answer == words.DO_NOT_BOTHER
        assert not starting(found.would_change, "a closer")
        assert len(starting(found.in_vain, CLOSER)) == 1


class TestInVain:
    def test_everything_that_was_tried_is_named(self, tmp_path: Path) -> None:
        routing = {"a": Routing(), "b": Routing()}
        found = advise_on(make_routed(tmp_path, routing), 16, make_machine(False), policies=())
        assert found.finding.answer == words.DO_NOT_BOTHER
        assert found.finding.would_change == ()
        assert [line.partition(":")[0] for line in found.finding.in_vain] == [
            "more VRAM, up to 90 % of the experts",
            "one domain at a time, each with its own busiest experts in VRAM",
            "a closer workload",
        ]

    def test_where_nothing_fits_only_more_vram_is_tried(self, tmp_path: Path) -> None:
        even, skewed = (
            advise_on(make_routed(tmp_path / name, routing), 0, policies=()).finding
            for name, routing in {"even": Routing(), "skewed": Routing(exponent=1.6)}.items()
        )
        assert even.in_vain == ("more VRAM, up to 90 % of the experts",)
        (line,) = skewed.would_change
        assert line.startswith("more VRAM: with ")
        assert (even.would_change, skewed.in_vain) == ((), ())


class TestCounts:
    def test_counts_say_what_they_support_and_what_is_missing(self, tmp_path: Path) -> None:
        trace = make_routed(tmp_path, Routing(), tokens=(0, 60))
        counts = counts_of(trace, tmp_path / "counts", also=("phase",))
        found = advise_on(counts, 16, make_machine(False))
        assert found.finding.answer == words.DO_NOT_BOTHER
        assert found.finding.sentence.endswith("; caches cannot be tried on counts")
        assert found.finding.in_vain == ("more VRAM, up to 90 % of the experts",)
        assert starting(found.missing, "caches, the oracle and a closer workload: the trace does")
        assert starting(found.missing, "what of it are replies: the trace does not say whether its")
        assert starting(found.rests_on, "720 tokens of 12 documents in 1 domain of counts")

    def test_counts_name_the_vram_that_would_change_the_verdict(self, tmp_path: Path) -> None:
        """Whole layers of a tenth of the model are as good as a tenth of skewed cells is not."""
        trace = make_routed(tmp_path, Routing(exponent=0.5), tokens=(0, 60))
        counts = counts_of(trace, tmp_path / "counts")
        found = advise_on(counts, 2, make_machine(False)).finding
        assert found.answer == words.DO_NOT_BOTHER
        room = advise_on(counts, 16, make_machine(False))
        assert room.finding.answer == words.PIN_IT
        assert room.budget.total_bytes == DENSE + 16_000
        (line,) = starting(found.would_change, "more VRAM: with ")
        assert line.startswith("more VRAM: with 20.5 KiB, the busiest experts in VRAM would have ")
