import dataclasses
import io
import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import make_capture
from placing import make_placement
from tiny import save_model

from moeprof.capture.tracer import TraceRequest, trace
from moeprof.checkpoint import read_checkpoint
from moeprof.cli import main
from moeprof.placement import write_placement


@pytest.fixture(scope="module")
def plan(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("placements") / "plan.json"
    write_placement(make_placement(read_checkpoint(tiny_model)), path)
    return str(path)


@pytest.fixture(scope="module")
def traced(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("traced")
    (folder / "a.txt").write_text("some text that is long enough for a prompt")
    settings = make_capture(generate=4, prompt_tokens=16)
    trace(TraceRequest(str(tiny_model), (f"a={folder / 'a.txt'}",), folder / "trace", settings))
    return str(folder / "trace")


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["run", *arguments, "--device", "cpu"])
    return int(stopped.value.code or 0)


def words(text: str) -> str:
    """The text without line breaks, which depend on the terminal's width."""
    return re.sub(r"\s+", " ", text)


def test_text_goes_to_stdout_and_the_report_to_stderr(
    plan: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("-p", plan, "--prompt", "hello", "--max-new-tokens", "4") == 0
    out, err = capsys.readouterr()
    assert out.endswith("\n") and "hit rate" not in out
    assert "no CUDA device is used: both tiers live in host memory" in words(err)
    assert "vram hit rate" in err


def test_json_is_one_document_on_stdout(plan: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("-p", plan, "--prompt", "hello", "--max-new-tokens", "4", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["token_ids"]) == 4
    assert document["phases"]["prefill"]["tokens"] == 5
    assert document["host_only"] is True


def test_a_prompt_file_gives_what_its_text_gives(
    plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompt.txt").write_text("hello")
    call("-p", plan, "--prompt", "hello", "--max-new-tokens", "6")
    expected = capsys.readouterr().out
    call("-p", plan, "--prompt-file", str(tmp_path / "prompt.txt"), "--max-new-tokens", "6")
    assert capsys.readouterr().out == expected


def test_chat_answers_each_line_with_its_history(
    plan: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    assert call("-p", plan, "--chat", "--max-new-tokens", "3", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["token_ids"]) == 6
    # "<user>one\n<assistant>" and then both turns with the first answer between them
    first, second = len("<user>one\n<assistant>"), len("<user>two\n<assistant>")
    assert document["phases"]["prefill"]["tokens"] > 2 * first + second


@pytest.fixture
def heeded() -> Iterator[None]:
    """Ctrl-C is heeded, also where the tests were started by a shell that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupting(io.StringIO):
    """Standard output that gets Ctrl-C pressed when it is first written to."""

    def write(self, text: str) -> int:
        if text.strip() and not self.getvalue():
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


@pytest.mark.usefixtures("heeded")
def test_ctrl_c_ends_the_text_and_reports_what_there_is(
    plan: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Interrupting()
    monkeypatch.setattr(sys, "stdout", out)
    assert call("-p", plan, "--prompt", "hello", "--max-new-tokens", "500") == 130
    assert out.getvalue().endswith("\n") and len(out.getvalue()) > 1
    err = words(capsys.readouterr().err)
    assert "vram hit rate" in err
    assert "note: the text ends where it was interrupted" in err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("heeded")
def test_a_second_ctrl_c_ends_the_program(
    plan: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impatient(io.StringIO):
        def write(self, text: str) -> int:
            signal.raise_signal(signal.SIGINT)
            return signal.raise_signal(signal.SIGINT) or 0

    monkeypatch.setattr(sys, "stdout", Impatient())
    assert call("-p", plan, "--prompt", "hello", "--max-new-tokens", "500") == 130
    assert "hit rate" not in capsys.readouterr().err


@pytest.mark.usefixtures("heeded")
def test_ctrl_c_between_two_turns_reports_the_conversation(
    plan: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Typed(io.StringIO):
        def readline(self, *size: int) -> str:
            line = super().readline(*size)
            if not line:
                raise KeyboardInterrupt
            return line

    monkeypatch.setattr(sys, "stdin", Typed("one\n"))
    assert call("-p", plan, "--chat", "--max-new-tokens", "3") == 130
    assert "vram hit rate" in capsys.readouterr().err


@pytest.fixture
def short_plan(tiny_model: Path, tmp_path: Path) -> str:
    """A plan with room for 60 tokens, which in this model are characters."""
    placement = make_placement(read_checkpoint(tiny_model))
    budget = dataclasses.replace(placement.budget, context_tokens=60)
    write_placement(dataclasses.replace(placement, budget=budget), tmp_path / "short.json")
    return str(tmp_path / "short.json")


def test_a_turn_that_is_too_long_is_left_out_and_the_conversation_goes_on(
    short_plan: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"one\n{'x' * 60}\ntwo\n"))
    assert call("-p", short_plan, "--chat", "--max-new-tokens", "3", "--json") == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert len(document["token_ids"]) == 6
    assert "note: this turn is left out: conversation: has " in err
    assert "planned for a context of 60" in err and "hint: say less" in err


def test_what_cannot_be_asked_is_said_before_anything_is_loaded(
    short_plan: str, plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    given = ["--format", "q8_0", "--store", str(kept)]
    assert call("-p", short_plan, "--prompt", "x" * 60, *given) == 1
    err = capsys.readouterr().err
    assert "error: prompt: has 60 tokens, the placement was planned for a context of 60" in err
    assert "plan again with --context 120" in err
    plain = save_model(tmp_path / "plain", chat=False)
    assert call("-p", plan, "--model", str(plain), "--chat", *given) == 1
    assert "no chat template" in capsys.readouterr().err
    assert not kept.exists()


@pytest.mark.parametrize(
    ("name", "range_"), [("--temperature", "from 0 up"), ("--top-p", "above 0 and up to 1")]
)
@pytest.mark.parametrize("value", ["nan", "inf", "-1.0"])
def test_a_number_to_sample_by_must_be_one(
    name: str, range_: str, value: str, plan: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("-p", plan, "--prompt", "a", name, value) == 2
    sentence = f"Invalid value: {name[2:]} must be a number {range_}, not {value}"
    assert words(capsys.readouterr().err).strip().endswith(sentence)


def test_an_equal_replay_exits_with_0(
    plan: str, traced: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("-p", plan, "--replay", traced) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "every assignment went to the expert that the trace says" in words(err)


def test_a_replay_that_differs_exits_with_1_and_says_where(
    traced: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = read_checkpoint(save_model(tmp_path / "other", seed=1))
    write_placement(make_placement(other), tmp_path / "plan.json")
    assert call("-p", str(tmp_path / "plan.json"), "--replay", traced) == 1
    assert "assignments went to another expert" in words(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prompt", ""], "error: prompt: has no tokens"),
        (["--prompt", "a", "--model", "./gone"], "error: ./gone: no such directory"),
        (["--prompt-file", "./gone.txt"], "error: gone.txt: cannot be read"),
        (["--replay", "./gone"], "error: gone: not a trace"),
        (["--prompt", "a", "--dtype", "int3"], "error: dtype 'int3': not supported"),
    ],
)
def test_a_known_failure_is_a_sentence_and_exit_1(
    arguments: list[str], sentence: str, plan: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("-p", plan, *arguments) == 1
    assert sentence in words(capsys.readouterr().err)


def test_a_prompt_file_in_another_encoding_is_refused(
    plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    assert call("-p", plan, "--prompt-file", str(tmp_path / "latin.txt")) == 1
    assert "not UTF-8 text, byte 3 is 0xe9" in words(capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [[], ["--prompt", "a", "--chat"]])
def test_one_source_of_input_is_asked_for(arguments: list[str], plan: str) -> None:
    assert call("-p", plan, *arguments) == 2


def test_a_replay_of_a_trace_in_bfloat16_reports_and_does_not_fail(
    plan: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("The quick brown fox jumps over the lazy dog. " * 20)
    with pytest.raises(SystemExit):
        main(
            [
                "trace",
                str(tiny_model),
                f"{tmp_path}/a.txt",
                "-o",
                f"{tmp_path}/t",
                "--dtype",
                "bfloat16",
            ]
        )
    assert call("-p", plan, "--replay", f"{tmp_path}/t", "--dtype", "float32") == 0
    shown = words(capsys.readouterr().err)
    assert "every assignment went" in shown or "the trace was recorded in bfloat16" in shown


def test_a_prompt_that_is_not_utf8_is_refused(
    plan: str, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = b"\xff\xfe bad".decode("utf-8", "surrogateescape")  # as in sys.argv
    assert call("-p", plan, "--prompt", typed, "--max-new-tokens", "3") == 1
    err = capsys.readouterr().err
    assert "error: prompt: not UTF-8 text\nhint: convert it, as in: iconv" in err


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ raise_exception('no') }}", "its chat template refuses: no"),
        ("{% for m in %}", "its chat template fails: Expected an expression"),
        ("{{ messages[0]['content'] + 1 }}", "its chat template fails: can only concatenate"),
        ("{{ messages[0].content.x.y }}", "its chat template fails: "),
        ("{{ 1 / 0 }}", "its chat template fails: division by zero"),
    ],
)
def test_a_chat_template_that_fails_is_a_sentence_before_anything_is_loaded(
    template: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model(tmp_path / "model")
    (model / "chat_template.jinja").write_text(template)
    write_placement(make_placement(read_checkpoint(model)), tmp_path / "plan.json")
    kept = tmp_path / "kept"
    given = ["--format", "q8_0", "--store", str(kept)]
    assert call("-p", str(tmp_path / "plan.json"), "--chat", *given) == 1
    err = capsys.readouterr().err
    assert f"error: model: {sentence}" in err
    assert "hint: continue a text with --prompt instead" in err
    assert not kept.exists()


def test_answers_to_lines_that_nobody_types_stand_below_them(
    plan: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    assert call("-p", plan, "--chat", "--max-new-tokens", "3") == 0
    out = capsys.readouterr().out
    assert out.startswith("> one\n")
    assert out.count("\n> ") == out.count("\n> two\n") == 1


def test_a_line_that_is_not_utf8_ends_the_conversation_not_its_report(
    plan: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n\xff\ntwo\n"), "utf-8"))
    assert call("-p", plan, "--chat", "--max-new-tokens", "3", "--json") == 1
    out, err = capsys.readouterr()
    assert len(json.loads(out)["token_ids"]) == 3
    assert "error: standard input: not UTF-8 text" in err


def test_chat_refuses_what_is_not_utf8(
    plan: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(b"gr\xf6\xdfe\n"), "utf-8", "surrogateescape")
    monkeypatch.setattr(sys, "stdin", stream)
    assert call("-p", plan, "--chat") == 1
    assert "standard input: not UTF-8 text" in capsys.readouterr().err


def test_layer_times_are_a_table_or_a_part_of_the_document(
    plan: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["-p", plan, "--prompt", "hello", "--max-new-tokens", "4"]
    call(*given)
    assert "RAM experts" not in capsys.readouterr().err
    assert call(*given, "--layer-times") == 0
    err = words(capsys.readouterr().err)
    assert "milliseconds of one decoded token" in err
    assert all(name in err for name in ("dense", "VRAM experts", "RAM experts", "waiting"))
    call(*given, "--layer-times", "--json")
    document = json.loads(capsys.readouterr().out)
    times = document["layer_times"]
    assert [layer["layer"] for layer in times["layers"]] == document["moe_layers"]
    assert set(times["layers"][0]) == {"layer", "dense_s", "vram_s", "ram_s", "waiting_s"}
    assert call("-p", plan, "--prompt", "hello", "--max-new-tokens", "1", "--layer-times") == 0
    assert "no token was decoded" in words(capsys.readouterr().err)
