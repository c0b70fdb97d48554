import json
import re
import resource
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import make_block, make_metadata, make_shape, make_trace, write_block

from moeprof.analyze import AnalysisSettings, analyze
from moeprof.errors import TraceError
from moeprof.native import NO_EXPERT
from moeprof.trace import open_trace
from moeprof.trace.writer import Document, TraceWriter

SEQUENCE = [0] * 6 + [1] * 4 + [2] * 5


@pytest.fixture
def trace(tmp_path: Path):
    shape = make_shape()
    blocks = {
        "code": make_block(shape, SEQUENCE, decode=2),
        "prose": make_block(shape, [3] * 7 + [4] * 8, seed=1),
    }
    return make_trace(tmp_path / "trace", blocks)


def test_columns_are_those_of_the_specification(trace) -> None:
    expected = pa.schema(
        [
            pa.field("sequence", pa.uint32(), nullable=False),
            pa.field("position", pa.uint32(), nullable=False),
            pa.field("token_id", pa.uint32(), nullable=False),
            pa.field("phase", pa.dictionary(pa.int8(), pa.string()), nullable=False),
            pa.field("layer", pa.uint16(), nullable=False),
            pa.field(
                "experts",
                pa.list_(pa.field("element", pa.uint16(), nullable=False), 2),
                nullable=False,
            ),
            pa.field(
                "weights",
                pa.list_(pa.field("element", pa.float16(), nullable=False), 2),
                nullable=False,
            ),
        ]
    )
    part = pq.ParquetFile(trace.path / "domain=code" / "part-00000.parquet")
    assert part.schema_arrow.equals(expected)
    assert part.num_row_groups == 2, "one row group for each layer"


def test_rows_come_back_as_they_were_recorded(trace) -> None:
    block = make_block(make_shape(), SEQUENCE, decode=2)
    for row, layer in enumerate((1, 2)):
        routing = trace.routing(layer, "code")
        np.testing.assert_array_equal(routing.experts, block.experts[row])
        np.testing.assert_array_equal(routing.weights, block.weights[row])
        np.testing.assert_array_equal(routing.sequence, block.sequence)
        np.testing.assert_array_equal(routing.position, block.position)
        np.testing.assert_array_equal(routing.token_id, block.token_id)
        np.testing.assert_array_equal(routing.phase, block.phase)


def test_rows_are_sorted_by_document_whatever_the_order_of_recording(tmp_path: Path) -> None:
    shape = make_shape()
    block = make_block(shape, SEQUENCE)
    order = np.random.default_rng(5).permutation(len(SEQUENCE))
    shuffled = type(block)(
        *(getattr(block, n)[order] for n in ("sequence", "position", "token_id", "phase")),
        block.experts[:, order],
        block.weights[:, order],
    )
    one = make_trace(tmp_path / "one", {"code": block})
    other = make_trace(tmp_path / "other", {"code": shuffled})
    pd.testing.assert_frame_equal(one.rows(), other.rows())


def test_counts_are_those_of_a_pandas_group_by(trace) -> None:
    rows = trace.rows().explode("experts")
    group = rows["sequence"] % 64
    expected = rows.groupby(["domain", group, "phase", "layer", "experts"], observed=True).size()
    counts = trace.counts()
    keys = ["domain", "document_group", "phase", "layer", "expert"]
    found = counts.set_index(keys)["assignments"]
    assert found.sum() == len(rows)
    assert {tuple(k): v for k, v in found.items()} == {tuple(k): v for k, v in expected.items()}
    dense = trace.cell_counts()
    assert dense.counts.sum() == len(rows)
    assert dense.select("prose", "prefill").sum() == 15 * 2 * 2
    assert dense.select("code", "decode").sum() == 6 * 2 * 2
    assert dense.select("prose", "decode").shape == (0, 2, 4)


def test_stored_counts_equal_a_recount_and_are_not_trusted_when_stale(trace) -> None:
    stored = trace.counts()
    pd.testing.assert_frame_equal(stored, trace.tally().to_frame(), check_dtype=False)
    document = json.loads((trace.path / "trace.json").read_text())
    document["parts"] = document["parts"][:1]
    document["domains"][1]["tokens"] = [0, 0]
    (trace.path / "trace.json").write_text(json.dumps(document))
    assert set(open_trace(trace.path).counts()["domain"]) == {"code"}


def test_counts_changed_by_hand_are_found(trace) -> None:
    path = trace.path / "counts.parquet"
    table = pq.read_table(path)
    column = table.schema.get_field_index("assignments")
    doubled = pa.compute.multiply(table["assignments"], 2)
    pq.write_table(table.set_column(column, table.schema.field(column), doubled), path)
    with pytest.raises(TraceError, match="does not count what the parts hold") as failure:
        trace.verify()
    assert "delete the file" in failure.value.hint
    path.write_bytes(b"garbage")
    with pytest.raises(TraceError, match="not a readable Parquet file"):
        trace.counts()
    path.unlink()
    assert trace.counts()["assignments"].sum() == 30 * 2 * 2


def test_duckdb_and_pandas_read_a_trace_without_moeprof(trace) -> None:
    pattern = f"{trace.path}/domain=*/*.parquet"
    found = duckdb.sql(
        f"select domain, layer, expert, count(*) from (select domain, layer, unnest(experts) as "
        f"expert from read_parquet('{pattern}', hive_partitioning=true)) group by all"
    ).fetchall()
    counts = trace.counts().groupby(["domain", "layer", "expert"], observed=True)["assignments"]
    assert {row[:3]: row[3] for row in found} == counts.sum().to_dict()
    frame = pd.read_parquet(trace.path / "domain=code")
    assert len(frame) == 15 * 2


def test_documents_know_their_tokens_by_phase(trace) -> None:
    documents = trace.documents().set_index("sequence")
    assert documents["prefill_tokens"].tolist() == [4, 2, 3, 7, 8]
    assert documents["decode_tokens"].tolist() == [2, 2, 2, 0, 0]
    assert documents["domain"].tolist() == ["code"] * 3 + ["prose"] * 2


def test_a_document_may_span_parts(tmp_path: Path) -> None:
    shape = make_shape()
    block = make_block(shape, [0] * 8)
    with TraceWriter(tmp_path / "trace", make_metadata(shape)) as writer:
        for half in (slice(0, 4), slice(4, 8)):
            piece = type(block)(
                block.sequence[half],
                block.position[half],
                block.token_id[half],
                block.phase[half],
                block.experts[:, half],
                block.weights[:, half],
            )
            write_block(writer, "text", piece)
        trace = writer.finish()
    assert len(trace.metadata.parts) == 2
    assert trace.documents()["prefill_tokens"].tolist() == [8]
    np.testing.assert_array_equal(trace.routing(1).experts, block.experts[0])


def test_empty_slots_are_not_counted_but_accounted_for(tmp_path: Path) -> None:
    shape = make_shape()
    block = make_block(shape, [0] * 5)
    block.experts[0, 2, 1] = NO_EXPERT
    trace = make_trace(tmp_path / "trace", {"text": block})
    assert trace.counts()["assignments"].sum() == 5 * 2 * 2 - 1
    trace.verify()


def test_an_interrupted_trace_is_readable_and_knows_it_is_unfinished(tmp_path: Path) -> None:
    shape = make_shape()
    with TraceWriter(tmp_path / "trace", make_metadata(shape, ("a", "b"))) as writer:
        write_block(writer, "a", make_block(shape, SEQUENCE))
    (tmp_path / "trace" / "domain=b").mkdir()
    (tmp_path / "trace" / "domain=b" / "part-00000.parquet").write_bytes(b"never committed")
    trace = open_trace(tmp_path / "trace")
    assert not trace.metadata.complete
    assert trace.counts()["assignments"].sum() == 15 * 2 * 2


@pytest.mark.parametrize(
    ("experts", "message"),
    [([0, 4], "layer 2: row 1: expert id 4, expected below 4"), ([3, 3], "stands twice")],
)
def test_the_self_check_refuses_impossible_routing(tmp_path: Path, experts, message) -> None:
    shape = make_shape()
    block = make_block(shape, [0] * 3)
    block.experts[1, 1] = experts
    with (
        TraceWriter(tmp_path / "trace", make_metadata(shape)) as writer,
        pytest.raises(TraceError, match=message),
    ):
        writer.append(block, [Document(0, "a", 0)])


def test_a_token_recorded_twice_is_refused(tmp_path: Path) -> None:
    shape = make_shape()
    block = make_block(shape, [0] * 3)
    block.position[2] = 1
    with (
        TraceWriter(tmp_path / "trace", make_metadata(shape)) as writer,
        pytest.raises(TraceError, match="sequence 0 position 1 was recorded twice"),
    ):
        write_block(writer, "text", block)


def test_the_final_sum_of_assignments_is_checked(tmp_path: Path) -> None:
    shape = make_shape()
    metadata = make_metadata(shape)
    with TraceWriter(tmp_path / "trace", metadata) as writer:
        write_block(writer, "text", make_block(shape, [0] * 3))
        entry = writer.metadata.domains[0]
        writer.commit(replace(entry, tokens=(4, 0)))
        with pytest.raises(TraceError, match=r"12 assignments recorded, expected 16"):
            writer.finish()


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    metadata = make_metadata(make_shape())
    with (
        TraceWriter(tmp_path / "trace", metadata),
        pytest.raises(TraceError, match="another process is writing"),
    ):
        TraceWriter(tmp_path / "trace", metadata)


def test_a_full_disk_leaves_what_was_committed_and_nothing_half_written(tmp_path: Path) -> None:
    shape = make_shape()
    with TraceWriter(tmp_path / "trace", make_metadata(shape)) as writer:
        write_block(writer, "text", make_block(shape, [0] * 4), complete=False)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
        try:
            with pytest.raises(TraceError, match="cannot write") as failure:
                write_block(writer, "text", make_block(shape, [1] * 5000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "--resume" in failure.value.hint
    files = sorted(p.name for p in (tmp_path / "trace").rglob("*") if p.is_file())
    assert files == ["part-00000.parquet", "trace.json"]
    assert open_trace(tmp_path / "trace").counts()["assignments"].sum() == 4 * 2 * 2


def _damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _damage_foreign(path: Path) -> None:
    pq.write_table(pa.table({"text": ["not a trace"]}), path)


def _damage_type(path: Path) -> None:
    table = pq.read_table(path)
    index = table.schema.get_field_index("sequence")
    pq.write_table(table.set_column(index, "sequence", table["sequence"].cast(pa.int64())), path)


def _damage_missing(path: Path) -> None:
    path.unlink()


def _damage_rows(path: Path) -> None:
    file = pq.ParquetFile(path)
    with pq.ParquetWriter(path.with_suffix(".new"), file.schema_arrow) as writer:
        writer.write_table(file.read_row_group(0))
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_damage_truncate, "not a readable Parquet file"),
        (_damage_foreign, "column 'sequence' is missing, expected uint32"),
        (_damage_type, "column 'sequence' is int64, expected uint32"),
        (_damage_missing, "missing, but listed in trace.json"),
        (_damage_rows, "15 rows, trace.json says 30"),
    ],
)
def test_damaged_parts_are_refused_by_name(trace, damage, message) -> None:
    damage(trace.path / "domain=code" / "part-00000.parquet")
    with pytest.raises(TraceError, match=message) as failure:
        open_trace(trace.path)
    assert "part-00000.parquet" in str(failure.value)


def test_tokens_are_counted_whole_where_slots_are_empty(tmp_path: Path) -> None:
    shape = make_shape(moe_layers=(0, 1), num_experts=4, top_k=2)
    block = make_block(shape, [0] * 5 + [1] * 5, decode=2)
    block.experts[0, :4, 1] = NO_EXPERT
    block.experts[1, 8:] = NO_EXPERT
    trace = make_trace(tmp_path / "made", {"code": block}, shape)
    samples = analyze(trace, AnalysisSettings(resamples=4, sections=("skew",))).samples
    found = samples[samples["domain"] == "code"].set_index("phase")
    assert found["tokens"].to_dict() == {"prefill": 6, "decode": 4}
    assert found["assignments"].sum() == 10 * 4 - 4 - 4


def test_rows_are_not_read_from_a_changed_part(trace) -> None:
    path = trace.path / "domain=prose" / "part-00000.parquet"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    opened = open_trace(trace.path)
    layer = opened.shape.moe_layers[0]
    assert len(opened.experts(layer, "code")) == len(trace.experts(layer, "code"))
    for read in (opened.routing, opened.experts):
        with pytest.raises(TraceError, match=r"prose.*content differs from its hash"):
            read(layer)


def test_counts_with_a_changed_byte_are_refused_or_the_same(trace) -> None:
    path = trace.path / "counts.parquet"
    before, whole = trace.counts(), path.read_bytes()
    refused = 0
    for place in range(4, len(whole) - 8, 17):
        content = bytearray(whole)
        content[place] ^= 4
        path.write_bytes(content)
        try:
            assert open_trace(trace.path).counts().equals(before), place
        except TraceError:
            refused += 1
    assert refused > 10


def test_verification_finds_a_changed_byte(trace) -> None:
    path = trace.path / "domain=prose" / "part-00000.parquet"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(TraceError, match="content differs from its hash"):
        open_trace(trace.path).verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format_version=2), "format version 2, this moeprof reads 1"),
        (lambda d: d.update(surprise=1), "surprise"),
        (lambda d: d.pop("parts"), "the file: 'parts' is a required property"),
        (lambda d: d["shape"].update(num_experts="8"), "shape/num_experts: '8' is not of type"),
        (lambda d: d.update(format="other"), "not a moeprof trace"),
        (
            lambda d: d.update(parts=[{"path": "../../etc/passwd", "rows": 1, "sha256": ""}]),
            "parts/0/path",
        ),
    ],
)
def test_damaged_metadata_is_refused(trace, change, message) -> None:
    path = trace.path / "trace.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(TraceError, match=re.escape(message)):
        open_trace(trace.path)


def test_a_model_shape_changed_by_hand_is_found_by_its_counts(trace) -> None:
    path = trace.path / "trace.json"
    path.write_text(path.read_text().replace('"num_experts": 4', '"num_experts": 2'))
    with pytest.raises(TraceError, match=r"counts a expert that trace\.json does not have"):
        open_trace(trace.path).cell_counts()


def test_what_is_no_trace_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="not a trace") as failure:
        open_trace(tmp_path)
    assert "moeprof trace" in failure.value.hint
    (tmp_path / "trace.json").write_text("{")
    with pytest.raises(TraceError, match="not JSON"):
        open_trace(tmp_path)


def test_tokens_and_experts_are_the_columns_of_every_layer(tmp_path):
    shape = make_shape(num_experts=8)
    blocks = {
        "code": make_block(shape, [0] * 9 + [1] * 7, decode=3),
        "prose": make_block(shape, [2] * 8, decode=2, seed=1),
    }
    trace = make_trace(tmp_path / "made", blocks, shape)
    for domain in (None, "prose"):
        tokens = trace.tokens(domain)
        for layer in shape.moe_layers:
            routing = trace.routing(layer, domain)
            for name in ("sequence", "position", "phase"):
                assert getattr(tokens, name).tolist() == getattr(routing, name).tolist()
            assert trace.experts(layer, domain).tolist() == routing.experts.tolist()
    assert trace.tokens().domain.tolist() == [0] * 16 + [1] * 8
    with pytest.raises(ValueError, match="layer 5"):
        trace.experts(5)
    with pytest.raises(ValueError, match="domain 'x'"):
        trace.tokens("x")
