"""From a trace and a budget to a placement."""

from moeprof.plan.planner import plan
from moeprof.plan.request import PHASE_CHOICES, ModelFacts, PlanRequest

__all__ = ["PHASE_CHOICES", "ModelFacts", "PlanRequest", "plan"]
