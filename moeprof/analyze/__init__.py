"""Pure functions over counts and rows of a trace; `analyze` does all of them."""

from moeprof.analyze.settings import OVERALL, SECTIONS, SHARES, AnalysisSettings
from moeprof.analyze.summary import Analysis, analyze

__all__ = ["OVERALL", "SECTIONS", "SHARES", "Analysis", "AnalysisSettings", "analyze"]
