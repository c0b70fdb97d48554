"""What an analysis is asked for, and the words it answers with."""

from dataclasses import dataclass

from moeprof.trace.schema import PHASES

# The name under which the statistics over every domain stand; a domain's own name is the name
# of a folder and so has no space in it.
OVERALL = "all domains"
BOTH_PHASES = "all"
SHARES = (0.01, 0.02, 0.05, 0.10, 0.15, 0.20, 0.30, 0.50)
SECTIONS = (
    "coverage",
    "skew",
    "locality",
    "prediction",
    "coactivation",
    "domains",
    "drift",
    "sufficiency",
)


@dataclass(frozen=True, slots=True)
class AnalysisSettings:
    """What to analyse and how finely.

    Attributes:
        domain: one domain; None for each, and all of them together.
        phase: `prefill`, `decode`, or `all` to add the two; None for each apart.
        share: share of cells in a hot set, in (0, 1].
        budget_bytes: bytes of a hot set, above 0, from which `share` is derived; None to take
            `share` itself.
        folds: parts into which documents are dealt for held-out coverage, at least 2; a domain
            with fewer documents gets as many folds as it has documents.
        resamples: bootstrap resamples behind each interval, at least 2. They serve to estimate a
            standard deviation, which 200 do to within 5 % (1 / sqrt(2 x 200)).
        tolerance: coverage to within which a trace should decide, in (0, 1).
        sections: which of `SECTIONS` to compute.
        seed: of everything random.
    """

    domain: str | None = None
    phase: str | None = None
    share: float = 0.2
    folds: int = 5
    resamples: int = 200
    budget_bytes: int | None = None
    tolerance: float = 0.02
    sections: tuple[str, ...] = SECTIONS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.phase is not None and self.phase not in (*PHASES, BOTH_PHASES):
            expected = ", ".join((*PHASES, BOTH_PHASES))
            raise ValueError(f"phase {self.phase!r}, expected one of {expected}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1], got {self.share}")
        if self.budget_bytes is not None and self.budget_bytes <= 0:
            raise ValueError(f"budget_bytes must be above 0, got {self.budget_bytes}")
        if self.folds < 2:
            raise ValueError(f"folds must be at least 2, got {self.folds}")
        if self.resamples < 2:
            raise ValueError(f"resamples must be at least 2, got {self.resamples}")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must be in (0, 1), got {self.tolerance}")
        unknown = set(self.sections) - set(SECTIONS)
        if unknown or not self.sections:
            raise ValueError(f"sections {self.sections}, expected some of {', '.join(SECTIONS)}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")

    def has(self, section: str) -> bool:
        """Whether a section was asked for."""
        return section in self.sections
