"""Valid files with bytes changed, put in, taken out or cut off: a sentence, or a sound trace."""

import base64
import io
import json
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import foreign
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.errors import TraceError
from moeprof.interop import FORMATS, Facts, import_trace

PROMPT, DECODED = foreign.make_routing(5), foreign.make_routing(4, seed=1)
PIECES = [b"-1", b"65535", b"4294967296", b"nan", b"inf", b"", b"\xff", b"\0", b'"', b"null", b"["]
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 8), st.sampled_from(PIECES) | st.binary(max_size=2)),
    max_size=4,
)


def valid(name: str, folder: Path) -> tuple[str, bytes]:
    """Name and content of a file of a format."""
    path = folder / "layer_1"
    if name == "vllm":
        np.savez(folder / "a.npz", routed_experts=DECODED, prompt_routed_experts=PROMPT)
        return path.name, (folder / "a.npz").read_bytes()
    if name == "parquet":
        pq.write_table(pa.table({"indices": [[1, 2]] * 9, "scores": [[0.5, 0.25]] * 9}), path)
    if name == "layer-expert-csv":
        path.write_text("layer,expert,count\n" + "".join(f"1,{expert},2\n" for expert in range(8)))
    made = {
        "route-trace": lambda: foreign.route_trace(path, PROMPT, DECODED, turns=2),
        "tok-layers": lambda: foreign.tok_layers(path, DECODED),
        "topk-csv": lambda: foreign.moe_trace(path, PROMPT, DECODED),
        "imatrix": lambda: foreign.imatrix(path, PROMPT),
        "sglang": lambda: foreign.sglang(
            path, [foreign.sglang_record(PROMPT, [0, 1, 2, 3, 4], 1, [5])]
        ),
        "ktransformers": lambda: foreign.logical_count(path, PROMPT),
    }
    if name in made:
        made[name]()
    return path.name, path.read_bytes()


def mutated(data: bytes, edits: list[tuple[float, int, bytes]], end: float) -> bytes:
    """Each edit replaces some bytes at a place by others; the rest after `end` is cut off."""
    for where, length, piece in edits:
        at = int(where * len(data))
        data = data[:at] + piece + data[at + length :]
    return data[: int(end * len(data))]


def mutated_inside(data: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    """The same in the first member of a zip archive, which then is sound as an archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for number, member in enumerate(old.namelist()):
            held = old.read(member)
            new.writestr(member, mutated(held, edits, 1) if number == 0 else held)
    return out.getvalue()


def check(name: str, file: str, data: bytes) -> None:
    with TemporaryDirectory() as folder:
        path, output = Path(folder) / file, Path(folder) / "trace"
        path.write_bytes(data)
        facts = Facts(
            num_experts=None if name in ("route-trace", "imatrix") else foreign.NUM_EXPERTS,
            top_k=foreign.TOP_K if name in ("layer-expert-csv", "ktransformers") else None,
        )
        try:
            import_trace(name, [path], output, facts).verify()
        except TraceError as refusal:
            assert refusal.hint
            assert str(refusal).isprintable()
            assert [one.name for one in Path(folder).iterdir()] == [file]


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None)
@given(edits=EDITS, end=st.sampled_from([1, 1, 1, 0.99, 0.9]) | st.floats(0, 1))
def test_a_damaged_file_ends_in_a_sentence(tmp_path_factory, name: str, edits, end) -> None:
    file, data = valid(name, tmp_path_factory.mktemp("valid"))
    check(name, file, mutated(data, edits, end))


@pytest.mark.parametrize("name", ["vllm", "sglang", "ktransformers"])
@settings(max_examples=25, deadline=None)
@given(edits=EDITS)
def test_damage_inside_a_sound_archive_ends_in_a_sentence(
    tmp_path_factory, name: str, edits
) -> None:
    file, data = valid(name, tmp_path_factory.mktemp("valid"))
    check(name, file, mutated_inside(data, edits))


@settings(max_examples=25, deadline=None)
@given(edits=EDITS)
def test_damage_inside_an_encoded_array_ends_in_a_sentence(edits) -> None:
    stream = io.BytesIO()
    np.save(stream, np.concatenate([PROMPT, DECODED]))
    array = base64.b64encode(mutated(stream.getvalue(), edits, 1)).decode()
    response = {"usage": {"prompt_tokens": 5}, "choices": [{"routed_experts": array}]}
    check("vllm", "a.json", json.dumps(response).encode())
