"""The page of `moeprof report`: one self-contained HTML file that people send to each other."""

from moeprof.report.page.document import report_page
from moeprof.report.page.inputs import PageInputs
from moeprof.report.page.policies import simulation_request
from moeprof.report.page.strategies import swept_budgets

__all__ = ["PageInputs", "report_page", "simulation_request", "swept_budgets"]
