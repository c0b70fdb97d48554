import numpy as np
import pytest
from builders import make_block, make_metadata, make_shape, make_trace, write_block

from moeprof.analyze import walk
from moeprof.analyze.sample import Sample
from moeprof.analyze.settings import OVERALL, AnalysisSettings
from moeprof.trace.folds import group_of_sequence
from moeprof.trace.writer import TokenBlock, TraceWriter

SHAPE = make_shape(num_experts=8)


def tokens_of(trace, phase, domain=None):
    return walk.tokens_of_phase(trace, trace.tokens(domain), group_of_sequence(trace), phase)


class Recorder:
    def __init__(self):
        self.seen = {}

    def visit(self, layer):
        self.seen[layer.row] = (layer.experts.copy(), layer.before)


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    blocks = {
        "code": make_block(SHAPE, [0] * 9 + [1] * 7, decode=3),
        "prose": make_block(SHAPE, [2] * 8, decode=2, seed=1),
    }
    return make_trace(tmp_path_factory.mktemp("traces") / "made", blocks, SHAPE, generate=3)


def test_tokens_of_a_phase_stand_by_document(trace):
    decode = tokens_of(trace, "decode")
    assert decode.num_tokens == 8
    assert decode.group.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert decode.document_start.tolist() == [0, 3, 6, 8]
    assert decode.run_start.tolist() == [0, 3, 6, 8]
    assert decode.place.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert [decode.span(domain) for domain in (None, 0, 1)] == [
        slice(0, 8), slice(0, 6), slice(6, 8)]  # fmt: skip
    assert decode.rows.tolist() == [6, 7, 8, 13, 14, 15, 22, 23]


def test_both_phases_are_one_run_when_asked_for(trace):
    both = tokens_of(trace, "all")
    assert both.rows is None
    assert both.run_start.tolist() == [0, 9, 16, 24]
    assert both.place.tolist() == [*range(9), *range(7), *range(8)]


def test_a_domain_alone_has_the_groups_of_the_whole_trace(trace):
    prose = tokens_of(trace, "prefill", "prose")
    assert prose.group.tolist() == [2] * 6
    assert prose.span(1) == slice(0, 6)
    assert prose.span(0) == slice(0, 0)


def test_windows_read_without_context_are_runs_of_their_own(tmp_path):
    made = make_trace(
        tmp_path / "made", {"text": make_block(SHAPE, [0] * 10)}, SHAPE, sequence_length=4
    )
    prefill = tokens_of(made, "prefill")
    assert prefill.run_start.tolist() == [0, 4, 8, 10]
    assert prefill.document_start.tolist() == [0, 10]


def test_documents_that_are_spread_over_parts_are_put_together(tmp_path):
    whole = make_block(SHAPE, [0] * 6 + [1] * 6)
    with TraceWriter(tmp_path / "made", make_metadata(SHAPE, sequence_length=3)) as writer:
        for start in (0, 3):
            rows = np.concatenate([np.arange(start, start + 3), np.arange(6 + start, 9 + start)])
            piece = TokenBlock(
                *(getattr(whole, name)[rows] for name in ("sequence", "position", "token_id")),
                whole.phase[rows], whole.experts[:, rows], whole.weights[:, rows],
            )  # fmt: skip
            write_block(writer, "text", piece)
        made = writer.finish()
    prefill = tokens_of(made, "prefill")
    assert prefill.document_start.tolist() == [0, 6, 12]
    for row, layer in enumerate(SHAPE.moe_layers):
        np.testing.assert_array_equal(prefill.select(made.experts(layer)), whole.experts[row])


def test_every_layer_is_shown_once_with_the_one_before(trace):
    recorders = {phase: Recorder() for phase in ("prefill", "decode")}
    visits = [(tokens_of(trace, phase), [one]) for phase, one in recorders.items()]
    walk.visit_layers(trace, None, visits)
    for phase, one in recorders.items():
        assert sorted(one.seen) == [0, 1]
        assert one.seen[0][1] is None
        np.testing.assert_array_equal(one.seen[1][1], one.seen[0][0])
        rows = trace.rows(phase=phase, layers=[2])
        np.testing.assert_array_equal(one.seen[1][0], np.stack(rows["experts"].to_numpy()))


def test_a_failure_in_a_visitor_is_not_lost(trace):
    class Broken:
        def visit(self, layer):
            raise RuntimeError(f"row {layer.row}")

    with pytest.raises(RuntimeError, match="row 0"):
        walk.visit_layers(trace, None, [(tokens_of(trace, "prefill"), [Broken()])])


def test_a_sample_finds_its_tokens_groups_and_folds(trace):
    decode = tokens_of(trace, "decode")
    cells = trace.cell_counts()
    for domain, span, groups in (
        (OVERALL, slice(0, 8), [0, 0, 0, 1, 1, 1, 2, 2]),
        ("code", slice(0, 6), [0, 0, 0, 1, 1, 1]),
        ("prose", slice(6, 8), [0, 0]),
    ):
        sample = Sample(cells, domain, "decode", AnalysisSettings())
        place = walk.tokens_of_sample(decode, sample, trace.domains)
        assert place.span == span
        assert place.group.tolist() == groups
        expected = sample.fold[groups] if sample.num_groups > 1 else np.zeros(2)
        assert place.fold.tolist() == expected.tolist()
