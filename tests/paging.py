"""What pages are made from, with figures that are told apart at sight."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make_counts, make_metadata
from planning import make_placement

from moeprof.analyze import AnalysisSettings, analyze
from moeprof.cli import main
from moeprof.placement import Estimate, HardwareOrigin, TraceOrigin
from moeprof.plan.advice import (
    Advice,
    BreakEven,
    DomainSets,
    Finding,
    PhaseOutcome,
    StrategyOutcome,
    SweepPoint,
)
from moeprof.report.page import PageInputs
from moeprof.trace import Trace

ROOT = Path(__file__).resolve().parent.parent
ATTACK = "</script><script>window.hacked = 1</script><img src=x onerror='hacked=1'>&\"\u2028"


def run(trace: object, *options: object) -> int:
    """The exit code of `moeprof report`."""
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in ("report", ROOT / str(trace), *options)])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def inputs_of(prefill: object, decode: object = None, **changes: object) -> PageInputs:
    """A page on one or two domains with the given counts [documents, L, E]."""
    cells = make_counts(prefill, decode)  # type: ignore[arg-type]
    return make_inputs(cells, make_metadata(cells.shape, cells.domains), **changes)


def charts_of(page: str) -> dict[str, dict[str, object]]:
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page)
    assert found is not None
    charts: dict[str, dict[str, object]] = json.loads(found[1])
    return charts


def make_inputs(source: Any, metadata: Any, **changes: Any) -> PageInputs:
    """What a page on a trace or its counts is made from, analysed with few resamples."""
    analysis = analyze(source, AnalysisSettings(resamples=changes.pop("resamples", 20)))
    cells = source.cell_counts() if isinstance(source, Trace) else source
    return PageInputs(metadata=metadata, cells=cells, analysis=analysis, **changes)


def skewed_counts(
    num_documents: int, num_layers: int, num_experts: int, seed: int = 0, total: int = 4000
) -> np.ndarray:
    """[documents, L, E]: every layer prefers other experts, and prefers them strongly."""
    rng = np.random.default_rng(seed)
    odds = 1.0 / np.arange(1, num_experts + 1)
    layers = [rng.permutation(odds / odds.sum()) for _ in range(num_layers)]
    return np.stack([[rng.multinomial(total, p) for p in layers] for _ in range(num_documents)])


def make_strategy(name: str, speed: float, gain: float, hit_rate: float) -> StrategyOutcome:
    """Ends of intervals lie 10 % away; prefill is twice as fast as decode, and gains nothing."""

    def estimate(value: float) -> Estimate:
        return Estimate(value, value - 0.1 * abs(value), value + 0.1 * abs(value))

    none = Estimate(0.0, 0.0, 0.0)
    return StrategyOutcome(
        name=name,
        description=f"does as {name} does",
        policy="lru" if "cache" in name else None,
        vram_bytes=4000,
        slots=4,
        ram_bytes=4000,
        copied_bytes_per_token=2048.0 if "cache" in name else 0.0,
        prefill=PhaseOutcome(estimate(hit_rate), none, estimate(2 * speed), none),
        decode=PhaseOutcome(estimate(hit_rate), none, estimate(speed), estimate(gain)),
    )


def make_advice(**changes: Any) -> Advice:
    """All in RAM at 10 tokens/s, whole layers at 20, a hot set at 40, a cache at 30."""
    strategies = (
        make_strategy("all_ram", 10.0, -0.5, 0.0),
        make_strategy("whole_layers", 20.0, 0.0, 0.5),
        make_strategy("hot_set", 40.0, 1.0, 0.8),
        make_strategy("cache", 30.0, 0.5, 0.7),
        make_strategy("oracle", 50.0, 1.5, 0.9),
    )
    budget = make_placement().budget
    gain = Estimate(0.03, 0.01, 0.05)
    sweep = tuple(
        SweepPoint(size, size // 2, "pin it", strategies) for size in (2**32, 2**33, 2**34)
    )
    fields: dict[str, Any] = {
        "model": "org/model",
        "trace": TraceOrigin("first", "digest", ("code", "prose")),
        "hardware": HardwareOrigin("desk", "measured"),
        "weight_format": "q8_0",
        "budget": budget,
        "num_cells": 8,
        "folds": 5,
        "pieces": 0,
        "strategies": strategies,
        "finding": Finding("pin it", "hot_set", "Pin the hot set.", ("A slower card.",)),
        "break_even": BreakEven(0.6, 0.65, 12.5),
        "domain_sets": DomainSets(gain, {}, gain, True, 4096, 700.0),
        "sweep": sweep,
        "rests_on": ("These figures rest on six documents.",),
        "missing": ("how fast the drive is",),
    }
    return Advice(**(fields | changes))
