import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import make_block, make_metadata, make_shape, write_block
from planning import make_facts, make_hardware

from moeprof.analyze import analyze
from moeprof.cli import main
from moeprof.errors import TraceError
from moeprof.plan import PlanRequest, plan
from moeprof.trace import Trace, open_trace, schema
from moeprof.trace.counts_only import write_counts
from moeprof.trace.origin import UNSAID, Origin
from moeprof.trace.tally import Tally
from moeprof.trace.writer import TraceWriter

COUNTS_ALONE = ("rows", "order", "phase", "weights", "fingerprint")


def counts_trace(path: Path, missing: tuple[str, ...] = COUNTS_ALONE) -> Trace:
    """Three tokens in two layers of four experts, top-2, all in one document."""
    metadata = make_metadata(make_shape(), weights=False)
    domain = schema.Domain("text", ("text.txt",), 1, 1, (3, 0), "", True)
    origin = Origin("imatrix", ("a.gguf",), missing, "")
    metadata = replace(metadata, domains=(domain,), origin=origin)
    tally = Tally(metadata)
    tally.assignments["text"][0, 0] = [[3, 2, 1, 0], [0, 0, 3, 3]]
    write_counts(path, metadata, tally)
    return open_trace(path)


def rows_trace(path: Path, missing: tuple[str, ...]) -> Trace:
    metadata = replace(make_metadata(make_shape()), origin=Origin("csv", ("a.csv",), missing))
    with TraceWriter(path, metadata) as writer:
        write_block(writer, "text", make_block(make_shape(), [0] * 4 + [1] * 4, decode=2))
        return writer.finish()


def fails(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 1
    return capsys.readouterr().err


def test_a_trace_of_counts_alone_gives_its_counts(tmp_path: Path) -> None:
    trace = counts_trace(tmp_path / "trace")
    assert not trace.has_rows
    assert trace.metadata.missing == COUNTS_ALONE
    cells = trace.cell_counts()
    assert cells.counts[0, 0].tolist() == [[3, 2, 1, 0], [0, 0, 3, 3]]
    trace.verify()
    assert trace.digest == trace.metadata.origin.counts_sha256
    assert trace.counts()["weight_mass"].isna().all()


@pytest.mark.parametrize(
    "read",
    [
        lambda trace: trace.documents(),
        lambda trace: trace.routing(1),
        lambda trace: trace.rows(),
        lambda trace: trace.tally(),
    ],
)
def test_rows_of_a_trace_of_counts_alone_are_refused(tmp_path: Path, read) -> None:
    trace = counts_trace(tmp_path / "trace")
    with pytest.raises(TraceError, match="imported from imatrix, which does not say which experts"):
        read(trace)


def test_what_an_imported_trace_does_not_say_is_refused_with_the_reason(tmp_path: Path) -> None:
    trace = rows_trace(tmp_path / "trace", ("phase", "rank"))
    trace.require("order", "a cache cannot be replayed")
    with pytest.raises(TraceError) as failure:
        trace.require("phase", "decode cannot be priced")
    assert str(failure.value) == (
        f"{trace.path}: decode cannot be priced: it was imported from csv, which does not say "
        f"{UNSAID['phase']}"
    )
    assert "--phase" in failure.value.hint
    assert trace.has_rows
    trace.verify()


def test_a_recorded_trace_lacks_nothing_and_does_not_mention_an_origin() -> None:
    metadata = make_metadata(make_shape())
    assert metadata.missing == ()
    assert metadata.has_rows
    assert "origin" not in json.loads(metadata.to_json())


def test_the_schema_names_the_words_that_the_code_knows() -> None:
    text = Path(schema.__file__).with_name("trace.schema.json").read_text()
    words = json.loads(text)["properties"]["origin"]["properties"]["missing"]["items"]["enum"]
    assert words == list(UNSAID)
    specification = (Path(__file__).parent.parent / "traces" / "README.md").read_text()
    assert all(f"`{word}`" in specification for word in UNSAID)


def test_the_origin_comes_back_from_json(tmp_path: Path) -> None:
    metadata = counts_trace(tmp_path / "trace").metadata
    assert schema.TraceMetadata.from_json(metadata.to_json(), tmp_path) == metadata


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"missing": ["rows", "order", "colour"]}, "'colour' is not one of"),
        ({"missing": ["rows"]}, "without rows there is no order"),
        ({"missing": ["order"]}, "counts_sha256 stands exactly where rows are missing"),
        ({"counts_sha256": None}, "counts_sha256 stands exactly where rows are missing"),
        ({"format": ""}, "origin/format"),
        ({"surprise": 1}, "'surprise' was unexpected"),
    ],
)
def test_a_damaged_origin_is_refused(tmp_path: Path, change, message: str) -> None:
    trace = counts_trace(tmp_path / "trace")
    file = trace.path / "trace.json"
    document = json.loads(file.read_text())
    document["origin"] |= change
    file.write_text(json.dumps(document))
    with pytest.raises(TraceError, match=message):
        open_trace(trace.path)


def test_parts_beside_missing_rows_are_refused(tmp_path: Path) -> None:
    trace = counts_trace(tmp_path / "trace")
    file = trace.path / "trace.json"
    document = json.loads(file.read_text())
    document["parts"] = [{"path": "domain=text/part-00000.parquet", "rows": 6, "sha256": ""}]
    file.write_text(json.dumps(document))
    with pytest.raises(TraceError, match="lists parts, but says that rows are missing"):
        open_trace(trace.path)


def test_counts_alone_are_checked(tmp_path: Path) -> None:
    trace = counts_trace(tmp_path / "trace")
    file = trace.path / "counts.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:-9] + b"x" + content[-8:])
    with pytest.raises(TraceError, match=r"content differs|not a readable"):
        trace.verify()
    file.unlink()
    with pytest.raises(TraceError, match="missing, but all that this trace has"):
        trace.counts()


def test_counts_that_do_not_fit_the_tokens_are_not_written(tmp_path: Path) -> None:
    metadata = make_metadata(make_shape(), weights=False)
    domain = schema.Domain("text", ("text.txt",), 1, 1, (3, 0), "", True)
    origin = Origin("imatrix", ("a.gguf",), COUNTS_ALONE, "")
    tally = Tally(replace(metadata, domains=(domain,)))
    tally.assignments["text"][0, 0, 0] = [3, 2, 1, 0]
    complete = replace(metadata, domains=(domain,), origin=origin)
    with pytest.raises(TraceError, match=r"6 assignments counted, expected 12 \(3 tokens x 2 x 2"):
        write_counts(tmp_path / "trace", complete, tally)
    assert not (tmp_path / "trace").exists()
    partial = replace(origin, missing=(*COUNTS_ALONE, "assignments"))
    write_counts(tmp_path / "trace", replace(complete, origin=partial), tally)
    open_trace(tmp_path / "trace").verify()


def test_inspect_shows_the_origin_and_verifies_counts(tmp_path: Path, capsys) -> None:
    trace = counts_trace(tmp_path / "trace")
    with pytest.raises(SystemExit):
        main(["inspect", str(trace.path), "--verify"])
    shown = capsys.readouterr()
    assert "origin     imatrix: a.gguf" in shown.out
    for word in COUNTS_ALONE:
        assert f"  {word:<12} it does not say {UNSAID[word]}" in shown.out
    assert "verified: hash and sums of the counts" in shown.err


def test_analyze_works_on_counts_alone_and_says_what_they_do_not(tmp_path: Path) -> None:
    analysis = analyze(counts_trace(tmp_path / "trace"))
    row = analysis.coverage[analysis.coverage["share"] == 0.5].iloc[0]
    np.testing.assert_allclose(row["in_sample"], 11 / 12)
    assert any("does not say whether its tokens were prefill" in note for note in analysis.notes)


def test_commands_that_need_more_refuse_with_the_reason(tmp_path: Path, capsys) -> None:
    trace = counts_trace(tmp_path / "trace")
    model = "moeprof/demo/model"
    shown = fails(
        capsys, "plan", trace.path, "--model", model, "--vram", "6MB", "--context", "64",
        "--device-context", "0", "-o", tmp_path / "plan.json",
    )  # fmt: skip
    assert "it cannot be planned for a checkpoint: it was imported from imatrix" in shown
    assert "hint: import it anew with --model MODEL" in shown
    shown = fails(
        capsys, "run", "-p", "placements/demo.json", "--replay", trace.path, "--model", model
    )
    assert "its documents cannot be fed to a model again: it was imported from imatrix" in shown
    shown = fails(
        capsys, "trace", model, "moeprof/demo/texts/c/05-vdbetrace.txt", "-o", trace.path,
        "--resume",
    )  # fmt: skip
    assert "was imported from imatrix, only a trace recorded by moeprof can be resumed" in shown


def test_a_plan_of_counts_alone_says_why_it_predicts_no_speed(tmp_path: Path) -> None:
    shape = make_shape()
    known = tuple(word for word in COUNTS_ALONE if word not in ("fingerprint", "phase"))
    metadata = make_metadata(shape, weights=False)
    domain = schema.Domain("text", ("text.txt",), 2, 2, (0, 6), "", True)
    metadata = replace(metadata, domains=(domain,), origin=Origin("stat", ("a",), known, ""))
    tally = Tally(metadata)
    tally.assignments["text"][:2, 1] = [[3, 2, 1, 0], [0, 0, 3, 3]]
    write_counts(tmp_path / "trace", metadata, tally)
    request = PlanRequest(
        vram_bytes=9_500,
        context_tokens=64,
        batch_size=1,
        device_context_bytes=0,
        hardware=make_hardware(),
    )
    placement = plan(open_trace(tmp_path / "trace"), make_facts(shape), request)
    assert placement.predicted.decode.hits == 22, "four experts fit: all but the one chosen twice"
    assert placement.predicted.decode.tokens_per_s is None
    assert any("the trace holds counts only" in note for note in placement.notes)
