"""Assignments per cell as dense arrays: what analysis and planning compute on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.model_shape import ModelShape
from moeprof.trace.schema import PHASES


@dataclass(frozen=True, slots=True)
class CellCounts:
    """Assignments of every cell, apart for each document group and phase.

    Attributes:
        shape: the model's numbers.
        domains: names, in the order of the trace.
        group_domain: [G] int64, index into `domains` of each document group.
        counts: [G, 2, L, E] int64, assignments; the second axis is `PHASES`.
        tokens: [D, 2] int64, tokens of each domain in each of `PHASES`; None where they are not
            known but by their assignments, of which some may be missing.
    """

    shape: ModelShape
    domains: tuple[str, ...]
    group_domain: NDArray[np.int64]
    counts: NDArray[np.int64]
    tokens: NDArray[np.int64] | None = None

    def select(self, domain: str | None = None, phase: str | None = None) -> NDArray[np.int64]:
        """Counts of the groups of one domain (None: all) in one phase (None: both summed).

        Returns:
            [num_groups, num_moe_layers, num_experts] int64; groups without an assignment in the
            selection are left out, so the first axis may be empty.

        Raises:
            ValueError: the trace has no such domain or phase.
        """
        counts = self.counts
        if domain is not None:
            if domain not in self.domains:
                raise ValueError(f"domain {domain!r}, expected one of {', '.join(self.domains)}")
            counts = counts[self.group_domain == self.domains.index(domain)]
        if phase is None:
            selected = counts.sum(axis=1)
        elif phase in PHASES:
            selected = counts[:, PHASES.index(phase)]
        else:
            raise ValueError(f"phase {phase!r}, expected one of {', '.join(PHASES)}")
        kept: NDArray[np.int64] = selected[selected.sum(axis=(1, 2)) > 0]
        return kept
