import gzip
import json
import sys
from pathlib import Path

import foreign
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from builders import make_block, make_shape, make_trace
from foreign import MOE_LAYERS, NUM_EXPERTS, TOP_K, counts_of, make_routing

from moeprof.errors import TraceError
from moeprof.interop import FORMATS, Facts, import_trace
from moeprof.native import NO_EXPERT
from moeprof.trace import Trace

PROMPT, DECODED = make_routing(5), make_routing(4, seed=1)
BOTH = np.concatenate([PROMPT, DECODED])
# What the files of a format do not say.
SHAPE = Facts(num_experts=NUM_EXPERTS, expert_bytes=1000, moe_layers=MOE_LAYERS)


def load(tmp_path: Path, name: str, *files: Path, **facts: object) -> Trace:
    given = {"num_experts": None, "expert_bytes": None, "moe_layers": None} | facts
    return import_trace(name, files, tmp_path / "trace", Facts(**given))


def rows(trace: Trace) -> np.ndarray:
    """[T, L, K] int64 in the order of documents, -1 where empty."""
    layers = [trace.routing(layer).experts.astype(int) for layer in trace.shape.moe_layers]
    routing = np.stack(layers, axis=1)
    return np.where(routing == NO_EXPERT, -1, routing)


def without_last_layer(prompt: np.ndarray, kept: list[int]) -> np.ndarray:
    """The prompt, empty in the last layer except for the tokens in `kept`."""
    seen = prompt.copy()
    seen[[token for token in range(len(prompt)) if token not in kept], -1] = -1
    return seen


def test_route_trace(tmp_path: Path) -> None:
    file = foreign.route_trace(tmp_path / "a.csv", PROMPT, DECODED)
    trace = load(tmp_path, "route-trace", file)
    expected = np.concatenate([without_last_layer(PROMPT, [4]), DECODED])
    np.testing.assert_array_equal(rows(trace), expected)
    routing = trace.routing(1)
    assert routing.phase.tolist() == [0] * 5 + [1] * 4
    assert routing.position.tolist() == list(range(9))
    assert trace.shape.expert_bytes == (1000, 2000, 3000), "layer 0 is dense, the preamble has it"
    assert trace.shape.moe_layers == MOE_LAYERS
    assert trace.shape.dense_bytes == 40
    assert trace.metadata.model.name == "tiny.gguf"
    assert "assignments" in trace.metadata.missing
    assert "weights" in trace.metadata.missing, "nan means that a weight is not known"
    trace.verify()


def test_route_trace_keeps_weights_that_are_all_known(tmp_path: Path) -> None:
    file = foreign.route_trace(tmp_path / "a.csv", PROMPT, DECODED[:0])
    trace = load(tmp_path, "route-trace", file)
    routing = trace.routing(3)
    np.testing.assert_array_equal(routing.weights[-1], [1, 0.5])
    np.testing.assert_array_equal(routing.weights[0], [0, 0], "an empty slot weighs nothing")


def test_turns_of_a_conversation_are_documents_of_one_group(tmp_path: Path) -> None:
    file = foreign.route_trace(tmp_path / "a.csv", PROMPT, DECODED, turns=2)
    trace = load(tmp_path, "route-trace", file)
    documents = trace.documents()
    assert documents["prefill_tokens"].tolist() == [5, 5]
    assert documents["document_group"].tolist() == [0, 0], "the second turn continues the first"
    assert trace.routing(1).position.tolist() == list(range(18))
    assert trace.metadata.capture.sequence_length > 17, "a prompt is one window, wherever it begins"


def test_topk_csv(tmp_path: Path) -> None:
    file = foreign.moe_trace(tmp_path / "a.csv", PROMPT, DECODED)
    trace = load(tmp_path, "topk-csv", file, num_experts=NUM_EXPERTS, expert_bytes=1)
    expected = np.concatenate([without_last_layer(PROMPT, [4]), DECODED])
    np.testing.assert_array_equal(rows(trace), expected)
    assert trace.routing(1).phase.tolist() == [0] * 5 + [1] * 4
    assert "rank" not in trace.metadata.missing


def test_topk_csv_of_a_prompt_in_batches_keeps_the_order_of_tokens(tmp_path: Path) -> None:
    """Positions count backwards within each batch, so only the lines say the order."""
    file = foreign.moe_trace(tmp_path / "a.csv", PROMPT, DECODED, batch=2)
    trace = load(tmp_path, "topk-csv", file, num_experts=NUM_EXPERTS, expert_bytes=1)
    expected = np.concatenate([without_last_layer(PROMPT, [1, 3, 4]), DECODED])
    np.testing.assert_array_equal(rows(trace), expected)


def test_topk_csv_files_may_be_concatenated(tmp_path: Path) -> None:
    first = foreign.moe_trace(tmp_path / "a.csv", PROMPT, DECODED).read_text()
    second = foreign.moe_trace(tmp_path / "b.csv", BOTH, PROMPT).read_text()
    file = tmp_path / "c.csv"
    file.write_text(f"pos,layer,id0,id1\n{first}pos,layer,id0,id1\n{second}")
    trace = load(tmp_path, "topk-csv", file, num_experts=NUM_EXPERTS, expert_bytes=1)
    documents = trace.documents()
    assert documents["prefill_tokens"].tolist() == [5, 9]
    assert documents["decode_tokens"].tolist() == [4, 5]
    np.testing.assert_array_equal(rows(trace)[9:], [*without_last_layer(BOTH, [8]), *PROMPT])


def test_topk_csv_without_a_prompt_does_not_know_its_phase(tmp_path: Path) -> None:
    file = foreign.moe_trace(tmp_path / "a.csv", PROMPT[:0], DECODED)
    facts = {"num_experts": NUM_EXPERTS, "expert_bytes": 1}
    trace = import_trace("topk-csv", [file], tmp_path / "unsaid", Facts(**facts))
    assert "phase" in trace.metadata.missing
    assert trace.metadata.domains[0].tokens == (0, 4), "they stand as decode"
    trace = load(tmp_path, "topk-csv", file, phase="prefill", **facts)
    assert "phase" not in trace.metadata.missing
    assert trace.metadata.domains[0].tokens == (4, 0)


def test_tok_layers(tmp_path: Path) -> None:
    file = foreign.tok_layers(tmp_path / "a.jsonl", BOTH)
    trace = load(
        tmp_path, "tok-layers", file, phase="decode", num_experts=NUM_EXPERTS, expert_bytes=1
    )
    np.testing.assert_array_equal(rows(trace), BOTH)
    assert trace.routing(0).position.tolist() == list(range(1, 10))
    assert "rank" not in trace.metadata.missing
    assert trace.shape.moe_layers == (0, 1, 2)


def test_ids_that_all_ascend_have_lost_their_ranks(tmp_path: Path) -> None:
    file = foreign.tok_layers(tmp_path / "a.jsonl", np.sort(BOTH, axis=2))
    trace = load(
        tmp_path, "tok-layers", file, phase="decode", num_experts=NUM_EXPERTS, expert_bytes=1
    )
    assert "rank" in trace.metadata.missing


def test_layer_expert_csv(tmp_path: Path) -> None:
    counts = counts_of(BOTH)
    lines = ["# made by hand", "layer,expert,count,share"]
    for layer, row in zip(MOE_LAYERS, counts, strict=True):
        lines += [f"{layer},{expert},{times},0.5" for expert, times in enumerate(row)]
    lines += ["1,-1,9,1"]
    file = tmp_path / "a.csv"
    file.write_text("\n".join(lines))
    trace = load(tmp_path, "layer-expert-csv", file, top_k=TOP_K, expert_bytes=1, phase="decode")
    np.testing.assert_array_equal(trace.cell_counts().counts[0, 1], counts)
    assert trace.metadata.domains[0].tokens == (0, 9)
    assert {"rows", "order", "token_ids", "weights"} <= set(trace.metadata.missing)
    trace.verify()


def test_layer_expert_csv_of_single_assignments_needs_the_number_of_experts(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    pairs = [
        f"{MOE_LAYERS[row]},{expert}" for token in BOTH for row in range(3) for expert in token[row]
    ]
    file.write_text("\n".join(["layer,expert", *pairs]))
    facts = {"top_k": TOP_K, "expert_bytes": 1}
    with pytest.raises(TraceError, match="not every expert is listed") as failure:
        load(tmp_path, "layer-expert-csv", file, **facts)
    assert "--num-experts" in failure.value.hint
    trace = load(tmp_path, "layer-expert-csv", file, num_experts=NUM_EXPERTS, **facts)
    np.testing.assert_array_equal(trace.cell_counts().counts[0, 1], counts_of(BOTH))
    assert "phase" in trace.metadata.missing


def test_imatrix(tmp_path: Path) -> None:
    file = foreign.imatrix(tmp_path / "a.gguf", BOTH)
    trace = load(tmp_path, "imatrix", file, expert_bytes=1)
    np.testing.assert_array_equal(trace.cell_counts().counts[0, 0], counts_of(BOTH))
    assert trace.shape.moe_layers == MOE_LAYERS
    assert trace.shape.top_k == TOP_K, "expert counts over the tokens of dense weights"
    assert trace.metadata.domains[0].tokens == (9, 0), "llama-imatrix reads prompts only"
    assert "documents" in trace.metadata.missing


def test_sglang_stat_and_ktransformers_are_the_same_counts(tmp_path: Path) -> None:
    facts = {"top_k": TOP_K, "expert_bytes": 1}
    for name in ("sglang", "ktransformers"):
        file = foreign.logical_count(
            tmp_path / f"{name}.pt", BOTH, average_utilization_rate_over_window=None
        )
        trace = import_trace(name, [file], tmp_path / name, Facts(**facts))
        np.testing.assert_array_equal(trace.cell_counts().counts[0, 1], counts_of(BOTH))
        assert trace.shape.moe_layers == MOE_LAYERS, "layer 0 is dense: a row of zeros"


def test_sglang_per_token_of_single_requests(tmp_path: Path) -> None:
    """Two requests one after the other, the second with a prompt in two chunks."""
    records = [
        foreign.sglang_record(PROMPT, [0, 1, 2, 3, 4], 1, [5]),
        *(foreign.sglang_record(DECODED[at : at + 1], [5 + at], 2) for at in range(4)),
        foreign.sglang_record(PROMPT[:3], [0, 1, 2], 1, [3]),
        foreign.sglang_record(PROMPT[3:], [3, 4], 1, [2]),
        foreign.sglang_record(DECODED[:1], [5], 2),
    ]
    trace = load(tmp_path, "sglang", foreign.sglang(tmp_path / "a.pt", records), expert_bytes=1)
    np.testing.assert_array_equal(rows(trace), [*BOTH, *PROMPT, DECODED[0]])
    documents = trace.documents()
    assert documents["prefill_tokens"].tolist() == [5, 5]
    assert documents["decode_tokens"].tolist() == [4, 1]
    assert trace.routing(1).token_id.tolist() == [100 + at for at in [*range(9), *range(6)]]
    assert trace.shape.top_k == TOP_K
    assert not {"order", "documents", "token_ids"} & set(trace.metadata.missing)


def test_sglang_per_token_of_a_batch_whose_requests_differ_in_length(tmp_path: Path) -> None:
    records = [
        foreign.sglang_record(BOTH, [0, 1, 2, 0, 1, 2, 3, 4, 5], 1, [3, 6]),
        foreign.sglang_record(DECODED[:2], [3, 6], 2),
        # A mixed forward: a new prompt of three, and one decoded token of the first request.
        foreign.sglang_record(DECODED, [0, 1, 2, 4], 3, [3, 1]),
    ]
    trace = load(tmp_path, "sglang", foreign.sglang(tmp_path / "a.pt", records), expert_bytes=1)
    documents = trace.documents()
    assert documents["prefill_tokens"].tolist() == [3, 6, 3]
    assert documents["decode_tokens"].tolist() == [2, 1, 0]
    expected = [*BOTH[:3], DECODED[0], DECODED[3], *BOTH[3:], DECODED[1], *DECODED[:3]]
    np.testing.assert_array_equal(rows(trace), expected)


def test_sglang_requests_that_cannot_be_told_apart_have_no_order(tmp_path: Path) -> None:
    records = [
        foreign.sglang_record(PROMPT[:4], [0, 1, 0, 1], 1, [2, 2]),
        foreign.sglang_record(DECODED[:2], [2, 2], 2),
    ]
    trace = load(tmp_path, "sglang", foreign.sglang(tmp_path / "a.pt", records), expert_bytes=1)
    assert {"order", "documents"} <= set(trace.metadata.missing)
    assert len(trace.documents()) == 1
    np.testing.assert_array_equal(rows(trace), [*PROMPT[:4], *DECODED[:2]])


def test_sglang_physical_ids_are_translated_layer_by_layer(tmp_path: Path) -> None:
    """Nine physical experts: expert 0 has two copies, and every layer another order."""
    rng = np.random.default_rng(3)
    mapping = np.stack([rng.permutation([*range(NUM_EXPERTS), 0]) for _ in range(4)])
    physical = np.empty_like(PROMPT)
    for token in range(len(PROMPT)):
        for row, layer in enumerate(MOE_LAYERS):
            for slot in range(TOP_K):
                copies = np.flatnonzero(mapping[layer] == PROMPT[token, row, slot])
                physical[token, row, slot] = rng.choice(copies)
    records = [foreign.sglang_record(physical, [0, 1, 2, 3, 4], 1, [5])]
    file = foreign.sglang(tmp_path / "a.pt", records, torch.from_numpy(mapping))
    trace = load(tmp_path, "sglang", file, expert_bytes=1)
    np.testing.assert_array_equal(rows(trace), PROMPT)
    assert trace.shape.num_experts == NUM_EXPERTS


def test_sglang_per_pass_counts_physical_experts(tmp_path: Path) -> None:
    mapping = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 0]]).repeat(4, 1)
    counts = torch.zeros(4, 9, dtype=torch.int32)
    counts[1, 0], counts[1, 8], counts[1, 3], counts[1, 4] = 3, 1, 4, 2
    record = {"forward_pass_id": 0, "rank": 0, "global_physical_count": counts}
    file = foreign.sglang(tmp_path / "a.pt", [record, record], mapping)
    trace = load(tmp_path, "sglang", file, top_k=2, expert_bytes=1)
    assert trace.cell_counts().counts[0, 1].tolist() == [[8, 0, 0, 8, 4, 0, 0, 0]]


@pytest.mark.parametrize("form", ["lists", "base64", "npz"])
def test_vllm(tmp_path: Path, form: str) -> None:
    prompt_ids, token_ids = [1, 2, 3, 4, 5], [6, 7, 8, 9, 10]
    if form == "npz":
        file = tmp_path / "a.npz"
        np.savez(
            file,
            prompt_routed_experts=PROMPT.astype(np.int16),
            routed_experts=DECODED.astype(np.int16),
            prompt_token_ids=prompt_ids,
            token_ids=token_ids,
        )
    else:
        choice = {"index": 0, "token_ids": token_ids, "text": "..."}
        response = {"usage": {"prompt_tokens": 5}, "choices": [choice]}
        if form == "lists":
            response["prompt_routed_experts"] = PROMPT.tolist()
            choice["routed_experts"] = DECODED.tolist()
        else:
            choice["routed_experts"] = foreign.npy_base64(BOTH.astype(np.uint8))
        response["prompt_token_ids"] = prompt_ids
        file = tmp_path / "a.json"
        file.write_text(json.dumps(response))
    trace = load(tmp_path, "vllm", file, **{f: getattr(SHAPE, f) for f in SHAPE_FIELDS})
    np.testing.assert_array_equal(rows(trace), BOTH)
    routing = trace.routing(1)
    assert routing.phase.tolist() == [0] * 5 + [1] * 4
    assert routing.token_id.tolist() == list(range(1, 10)), "the tenth was never fed"
    assert trace.shape.moe_layers == MOE_LAYERS


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_what_it_cannot_say(name: str) -> None:
    assert "\n\nIt cannot say " in sys.modules[FORMATS[name].read.__module__].__doc__


SHAPE_FIELDS = ("num_experts", "expert_bytes", "moe_layers")


def test_vllm_json_lines_of_several_choices_with_a_cached_prefix(tmp_path: Path) -> None:
    cached = PROMPT.copy()
    cached[:3] = -1
    joint = np.concatenate([cached, DECODED]).astype(np.int32)
    response = {
        "usage": {"prompt_tokens": 5},
        "choices": [{"routed_experts": foreign.npy_base64(joint)} for _ in range(2)],
    }
    file = tmp_path / "a.jsonl.gz"
    with gzip.open(file, "wt") as stream:
        stream.write(json.dumps(response) + "\n\n" + json.dumps(response) + "\n")
    trace = load(tmp_path, "vllm", file, **{f: getattr(SHAPE, f) for f in SHAPE_FIELDS})
    documents = trace.documents()
    assert documents["prefill_tokens"].tolist() == [2, 0, 2, 0], "choices share their prompt"
    assert documents["document_group"].tolist() == [0, 0, 1, 1]
    assert trace.routing(1).position.tolist()[:6] == [3, 4, 5, 6, 7, 8]
    assert "assignments" not in trace.metadata.missing


def test_vllm_rows_of_a_known_prefix_may_be_left_out(tmp_path: Path) -> None:
    """`routed_experts_prompt_start` 3: rows begin at position 3 and end before the last token."""
    response = {
        "usage": {"prompt_tokens": 5, "completion_tokens": 5},
        "choices": [{"routed_experts": foreign.npy_base64(BOTH[3:])}],
    }
    file = tmp_path / "a.json"
    file.write_text(json.dumps(response))
    trace = load(tmp_path, "vllm", file, **{f: getattr(SHAPE, f) for f in SHAPE_FIELDS})
    routing = trace.routing(1)
    assert routing.position.tolist() == [3, 4, 5, 6, 7, 8]
    assert routing.phase.tolist() == [0, 0, 1, 1, 1, 1]
    np.testing.assert_array_equal(rows(trace), BOTH[3:])


def test_parquet(tmp_path: Path) -> None:
    files = []
    scores = np.sort(np.random.default_rng(0).random((9, TOP_K)).astype(np.float16))[:, ::-1]
    for row, layer in enumerate((2, 3, 4)):
        table = pa.table(
            {
                "scores": pa.array(scores.tolist(), pa.list_(pa.float16())),
                "indices": pa.array(BOTH[:, row].tolist(), pa.list_(pa.int16())),
            }
        )
        files.append(tmp_path / f"layer_{layer:02d}.parquet")
        pq.write_table(table, files[-1], row_group_size=4)
    samples = tmp_path / "000.parquet"
    pq.write_table(pa.table({"token_id": pa.array(range(50, 59), pa.int32())}), samples)
    facts = {"num_experts": NUM_EXPERTS, "expert_bytes": 1, "phase": "prefill"}
    trace = load(tmp_path, "parquet", *files, samples, **facts)
    np.testing.assert_array_equal(rows(trace), BOTH)
    assert trace.shape.moe_layers == (2, 3, 4)
    assert trace.routing(2).token_id.tolist() == list(range(50, 59))
    np.testing.assert_array_equal(trace.routing(4).weights, scores)
    assert "documents" in trace.metadata.missing
    cut = import_trace(
        "parquet", [*files, samples], tmp_path / "cut",
        Facts(max_tokens=6, document_tokens=4, moe_layers=MOE_LAYERS, **facts),
    )  # fmt: skip
    assert cut.documents()["prefill_tokens"].tolist() == [4, 2]
    assert cut.shape.moe_layers == MOE_LAYERS, "FLAME-MoE counts layers from 1"
    assert cut.routing(1).position.tolist() == [0, 1, 2, 3, 0, 1]
    assert "documents" not in cut.metadata.missing
    np.testing.assert_array_equal(rows(cut), BOTH[:6])


@pytest.mark.parametrize("name", [name for name, one in FORMATS.items() if one.write is not None])
def test_what_was_written_is_read_back(tmp_path: Path, name: str) -> None:
    shape = make_shape(moe_layers=MOE_LAYERS, num_experts=NUM_EXPERTS, top_k=3)
    block = make_block(shape, [0] * 6 + [1] * 5 + [2] * 4, decode=2)
    trace = make_trace(tmp_path / "first", {"text": block}, shape)
    says_phase = name in ("route-trace", "vllm", "topk-csv")
    file = tmp_path / "file"
    FORMATS[name].write(trace, file)
    files = sorted(file.iterdir()) if file.is_dir() else [file]
    facts = Facts(
        num_experts=NUM_EXPERTS,
        top_k=3,
        moe_layers=MOE_LAYERS,
        expert_bytes=None if name == "route-trace" else 1000,
        phase=None if says_phase else "decode",
    )
    again = import_trace(name, files, tmp_path / "second", facts)
    again.verify()
    assert again.shape.num_experts == NUM_EXPERTS
    assert again.shape.expert_bytes == (1000,) * 3
    if not again.has_rows:
        ours, theirs = (one.cell_counts().counts.sum(axis=(0, 1)) for one in (trace, again))
        np.testing.assert_array_equal(ours, theirs)
        return
    np.testing.assert_array_equal(rows(trace), rows(again))
    if says_phase:
        for layer in MOE_LAYERS:
            ours, theirs = trace.routing(layer), again.routing(layer)
            np.testing.assert_array_equal(ours.phase, theirs.phase)
            np.testing.assert_array_equal(ours.sequence, theirs.sequence)
            np.testing.assert_array_equal(ours.position, theirs.position)
    if "weights" not in again.metadata.missing:
        np.testing.assert_array_equal(trace.routing(2).weights, again.routing(2).weights)
