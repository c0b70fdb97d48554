from dataclasses import replace

import numpy as np
import pytest
from builders import make_block, make_metadata, make_shape, make_trace, write_block
from replaying import make_routed

from moeprof.errors import TraceError
from moeprof.policies import read_accesses
from moeprof.trace import open_trace
from moeprof.trace.origin import Origin
from moeprof.trace.writer import TraceWriter

SHAPE = make_shape(moe_layers=(1, 2), num_experts=4, top_k=2)
PROMPT = [("p", [[0, 1], [2, 3]]), ("p", [[1, 3], [2, 0]])]
REPLY = [("d", [[3, 2], [1, 0]]), ("d", [[0, 2], [1, 2]])]


def batches(accesses):
    pairs = zip(accesses.batch_start[:-1], accesses.batch_start[1:], strict=True)
    return [accesses.cells[first:end].tolist() for first, end in pairs]


def test_a_prompt_is_one_batch_per_layer_and_a_decoded_token_another(tmp_path):
    accesses = read_accesses(make_routed(tmp_path / "t", SHAPE, {"a": [PROMPT + REPLY]}))
    # Cells of the second layer are 4 and above; repeated experts of a prompt are looked up once.
    assert batches(accesses) == [[0, 1, 3], [6, 7, 4], [3, 2], [5, 4], [0, 2], [5, 6]]
    assert accesses.uses.tolist() == [1, 2, 1, 2, 1, 1, *[1] * 8]
    assert accesses.step_phase.tolist() == [0, 1, 1]
    assert accesses.step_tokens.tolist() == [2, 1, 1]
    assert accesses.phase.tolist() == [0, 0, 1, 1, 1, 1]
    assert accesses.row.tolist() == [0, 1] * 3
    assert accesses.tokens.tolist() == [2, 2, 1, 1, 1, 1]
    assert accesses.lookups.tolist() == [3, 3, 2, 2, 2, 2]


def test_documents_follow_each_other_and_can_be_chosen(tmp_path):
    made = {"a": [PROMPT, REPLY], "b": [REPLY[:1]]}
    trace = make_routed(tmp_path / "t", SHAPE, made)
    accesses = read_accesses(trace)
    assert accesses.step_sequence.tolist() == [0, 1, 1, 2]
    assert accesses.document_starts.tolist() == [0, 1, 3]
    assert accesses.sequence.tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
    assert batches(read_accesses(trace, ["b"])) == [[3, 2], [5, 4]]
    some = read_accesses(trace, documents=np.array([0, 2]))
    assert some.step_sequence.tolist() == [0, 2]
    assert batches(some) == batches(accesses)[:2] + batches(accesses)[-2:]
    chosen = accesses.select(np.array([True, False, False, True]))
    assert batches(chosen) == batches(some)
    assert chosen.uses.tolist() == some.uses.tolist()


def test_a_prompt_is_cut_where_the_context_restarts(tmp_path):
    made = {"a": [PROMPT + PROMPT]}
    accesses = read_accesses(make_routed(tmp_path / "t", SHAPE, made, sequence_length=3))
    assert accesses.step_tokens.tolist() == [3, 1]


def test_prompts_between_replies_are_steps_of_their_own(tmp_path):
    made = {"a": [PROMPT + REPLY[:1] + PROMPT]}
    accesses = read_accesses(make_routed(tmp_path / "t", SHAPE, made))
    assert accesses.step_phase.tolist() == [0, 1, 0]
    assert accesses.step_tokens.tolist() == [2, 1, 2]


def test_slots_without_an_expert_are_not_looked_up(tmp_path):
    made = {"a": [[("d", [[3], []]), ("d", [[], [1, 2]])]]}
    accesses = read_accesses(make_routed(tmp_path / "t", SHAPE, made))
    assert batches(accesses) == [[3], [], [], [5, 6]]


def test_a_document_in_several_parts_is_put_together(tmp_path):
    block = make_block(SHAPE, [0] * 6 + [1] * 6, decode=2)

    def rows(chosen):
        fields = ("sequence", "position", "token_id", "phase")
        some = {name: getattr(block, name)[chosen] for name in fields}
        return replace(block, **some, experts=block.experts[:, chosen], weights=None)

    with TraceWriter(tmp_path / "t", make_metadata(SHAPE, ("a",), weights=False)) as writer:
        # The first part holds the beginning of both documents, the second their ends.
        for part in (np.r_[0:3, 6:9], np.r_[3:6, 9:12]):
            write_block(writer, "a", rows(part))
        trace = writer.finish()
    whole = make_trace(tmp_path / "whole", {"a": rows(np.arange(12))}, SHAPE, weights=False)
    assert batches(read_accesses(trace)) == batches(read_accesses(whole))
    assert read_accesses(trace).step_sequence.tolist() == [0, 0, 0, 1, 1, 1]


def test_every_assignment_is_behind_a_lookup(tmp_path):
    block = make_block(SHAPE, [0] * 40 + [1] * 30, decode=10)
    trace = make_trace(tmp_path / "t", {"a": block}, SHAPE, sequence_length=16)
    accesses = read_accesses(trace)
    counted = np.bincount(accesses.cells, accesses.uses, SHAPE.num_cells)
    expected = trace.cell_counts().counts.sum(axis=(0, 1)).ravel()
    assert counted.tolist() == expected.tolist()


@pytest.mark.parametrize("missing", ["order", "phase"])
def test_an_import_that_lacks_what_a_replay_needs_is_refused_with_the_reason(tmp_path, missing):
    trace = make_routed(tmp_path / "t", SHAPE, {"a": [PROMPT]})
    origin = Origin("topk-csv", ("x.csv",), (missing,))
    text = replace(trace.metadata, origin=origin).to_json()
    (trace.path / "trace.json").write_text(text, encoding="utf-8")
    with pytest.raises(TraceError, match="a cache cannot be replayed: it was imported from topk"):
        read_accesses(open_trace(trace.path))
