"""Whether a placement is worth its trouble."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moeprof.placement import Baseline, Estimate, PhasePrediction, Prediction, Verdict

_UNTRACED = ("all_ram", "first_layers")
# A predicted gain below this is not told from none: predictions have been that far from what was
# measured (README, "Measured").
LEAST_GAIN = 1.1
# The same for hit rates, where no speed is predicted.
LEAST_EXTRA_HITS = 0.05


def verdict(
    phase: str,
    in_vram: NDArray[np.bool_],
    predicted: Prediction,
    baselines: Sequence[Baseline],
) -> Verdict:
    """Compare a placement with what needs no trace: chance, whole layers, everything in RAM.

    It is worthwhile if the lower bound of its held-out coverage lies above the coverage of the
    first whole layers and above the share of cells it keeps in VRAM, which any choice of cells
    reaches on average; and, where speeds are predicted, if it is faster than those baselines by
    more than a prediction may be wrong.

    Args:
        phase: routing the placement was solved for; `all` is judged by decode where there is any.
        in_vram: [L, E] bool, the placement.
        predicted: what is expected of it.
        baselines: what simpler placements would do.
    """
    if in_vram.all():
        return Verdict(False, "every expert fits into VRAM: run the model without a placement")
    if not in_vram.any():
        return Verdict(False, "no expert fits into what remains of the budget: raise it")
    judged = phase if phase != "all" else ("decode" if predicted.decode else "prefill")
    own = _of(predicted, judged)
    covered = own.coverage
    if covered is None or covered.low is None or covered.high is None:
        return Verdict(None, "too few documents to tell gain from chance: trace more of them")
    untraced = {
        baseline.name: _of(baseline.predicted, judged)
        for baseline in baselines
        if baseline.name in _UNTRACED
    }
    reference = max(float(in_vram.mean()), *(_coverage(entry) for entry in untraced.values()))
    figures = (
        f"held-out {judged} coverage {_percent(covered.value)} "
        f"[{_percent(covered.low)}, {_percent(covered.high)}], "
        f"{_percent(reference)} without a trace"
    )
    if covered.low <= reference:
        return Verdict(False, f"no clear gain over placing experts without a trace: {figures}")
    for name, entry in untraced.items():
        if _gains_nothing(own.tokens_per_s, entry.tokens_per_s):
            return Verdict(False, f"more hits but no clear gain in speed over {name}: {figures}")
    return Verdict(True, figures)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _of(prediction: Prediction, phase: str) -> PhasePrediction:
    entry = prediction.phase(phase)
    if entry is None:
        raise ValueError(f"no prediction for {phase}")
    return entry


def _coverage(entry: PhasePrediction) -> float:
    return entry.coverage.value if entry.coverage is not None else 0.0


def _gains_nothing(own: Estimate | None, other: Estimate | None) -> bool:
    return own is not None and other is not None and own.value <= LEAST_GAIN * other.value
