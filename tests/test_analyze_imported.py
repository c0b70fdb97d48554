"""What an analysis makes of traces that do not say everything."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from builders import make_metadata, make_shape
from synthetic import Routing, route

import moeprof.analyze
from moeprof.analyze import AnalysisSettings, analyze
from moeprof.cli import main
from moeprof.errors import TraceError
from moeprof.trace import open_trace, schema
from moeprof.trace.counts_only import write_counts
from moeprof.trace.origin import Origin
from moeprof.trace.tally import Tally
from moeprof.trace.writer import Document, TokenBlock, TraceWriter

SHAPE = make_shape(moe_layers=(0, 1), num_experts=12, top_k=2)
SCHEMA = Path(moeprof.analyze.__file__).with_name("analysis.schema.json")
OF_COUNTS = ("coverage", "layers", "hot_sets", "skew", "concentration", "learning", "sufficiency")
OF_ROWS = ("prediction", "coactivation", "pairs")
OF_ORDER = ("lag_overlap", "lru", "locality_layers", "place_drift", "trace_drift")


def domain_of(documents, tokens):
    return schema.Domain("text", ("a",), documents, documents, (0, documents * tokens), "", True)


def routed(documents, tokens):
    rng = np.random.default_rng(0)
    return [route(Routing(1.0), SHAPE, (0, tokens), 0.0, rng) for _ in range(documents)]


def counts_alone(path, documents=6, tokens=50):
    origin = Origin("imatrix", ("a.gguf",), ("rows", "order"), "")
    metadata = replace(make_metadata(SHAPE, weights=False), origin=origin)
    metadata = replace(metadata, domains=(domain_of(documents, tokens),))
    tally = Tally(metadata)
    for group, experts in enumerate(routed(documents, tokens)):
        for row in range(2):
            tally.assignments["text"][group, 1, row] = np.bincount(
                experts[row].ravel(), minlength=12
            )
    write_counts(path, metadata, tally)
    return open_trace(path)


def without_order(path, documents=6, tokens=50, also=()):
    origin = Origin("parquet", ("a.parquet",), ("order", *also))
    metadata = replace(make_metadata(SHAPE, weights=False, generate=tokens), origin=origin)
    sequence = np.repeat(np.arange(documents, dtype=np.uint32), tokens)
    block = TokenBlock(
        sequence, np.tile(np.arange(tokens, dtype=np.uint32), documents), sequence,
        np.ones(len(sequence), np.uint8), np.concatenate(routed(documents, tokens), axis=1), None,
    )  # fmt: skip
    with TraceWriter(path, metadata) as writer:
        writer.append(block, [Document(n, f"text/{n}", n) for n in range(documents)])
        writer.commit(replace(domain_of(documents, tokens), digest="0" * 64))
        return writer.finish()


def frames_of(analysis, names):
    return {name: getattr(analysis, name) for name in names}


def test_counts_alone_give_what_counts_support_and_say_what_is_missing(tmp_path):
    made = analyze(counts_alone(tmp_path / "made"), AnalysisSettings(resamples=10))
    assert not any(frame.empty for frame in frames_of(made, OF_COUNTS).values())
    assert all(frame.empty for frame in frames_of(made, (*OF_ROWS, *OF_ORDER)).values())
    said = " ".join(made.notes)
    assert "which experts a token chose together, it holds counts only: there is no section " \
        "prediction or coactivation." in said  # fmt: skip
    assert "in which order the tokens came: there is no section locality or drift." in said
    jsonschema.validate(json.loads(made.to_json()), json.loads(SCHEMA.read_text(encoding="utf-8")))


def test_rows_without_order_give_what_tokens_chose_together(tmp_path):
    made = analyze(without_order(tmp_path / "made"), AnalysisSettings(resamples=10))
    assert not any(frame.empty for frame in frames_of(made, (*OF_COUNTS, *OF_ROWS)).values())
    assert all(frame.empty for frame in frames_of(made, OF_ORDER).values())
    assert any("there is no section locality or drift" in note for note in made.notes)
    assert not any("prediction" in note for note in made.notes)


def test_the_same_counts_with_and_without_rows_say_the_same(tmp_path):
    settings = AnalysisSettings(resamples=10)
    counts = analyze(counts_alone(tmp_path / "counts"), settings)
    rows = analyze(without_order(tmp_path / "rows"), settings)
    for name, frame in frames_of(counts, OF_COUNTS).items():
        assert frame.equals(getattr(rows, name)), name


def test_an_unknown_phase_is_said_and_not_taken_for_an_absent_one(tmp_path):
    settings = AnalysisSettings(resamples=10, sections=("coverage",))
    known = analyze(without_order(tmp_path / "known"), settings)
    unknown = analyze(without_order(tmp_path / "unknown", also=("phase",)), settings)
    absent = "prefill: the trace has no assignments in this phase."
    unsaid = "which does not say whether its tokens were prefill or decode, all stand as decode."
    assert absent in known.notes
    assert not any(unsaid in note for note in known.notes)
    assert absent not in unknown.notes
    assert any(unsaid in note for note in unknown.notes)


def test_a_budget_is_refused_where_the_size_of_experts_is_unknown(tmp_path):
    trace = without_order(tmp_path / "made", also=("expert_bytes",))
    with pytest.raises(TraceError, match="what fits into a budget cannot be told"):
        analyze(trace, AnalysisSettings(resamples=10, budget_bytes=10**9))


@pytest.mark.parametrize("make", [counts_alone, without_order])
@pytest.mark.parametrize("sections", [[], ["--section", "drift", "--section", "prediction"]])
def test_the_command_shows_what_there_is(tmp_path, capsys, make, sections):
    path = make(tmp_path / "made").path
    with pytest.raises(SystemExit) as left:
        main(["analyze", str(path), "--resamples", "10", "--plots", str(tmp_path / "p"), *sections])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "note: Imported from" in shown
    assert "nan" not in shown
