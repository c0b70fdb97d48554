"""The smallest models and corpora: every section, table and figure copes."""

import io
import json
from pathlib import Path

import jsonschema
import pytest
from builders import make_shape
from rich.console import Console
from synthetic import make_trace

import moeprof.analyze
from moeprof.analyze import AnalysisSettings, analyze
from moeprof.report.figures import png
from moeprof.report.section_figures import section_figures
from moeprof.report.tables import analysis_tables

SCHEMA = json.loads(
    Path(moeprof.analyze.__file__).with_name("analysis.schema.json").read_text(encoding="utf-8")
)
SECTIONS = tuple(reversed(moeprof.analyze.SECTIONS))  # some order of its own: all their tables


@pytest.mark.parametrize(
    ("moe_layers", "num_experts", "top_k"),
    [((0,), 1, 1), ((0,), 2, 2), ((0, 3), 3, 3), ((1,), 9, 8)],
)
@pytest.mark.parametrize(
    ("documents", "tokens", "domains", "phase"),
    [
        (1, (1, 0), 1, None),
        (1, (0, 1), 2, "all"),
        (2, (3, 0), 2, None),
        (3, (1, 1), 1, "all"),
        (5, (2, 40), 2, None),
    ],
)
def test_every_section_copes(
    tmp_path, moe_layers, num_experts, top_k, documents, tokens, domains, phase
):
    shape = make_shape(moe_layers=moe_layers, num_experts=num_experts, top_k=top_k)
    trace = make_trace(tmp_path / "made", None, documents, tokens, ("a", "b")[:domains], shape)
    made = analyze(trace, AnalysisSettings(resamples=4, phase=phase, sections=SECTIONS))
    jsonschema.validate(json.loads(made.to_json()), SCHEMA)
    console = Console(width=90, file=io.StringIO())
    console.print(analysis_tables(made), highlight=False)
    assert "nan" not in console.file.getvalue()
    if documents == 5:
        for figure in section_figures(made).values():
            assert png(figure).startswith(b"\x89PNG")
