"""From a trace, a model and a budget to a placement."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from moeprof.analyze.floor import num_simulations, uniform_counts
from moeprof.errors import PlacementError
from moeprof.placement import (
    AS_STORED,
    Baseline,
    Estimate,
    HardwareOrigin,
    LayerPlacement,
    PhasePrediction,
    PlacedModel,
    Placement,
    Prediction,
    SolverRecord,
    Tier,
    TraceOrigin,
)
from moeprof.plan.baselines import BASELINES
from moeprof.plan.budget import check_ram, expert_budget
from moeprof.plan.evaluation import speed
from moeprof.plan.played import Clocks, clocks_of, play_sets
from moeprof.plan.problem import Candidate, Problem, candidates, make_problem
from moeprof.plan.request import ModelFacts, PlanRequest
from moeprof.plan.routed import PREFILL, read_routed
from moeprof.plan.verdict import verdict
from moeprof.trace import PHASES, Trace
from moeprof.trace.origin import UNSAID


def plan(trace: Trace, model: ModelFacts, request: PlanRequest) -> Placement:
    """The placement of a model's experts under one VRAM budget, with what it promises.

    The placement is solved on all documents of the trace. What is predicted of it is held out:
    the documents of each fold are scored with the placement that the same solver finds on the
    others.

    Args:
        trace: of this model.
        model: facts on the checkpoint.
        request: budget and wishes.

    Raises:
        PlacementError: the trace is of another model.
        TraceError: the trace has no assignments in the phase asked for.
        CapacityError: the budget cannot hold even what is not an expert, or the machine of the
            hardware profile cannot hold the rest.
    """
    check_same_model(trace, model)
    budget = expert_budget(model, request)
    problem = make_problem(trace, request, model.expert_bytes, budget.experts_available_bytes)
    ways = candidates(problem)
    used = ways[0].vram_bytes()
    check_ram(model.total_expert_bytes - used, request.hardware)
    clocks = clocks_of(
        request.hardware,
        model.shape,
        request.weight_format or model.shape.dtype,
        model.expert_bytes,
    )
    own, *others = [
        _prediction(way, speeds)
        for way, speeds in zip(ways, _speeds(trace, clocks, ways), strict=True)
    ]
    baselines = tuple(
        Baseline(rule.name, rule.description, way.vram_bytes(), predicted)
        for rule, way, predicted in zip(BASELINES, ways[1:], others, strict=True)
    )
    solution = problem.solve(problem.training.sum(axis=0).astype(np.float64))
    profile, shape = request.hardware, model.shape
    return Placement(
        model=PlacedModel(model.name, model.fingerprint, shape.num_experts, shape.moe_layers),
        trace=TraceOrigin(trace.name, trace.digest, trace.domains),
        hardware=None if profile is None else HardwareOrigin(profile.name, profile.source),
        budget=dataclasses.replace(budget, experts_used_bytes=used),
        layers=_layers(model, request.weight_format or AS_STORED, solution.in_vram),
        cache_policy=None,
        predicted=own,
        baselines=baselines,
        solver=SolverRecord(
            name="greedy",
            phase=problem.phase,
            optimality_gap=round(solution.optimality_gap, 6),
            folds=problem.split.num_folds,
            seed=request.seed,
        ),
        verdict=verdict(problem.phase, solution.in_vram, own, baselines),
        notes=tuple(_notes(trace, problem, clocks)),
        dense_format=request.dense_format,
    )


def check_same_model(trace: Trace, model: ModelFacts) -> None:
    """Refuse a trace that is not of this checkpoint.

    Raises:
        PlacementError: the fingerprints differ.
        TraceError: the trace does not say of which checkpoint it is.
    """
    trace.require("fingerprint", "it cannot be planned for a checkpoint")
    traced = trace.metadata.model
    if traced.fingerprint != model.fingerprint:
        raise PlacementError(
            f"{trace.path}: is a trace of {traced.name} with fingerprint {traced.fingerprint}, "
            f"but {model.name} has {model.fingerprint}",
            f"trace this model: moeprof trace {model.name} DATA -o traces/NAME",
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Speeds:
    """Tokens per second of each phase, and of prompts of which mean length; None if unknown."""

    prefill: Estimate | None = None
    decode: Estimate | None = None
    prompt_tokens: float | None = None


def _speeds(trace: Trace, clocks: Clocks, ways: Sequence[Candidate]) -> list[_Speeds]:
    """Of each candidate; unknown where nothing can price them."""
    problem = ways[0].problem
    priced = {"prefill": clocks.prefill is not None, "decode": clocks.decode is not None}
    wanted = [phase for phase in PHASES if priced[phase] and problem.has(phase)]
    known = not {"rows", "order", "phase"} & set(trace.metadata.missing)
    if not wanted or not problem.split.num_folds or not known:
        return [_Speeds() for _ in ways]
    routed = read_routed(trace, problem.counts)
    split = problem.split
    prompt_tokens = None
    if "prefill" in wanted:
        prompt_tokens = round(float(routed.tokens[PREFILL].sum() / routed.prompts.sum()), 1)
    found = []
    for way in ways:
        played = play_sets(routed, way.held_out(), split.fold, clocks)
        of_phase = {
            phase: speed(routed.tokens[index], played.seconds[index], split)
            for index, phase in enumerate(PHASES)
            if phase in wanted
        }
        found.append(_Speeds(**of_phase, prompt_tokens=prompt_tokens))
    return found


def _prediction(way: Candidate, speeds: _Speeds) -> Prediction:
    coverage = way.coverage()
    return Prediction(*(_phase_prediction(way, phase, coverage[phase], speeds) for phase in PHASES))


def _phase_prediction(
    way: Candidate, phase: str, coverage: Estimate | None, speeds: _Speeds
) -> PhasePrediction | None:
    if not way.problem.has(phase):
        return None
    is_prefill = phase == PHASES[PREFILL]
    counts = way.problem.counts.counts[:, PHASES.index(phase)].sum(axis=0)
    assignments, hits = int(counts.sum()), int(counts[way.final()].sum())
    return PhasePrediction(
        assignments=assignments,
        hits=hits,
        in_sample_coverage=round(hits / assignments, 6),
        coverage=coverage,
        uniform_floor=_uniform_floor(way.problem, counts) if way.rule is None else None,
        hit_rate=coverage,
        tokens_per_s=speeds.prefill if is_prefill else speeds.decode,
        prompt_tokens=speeds.prompt_tokens if is_prefill else None,
    )


def _uniform_floor(problem: Problem, counts: NDArray[np.int64]) -> float:
    """In-sample coverage of the solver on evenly drawn counts, the mean of many draws."""
    shape = problem.counts.shape
    drawn = uniform_counts(
        assignments=counts.sum(axis=1),
        num_experts=shape.num_experts,
        top_k=shape.top_k,
        simulations=num_simulations(shape.num_cells),
        rng=np.random.default_rng(problem.seed),
    )
    benefits = [problem.solve(one.astype(np.float64)).benefit for one in drawn]
    return round(float(np.mean(benefits)) / float(counts.sum()), 6)


def _layers(
    model: ModelFacts, weight_format: str, in_vram: NDArray[np.bool_]
) -> tuple[LayerPlacement, ...]:
    shape = model.shape
    return tuple(
        LayerPlacement(
            layer=layer,
            expert_bytes=expert_bytes,
            tiers=tuple(Tier.VRAM if resident else Tier.RAM for resident in row.tolist()),
            formats=(weight_format,) * shape.num_experts,
        )
        for layer, expert_bytes, row in zip(
            shape.moe_layers, model.expert_bytes, in_vram, strict=True
        )
    )


def _notes(trace: Trace, problem: Problem, clocks: Clocks) -> Iterator[str]:
    num_documents = sum(domain.documents for domain in trace.metadata.domains)
    num_groups = len(problem.counts.group_domain)
    folds = problem.split.num_folds
    if folds:
        yield (
            f"predictions are held out: each of {folds} folds of the {num_documents} documents is "
            "scored with a placement solved on the others; this placement is solved on all of them"
        )
    else:
        yield (
            "nothing could be held out: fewer than two documents have assignments in the phase "
            "that the placement is solved for"
        )
    if num_groups < num_documents:
        yield f"the documents are dealt to {num_groups} groups, which stand for documents"
    if "phase" in trace.metadata.missing:
        yield f"the trace does not say {UNSAID['phase']}"
    yield from _notes_on_speed(trace, problem, clocks)
    if not trace.metadata.complete:
        yield "the trace is not complete: moeprof trace --resume continues it"


def _notes_on_speed(trace: Trace, problem: Problem, clocks: Clocks) -> Iterator[str]:
    unknown = "tokens/s are not predicted"
    if clocks.decode is None:
        yield f"{unknown}: no hardware profile was given"
    elif not trace.has_rows:
        yield (f"{unknown}: the trace holds counts only, not which experts a token chose together")
    elif {"order", "phase"} & set(trace.metadata.missing):
        yield f"{unknown}: the trace does not say the order or the phase of its tokens"
    else:
        yield "tokens/s are of a single sequence"
        if not problem.has("decode"):
            yield f"{unknown} for decode: the trace has no decode tokens"
        if clocks.prefill is None and problem.has("prefill"):
            yield f"{unknown} for prefill: the hardware profile has no times of many tokens"
