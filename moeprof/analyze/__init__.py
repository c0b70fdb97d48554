"""Pure functions over counts: coverage, hot sets, overlap; `analyze` does all of them."""

from moeprof.analyze.settings import OVERALL, SHARES, AnalysisSettings
from moeprof.analyze.summary import Analysis, analyze

__all__ = ["OVERALL", "SHARES", "Analysis", "AnalysisSettings", "analyze"]
