"""What an export writes, an import reads as the same rows, or the export refuses to write it."""

import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import foreign
import numpy as np
import pytest
from builders import make_block, make_shape, make_trace
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.cli import main
from moeprof.errors import TraceError
from moeprof.interop import FORMATS, Facts, import_trace
from moeprof.native import NO_EXPERT
from moeprof.trace import Trace
from moeprof.trace.writer import TokenBlock

MOE_LAYERS = (1, 2, 4)
TOP_K = 3
SAYS = {
    "route-trace": {"sequence", "position", "phase", "weights"},
    "tok-layers": {"sequence", "position"},
    "topk-csv": {"sequence", "phase"},
    "vllm": {"sequence", "position", "phase", "token_id"},
    "parquet": {"token_id", "weights"},
}


@dataclass(frozen=True)
class Turn:
    """Tokens of a document: a prompt and its reply, and perhaps a second prompt."""

    begin: int
    prompt: int
    reply: int
    gap: int
    second: int

    @property
    def phase(self) -> list[int]:
        return [0] * self.prompt + [1] * self.reply + [0] * self.second

    @property
    def position(self) -> list[int]:
        count = self.prompt + self.reply + self.second
        return [self.begin + at + (self.gap if at > 0 else 0) for at in range(count)]

    @property
    def is_plain(self) -> bool:
        return not (self.begin or self.gap or self.second) and bool(self.prompt and self.reply)


TURNS = st.lists(
    st.builds(
        Turn,
        begin=st.sampled_from([0, 0, 0, 7]),
        prompt=st.integers(0, 3),
        reply=st.integers(0, 3),
        gap=st.sampled_from([0, 0, 0, 2]),
        second=st.sampled_from([0, 0, 0, 2]),
    ).filter(lambda turn: turn.phase),
    min_size=1,
    max_size=4,
)
EMPTY = st.sampled_from(["none", "none", "last layer of prompts", "anywhere"])


def block_of(turns: list[Turn], empty: str, seed: int) -> TokenBlock:
    shape = make_shape(moe_layers=MOE_LAYERS, num_experts=8, top_k=TOP_K)
    sequence = [number for number, turn in enumerate(turns) for _ in turn.phase]
    block = make_block(shape, sequence, seed=seed)
    block.position[:] = [at for turn in turns for at in turn.position]
    block.phase[:] = [at for turn in turns for at in turn.phase]
    if empty == "last layer of prompts":
        ends = np.append((np.diff(block.sequence) != 0) | (np.diff(block.phase) != 0), True)
        block.experts[-1, (block.phase == 0) & ~ends] = NO_EXPERT
    if empty == "anywhere":
        holes = np.random.default_rng(seed).random(block.experts.shape) < 0.3
        holes[0, :, 0] = False
        block.experts[holes] = NO_EXPERT
    block.weights[block.experts == NO_EXPERT] = 0
    return block


def columns(trace: Trace) -> dict[str, np.ndarray]:
    layers = [trace.routing(layer) for layer in trace.shape.moe_layers]
    found = {
        name: getattr(layers[0], name) for name in ("sequence", "position", "phase", "token_id")
    }
    found["experts"] = np.stack([layer.experts for layer in layers])
    if layers[0].weights is not None:
        found["weights"] = np.stack([layer.weights for layer in layers])
    return found


@pytest.mark.parametrize("name", SAYS)
@settings(max_examples=8, deadline=None)
@given(turns=TURNS, empty=EMPTY, seed=st.integers(0, 99))
def test_rows_come_back_or_the_export_refuses(name: str, turns, empty, seed) -> None:
    with TemporaryDirectory() as folder:
        block = block_of(turns, empty, seed)
        shape = make_shape(moe_layers=MOE_LAYERS, num_experts=8, top_k=TOP_K)
        trace = make_trace(Path(folder) / "trace", {"text": block}, shape)
        file = Path(folder) / "file"
        try:
            FORMATS[name].write(trace, file)
        except TraceError as refusal:
            assert refusal.hint
            is_plain = all(turn.is_plain for turn in turns) and empty != "anywhere"
            assert not is_plain or (name == "tok-layers" and empty != "none"), refusal
            return
        says = SAYS[name]
        has_prompt = bool((block.phase == 0).any())
        said = "phase" in says and (has_prompt or name != "topk-csv")
        facts = Facts(
            num_experts=8,
            top_k=TOP_K,
            moe_layers=MOE_LAYERS,
            phase=None if said else "decode",
        )
        files = sorted(file.iterdir()) if file.is_dir() else [file]
        again = import_trace(name, files, Path(folder) / "again", facts)
        again.verify()
        ours, theirs = columns(trace), columns(again)
        np.testing.assert_array_equal(ours["experts"], theirs["experts"])
        for column in says:
            np.testing.assert_array_equal(ours[column], theirs[column], column)


def test_every_writer_of_rows_is_held_to_it() -> None:
    counts_alone = {"layer-expert-csv", "ktransformers"}
    assert set(SAYS) | counts_alone == {name for name, one in FORMATS.items() if one.write}


# What an export must not claim.


def imported(folder: Path, **facts: object) -> Trace:
    file = foreign.tok_layers(folder / "a.jsonl", foreign.make_routing(4))
    known = {"num_experts": foreign.NUM_EXPERTS} | facts
    return import_trace("tok-layers", [file], folder / "trace", Facts(**known))


@pytest.mark.parametrize("name", ["route-trace", "topk-csv", "vllm"])
def test_a_phase_that_nobody_said_is_not_written(tmp_path: Path, name: str) -> None:
    trace = imported(tmp_path)
    with pytest.raises(TraceError, match="would give its tokens a phase") as failure:
        FORMATS[name].write(trace, tmp_path / "file")
    assert "--phase" in failure.value.hint


def test_documents_that_nobody_divided_are_not_written_as_one(tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "first", {"text": block_of([Turn(0, 3, 0, 0, 0)], "none", 0)},
                       make_shape(moe_layers=MOE_LAYERS, num_experts=8, top_k=TOP_K))  # fmt: skip
    FORMATS["parquet"].write(trace, tmp_path / "folder")
    facts = Facts(num_experts=8, phase="prefill")
    again = import_trace(
        "parquet", sorted((tmp_path / "folder").iterdir()), tmp_path / "again", facts
    )
    assert "documents" in again.metadata.missing
    with pytest.raises(TraceError, match="would make one document of its tokens"):
        FORMATS["route-trace"].write(again, tmp_path / "file")
    FORMATS["parquet"].write(again, tmp_path / "more")


def test_bytes_that_nobody_said_stay_unsaid(tmp_path: Path) -> None:
    trace = imported(tmp_path, phase="decode")
    assert trace.shape.expert_bytes == (1, 1, 1), "what stands for them"
    FORMATS["route-trace"].write(trace, tmp_path / "file.csv")
    assert "# layer=0 expert_bytes=0 " in (tmp_path / "file.csv").read_text()
    again = import_trace("route-trace", [tmp_path / "file.csv"], tmp_path / "again", Facts())
    assert "expert_bytes" in again.metadata.missing


def test_sorted_ids_stay_without_ranks_in_every_format(tmp_path: Path) -> None:
    routing = np.sort(foreign.make_routing(6), axis=2)
    file = foreign.route_trace(tmp_path / "a.csv", routing[:3], routing[3:])
    trace = import_trace("route-trace", [file], tmp_path / "trace", Facts())
    assert "rank" in trace.metadata.missing
    FORMATS["vllm"].write(trace, tmp_path / "file")
    facts = Facts(num_experts=foreign.NUM_EXPERTS)
    again = import_trace("vllm", [tmp_path / "file"], tmp_path / "again", facts)
    assert "rank" in again.metadata.missing


def test_positions_before_a_document_are_written_as_cached_ones(tmp_path: Path) -> None:
    """Two tokens at positions 7 and 8: seven rows of -1 come before them."""
    shape = make_shape(moe_layers=MOE_LAYERS, num_experts=8, top_k=TOP_K)
    block = block_of([Turn(7, 1, 1, 0, 0)], "none", 0)
    trace = make_trace(tmp_path / "first", {"text": block}, shape)
    FORMATS["vllm"].write(trace, tmp_path / "file")
    response = json.loads((tmp_path / "file").read_text())
    nothing = [[-1] * TOP_K] * len(MOE_LAYERS)
    assert response["prompt_routed_experts"][:7] == [nothing] * 7
    assert len(response["prompt_routed_experts"]) == 8
    assert len(response["choices"][0]["routed_experts"]) == 1
    block.position[:] = [2**21, 2**21 + 1]
    far = make_trace(tmp_path / "far", {"text": block}, shape)
    with pytest.raises(TraceError, match="2 tokens up to position 2097153, expected at most"):
        FORMATS["vllm"].write(far, tmp_path / "other")


# The command.


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


@pytest.mark.parametrize("name", [name for name, one in FORMATS.items() if one.write is not None])
def test_a_full_disk_is_told_of_the_output_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch, capsys, name: str
) -> None:
    imported(tmp_path, phase="decode")
    output = tmp_path / "folder" / "output"
    output.parent.mkdir()
    output.write_text("mine")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for opener in ("open", "write_bytes", "mkdir"):
        original = getattr(Path, opener)

        def guarded(path: Path, *given: object, original=original, **named: object) -> object:
            is_new = path.name == "new" and "r" not in str(given[:1])
            return full() if is_new else original(path, *given, **named)

        monkeypatch.setattr(Path, opener, guarded)
    assert run("export", name, tmp_path / "trace", "-o", output, "--force") == 1
    assert capsys.readouterr().err == (
        f"error: {output}: cannot write (No space left on device); nothing was exported\n"
        "hint: free space, or choose another -o\n"
    )
    assert output.read_text() == "mine"
    assert [path.name for path in output.parent.iterdir()] == ["output"]


def test_a_folder_is_never_replaced_by_an_export(tmp_path: Path, capsys) -> None:
    imported(tmp_path, phase="decode")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("keep")
    for name in ("vllm", "parquet"):
        assert run("export", name, tmp_path / "trace", "-o", tmp_path / "folder", "-f") == 1
        assert "is a folder, which is not replaced" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    assert run("export", "parquet", tmp_path / "trace", "-o", tmp_path / "file", "-f") == 1
    assert "cannot write (Not a directory); nothing was exported" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
    assert run("export", "vllm", tmp_path / "trace", "-o", tmp_path / "file", "-f") == 0
    assert (tmp_path / "file").read_text().startswith("{")
