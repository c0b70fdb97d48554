"""Running a model with its experts where a placement says, and measuring it."""

from moeprof.runtime.loader import LoadOptions, load, planned_checkpoint
from moeprof.runtime.model import LoadedModel
from moeprof.runtime.prompts import Prompts
from moeprof.runtime.replay import replay, select_documents
from moeprof.runtime.report import RunReport
from moeprof.runtime.sampling import Sampling
from moeprof.runtime.session import Session, run

__all__ = [
    "LoadOptions",
    "LoadedModel",
    "Prompts",
    "RunReport",
    "Sampling",
    "Session",
    "load",
    "planned_checkpoint",
    "replay",
    "run",
    "select_documents",
]
