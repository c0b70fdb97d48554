import io
import itertools
import json
import os
import shutil
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from builders import make_block, make_capture, make_metadata, make_shape, write_block
from tiny import make_model, save_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from moeprof.capture.corpora import open_corpus
from moeprof.capture.tracer import TraceRequest, trace
from moeprof.capture.windows import encoder, windows
from moeprof.cli import main
from moeprof.errors import TraceError, UnsupportedModelError
from moeprof.trace import open_trace
from moeprof.trace.writer import TraceWriter

TEXTS = {
    "one.txt": "The quick brown fox jumps over the lazy dog.",
    "two.txt": "A short one.",
    "three.txt": "x" * 90 + "Pack my box with five dozen liquor jugs, please." * 3,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    return folder


def request(model: Path, data: str, output: Path, **changes: object) -> TraceRequest:
    own = {"resume", "force", "skip_empty", "commit_seconds"}
    settings = make_capture(
        **{"sequence_length": 40, "batch_size": 3}
        | {name: value for name, value in changes.items() if name not in own}
    )
    rest = {name: value for name, value in changes.items() if name in own}
    return TraceRequest(str(model), (data,), output, settings, **rest)


def routed_alone(model_path: Path, token_ids: list[int]) -> dict[int, np.ndarray]:
    """Experts per MoE layer of one unpadded sequence, found from the experts' outputs.

    Each expert's output matrix is disturbed in turn; the tokens whose block output changes are
    the ones that use it.
    """
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    found = {}
    for index in (1, 2):
        block = model.model.layers[index].mlp
        inputs = []
        with block.register_forward_pre_hook(lambda _, args, kept=inputs: kept.append(args[0])):
            model(torch.tensor([token_ids]))
        with torch.no_grad():
            plain = block(inputs[0])
            uses = np.zeros((len(token_ids), 8), bool)
            for expert in range(8):
                block.experts.down_proj[expert] *= 2
                changed = block(inputs[0])
                block.experts.down_proj[expert] /= 2
                uses[:, expert] = (changed != plain).any(-1)[0].numpy()
        found[index] = uses
    return found


def as_mask(experts: np.ndarray) -> np.ndarray:
    mask = np.zeros((len(experts), 8), bool)
    np.put_along_axis(mask, experts.astype(np.int64), values=True, axis=1)
    return mask


def test_padded_batches_record_what_each_window_alone_uses(tiny_model, folder, tmp_path) -> None:
    finished = trace(request(tiny_model, f"docs={folder}", tmp_path / "t"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    documents = finished.documents().set_index("sequence")
    assert [Path(name).name for name in documents["name"]] == ["one.txt", "three.txt", "two.txt"]
    for sequence, name in documents["name"].items():
        token_ids = tokenizer(Path(name).read_text())["input_ids"]
        for start in range(0, len(token_ids), 40):
            piece = token_ids[start : start + 40]
            expected = routed_alone(tiny_model, piece)
            for layer, uses in expected.items():
                rows = finished.routing(layer)
                mine = (rows.sequence == sequence) & (rows.position // 40 == start // 40)
                assert rows.token_id[mine].tolist() == piece
                np.testing.assert_array_equal(as_mask(rows.experts[mine]), uses)


def test_generation_records_the_prompt_and_every_generated_token(
    tiny_model, folder, tmp_path
) -> None:
    finished = trace(request(tiny_model, f"docs={folder}", tmp_path / "t", generate=6))
    assert finished.metadata.domains[0].tokens == (16 + 16 + 12, 18)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    for sequence in range(3):
        rows = finished.routing(1)
        mine = rows.sequence == sequence
        tokens, phase = rows.token_id[mine], rows.phase[mine]
        assert rows.position[mine].tolist() == list(range(len(tokens)))
        prompt = torch.tensor([tokens[phase == 0].tolist()])
        greedy = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False
        )
        assert tokens.tolist() == greedy[0].tolist()
        expected = routed_alone(tiny_model, tokens.tolist())
        for layer, uses in expected.items():
            routing = finished.routing(layer)
            np.testing.assert_array_equal(as_mask(routing.experts[mine]), uses)


def test_tokens_after_the_end_of_a_sequence_are_not_recorded(folder, tmp_path) -> None:
    probe = save_model(tmp_path / "probe")
    first = trace(request(probe, f"docs={folder}", tmp_path / "a", generate=6, batch_size=1))
    rows = first.routing(1)
    stop = int(rows.token_id[(rows.sequence == 0) & (rows.phase == 1)][2])
    model = save_model(tmp_path / "model", eos_token_id=stop)
    second = trace(request(model, f"docs={folder}", tmp_path / "b", generate=6))
    for sequence in range(3):
        before = rows.token_id[(rows.sequence == sequence) & (rows.phase == 1)].tolist()
        after = second.routing(1)
        kept = after.token_id[(after.sequence == sequence) & (after.phase == 1)].tolist()
        expected = before[: before.index(stop)] if stop in before else before
        assert kept == expected


def test_sampling_follows_the_seed_and_not_the_callers_state(tiny_model, folder, tmp_path) -> None:
    def sampled(name: str, seed: int) -> list[int]:
        torch.rand(7)
        options = {"generate": 8, "temperature": 1.0, "seed": seed}
        rows = trace(request(tiny_model, f"d={folder}", tmp_path / name, **options)).rows()
        return rows["token_id"].tolist()

    assert sampled("a", 1) == sampled("b", 1)
    assert sampled("c", 2) != sampled("d", 1)


def test_recording_leaves_the_outputs_bit_identical(tiny_model) -> None:
    from moeprof.capture.routing import RoutingTap

    model = make_model()
    token_ids = torch.arange(40).reshape(2, 20)
    plain = model(token_ids).logits
    with RoutingTap(model) as tap:
        tapped = model(token_ids).logits
        tap.take()
    assert torch.equal(plain, tapped)
    assert torch.equal(plain, model(token_ids).logits)


def test_max_tokens_cuts_each_domain_exactly(tiny_model, folder, tmp_path) -> None:
    finished = trace(request(tiny_model, f"d={folder}", tmp_path / "t", max_tokens=57))
    assert finished.metadata.domains[0].tokens == (57, 0)
    assert finished.documents()["prefill_tokens"].tolist() == [44, 13]


def test_conversations_go_through_the_chat_template(tiny_model, tmp_path) -> None:
    (tmp_path / "chat.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}'
    )
    data = f"chat={tmp_path}/chat.jsonl"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    whole = trace(request(tiny_model, data, tmp_path / "a"))
    assert tokenizer.decode(whole.routing(1).token_id) == "<user>hi\n<assistant>yo\n"
    prompted = trace(request(tiny_model, data, tmp_path / "b", generate=3)).routing(1)
    assert tokenizer.decode(prompted.token_id[prompted.phase == 0]) == "<user>hi\n<assistant>"
    mute = save_model(tmp_path / "mute", chat=False)
    with pytest.raises(TraceError, match="has no chat template"):
        trace(request(mute, data, tmp_path / "c"))


def test_resuming_a_finished_trace_changes_nothing(tiny_model, folder, tmp_path) -> None:
    one = trace(request(tiny_model, f"d={folder}", tmp_path / "t"))
    rows = one.rows()
    again = trace(request(tiny_model, f"d={folder}", tmp_path / "t", resume=True))
    pd.testing.assert_frame_equal(rows, again.rows())
    pd.testing.assert_frame_equal(one.counts(), again.counts())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, r"--seed \(was 0, is 4\)"),
        ({"sequence_length": 41}, r"--sequence-length \(was 40, is 41\)"),
        ({"weights": False}, "--weights"),
    ],
)
def test_resuming_with_other_options_is_refused(tiny_model, folder, tmp_path, change, message):
    trace(request(tiny_model, f"d={folder}", tmp_path / "t"))
    with pytest.raises(TraceError, match=message):
        trace(request(tiny_model, f"d={folder}", tmp_path / "t", resume=True, **change))


def test_resuming_with_another_model_or_other_text_is_refused(tiny_model, folder, tmp_path):
    trace(request(tiny_model, f"d={folder}", tmp_path / "t"))
    other = save_model(tmp_path / "other", num_attention_heads=2)
    with pytest.raises(TraceError, match="changed since it was begun: the model"):
        trace(request(other, f"d={folder}", tmp_path / "t", resume=True))
    with pytest.raises(TraceError, match="the data arguments"):
        trace(request(tiny_model, f"e={folder}", tmp_path / "t", resume=True))
    (folder / "zoo.txt").write_text("A document more.")
    with pytest.raises(TraceError, match="the data of domain d changed"):
        trace(request(tiny_model, f"d={folder}", tmp_path / "t", resume=True))
    (folder / "zoo.txt").unlink()
    (folder / "one.txt").write_text("Something else altogether.")
    with pytest.raises(TraceError, match="the data of domain d changed"):
        trace(request(tiny_model, f"d={folder}", tmp_path / "t", resume=True))


def test_an_existing_trace_is_only_replaced_by_force(tiny_model, folder, tmp_path) -> None:
    first = trace(request(tiny_model, f"d={folder}", tmp_path / "t"))
    with pytest.raises(TraceError, match="already exists"):
        trace(request(tiny_model, f"d={folder}", tmp_path / "t"))
    second = trace(request(tiny_model, f"e={folder}", tmp_path / "t", force=True))
    assert (first.domains, second.domains) == (("d",), ("e",))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(TraceError, match="exists and is not a trace"):
        trace(request(tiny_model, f"d={folder}", tmp_path / "mine", force=True))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_a_forced_trace_that_fails_early_keeps_the_old_one(tiny_model, folder, tmp_path) -> None:
    trace(request(tiny_model, f"d={folder}", tmp_path / "t"))
    (folder / "zero.txt").write_text("")
    with pytest.raises(TraceError, match=r"zero\.txt: the document has no tokens"):
        trace(request(tiny_model, f"e={folder}", tmp_path / "t", force=True))
    assert open_trace(tmp_path / "t").domains == ("d",)


def test_failures_before_the_first_rows_leave_nothing_behind(tiny_model, folder, tmp_path) -> None:
    (folder / "aaa.txt").write_text("")
    with pytest.raises(TraceError, match=r"aaa\.txt: the document has no tokens") as failure:
        trace(request(tiny_model, f"d={folder}", tmp_path / "t"))
    assert "--skip-empty" in failure.value.hint
    assert not (tmp_path / "t").exists()
    finished = trace(request(tiny_model, f"d={folder}", tmp_path / "t", skip_empty=True))
    assert finished.metadata.domains[0].documents == 3


def test_a_model_without_experts_is_refused(folder, tmp_path) -> None:
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    save_model(tmp_path / "dense")
    LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    with pytest.raises(UnsupportedModelError, match=r"no MoE layer|no experts"):
        trace(request(tmp_path / "dense", f"d={folder}", tmp_path / "t"))
    assert not (tmp_path / "t").exists()


def test_weights_can_be_left_out(tiny_model, folder, tmp_path) -> None:
    finished = trace(request(tiny_model, f"d={folder}", tmp_path / "t", weights=False))
    assert "weights" not in finished.rows().columns
    assert finished.routing(1).weights is None
    assert finished.counts()["weight_mass"].isna().all()


def test_memory_does_not_grow_with_the_corpus(tiny_model, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    shape = make_shape()
    line = '{"text": "some words in a row, forty bytes long..."}\n'

    def peak(num_documents: int) -> int:
        path = tmp_path / f"{num_documents}.jsonl"
        path.write_text(line * num_documents)
        settings = make_capture()
        metadata = make_metadata(shape)
        tracemalloc.start()
        (domain,) = open_corpus([f"text={path}"], "text")
        stream = windows(domain, encoder(tokenizer, settings), settings, skip_empty=False)
        with TraceWriter(tmp_path / path.stem, metadata) as writer:
            while batch := list(itertools.islice(stream, 100)):
                ids = [window.document for window in batch for _ in window.token_ids]
                write_block(writer, "text", make_block(shape, ids), complete=False)
            writer.finish()
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(100)
    short, long = peak(200), peak(2000)
    assert long < short + 100_000, "ten times the text, 70,000 tokens more"


def test_the_command_traces_standard_input_and_reports(
    tiny_model, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Some text to trace.")))
    with pytest.raises(SystemExit) as stop:
        main(["trace", str(tiny_model), "notes=-", "-o", str(tmp_path / "t")])
    assert stop.value.code == 0
    output = capsys.readouterr()
    assert output.out == ""
    assert "notes: 1 documents, 19 prefill and 0 decode tokens" in output.err
    assert f"wrote {tmp_path}/t" in output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere", "DATA"], "no such directory"),
        (["MODEL", "/nowhere"], "no such file or folder"),
        (["MODEL", "DATA", "--device", "cuda"], "0 CUDA devices"),
        (["MODEL", "DATA", "--device", "foo"], "no such device"),
        (["MODEL", "a b=DATA"], "'a b' cannot name a domain"),
        (["MODEL", "DATA", "DATA"], "given twice in one domain"),
        (["MODEL", ""], "it is empty"),
        (["MODEL", "DATA", "--sequence-length", "99999"], "its context is 32768 tokens"),
        (["MODEL", "DATA", "--generate", "99999"], "lower --prompt-tokens and --generate"),
        (["MODEL", "DATA", "--dtype", "int8"], "not a floating-point type"),
        (["MODEL", "DATA", "--dtype", "nonsense"], "not a floating-point type"),
    ],
)
def test_bad_arguments_are_a_sentence_and_exit_1(
    tiny_model, folder, tmp_path, capsys, arguments, message
) -> None:
    if message == "0 CUDA devices" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    places = {"MODEL": str(tiny_model), "DATA": str(folder)}
    arguments = [places.get(a, a.replace("=DATA", f"={folder}")) for a in arguments]
    with pytest.raises(SystemExit) as stop:
        main(["trace", *arguments, "-o", str(tmp_path / "t")])
    assert stop.value.code == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[-2].startswith("error: ")
    assert errors[-1].startswith("hint: ")
    assert message in "\n".join(errors)
    assert not (tmp_path / "t").exists()


def test_file_names_that_are_not_utf8_are_traced(tiny_model, folder, tmp_path) -> None:
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.txt"))).write_text("Hello there.")
    finished = trace(request(tiny_model, f"d={folder}", tmp_path / "t"))
    assert Path(finished.documents()["name"].iloc[-1]).name == "\ufffd\ufffd.txt"


def test_damaged_checkpoints_are_refused_by_name(tiny_model, folder, tmp_path) -> None:
    mute = tmp_path / "mute"
    shutil.copytree(tiny_model, mute)
    (mute / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedModelError, match="has no tokenizer"):
        trace(request(mute, f"d={folder}", tmp_path / "t"))
    wrong = tmp_path / "wrong"
    shutil.copytree(tiny_model, wrong)
    config = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(UnsupportedModelError, match="cannot load this checkpoint"):
        trace(request(wrong, f"d={folder}", tmp_path / "t"))
    assert not (tmp_path / "t").exists()


def test_conversations_that_cannot_be_rendered_are_refused(tiny_model, tmp_path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text('{"messages": []}')
    with pytest.raises(TraceError, match=r"chat\.jsonl:1: the document has no tokens"):
        trace(request(tiny_model, f"chat={path}", tmp_path / "t"))
