"""The strategies under one budget, each tried over the documents of a trace."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze.hot_sets import cell_bytes
from moeprof.analyze.intervals import degrees_of_freedom
from moeprof.model_shape import ModelShape
from moeprof.plan import advice
from moeprof.plan.evaluation import Split, held_out_sets
from moeprof.plan.greedy import solve_greedy
from moeprof.plan.played import Clocks, Played, play_counts, play_sets
from moeprof.plan.resampled_sets import resampled_hits
from moeprof.plan.routed import DECODE, Routed, halved
from moeprof.plan.warm_replay import Part
from moeprof.policies import Policy
from moeprof.trace import CellCounts

_HOT_SET = (advice.HOT_SET, "the busiest experts in VRAM")
_ARBITRARY_SETS = 16  # drawn anew, so that no single draw is what "any experts" means


@dataclass(frozen=True)
class Situation:
    """What does not depend on the budget.

    Attributes:
        shape: the model's numbers.
        expert_bytes: [L] int64, bytes of one expert of each layer in the format to run in.
        counts: of the trace.
        split: folds and resamples of its document groups.
        routed: its lookups; None where it has counts alone.
        clocks: price it.
        policies: of the caches to try.
        ram_bytes: bytes of experts that RAM holds; infinite where it is not known.
        seed: of the arbitrary sets.
        pieces: of the only document, that stand for documents; 0 where documents are documents.
    """

    shape: ModelShape
    expert_bytes: NDArray[np.int64]
    counts: CellCounts
    split: Split
    routed: Routed | None
    clocks: Clocks
    policies: Sequence[Policy]
    ram_bytes: float
    seed: int
    pieces: int = 0

    @property
    def training(self) -> NDArray[np.int64]:
        """[G, L, E] int64, the assignments to choose by."""
        training: NDArray[np.int64] = self.counts.counts[:, DECODE]
        return training

    @property
    def total_bytes(self) -> int:
        """Bytes of all experts."""
        return int(self.expert_bytes.sum()) * self.shape.num_experts

    @cached_property
    def resampled_hits(self) -> NDArray[np.float32]:
        """[R, 2, cells + 1], hits of hot sets of every size that are chosen anew."""
        counts = self.counts.counts.reshape(len(self.counts.counts), 2, -1)
        sizes = cell_bytes(self.expert_bytes.tolist(), self.shape.num_experts).ravel()
        return resampled_hits(counts[:, DECODE], counts, sizes, self.split)

    @cached_property
    def parts(self) -> list[Part]:
        """The documents of each fold, with what may be learned for them; all at once without folds.

        Raises:
            ValueError: the trace has counts alone.
        """
        if self.routed is None:
            raise ValueError("a cache is replayed over lookups, the trace has counts alone")
        fold = self.split.fold
        if not self.split.num_folds:
            return [Part(self.routed, self.training.sum(axis=0))]
        return [
            Part(self.routed.select(fold == one), self.training[fold != one].sum(axis=0))
            for one in range(self.split.num_folds)
        ]

    def slots(self, room_bytes: int) -> tuple[int, int]:
        """Experts of mean size that so many bytes hold, at most all, and their bytes."""
        cells = self.shape.num_cells
        held = min(cells, room_bytes * cells // self.total_bytes)
        return held, held * self.total_bytes // cells

    def tokens(self, phase: int) -> NDArray[np.float64]:
        """[G] float64, tokens of each document group in a phase."""
        if self.routed is not None:
            of_group: NDArray[np.float64] = self.routed.tokens[phase]
            return of_group
        found: NDArray[np.float64] = self.assignments(phase) / (
            self.shape.num_moe_layers * self.shape.top_k
        )
        return found

    def assignments(self, phase: int) -> NDArray[np.float64]:
        """[G] float64, assignments of each document group in a phase."""
        counted: NDArray[np.int64] = self.counts.counts[:, phase].sum(axis=(1, 2))
        return counted.astype(np.float64)

    def degrees(self, phase: int) -> int:
        """Degrees of freedom of intervals over the document groups that a phase has."""
        return degrees_of_freedom(self.counts.group_domain[self.assignments(phase) > 0])

    def play(self, sets: NDArray[np.bool_], set_of_group: NDArray[np.int64]) -> Played:
        """Play sets [S, L, E] of cells, of which each document group has its own, [G]."""
        if self.routed is None:
            return play_counts(self.counts, sets, set_of_group, self.clocks.decode)
        return play_sets(self.routed, sets, set_of_group, self.clocks)


@dataclass(frozen=True, slots=True)
class Trial:
    """A strategy and what it did; the attributes not listed are those of `StrategyOutcome`.

    Attributes:
        played: what it did.
        anew: [R, 2] float64, hits in each resample and phase where what it keeps is chosen anew;
            None where it is not chosen on documents, or kept as it is.
    """

    name: str
    description: str
    policy: str | None
    vram_bytes: int
    slots: int
    ram_bytes: int
    played: Played
    anew: NDArray[np.float64] | None = None


def fixed_trials(situation: Situation, room_bytes: int) -> Iterator[Trial]:
    """Everything in RAM, whole layers, any experts, and the hot set.

    Args:
        situation: what to try on.
        room_bytes: bytes of VRAM that are left for experts.
    """
    one_for_all = np.zeros(len(situation.counts.group_domain), np.int64)
    nothing = np.zeros((1, situation.shape.num_moe_layers, situation.shape.num_experts), np.bool_)
    yield _trial(
        situation,
        (advice.ALL_RAM, "all experts in RAM"),
        nothing[0],
        situation.play(nothing, one_for_all),
    )
    layers = whole_layers(situation, room_bytes)
    yield _trial(
        situation,
        (advice.WHOLE_LAYERS, "whole layers in VRAM"),
        layers,
        situation.play(layers[None], one_for_all),
    )
    drawn = np.stack(list(arbitrary_sets(situation, room_bytes)))
    yield _trial(
        situation,
        (advice.ANY_EXPERTS, "arbitrary experts of each layer in VRAM"),
        drawn[0],
        situation.play(drawn, np.arange(len(one_for_all)) % len(drawn)),
    )
    yield hot_set_trial(situation, room_bytes)


def hot_set_trial(situation: Situation, room_bytes: int) -> Trial:
    """The busiest cells per byte, for each document those of the others.

    Where nothing can be held out it is `in_sample_trial`.
    """
    if not situation.split.num_folds:
        return in_sample_trial(situation, room_bytes)

    def place(benefit: NDArray[np.float64]) -> NDArray[np.bool_]:
        return solve_greedy(benefit, situation.expert_bytes, room_bytes).in_vram

    held_out = held_out_sets(place, situation.training, situation.split)
    played = situation.play(held_out, situation.split.fold)
    chosen = place(situation.training.sum(axis=0).astype(np.float64))
    trial = _trial(situation, _HOT_SET, chosen, played)
    anew = situation.resampled_hits[:, :, trial.slots].astype(np.float64)
    return replace(trial, anew=anew)


def closer_trial(situation: Situation, room_bytes: int) -> Trial:
    """The busiest cells per byte, for each half of every document those of the other halves.

    What a workload that is closer than other documents could gain: the set knows the documents,
    but has not counted the very tokens that it is scored on, which would flatter by chance.

    Args:
        situation: what to try on; its lookups are needed.
        room_bytes: bytes of VRAM that are left for experts.
    """
    if situation.routed is None:
        raise ValueError("documents are cut by their lookups, the trace has counts alone")
    counts, routed = halved(situation.counts, situation.routed)
    split, groups = situation.split, len(situation.split.fold)
    halves = Split(2, np.repeat([0, 1], groups), np.tile(split.weights, 2), split.degrees)
    apart = hot_set_trial(
        replace(situation, counts=counts, routed=routed, split=halves), room_bytes
    )

    def together(of_half: NDArray[np.float64]) -> NDArray[np.float64]:
        summed: NDArray[np.float64] = of_half.reshape(2, 2, groups).sum(axis=1)
        return summed

    played = apart.played
    both = Played(*map(together, (played.hits, played.seconds, played.copied_bytes)))
    return replace(apart, played=both)


def in_sample_trial(situation: Situation, room_bytes: int) -> Trial:
    """The busiest cells per byte of all documents, played over the same."""
    benefit = situation.training.sum(axis=0).astype(np.float64)
    chosen = solve_greedy(benefit, situation.expert_bytes, room_bytes).in_vram
    everybody = np.zeros(len(situation.counts.group_domain), np.int64)
    return _trial(situation, _HOT_SET, chosen, situation.play(chosen[None], everybody))


def whole_layers(situation: Situation, room_bytes: int) -> NDArray[np.bool_]:
    """[L, E] bool, the layers that save the most time per byte, and of one more what still fits.

    Without a clock the layers of the smallest experts come first. Experts of the layer in part are
    taken by ascending id, which says nothing of how busy they are.
    """
    shape, clock = situation.shape, situation.clocks.decode
    rows, full = np.arange(shape.num_moe_layers), np.full(shape.num_moe_layers, shape.top_k)
    if clock is None:
        saved = full.astype(np.float64)
    else:
        saved = clock.layer_seconds(rows, 0 * full, full) - clock.layer_seconds(
            rows, full, 0 * full
        )
    order = np.argsort(-saved / situation.expert_bytes, kind="stable")
    cells = (order[:, None] * shape.num_experts + np.arange(shape.num_experts)).ravel()
    return _fill(situation, cells, room_bytes)


def arbitrary_sets(situation: Situation, room_bytes: int) -> Iterator[NDArray[np.bool_]]:
    """Sets [L, E] of as many experts of each layer as fit, drawn at random."""
    shape = situation.shape
    rng = np.random.default_rng(situation.seed)
    for _ in range(_ARBITRARY_SETS):
        drawn = rng.random((shape.num_moe_layers, shape.num_experts)).argsort(axis=1)
        cells = np.arange(shape.num_moe_layers)[:, None] * shape.num_experts + drawn
        yield _fill(situation, cells.T.ravel(), room_bytes)


def _fill(situation: Situation, cells: NDArray[np.int64], room_bytes: int) -> NDArray[np.bool_]:
    """[L, E] bool, the first cells of an order that fit together."""
    shape = situation.shape
    sizes = cell_bytes(situation.expert_bytes.tolist(), shape.num_experts).ravel()
    taken = np.zeros(shape.num_cells, np.bool_)
    taken[cells[np.cumsum(sizes[cells]) <= room_bytes]] = True
    return taken.reshape(shape.num_moe_layers, shape.num_experts)


def _trial(
    situation: Situation, named: tuple[str, str], in_vram: NDArray[np.bool_], played: Played
) -> Trial:
    """The trial of a set that stays as it is; RAM holds the rest."""
    used = int((in_vram.sum(axis=1) * situation.expert_bytes).sum())
    return Trial(
        *named,
        policy=None,
        vram_bytes=used,
        slots=int(in_vram.sum()),
        ram_bytes=situation.total_bytes - used,
        played=played,
    )
