"""What a page is made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze import OVERALL, Analysis
from moeprof.errors import PlacementError
from moeprof.placement import HardwareOrigin, Placement
from moeprof.plan.advice import Advice
from moeprof.plan.simulation import Simulation
from moeprof.report.page.parts import sentence
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
        simulation: what caches hit at every size.
        reasons: why a section has nothing to show, by its key.
    """

    metadata: TraceMetadata
    cells: CellCounts
    analysis: Analysis
    placement: Placement | None = None
    advice: Advice | None = None
    simulation: Simulation | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.placement is None:
            return
        traced, planned = self.metadata.model, self.placement.model
        shape = self.metadata.shape
        is_known = "fingerprint" not in self.metadata.missing
        if is_known and planned.fingerprint != traced.fingerprint:
            found = f"with fingerprint {planned.fingerprint}", f"with {traced.fingerprint}"
        elif (planned.moe_layers, planned.num_experts) != (shape.moe_layers, shape.num_experts):
            found = (
                f"of {len(planned.moe_layers)} MoE layers with {planned.num_experts} experts",
                f"of {shape.num_moe_layers} with {shape.num_experts}",
            )
        else:
            return
        raise PlacementError(
            f"plan: is for {planned.name} {found[0]}, but the trace is of {traced.name} {found[1]}",
            "plan this trace: moeprof plan TRACE --model MODEL --vram SIZE -o FILE",
        )

    @property
    def machine(self) -> HardwareOrigin | None:
        """The one machine that every speed of the page is of; None where nothing is priced."""
        if self.advice is not None and self.advice.hardware is not None:
            return self.advice.hardware
        return None if self.placement is None else self.placement.hardware

    @property
    def is_plan_priced(self) -> bool:
        """Whether the speeds that the plan predicts stand on the page."""
        machine = None if self.placement is None else self.placement.hardware
        return machine is not None and machine == self.machine

    @property
    def has_bytes(self) -> bool:
        """Whether the trace says how many bytes an expert has; else each stands as one."""
        return "expert_bytes" not in self.metadata.missing

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

    def reason(self, key: str) -> str:
        """Why a section has nothing to show, as a sentence."""
        return sentence(self.reasons.get(key) or "the trace has too little text for this")

    def counts(self, phase: str, domain: str) -> NDArray[np.int64]:
        """[L, E] int64, assignments in a phase and a domain."""
        chosen = domain if domain != OVERALL else None
        every: NDArray[np.int64] = self.cells.select(chosen, None if phase == "all" else phase)
        summed: NDArray[np.int64] = every.sum(axis=0)
        return summed
