import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from builders import make_block, make_shape, make_trace

import moeprof.analyze
from moeprof.cli import main

SHAPE = make_shape(num_experts=8)
QUICK = ["--resamples", "10"]


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    uneven = np.array([[0.4, 0.3, 0.1, 0.1, 0.04, 0.03, 0.02, 0.01]] * 2)
    blocks = {
        "code": make_block(SHAPE, [0] * 30 + [1] * 30, decode=10, probabilities=uneven),
        "prose": make_block(SHAPE, [2] * 30 + [3] * 30, decode=10, seed=1),
    }
    return str(make_trace(tmp_path_factory.mktemp("traces") / "made", blocks, SHAPE).path)


def run(*arguments):
    with pytest.raises(SystemExit) as left:
        main(["analyze", *map(str, arguments)])
    return left.value.code


def test_without_a_terminal_tables_are_plain_text_on_standard_output(trace, capsys):
    assert run(trace, *QUICK) == 0
    written = capsys.readouterr()
    assert written.out.startswith("prefill, all domains: 80 tokens\n new text ")
    assert "the busiest 20 % of cells (3 of 16)" in " ".join(written.out.split())
    assert "Coverage in percent, decode, by share of cells kept" in written.out
    assert "Coverage transfer" not in written.out
    assert "\x1b" not in written.out
    assert written.err == ""


def test_a_budget_in_bytes_becomes_a_number_of_cells(trace, capsys):
    assert run(trace, "--json", "--budget", "4.5kB", *QUICK) == 0  # experts of 1000 bytes
    document = json.loads(capsys.readouterr().out)
    assert document["settings"]["share"] == 4 / 16
    assert document["settings"]["budget_bytes"] == 4500
    assert {len(entry["cells"]) for entry in document["hot_sets"]} == {4}
    assert document["notes"][0] == "A budget of 4.4 KiB is 4 of 16 cells."
    assert run(trace, "--section", "coverage", "--budget", "1000TB", *QUICK) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "new text Everything fits: a hot set of all 16 cells serves every assignment" in shown
    assert "note: A budget of 909.5 TiB holds all 16 cells, which take 15.6 KiB." in shown
    assert run(trace, "--budget", "900B") == 1
    assert capsys.readouterr().err.startswith("error: a budget of 900 B holds no expert of 1000 B")
    assert run(trace, "--budget", "0") == 2


@pytest.mark.parametrize(
    ("section", "topic", "title"),
    [
        ("coverage", "new text", "Coverage in percent, all domains, by layer"),
        ("skew", "skew", "Skew by layer, decode, all domains"),
        ("locality", "next token", "Hit rate in percent of a cache"),
        ("prediction", "next layer", "Percent of the next layer's experts among so many"),
        ("coactivation", "pairs", "Pairs most often together, decode, all domains"),
        ("domains", "domains", "Coverage transfer in percent, decode"),
        ("drift", "drift", "Coverage along a document less that of the same documents"),
        ("sufficiency", "enough?", "Is it enough to decide to ±2.0 points?"),
    ],
)
def test_a_section_shows_its_sentences_and_all_its_tables(trace, capsys, section, topic, title):
    assert run(trace, "--section", section, *QUICK) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f" {topic} " in shown
    assert title in shown
    others = {"new text", "next token", "next layer", "enough?"} - {topic}
    assert not any(f" {other} " in shown for other in others)


def test_json_is_one_document_that_follows_the_schema(trace, capsys):
    assert run(trace, "--json", *QUICK) == 0
    document = json.loads(capsys.readouterr().out)
    schema = Path(moeprof.analyze.__file__).with_name("analysis.schema.json")
    jsonschema.validate(document, json.loads(schema.read_text(encoding="utf-8")))
    assert document["trace"] == "made"
    assert document["settings"]["resamples"] == 10


def test_options_reach_the_analysis(trace, capsys):
    chosen = ["--phase", "decode", "--domain", "code", "--share", "0.25", "--folds", "2"]
    sections = ["--section", "skew", "--section", "locality", "--tolerance", "0.05"]
    assert run(trace, "--json", "--seed", "3", *chosen, *sections, *QUICK) == 0
    document = json.loads(capsys.readouterr().out)
    expected = {"phase": "decode", "domain": "code", "share": 0.25, "folds": 2, "seed": 3}
    expected |= {"sections": ["skew", "locality"], "tolerance": 0.05, "resamples": 10}
    expected |= {"budget_bytes": None}
    assert document["settings"] == expected
    assert document["skew"] and document["locality"]
    assert document["coverage"] == document["prediction"] == document["sufficiency"] == []
    assert {(row["domain"], row["phase"]) for row in document["samples"]} == {("code", "decode")}


def test_plots_are_written_and_named_on_standard_error(trace, tmp_path, capsys):
    folder = tmp_path / "new" / "plots"
    assert run(trace, "--json", "--plots", folder, *QUICK) == 0
    written = capsys.readouterr()
    json.loads(written.out)
    names = ["coverage", "transfer", "heat_map_prefill", "heat_map_decode"]
    names += ["skew", "lag_overlap", "lru", "drift", "learning"]
    assert written.err.splitlines() == [f"wrote {folder / name}.png" for name in names]
    for name in names:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_that_is_there_is_replaced_only_with_force(trace, tmp_path, capsys):
    there = tmp_path / "transfer.png"
    there.write_text("mine")
    assert run(trace, "--plots", tmp_path, *QUICK) == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err == (
        f"error: {there}: already exists\nhint: name another folder, or add --force\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["transfer.png"]
    assert there.read_text() == "mine"
    assert run(trace, "--plots", tmp_path, "--force", *QUICK) == 0
    assert there.read_bytes().startswith(b"\x89PNG")


def test_plots_into_a_file_are_refused_before_anything_is_computed(trace, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert run(trace, "--plots", tmp_path / "file", *QUICK) == 1
    assert "is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["--domain", "code2"], "no domain 'code2'", "its domains are code, prose"),
        (["--phase", "decode", "--domain", "x"], "no domain 'x'", "its domains are code, prose"),
    ],
)
def test_what_the_trace_does_not_have_is_named(trace, capsys, arguments, error, hint):
    assert run(trace, *arguments) == 1
    assert capsys.readouterr().err == f"error: trace made: {error}\nhint: {hint}\n"


def test_decode_of_a_trace_without_it_says_how_to_record_it(tmp_path, capsys):
    made = make_trace(tmp_path / "short", {"text": make_block(SHAPE, [0] * 9)}, SHAPE)
    assert run(made.path, "--phase", "decode") == 1
    assert capsys.readouterr().err == (
        "error: trace short: no decode assignments\n"
        "hint: decode is recorded with: moeprof trace --generate N\n"
    )


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_a_trace_that_cannot_be_read_is_a_sentence_and_a_remedy(tmp_path, capsys, damage):
    made = make_trace(tmp_path / "made", {"text": make_block(SHAPE, [0] * 9)}, SHAPE)
    part = made.path / made.metadata.parts[0].path
    if damage == "missing":
        part.unlink()
    elif damage == "truncated":
        part.write_bytes(part.read_bytes()[:-20])
    else:
        (made.path / "trace.json").write_text("{}")
    assert run(made.path) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'made'}")


@pytest.mark.parametrize(
    "wrong",
    [
        ["--phase", "both"],
        ["--share", "0"],
        ["--folds", "1"],
        ["--resamples", "1"],
        ["--section", "everything"],
        ["--tolerance", "0"],
    ],
)
def test_wrong_usage_exits_with_two(trace, capsys, wrong):
    assert run(trace, *wrong) == 2
    assert capsys.readouterr().out == ""
