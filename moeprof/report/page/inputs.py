"""What a page is made from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze import OVERALL, Analysis
from moeprof.errors import PlacementError
from moeprof.placement import Placement
from moeprof.plan.advice import Advice
from moeprof.trace.counts import CellCounts
from moeprof.trace.schema import TraceMetadata


@dataclass(frozen=True, slots=True)
class PageInputs:
    """Everything a page tells of; None is what was not asked for.

    Attributes:
        metadata: of the trace.
        cells: counts of the trace.
        analysis: of the trace, every phase apart.
        placement: the plan to show.
        advice: what each strategy does at a budget.
    """

    metadata: TraceMetadata
    cells: CellCounts
    analysis: Analysis
    placement: Placement | None = None
    advice: Advice | None = None

    def __post_init__(self) -> None:
        if self.placement is None:
            return
        traced, planned = self.metadata.model, self.placement.model
        if planned.fingerprint != traced.fingerprint:
            raise PlacementError(
                f"plan: is for {planned.name} with fingerprint {planned.fingerprint}, but the "
                f"trace is of {traced.name} with {traced.fingerprint}",
                "plan this trace: moeprof plan TRACE --model MODEL --vram SIZE -o FILE",
            )

    @property
    def phases(self) -> tuple[str, ...]:
        """Phases with assignments, prefill first."""
        return tuple(dict.fromkeys(self.analysis.samples["phase"]))

    @property
    def main_phase(self) -> str:
        """The phase that findings are told of: decode where it was traced."""
        return self.phases[-1]

    @property
    def overall(self) -> str:
        """The name of all domains together, or of the only one."""
        return str(self.analysis.samples["domain"].iloc[0])

    def domains(self, phase: str) -> list[str]:
        """Domains with assignments in a phase; all of them together first."""
        samples = self.analysis.samples
        return [str(name) for name in samples.loc[samples["phase"] == phase, "domain"]]

    def counts(self, phase: str, domain: str) -> NDArray[np.int64]:
        """[L, E] int64, assignments in a phase and a domain."""
        chosen = domain if domain != OVERALL else None
        every: NDArray[np.int64] = self.cells.select(chosen, None if phase == "all" else phase)
        summed: NDArray[np.int64] = every.sum(axis=0)
        return summed
