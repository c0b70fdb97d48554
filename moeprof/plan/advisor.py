"""From a trace, a model and a budget to advice: what each strategy would do, and the verdict."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from moeprof.errors import CapacityError, MoeprofError, PlacementError
from moeprof.hardware import HardwareProfile
from moeprof.placement import Budget, HardwareOrigin, TraceOrigin
from moeprof.plan import advice
from moeprof.plan.advice_notes import missing, rests_on
from moeprof.plan.break_even import break_even
from moeprof.plan.budget import check_ram, expert_budget
from moeprof.plan.domain_sets import domain_sets
from moeprof.plan.evaluated import Evaluated, evaluate
from moeprof.plan.evaluation import split_documents
from moeprof.plan.judgement import judge
from moeprof.plan.planner import check_same_model
from moeprof.plan.played import clocks_of
from moeprof.plan.request import AdviceRequest, ModelFacts, PlanRequest
from moeprof.plan.routed import DECODE, Sample, read_sample
from moeprof.plan.trace_facts import facts_of_trace
from moeprof.plan.trials import Situation
from moeprof.plan.would_change import would_change
from moeprof.policies import Policy, parse_policy
from moeprof.trace import Trace
from moeprof.units import format_size


def advise(trace: Trace, model: ModelFacts | None, request: AdviceRequest) -> advice.Advice:
    """What each way to use a VRAM budget would do, and which of them is worth it.

    Everything is played over documents that it was not chosen on, and judged by decoding.

    Args:
        trace: of this model.
        model: facts on the checkpoint; None takes what the trace says of it, which leaves the KV
            cache uncounted.
        request: budget and wishes.

    Raises:
        PlacementError: the trace is of another model.
        TraceError: the trace has no assignments.
        CapacityError: the budget cannot hold even what is not an expert, or the machine of the
            hardware profile cannot hold the rest, or has no times for the experts' format.
        MoeprofError: there is no such policy.
    """
    if model is None:
        trace.require("expert_bytes", "what fits into a budget cannot be told")
    else:
        _check_model(trace, model)
    facts = model or facts_of_trace(trace, request.plan)
    budget = expert_budget(facts, request.plan)
    sample = read_sample(trace)
    situation = _situation(sample, facts, request)
    room = budget.experts_available_bytes
    check_ram(situation.total_bytes - min(room, situation.total_bytes), request.plan.hardware)
    evaluated = evaluate(situation, room)
    judgement = judge(evaluated)
    profile = request.plan.hardware
    sets = domain_sets(evaluated)
    tried = list(would_change(evaluated, judgement, budget, sets))
    bothers = judgement.answer in (advice.PIN_IT, advice.CACHE_IT, advice.BOTH)
    recommended = judgement.trial.name if bothers and judgement.trial is not None else None
    return advice.Advice(
        model=facts.name,
        trace=TraceOrigin(trace.name, trace.digest, trace.domains),
        hardware=None if profile is None else HardwareOrigin(profile.name, profile.source),
        weight_format=request.plan.weight_format or facts.shape.dtype,
        budget=dataclasses.replace(
            budget, experts_used_bytes=evaluated.trials[advice.HOT_SET].vram_bytes
        ),
        num_cells=facts.shape.num_cells,
        folds=situation.split.num_folds,
        pieces=situation.pieces,
        strategies=evaluated.outcomes(),
        finding=advice.Finding(
            answer=judgement.answer,
            strategy=recommended,
            sentence=judgement.sentence,
            would_change=tuple(words for changes, words in tried if changes),
            in_vain=tuple(words for changes, words in tried if not changes),
        ),
        break_even=break_even(evaluated, recommended),
        domain_sets=sets,
        sweep=tuple(_sweep(situation, facts, request)),
        rests_on=tuple(rests_on(trace, sample, evaluated, request)),
        missing=(
            *missing(trace, sample, evaluated, request, has_model=model is not None),
            *_missing_of_runtime(evaluated, recommended),
        ),
    )


def _missing_of_runtime(evaluated: Evaluated, recommended: str | None) -> Iterator[str]:
    """What `moeprof run` cannot do of what is recommended, and what it can."""
    if recommended in (advice.CACHE, advice.HOT_SET_AND_CACHE):
        hot_set, base = (evaluated.trials[name] for name in (advice.HOT_SET, advice.WHOLE_LAYERS))
        yield (
            "a cache in moeprof run, which keeps experts where a plan puts them: as it is, the "
            f"busiest experts have {evaluated.over(evaluated.merit(hot_set, base))} "
            f"{base.description}"
        )


def _check_model(trace: Trace, model: ModelFacts) -> None:
    """The checkpoint is the traced one; where the trace does not say, its numbers fit."""
    if "fingerprint" not in trace.metadata.missing:
        check_same_model(trace, model)
        return
    for name in ("num_moe_layers", "num_experts", "top_k"):
        traced, found = (getattr(shape, name) for shape in (trace.shape, model.shape))
        if traced > found or (traced != found and name != "top_k"):
            raise PlacementError(
                f"{trace.path}: has {name} {traced}, but {model.name} has {found}",
                "name the checkpoint that was traced with --model",
            )


def _situation(sample: Sample, facts: ModelFacts, request: AdviceRequest) -> Situation:
    plan = request.plan
    counts = sample.counts
    has_tokens = counts.counts[:, DECODE].sum(axis=(1, 2)) > 0
    weight_format = plan.weight_format or facts.shape.dtype
    return Situation(
        shape=facts.shape,
        expert_bytes=np.asarray(facts.expert_bytes, np.int64),
        counts=counts,
        split=split_documents(counts.group_domain, has_tokens, plan.folds, plan.seed),
        routed=sample.routed,
        clocks=clocks_of(plan.hardware, facts.shape, weight_format, facts.expert_bytes),
        policies=list(dict.fromkeys(map(_cache_policy, request.policies))),
        ram_bytes=_ram_bytes(plan.hardware),
        seed=plan.seed,
        pieces=sample.pieces,
    )


def _cache_policy(text: str) -> Policy:
    policy = parse_policy(text)
    if policy.knows_future:
        raise MoeprofError(
            f"policy {text}: {policy.order} knows the future, no cache does",
            "leave it out: the oracle is always tried",
        )
    if policy.order == "static":
        raise MoeprofError(
            f"policy {text}: keeps what it begins with, which is no cache",
            "leave it out: the busiest experts are always tried",
        )
    return policy


def _ram_bytes(profile: HardwareProfile | None) -> float:
    return float("inf") if profile is None else profile.tiers["ram"].capacity_bytes


def _sweep(
    situation: Situation, facts: ModelFacts, request: AdviceRequest
) -> Iterator[advice.SweepPoint]:
    """The strategies at other budgets; those that cannot hold the model are left out."""
    nothing_fits = True
    for vram_bytes in request.sweep:
        budget = _budget_of_any_card(facts, request.plan, vram_bytes)
        if budget is None:
            continue
        room = budget.experts_available_bytes
        if situation.total_bytes - min(room, situation.total_bytes) > situation.ram_bytes:
            continue
        nothing_fits = False
        evaluated = evaluate(situation, room)
        yield advice.SweepPoint(vram_bytes, room, judge(evaluated).answer, evaluated.outcomes())
    if request.sweep and nothing_fits:
        raise CapacityError(
            "sweep: the model fits into none of the budgets up to "
            f"{format_size(request.sweep[-1])}",
            "sweep to more VRAM",
        )


def _budget_of_any_card(facts: ModelFacts, plan: PlanRequest, vram_bytes: int) -> Budget | None:
    """The budget on a card that has so much; None where the rest of the model does not fit."""
    try:
        return expert_budget(facts, dataclasses.replace(plan, vram_bytes=vram_bytes, hardware=None))
    except CapacityError:
        return None
