import json
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
from builders import make_block, make_counts, make_shape, make_trace

import moeprof.analyze
from moeprof.analyze import OVERALL, SHARES, AnalysisSettings, analyze
from moeprof.errors import TraceError

QUICK = AnalysisSettings(resamples=20)
SCHEMA = Path(moeprof.analyze.__file__).with_name("analysis.schema.json")


def skewed(seed, documents=6, num_layers=2, num_experts=8, tokens=200):
    rng = np.random.default_rng(seed)
    chances = rng.dirichlet(np.full(num_experts, 0.5), num_layers)
    return np.stack([rng.multinomial(tokens, chances) for _ in range(documents)])


@pytest.fixture(scope="module")
def cells():
    return make_counts(
        {"code": skewed(1), "prose": skewed(2)},
        {"code": skewed(3, tokens=50), "prose": skewed(4, tokens=50)},
    )


@pytest.fixture(scope="module")
def analysis(cells):
    return analyze(cells, QUICK)


def row_of(frame, **where):
    for name, value in where.items():
        frame = frame[frame[name] == value]
    (row,) = frame.to_dict("records")
    return row


def test_every_domain_and_phase_has_every_share_once(analysis):
    keys = analysis.coverage[["domain", "phase", "share"]]
    assert not keys.duplicated().any()
    assert len(keys) == 3 * 2 * len(SHARES)
    assert set(keys["domain"]) == {OVERALL, "code", "prose"}


def test_the_three_coverages_of_a_hand_counted_trace():
    # pooled 12 0 9 3: of four cells the best two serve 21 of 24; without a document it is the same
    cells = make_counts({"text": [[[4, 0, 3, 1]]] * 3})
    row = row_of(analyze(cells, QUICK).coverage, share=0.5)
    assert row["cells"] == 2
    assert [row["in_sample"], row["in_sample_low"], row["in_sample_high"]] == [0.875] * 3
    assert [row["held_out"], row["held_out_low"], row["held_out_high"]] == [0.875] * 3
    assert 0.5 < row["floor_low"] < row["floor"] < row["floor_high"] < 1


def test_a_share_of_its_own_stands_in_the_coverage_table(cells):
    made = analyze(cells, AnalysisSettings(share=0.37, resamples=5))
    assert set(made.coverage["share"]) == {*SHARES, 0.37}


def test_prefill_and_decode_are_never_mixed(cells, analysis):
    silent = make_counts(
        {"code": cells.counts[:6, 0], "prose": cells.counts[6:, 0]},
    )
    alone = analyze(silent, QUICK)
    both = analysis.coverage[analysis.coverage["phase"] == "prefill"]
    pd.testing.assert_frame_equal(alone.coverage, both.reset_index(drop=True))
    assert alone.notes == ("decode: the trace has no assignments in this phase.",)


def test_phase_all_adds_the_phases_and_says_so(cells):
    made = analyze(cells, AnalysisSettings(phase="all", resamples=5))
    assert set(made.samples["phase"]) == {"all"}
    assert row_of(made.samples, domain=OVERALL)["assignments"] == cells.counts.sum()
    assert "Prefill and decode are added" in made.notes[0]


def test_a_domain_has_the_same_numbers_alone_as_among_others(cells, analysis):
    alone = analyze(cells, AnalysisSettings(domain="prose", resamples=20))
    among = analysis.coverage[analysis.coverage["domain"] == "prose"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone.coverage, among)
    assert alone.transfer.empty
    assert alone.jaccard.empty


def test_an_analysis_repeats_exactly_with_its_seed_and_differs_with_another(cells, analysis):
    assert analyze(cells, QUICK).to_json() == analysis.to_json()
    other = analyze(cells, AnalysisSettings(resamples=20, seed=1))
    assert not other.coverage["in_sample_low"].equals(analysis.coverage["in_sample_low"])
    assert other.coverage["in_sample"].equals(analysis.coverage["in_sample"])


def test_even_routing_stays_at_the_floor_and_at_the_share_of_cells():
    rng = np.random.default_rng(0)
    shape = {"num_experts": 16, "top_k": 2}
    tokens = rng.random((20, 4, 300, 16)).argsort(axis=3)[..., :2]  # 20 documents of 300 tokens
    counts = (tokens[..., None] == np.arange(16)).sum(axis=(2, 3))
    made = analyze(make_counts({"text": counts}, **shape))
    outside = 0
    for _, row in made.coverage.iterrows():
        kept = row["cells"] / 64
        assert row["floor_low"] <= row["in_sample"] <= row["floor_high"]
        outside += not row["held_out_low"] <= kept <= row["held_out_high"]
        assert row["in_sample"] > kept
    assert outside <= 1


def test_layers_carry_their_checkpoint_index_and_their_own_hot_set():
    counts = [[[9, 1, 0, 0], [0, 0, 4, 6]]] * 2
    layers = analyze(
        make_counts({"text": counts}, moe_layers=(3, 7)), AnalysisSettings(share=0.25)
    ).layers
    assert layers["layer"].tolist() == [3, 7]
    assert layers["experts"].tolist() == [1, 1]
    assert layers["in_sample"].tolist() == [0.9, 0.6]
    assert layers["held_out"].tolist() == [0.9, 0.6]


def test_hot_sets_list_the_busiest_cells_first():
    counts = [[[9, 1, 0, 0], [0, 0, 4, 6]]]
    made = analyze(make_counts({"text": counts}, moe_layers=(3, 7)), AnalysisSettings(share=0.375))
    found = made.hot_sets[["rank", "layer", "expert", "assignments"]].to_numpy().tolist()
    assert found == [[0, 3, 0, 9], [1, 7, 3, 6], [2, 7, 2, 4]]


def test_a_single_document_has_no_held_out_coverage_and_a_note_says_why():
    made = analyze(make_counts({"text": [[[3, 1, 0, 0]]]}), QUICK)
    assert made.coverage["held_out"].isna().all()
    assert made.coverage["in_sample_low"].isna().all()
    assert made.coverage["in_sample"].notna().all()
    assert "prefill: a single document in text" in made.notes[0]


def test_a_domain_without_decode_is_left_out_of_that_phase_only():
    prefill = {"code": [[[3, 1]]] * 3, "prose": [[[1, 3]]] * 3}
    made = analyze(make_counts(prefill, {"code": [[[1, 1]]] * 3, "prose": [[[0, 0]]] * 3}), QUICK)
    found = made.samples[["domain", "phase"]].to_numpy().tolist()
    assert found == [[OVERALL, "prefill"], ["code", "prefill"], ["prose", "prefill"],
                     ["code", "decode"]]  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "settings", "message"),
    [
        ([[[0, 0]]], {}, "trace: no assignments were recorded"),
        ([[[1, 0]]], {"domain": "code"}, "trace: no domain 'code'"),
        ([[[1, 0]]], {"phase": "decode"}, "trace: no decode assignments"),
        ([[[1, 0]]], {"phase": "decode", "domain": "text"},
         "trace: no decode assignments in domain text"),
    ],
)  # fmt: skip
def test_what_cannot_be_analysed_is_a_sentence_with_a_remedy(counts, settings, message):
    with pytest.raises(TraceError) as raised:
        analyze(make_counts({"text": counts}), AnalysisSettings(**settings))
    assert str(raised.value) == message
    assert raised.value.hint


@pytest.mark.parametrize(
    "wrong",
    [{"share": 0}, {"share": 1.5}, {"folds": 1}, {"resamples": 1}, {"seed": -1}, {"phase": "x"}],
)
def test_settings_out_of_range_are_a_mistake(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AnalysisSettings(**wrong)


def test_the_json_document_follows_its_schema(analysis):
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    document = json.loads(analysis.to_json())
    jsonschema.validate(document, schema)
    assert len(document["coverage"]) == len(analysis.coverage)
    assert [len(entry["cells"]) for entry in document["hot_sets"]] == [3] * 6
    assert len(document["transfer"]) == 8


def test_the_schema_refuses_a_document_with_a_field_more_or_less(analysis):
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    for change in ({"more": 1}, {"settings": {}}):
        document = json.loads(analysis.to_json()) | change
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, schema)


def test_what_cannot_be_said_is_null_in_json():
    document = json.loads(analyze(make_counts({"text": [[[3, 1]]]}), QUICK).to_json())
    jsonschema.validate(document, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert document["coverage"][0]["held_out"] is None
    assert document["transfer"] == []


def test_a_trace_on_disk_gives_the_numbers_of_its_rows(tmp_path):
    shape = make_shape(num_experts=8)
    blocks = {
        "code": make_block(shape, [0] * 40 + [1] * 40, decode=10),
        "prose": make_block(shape, [2] * 40 + [3] * 40, decode=10, seed=1),
    }
    trace = make_trace(tmp_path / "made", blocks, shape)
    made = analyze(trace, QUICK)
    assert made.name == "made"
    rows = trace.rows(domain="code", phase="decode")
    chosen = np.stack(rows["experts"].to_numpy())
    pooled = np.zeros((2, 8), int)
    np.add.at(pooled, (rows["layer"].to_numpy().astype(int)[:, None] - 1, chosen), 1)
    row = row_of(made.coverage, domain="code", phase="decode", share=0.5)
    assert row["in_sample"] == np.sort(pooled.ravel())[-8:].sum() / pooled.sum()


def test_two_documents_give_held_out_coverage_without_an_interval():
    # every resample that differs from the sample leaves one of the two folds without training
    cells = make_counts({"text": [[[4, 0, 3, 1]], [[1, 3, 0, 4]]]})
    made = analyze(cells, QUICK)
    row = row_of(made.coverage, share=0.5)
    # the first document's best two, {0, 2}, serve 1 of the second's 8; the second's, {1, 3}, 1 of 8
    assert row["held_out"] == 2 / 16
    assert np.isnan(row["held_out_low"]) and np.isnan(row["held_out_high"])
    assert any("interval" in note for note in made.notes)
