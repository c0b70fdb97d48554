"""One domain (or all) in one phase: its counts, folds, resamples, and the three coverages."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze import intervals
from moeprof.analyze.computed_once import ComputedOnce
from moeprof.analyze.coverage import (
    held_out_covered,
    in_sample_covered,
    share_of,
    training_orders,
)
from moeprof.analyze.floor import floor_coverage, num_simulations, uniform_counts
from moeprof.analyze.hot_sets import cell_bytes, hot_set_size
from moeprof.analyze.settings import BOTH_PHASES, OVERALL, SHARES, AnalysisSettings
from moeprof.trace.counts import CellCounts
from moeprof.trace.folds import deal_folds
from moeprof.trace.schema import PHASES

_CURVE_POINTS = 50


@dataclass(frozen=True, slots=True)
class CoverageLines:
    """The three coverages that are always shown together.

    Each is [3, P, S] float64 for P pools and S sizes: estimate, low and high end of the 95 %
    interval (of the floor: mean and the middle 95 % of its simulations). Held-out is NaN with a
    single document group; low and high of the first two are NaN without two groups in a domain.
    """

    in_sample: NDArray[np.float64]
    held_out: NDArray[np.float64]
    floor: NDArray[np.float64]


class Sample:
    """The documents of one domain, or of all, in one phase, or both added.

    Attributes:
        domain: the domain, or `OVERALL`.
        phase: `prefill`, `decode`, or `all`.
        shape: the model's numbers.
        settings: folds, resamples and seed.
        counts: [G, L, E] int64, only of groups with an assignment; G may be 0.
        group_domain: [G] int64.
        groups: [G] int64, where these groups stand among those of the counts.
        tokens: of all groups.
    """

    def __init__(
        self, cells: CellCounts, domain: str, phase: str, settings: AnalysisSettings
    ) -> None:
        self.domain = domain
        self.phase = phase
        self.shape = cells.shape
        self.settings = settings
        kept = np.ones(len(cells.group_domain), bool)
        key = len(cells.domains)
        if domain != OVERALL:
            key = cells.domains.index(domain)
            kept = cells.group_domain == key
        both = phase == BOTH_PHASES
        counts = cells.counts.sum(axis=1) if both else cells.counts[:, PHASES.index(phase)]
        kept = kept & (counts.sum(axis=(1, 2)) > 0)
        self.counts: NDArray[np.int64] = counts[kept]
        self.group_domain: NDArray[np.int64] = cells.group_domain[kept]
        self.groups: NDArray[np.int64] = np.flatnonzero(kept)
        if cells.tokens is None:
            self.tokens = self.assignments // (self.shape.num_moe_layers * self.shape.top_k)
        else:
            of_domain = cells.tokens if domain == OVERALL else cells.tokens[key : key + 1]
            self.tokens = int((of_domain if both else of_domain[:, PHASES.index(phase)]).sum())
        # Seeded by what it is, so that a domain's numbers do not depend on what else was asked.
        self._seed = [settings.seed, (*PHASES, BOTH_PHASES).index(phase), key]

    @property
    def num_groups(self) -> int:
        """Document groups with an assignment (G)."""
        return len(self.counts)

    @property
    def assignments(self) -> int:
        """Assignments of all groups and layers."""
        return int(self.counts.sum())

    @property
    def degrees(self) -> int:
        """Degrees of freedom of the intervals; 0 where there are none."""
        return intervals.degrees_of_freedom(self.group_domain)

    @ComputedOnce
    def fold(self) -> NDArray[np.int64]:
        """[G] int64, the fold of each group."""
        return deal_folds(self.group_domain, self.settings.folds, self.rng("folds"))

    @property
    def num_folds(self) -> int:
        """Folds; fewer than asked for where there are fewer groups."""
        return min(self.settings.folds, self.num_groups)

    @property
    def one_way(self) -> NDArray[np.int64]:
        """[folds, folds] int64, 1 where the first fold is scored by what the second one taught.

        Each fold learns from the half of the folds that follow it, in a circle. Learning from all
        others, two documents would teach each other, which ties their scores to each other and
        makes intervals over documents too narrow, most of all where there is nothing to learn
        (Bengio & Grandvalet 2004, JMLR 5; `test_known_truth.py` shows it).
        """
        folds = np.arange(self.num_folds)
        ahead = (folds[None, :] - folds[:, None]) % len(folds)
        return ((ahead > 0) & (ahead <= max(1, len(folds) // 2))).astype(np.int64)

    @ComputedOnce
    def weights(self) -> NDArray[np.float64]:
        """[R, G] float64, how often each group counts in each bootstrap resample."""
        rng = self.rng("resamples")
        return intervals.resampling_weights(self.group_domain, self.settings.resamples, rng)

    @ComputedOnce
    def simulated(self) -> NDArray[np.int64]:
        """[simulations, L, E] int64, counts of even routing at this sample size."""
        return uniform_counts(
            self.counts.sum(axis=(0, 2)),
            self.shape.num_experts,
            self.shape.top_k,
            num_simulations(self.shape.num_cells),
            self.rng("floor"),
        )

    def model_coverage(self, shares: tuple[float, ...]) -> CoverageLines:
        """Coverage of hot sets over the whole model; P is 1."""
        return self._coverage(shares, 1)

    @property
    def curve_shares(self) -> tuple[float, ...]:
        """Shares of `curve`, ascending: `SHARES`, the share asked for, and others close by."""
        smallest = max(1 / self.shape.num_cells, 0.002)
        spaced = np.geomspace(smallest, 1, _CURVE_POINTS).round(6).tolist()
        return tuple(sorted({*SHARES, self.settings.share, *spaced}))

    @ComputedOnce
    def curve(self) -> CoverageLines:
        """Coverage of hot sets over the whole model at `curve_shares`; P is 1."""
        return self.model_coverage(self.curve_shares)

    def layer_coverage(self, share: float) -> CoverageLines:
        """Coverage of a hot set of the same share in every layer; P is L, S is 1."""
        return self._coverage((share,), self.shape.num_moe_layers)

    def ratio(
        self,
        part: NDArray[Any],
        whole: NDArray[Any],
        bounds: tuple[float, float] = (0.0, 1.0),
    ) -> NDArray[np.float64]:
        """A ratio of sums over this sample's groups with its 95 % interval.

        Args:
            part: [G, ...].
            whole: [G, ...], of the same shape.
            bounds: least and greatest value that is possible.

        Returns:
            [3, ...] float64: estimate, low, high.
        """
        return intervals.ratio(self.weights, part, whole, self.degrees, bounds)

    def _coverage(self, shares: tuple[float, ...], pools: int) -> CoverageLines:
        cells = self.shape.num_cells // pools
        sizes = np.array([hot_set_size(share, cells) for share in shares])
        bytes_of = cell_bytes(self.shape.expert_bytes, self.shape.num_experts)
        bytes_of = bytes_of.reshape(pools, cells)
        counts = self.counts.reshape(-1, pools, cells)
        total = counts.sum(axis=2)
        served = in_sample_covered(counts, bytes_of, sizes)
        resampled = intervals.resampled_share(self.weights, served, total)
        estimate = share_of(served.sum(axis=0), total.sum(axis=0))
        simulated = self.simulated.reshape(-1, pools, cells)
        return CoverageLines(
            in_sample=intervals.interval(estimate, resampled, self.degrees),
            held_out=self._held_out(counts, bytes_of, sizes),
            floor=floor_coverage(simulated, bytes_of, sizes),
        )

    def _held_out(
        self, counts: NDArray[np.int64], bytes_of: NDArray[np.int64], sizes: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        if self.num_groups < 2:
            return np.full((3, len(bytes_of), len(sizes)), np.nan)
        orders = training_orders(counts, bytes_of, self.fold)
        served = held_out_covered(counts, orders, self.fold, sizes)
        estimate = share_of(served.sum(axis=0), counts.sum(axis=(0, 2)))
        if self.degrees == 0:
            absent = np.full_like(estimate, np.nan)
            return np.stack([estimate, absent, absent])
        resampled = intervals.resampled_held_out(self.weights, counts, bytes_of, self.fold, sizes)
        return intervals.interval(estimate, resampled, self.degrees)

    def rng(self, purpose: str) -> np.random.Generator:
        """A generator of its own for each purpose, so that one does not depend on another."""
        purposes = ("folds", "resamples", "floor", "drift", "learning")
        return np.random.default_rng([*self._seed, purposes.index(purpose)])
