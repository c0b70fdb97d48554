"""From a trace and a budget to a placement, and to advice whether one is worth it."""

from moeprof.plan.advice import Advice
from moeprof.plan.advisor import advise
from moeprof.plan.planner import plan
from moeprof.plan.request import PHASE_CHOICES, AdviceRequest, ModelFacts, PlanRequest

__all__ = [
    "PHASE_CHOICES",
    "Advice",
    "AdviceRequest",
    "ModelFacts",
    "PlanRequest",
    "advise",
    "plan",
]
