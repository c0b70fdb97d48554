import csv
import gzip
import json
from collections import Counter, OrderedDict
from itertools import pairwise
from pathlib import Path

import foreign
import numpy as np
import pytest
from broken import broken_files
from builders import make_shape
from foreign import MOE_LAYERS, NUM_EXPERTS, TOP_K, make_routing

from moeprof.cli import main
from moeprof.errors import TraceError
from moeprof.interop import FORMATS, Facts, KnownModel, import_trace
from moeprof.interop.suspicion import suspicions
from moeprof.native import NO_EXPERT
from moeprof.trace import Trace, open_trace
from moeprof.trace.schema import ModelIdentity

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "traces"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared traces are not here")
PROMPT, DECODED = make_routing(5), make_routing(4, seed=1)
KNOWN = Facts(num_experts=NUM_EXPERTS, top_k=TOP_K, expert_bytes=1, phase="decode")


# The real files.


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Trace:
    file = SHARED / "qwen3-30b-a3b.route_trace_v1.csv.gz"
    return import_trace("route-trace", [file], tmp_path_factory.mktemp("t") / "qwen", Facts())


@needs_shared
def test_the_real_route_trace_is_what_its_lines_say(qwen: Trace) -> None:
    file = SHARED / "qwen3-30b-a3b.route_trace_v1.csv.gz"
    with gzip.open(file, "rt") as stream:
        lines = list(csv.DictReader(line for line in stream if not line.startswith("#")))
    expected = Counter((int(x["phase"]), int(x["layer"]), int(x["expert"])) for x in lines)
    counts = qwen.cell_counts().counts[0]
    found = {tuple(map(int, cell)): int(counts[tuple(cell)]) for cell in np.argwhere(counts)}
    assert found == dict(expected)
    assert sorted(set(qwen.shape.expert_bytes)) == [2654208, 3059712]
    one = next(x for x in lines if (x["step"], x["layer"], x["slot"]) == ("100", "7", "3"))
    routing = qwen.routing(7)
    assert routing.experts[100, 3] == int(one["expert"])
    assert routing.weights[100, 3] == np.float16(one["weight"])
    qwen.verify()


@needs_shared
def test_the_real_route_trace_replays_as_its_makers_counted(qwen: Trace) -> None:
    """LRU as the shared README describes it, on the imported rows, at all eleven budgets."""
    batches = []
    layers = [qwen.routing(layer) for layer in qwen.shape.moe_layers]
    prompt = layers[0].phase == 0
    for row, layer in enumerate(layers):
        batches.append((row, layer.experts[prompt].ravel(), False))
    for token in np.flatnonzero(~prompt):
        batches += [(row, layer.experts[token], True) for row, layer in enumerate(layers)]
    # Within a batch the last use of an expert counts: this order gives every digit published.
    batches = [
        (row, list(dict.fromkeys(ids[ids != NO_EXPERT].tolist()[::-1]))[::-1], decode)
        for row, ids, decode in batches
    ]
    with (SHARED / "qwen3-30b-a3b.cache-replay.csv").open() as stream:
        published = [line for line in csv.DictReader(stream) if line["policy"] == "lru"]
    assert len(published) == 11
    for line in published:
        hits, lookups, read = replay_lru(
            batches, qwen.shape.expert_bytes, int(line["budget_mib"]) * 2**20
        )
        assert 100 * hits / lookups == pytest.approx(float(line["hit_pct_decode"]), abs=0.0006)
        assert read / 2**20 == pytest.approx(float(line["read_mib"]), abs=0.06)


def replay_lru(batches, expert_bytes, budget: int) -> tuple[int, int, int]:
    """Hits and lookups of decode, and bytes read in both phases."""
    cache: OrderedDict[tuple[int, int], int] = OrderedDict()
    held = hits = lookups = read = 0
    for row, experts, decode in batches:
        size = expert_bytes[row]
        for expert in experts:
            lookups += decode
            if (row, expert) in cache:
                hits += decode
                cache.move_to_end((row, expert))
            else:
                read += size
                held += size
                cache[row, expert] = size
        touched = {(row, expert) for expert in experts}
        while held > budget:
            oldest = next((cell for cell in cache if cell not in touched), None)
            if oldest is None:
                break
            held -= cache.pop(oldest)
    return hits, lookups, read


@needs_shared
def test_the_real_tok_layers_trace_is_what_its_lines_say(tmp_path: Path) -> None:
    file = SHARED / "olmoe-1b-7b.warp.jsonl.gz"
    trace = import_trace("tok-layers", [file], tmp_path / "trace", Facts(num_experts=64))
    with gzip.open(file, "rt") as stream:
        tokens = [json.loads(line)["layers"] for line in stream if line.strip()]
    assert len(tokens) == 299
    for layer in range(16):
        ids = trace.routing(layer).experts
        assert ids.tolist() == [token[layer] for token in tokens]
    assert {"rank", "phase", "expert_bytes", "weights"} <= set(trace.metadata.missing)
    # Published by its makers: 43.5 % of a token's experts are used again by the next token.
    again = [
        len(set(now[layer]) & set(then[layer])) / 8
        for then, now in pairwise(tokens)
        for layer in range(16)
    ]
    assert np.mean(again) == pytest.approx(0.435, abs=0.0005)


@needs_shared
def test_real_foreign_traces_are_not_suspected(qwen: Trace) -> None:
    counts = qwen.cell_counts().counts.sum(axis=(0, 1))
    assert suspicions(counts, qwen.shape.top_k) == []


# Broken files.


@pytest.mark.parametrize("name", FORMATS)
def test_broken_files_get_a_sentence_and_leave_nothing(tmp_path: Path, name: str) -> None:
    facts = Facts(num_experts=None if name == "route-trace" else NUM_EXPERTS, top_k=TOP_K)
    folder, output = tmp_path / "files", tmp_path / "output" / "trace"
    folder.mkdir()
    cases = broken_files(name, folder)
    assert len(cases) > 4
    for what, (file, message) in cases.items():
        with pytest.raises(TraceError) as failure:
            import_trace(name, [file], output, facts)
        assert message in str(failure.value), what
        assert failure.value.hint, f"{what}: no remedy"
        assert str(failure.value).isprintable(), what
        assert not output.parent.exists() or not list(output.parent.iterdir()), what


# What the user says.


def good(tmp_path: Path) -> Path:
    return foreign.tok_layers(tmp_path / "good.jsonl", DECODED)


@pytest.mark.parametrize(
    ("facts", "message", "hint"),
    [
        ({}, "do not say how many experts a layer has", "--num-experts"),
        ({"num_experts": 4}, "the model has 4", "--num-experts"),
        ({"num_experts": 8, "top_k": 3}, "top-k: --top-k says 3, the files says 2", "--top-k"),
        ({"num_experts": 8, "moe_layers": (1, 2)}, "3 layers in the files, 2 MoE layers", "--moe"),
        ({"num_experts": 8, "domain": "a b"}, "domain 'a b'", "--domain"),
    ],
)
def test_what_is_needed_is_asked_for_by_name(tmp_path: Path, facts, message, hint) -> None:
    with pytest.raises(TraceError, match=message) as failure:
        import_trace("tok-layers", [good(tmp_path)], tmp_path / "trace", Facts(**facts))
    assert hint in failure.value.hint
    assert not (tmp_path / "trace").exists()


def test_a_checkpoint_says_what_files_and_user_do_not(tmp_path: Path) -> None:
    shape = make_shape(moe_layers=MOE_LAYERS, num_experts=NUM_EXPERTS, top_k=4, expert_bytes=777)
    model = KnownModel(ModelIdentity("tiny", "print", "hash"), shape)
    notes: list[str] = []
    trace = import_trace(
        "tok-layers", [good(tmp_path)], tmp_path / "trace", Facts(model=model), tell=notes.append
    )
    assert trace.shape.moe_layers == MOE_LAYERS
    assert trace.shape.expert_bytes == (777,) * 3
    assert trace.shape.hidden_size == 8
    assert trace.shape.top_k == TOP_K
    assert trace.metadata.model.fingerprint == "print"
    assert not {"fingerprint", "hidden_size", "dense_bytes"} & set(trace.metadata.missing)
    assert any("top-k is 2, that of the checkpoint 4" in note for note in notes)
    with pytest.raises(TraceError, match="experts: --num-experts says 9, --model says 8"):
        import_trace(
            "tok-layers", [good(tmp_path)], tmp_path / "other", Facts(model=model, num_experts=9)
        )


def test_an_existing_trace_is_replaced_only_when_asked_and_only_when_whole(tmp_path: Path) -> None:
    file, output = good(tmp_path), tmp_path / "trace"
    first = import_trace("tok-layers", [file], output, KNOWN)
    with pytest.raises(TraceError, match="already exists"):
        import_trace("tok-layers", [file], output, KNOWN)
    (tmp_path / "bad.jsonl").write_text('{"tok": 1, "layers": [[3, 3]]}')
    with pytest.raises(TraceError, match="stands twice"):
        import_trace("tok-layers", [tmp_path / "bad.jsonl"], output, KNOWN, force=True)
    assert open_trace(output).digest == first.digest
    other = foreign.tok_layers(tmp_path / "other.jsonl", PROMPT)
    again = import_trace("tok-layers", [other], output, KNOWN, force=True)
    assert again.digest != first.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bad.jsonl", "good.jsonl", "other.jsonl", "trace",
    ]  # fmt: skip
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("keep")
    with pytest.raises(TraceError, match="exists and is not a trace"):
        import_trace("tok-layers", [file], tmp_path / "folder", KNOWN, force=True)
    assert (tmp_path / "folder" / "mine.txt").exists()


def test_several_files_are_several_documents(tmp_path: Path) -> None:
    files = [
        foreign.tok_layers(tmp_path / f"{name}.jsonl", routing)
        for name, routing in (("a", PROMPT), ("b", DECODED))
    ]
    trace = import_trace("tok-layers", files, tmp_path / "trace", KNOWN)
    documents = trace.documents()
    assert documents["name"].tolist() == ["a.jsonl", "b.jsonl"]
    assert documents["decode_tokens"].tolist() == [5, 4]
    assert documents["document_group"].tolist() == [0, 1]
    assert trace.metadata.origin.files == ("a.jsonl", "b.jsonl")
    with pytest.raises(TraceError, match=r"b.jsonl: 3 layers of 1 ids, expected 3 of 2"):
        narrow = foreign.tok_layers(tmp_path / "b.jsonl", DECODED[:, :, :1])
        import_trace("tok-layers", [files[0], narrow], tmp_path / "other", KNOWN)


# The command.


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def test_the_command_says_what_is_missing_and_what_it_wrote(tmp_path: Path, capsys) -> None:
    output = tmp_path / "trace"
    code = run("import", "tok-layers", good(tmp_path), "--num-experts", 8, "-o", output)
    shown = capsys.readouterr()
    assert code == 0
    assert shown.out == ""
    assert "note: layers are numbered 0 to 2; give --moe-layers" in shown.err
    assert "imported: 1 documents, 0 prefill and 4 decode tokens" in shown.err
    assert "missing: phase, weights, token_ids, fingerprint" in shown.err
    assert shown.err.endswith(f"wrote {output}\n")
    assert run("inspect", output, "--verify") == 0
    assert "does not say which tokens were fed" in capsys.readouterr().out
    assert run("analyze", output, "--json") == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any("does not say whether its tokens were prefill or decode" in note for note in notes)


def test_the_command_takes_facts_and_a_model(tmp_path: Path, capsys) -> None:
    options = ["--moe-layers", "1-2,5", "--expert-bytes", "1KB", "--phase", "prefill"]
    output = tmp_path / "trace"
    file = good(tmp_path)
    code = run("import", "tok-layers", file, "--num-experts", 8, *options, "-o", output)
    assert code == 0
    trace = open_trace(output)
    assert trace.shape.moe_layers == (1, 2, 5)
    assert trace.shape.expert_bytes == (1000,) * 3
    assert trace.metadata.domains[0].tokens == (4, 0)
    capsys.readouterr()
    demo = ROOT / "moeprof" / "demo" / "model"
    assert run("import", "tok-layers", file, "--model", demo, "-o", tmp_path / "b") == 1
    assert "3 layers in the files, 6 MoE layers were named" in capsys.readouterr().err


def test_an_export_imported_again_can_be_planned(tmp_path: Path, capsys) -> None:
    """Out of moeprof and back: the checkpoint says what the foreign format does not."""
    demo, model = ROOT / "traces" / "demo", ROOT / "moeprof" / "demo" / "model"
    file, output = tmp_path / "demo.csv", tmp_path / "trace"
    assert run("export", "route-trace", demo, "-o", file) == 0
    assert run("export", "route-trace", demo, "-o", file) == 1
    assert "already exists" in capsys.readouterr().err
    assert run("import", "route-trace", file, "--model", model, "-o", output) == 0
    ours, theirs = open_trace(demo), open_trace(output)
    assert theirs.shape == ours.shape
    counts = [one.cell_counts().counts.sum(axis=0) for one in (ours, theirs)]
    np.testing.assert_array_equal(*counts)
    assert theirs.metadata.missing == ("token_ids",)
    options = ["--vram", "6MB", "--context", "64", "--device-context", "0"]
    assert run("plan", output, "--model", model, *options, "-o", tmp_path / "plan.json") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "demo.csv", "plan.json", "plan.png", "trace",
    ]  # fmt: skip


def test_exports_that_make_no_sense_are_refused(tmp_path: Path, capsys) -> None:
    assert run("export", "imatrix", ROOT / "traces" / "demo", "-o", tmp_path / "a") == 2
    assert "'imatrix' is not one of route-trace, tok-layers" in capsys.readouterr().err
    lines = "layer,expert,count\n" + "".join(f"0,{expert},2\n" for expert in range(4))
    (tmp_path / "counts.csv").write_text(lines)
    arguments = ["--top-k", 2, "-o", tmp_path / "trace"]
    assert run("import", "layer-expert-csv", tmp_path / "counts.csv", *arguments) == 0
    capsys.readouterr()
    assert run("export", "tok-layers", tmp_path / "trace", "-o", tmp_path / "a") == 1
    assert "it cannot be written as rows: it was imported from layer-expert-csv" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "a").exists()


def test_budgets_in_bytes_need_the_bytes_of_experts(tmp_path: Path, capsys) -> None:
    output = tmp_path / "trace"
    options = ["--num-experts", 8, "--phase", "decode", "-o", output]
    assert run("import", "tok-layers", good(tmp_path), *options) == 0
    assert run("simulate", output, "lru", "--budget", "25%", "--all-documents") == 0
    capsys.readouterr()
    assert run("simulate", output, "lru", "--budget", "2GB") == 1
    shown = capsys.readouterr().err
    assert "does not say how many bytes an expert has" in shown
    assert "--expert-bytes" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nonsense", "a", "-o", "b"], "'nonsense' is not one of route-trace, tok-layers"),
        (["tok-layers", "a", "-o", "b", "--phase", "both"], "'both' is not one of prefill, decode"),
        (["tok-layers", "a", "-o", "b", "--moe-layers", "x"], "is no list of layers"),
        (["tok-layers", "a", "-o", "b", "--moe-layers", "5-3"], "names no layer"),
        (["tok-layers", "a", "-o", "b", "--moe-layers", "1-65535"], "the last is 65534"),
        (["tok-layers", "a", "-o", "b", "--num-experts", "0"], "greater than or equal to 1"),
        (["tok-layers", "a", "-o", "b", "--num-experts", "-1"], "greater than or equal to 1"),
        (["tok-layers", "a", "-o", "b", "--num-experts", "70000"], "less than or equal to 65535"),
        (["tok-layers", "a", "-o", "b", "--top-k", "70000"], "less than or equal to 65535"),
        (["tok-layers", "a"], "Missing option"),
    ],
)
def test_wrong_usage_is_refused(capsys, options, message: str) -> None:
    assert run("import", *options) == 2
    assert message in capsys.readouterr().err
