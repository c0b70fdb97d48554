"""What an export writes, an import reads as the same rows, or the export refuses to write it."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from builders import make_block, make_shape, make_trace
from hypothesis import given, settings
from hypothesis import strategies as st

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
