"""Machines and requests to test advice on; figures are round ones."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from builders import make_shape
from planning import make_hardware
from synthetic import Routing, make_trace

from moeprof.hardware import HardwareProfile, LinkProfile, TierProfile, Time
from moeprof.model_shape import ModelShape
from moeprof.plan import Advice, AdviceRequest, PlanRequest, advise
from moeprof.plan.evaluation import split_documents
from moeprof.plan.played import clocks_of
from moeprof.plan.routed import read_sample
from moeprof.plan.trials import Situation
from moeprof.trace import Trace, open_trace
from moeprof.trace.counts_only import write_counts
from moeprof.trace.origin import Origin

# Beside the experts, a model of make_shape() needs this many bytes where no checkpoint is named.
DENSE = 5000
SHAPE = make_shape(tuple(range(4)), num_experts=16)


def make_machine(overlap: bool = True, **changes: Any) -> HardwareProfile:
    """An expert of 1000 bytes takes 1 s in vram and 4 s in ram, a layer 1 s, a round trip 2 s.

    Experts of a batch take 1 s and 0.1 s a token in vram, 3 s and 1 s a token in ram, and a copy
    of one takes 5 s. Without overlap there is no round trip either, so that time follows hits.
    """
    base = make_hardware()
    batch = {"vram": Time(0.5, 0.0005, 0.1), "ram": Time(0.0, 0.003, 1.0)}
    tiers = {
        name: dataclasses.replace(tier, expert_batch_time={"bfloat16": batch[name]})
        for name, tier in base.tiers.items()
    }
    fields = {
        "tiers": tiers,
        "links": {"ram-vram": LinkProfile(0.0, 200.0)},
        "tiers_overlap": overlap,
        "round_trip_s": 2.0 if overlap else 0.0,
        "device_context_bytes": 0,
    }
    return dataclasses.replace(base, **(fields | changes))


def without_batches(machine: HardwareProfile) -> HardwareProfile:
    """The same, but nothing prices prefill."""
    tiers = {
        name: TierProfile(tier.capacity_bytes, tier.read_bytes_per_s, tier.expert_time)
        for name, tier in machine.tiers.items()
    }
    return dataclasses.replace(machine, tiers=tiers)


def advise_on(
    trace: Trace, num_in_vram: int, machine: HardwareProfile | None = None, **request: Any
) -> Advice:
    """Advice with room for so many experts, without a checkpoint."""
    own = {name: request.pop(name) for name in ("policies", "sweep") if name in request}
    room = DENSE + num_in_vram * trace.shape.expert_bytes[0]
    plan = PlanRequest(room, hardware=machine, **request)
    return advise(trace, None, AdviceRequest(plan, **own))


def make_routed(
    path: Path, routing: Routing | dict[str, Routing], shape: ModelShape = SHAPE, **more: Any
) -> Trace:
    """Twelve documents of 40 prompt and 60 reply tokens."""
    given = {"documents": 12, "tokens": (40, 60), "shape": shape} | more
    if isinstance(routing, dict):
        given["domains"] = tuple(routing)
    return make_trace(path / "routed", routing, **given)


def situation_of(trace: Trace, seed: int = 0, priced: bool = True) -> Situation:
    """What `trials` of a trace are tried on: three folds, no policies."""
    machine = make_machine() if priced else None
    sample = read_sample(trace)
    counts = sample.counts
    return Situation(
        shape=trace.shape,
        expert_bytes=np.asarray(trace.shape.expert_bytes, np.int64),
        counts=counts,
        split=split_documents(counts.group_domain, np.ones(len(counts.counts), bool), 3, seed),
        routed=sample.routed,
        clocks=clocks_of(machine, trace.shape, "bfloat16", trace.shape.expert_bytes),
        policies=[],
        ram_bytes=float("inf"),
        seed=seed,
    )


def counts_of(trace: Trace, path: Path, also: tuple[str, ...] = ()) -> Trace:
    """The counts of a trace, as if imported without rows, order and what `also` names."""
    path.mkdir(parents=True)
    origin = Origin("imatrix", ("x.gguf",), ("rows", "order", *also), "")
    metadata = dataclasses.replace(trace.metadata, origin=origin, parts=())
    write_counts(path, metadata, trace.tally())
    return open_trace(path)


def strictly_below(value: np.ndarray) -> bool:
    return bool((np.diff(value) < 0).all())
