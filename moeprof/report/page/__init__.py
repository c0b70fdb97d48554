"""The page of `moeprof report`: one self-contained HTML file that people send to each other."""

from moeprof.report.page.document import report_page
from moeprof.report.page.inputs import PageInputs
from moeprof.report.page.policies import policy_curves

__all__ = ["PageInputs", "policy_curves", "report_page"]
