"""What is being solved, and the ways to solve it that are compared."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.placement import Estimate
from moeprof.plan.baselines import BASELINES, BaselineRule, place_baseline
from moeprof.plan.evaluation import Split, held_out_coverage, held_out_sets, split_documents
from moeprof.plan.greedy import Solution, solve_greedy
from moeprof.plan.request import PlanRequest
from moeprof.trace import PHASES, CellCounts, Trace


@dataclass(frozen=True, slots=True)
class Problem:
    """Counts to choose by, folds to score on, and room for experts.

    Attributes:
        counts: of the trace.
        phase: routing to optimise for: `prefill`, `decode` or `all`.
        split: folds and resamples of the document groups.
        expert_bytes: [L] int64, bytes of one expert of each layer.
        room_bytes: bytes that the experts in VRAM may take.
        seed: of the uniform draws.
    """

    counts: CellCounts
    phase: str
    split: Split
    expert_bytes: NDArray[np.int64]
    room_bytes: int
    seed: int

    @property
    def training(self) -> NDArray[np.int64]:
        """[G, L, E] int64, assignments of each document group in the phase to optimise for."""
        assignments: NDArray[np.int64] = self.counts.counts[:, _phases_of(self.phase)].sum(axis=1)
        return assignments

    def has(self, phase: str) -> bool:
        """Whether the trace has assignments in this phase."""
        return bool(self.counts.counts[:, PHASES.index(phase)].any())

    def solve(self, benefit: NDArray[np.float64]) -> Solution:
        """The solver's choice for these assignments, [L, E]."""
        return solve_greedy(benefit, self.expert_bytes, self.room_bytes)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to place experts in a problem.

    Attributes:
        problem: the problem.
        rule: the baseline; None for the solver.
    """

    problem: Problem
    rule: BaselineRule | None

    def place(self, benefit: NDArray[np.float64]) -> NDArray[np.bool_]:
        """[L, E] bool, the cells to keep in VRAM by these assignments, [L, E]."""
        if self.rule is None:
            return self.problem.solve(benefit).in_vram
        problem = self.problem
        return place_baseline(self.rule, benefit, problem.expert_bytes, problem.room_bytes)

    def final(self) -> NDArray[np.bool_]:
        """[L, E] bool, the cells chosen on all documents."""
        return self.place(self.problem.training.sum(axis=0).astype(np.float64))

    def held_out(self) -> NDArray[np.bool_]:
        """[F, L, E] bool, for the documents of each fold, the cells chosen on the others."""
        return held_out_sets(self.place, self.problem.training, self.problem.split)

    def vram_bytes(self) -> int:
        """Bytes of the cells chosen on all documents."""
        return int((self.final().sum(axis=1) * self.problem.expert_bytes).sum())

    def coverage(self) -> dict[str, Estimate | None]:
        """Held-out coverage of each phase; None where there is nothing to hold out or score."""
        problem = self.problem
        if not problem.split.num_folds:
            return dict.fromkeys(PHASES)
        scored = problem.counts.counts
        found = held_out_coverage(self.place, problem.training, scored, problem.split)
        return dict(zip(PHASES, found, strict=True))


def candidates(problem: Problem) -> list[Candidate]:
    """The solver, then the baselines."""
    return [Candidate(problem, rule) for rule in (None, *BASELINES)]


def make_problem(
    trace: Trace, request: PlanRequest, expert_bytes: Sequence[int], room_bytes: int
) -> Problem:
    """The problem that a request poses on a trace.

    Args:
        trace: whose counts are solved by.
        request: phase, folds and seed.
        expert_bytes: for each MoE layer the bytes of one expert.
        room_bytes: bytes that the experts in VRAM may take.

    Raises:
        TraceError: the trace has no assignments in the phase asked for.
    """
    counts = trace.cell_counts()
    by_phase = counts.counts.sum(axis=(0, 2, 3))
    phase = request.phase or ("decode" if by_phase[PHASES.index("decode")] else "prefill")
    is_training = counts.counts[:, _phases_of(phase)].sum(axis=(1, 2, 3)) > 0
    if not is_training.any():
        which = "" if phase == "all" else f"{phase} "
        raise TraceError(
            f"{trace.path}: has no {which}tokens to plan by",
            "trace with --generate N, or plan with --phase prefill"
            if phase == "decode"
            else "trace more text: moeprof trace MODEL DATA -o traces/NAME",
        )
    return Problem(
        counts=counts,
        phase=phase,
        split=split_documents(counts.group_domain, is_training, request.folds, request.seed),
        expert_bytes=np.asarray(expert_bytes, np.int64),
        room_bytes=room_bytes,
        seed=request.seed,
    )


def _phases_of(phase: str) -> list[int]:
    """Indices into `PHASES` of a phase, or of all."""
    return [index for index, name in enumerate(PHASES) if phase in (name, "all")]
