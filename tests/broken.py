"""Broken files of foreign formats, each with words of the sentence that must refuse it."""

import gzip
import json
import pickle
from pathlib import Path

import foreign
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from foreign import NUM_EXPERTS, make_routing

PROMPT, DECODED = make_routing(5), make_routing(4, seed=1)
Cases = dict[str, tuple[Path, str]]


def broken_files(name: str, folder: Path) -> Cases:
    """What is wrong: the file, and what the error must say."""
    made = {
        "route-trace": _route_trace,
        "tok-layers": _tok_layers,
        "topk-csv": _topk_csv,
        "layer-expert-csv": _layer_expert_csv,
        "imatrix": _imatrix,
        "sglang": _sglang,
        "vllm": _vllm,
        "ktransformers": _ktransformers,
        "parquet": _parquet,
    }[name](folder)
    cases: Cases = {}
    for number, (what, content, message) in enumerate(made):
        file = content
        if isinstance(content, str | bytes):
            file = folder / f"{number}"
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        cases[what] = (file, message)
    cases["absent"] = (folder / "absent", "absent")
    return cases


def _route_trace(folder: Path) -> list[tuple[str, object, str]]:
    good = foreign.route_trace(folder / "good.csv", PROMPT, DECODED).read_text()
    lines = good.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("turn,")) + 1

    def changed(row: int, column: int, value: str) -> str:
        fields = lines[first + row].split(",")
        fields[column] = value
        return "\n".join([*lines[: first + row], ",".join(fields), *lines[first + row + 1 :]])

    def cell(what: str, row: int, column: int, value: str, message: str) -> tuple[str, str, str]:
        return what, changed(row, column, value), f"line {first + row + 1}: {message}"

    ragged = [*lines]
    ragged[first + 4] += ",1,2"
    packed = gzip.compress(good.encode())
    unlisted = good.replace("# layer=1 expert_bytes=1000 dense_bytes=10\n", "")
    return [
        cell("negative expert", 3, 5, "-4", "expert is -4, expected 0 to 65534"),
        cell("expert of 70000", 3, 5, "70000", "expert is 70000"),
        cell("huge integer", 2, 5, "9" * 30, "expert is '9999"),
        cell("expert nan", 2, 5, "nan", "expert is 'nan', expected an integer"),
        cell("slot beyond top-k", 4, 4, "2", "slot is 2, expected 0 to 1"),
        cell("phase of 2", 4, 1, "2", "phase is 2, expected 0 to 1"),
        cell("negative step", 4, 2, "-1", "step is -1"),
        cell("weight is text", 4, 6, "heavy", "weight is 'heavy', expected a number"),
        cell("row twice", 3, 4, "0", "turn, step, layer and slot stand twice"),
        ("two phases", changed(len(lines) - first - 1, 1, "0"), "is of prefill and of decode"),
        ("ragged", "\n".join(ragged), f"line {first + 5}: 12 fields, expected 10"),
        ("cut line", good[:-12], "fields, expected 10"),
        ("no magic", "\n".join(lines[1:]), "line 1: begins with '# model="),
        ("no rows", "\n".join(lines[:first]), "has a header and no rows"),
        ("preamble only", "\n".join(lines[: first - 1]), "ends after its preamble"),
        ("header", good.replace("expert,weight", "id,weight"), "no column 'expert'"),
        ("preamble", good.replace("expert_bytes=1000", "expert_bytes=x"), "line 4: expert_bytes"),
        ("layer not listed", unlisted, "layer 1 has rows, but no line in the preamble"),
        ("expert of 8", changed(0, 5, "8"), "expert 8, the model has 8"),
        ("expert twice", changed(0, 5, str(PROMPT[0, 0, 1])), "stands twice in one row"),
        ("cut gzip", packed[:-20], "the gzip file ends early"),
        ("damaged gzip", packed[:40] + b"\0\0\0" + packed[43:], "damaged gzip file"),
        ("empty", b"", "is empty"),
        ("empty gzip", gzip.compress(b""), "is empty"),
    ]


def _tok_layers(folder: Path) -> list[tuple[str, object, str]]:
    tokens = foreign.tok_layers(folder / "good.jsonl", DECODED).read_text().splitlines()

    def line(what: str, text: str, message: str) -> tuple[str, str, str]:
        return what, "\n".join([*tokens[:2], text, *tokens[2:]]), f"line 3: {message}"

    return [
        line("not JSON", "{tok", "not JSON"),
        line("deep JSON", "[" * 100_000, "not JSON"),
        line("no layers", '{"tok": 3}', "expected"),
        line("layers of text", '{"tok": 3, "layers": "abc"}', "layers is no list"),
        line("id of text", '{"tok": 3, "layers": [["a", 1], [1, 2], [1, 2]]}', "layer 0: expert"),
        line("id true", '{"tok": 3, "layers": [[true, 1], [1, 2], [1, 2]]}', "layer 0: expert id"),
        line(
            "id NaN", '{"tok": 3, "layers": [[NaN, 1], [1, 2], [1, 2]]}', "layer 0: expert id NaN"
        ),
        line("id below 0", '{"tok": 3, "layers": [[0, 1], [1, -2], [1, 2]]}', "layer 1: expert id"),
        line("id 1e9", '{"tok": 3, "layers": [[1e9, 1], [1, 2], [1, 2]]}', "layer 0: expert id"),
        line("id huge", f'{{"tok": 3, "layers": [[{"9" * 30}, 1]]}}', "layer 0: expert id 9999"),
        line("too few layers", '{"tok": 3, "layers": [[0, 1], [1, 2]]}', "2 layers"),
        line("ragged ids", '{"tok": 3, "layers": [[0, 1], [1, 2], [1]]}', "3 layers of"),
        line("tok negative", '{"tok": -3, "layers": [[0, 1]]}', "tok is -3"),
        ("not UTF-8", b'{"tok": 1, "layers": [[\xff]]}', "line 1: not UTF-8"),
        ("id of 8", '{"tok": 1, "layers": [[8, 1]]}', "expert 8, the model has 8"),
        ("id twice", '{"tok": 1, "layers": [[3, 3]]}', "expert 3 stands twice"),
        ("empty", b"", "is empty"),
    ]


def _topk_csv(folder: Path) -> list[tuple[str, object, str]]:
    return [
        ("ragged", "0,1,2,3\n0,2,4\n", "line 2: 3 fields, expected 4"),
        ("id -2", "0,1,2,3\n0,2,4,-2\n", "line 2: expert ids [4, -2]"),
        ("id huge", f"0,1,2,3\n0,2,4,{'9' * 30}\n", "line 2: id1 is '9999"),
        ("id text", "0,1,2,3\n0,2,4,x\n", "line 2: id1 is 'x'"),
        ("layer -1", "0,1,2,3\n0,-1,4,5\n", "line 2: position 0, layer -1"),
        ("row twice", "-1,1,2,3\n-1,2,4,5\n-1,1,2,3\n", "line 3: position -1 of layer 1"),
        (
            "position elsewhere",
            "0,1,2,3\n1,1,2,3\n7,2,4,5\n",
            "line 3: position 7 is not in layer 1",
        ),
        ("narrow", "0,1\n", "line 1 has 2 fields"),
        ("id of 8", "0,1,2,8\n", "expert 8, the model has 8"),
        ("empty", b" \n ", "is empty"),
    ]


def _layer_expert_csv(folder: Path) -> list[tuple[str, object, str]]:
    head = "layer,expert,count\n"
    return [
        ("negative", f"{head}1,0,-4\n", "line 2: count is -4"),
        ("half", f"# by hand\n{head}1,0,2\n1,1,2.5\n", "line 4: count is '2.5'"),
        ("huge", f"{head}1,0,{2**60}\n", "line 2: count is 1152921504606846976"),
        ("expert -2", f"{head}1,-2,4\n", "line 2: expert is -2"),
        ("expert of 8", f"{head}1,8,4\n", "line 2: expert 8, the model has 8"),
        ("no layer", "expert,count\n0,1\n", "no column 'layer'"),
        ("impossible", f"{head}1,0,9\n1,1,1\n", "expert 0 was chosen 9 times by 5 tokens"),
        ("nothing", f"{head}1,0,0\n", "counts no assignments"),
        ("no rows", head, "has a header and no rows"),
        ("empty", b"", "is empty"),
    ]


def _imatrix(folder: Path) -> list[tuple[str, object, str]]:
    def made(what: str, message: str, **changes: object) -> tuple[str, Path, str]:
        return what, foreign.imatrix(folder / f"{what}.gguf", DECODED, **changes), message

    whole = foreign.imatrix(folder / "whole.gguf", DECODED).read_bytes()
    return [
        made("a model", "but no importance matrix", kind="model"),
        made("nan", "entry 0 is nan", counts=[float("nan")] * NUM_EXPERTS),
        made("half", "entry 0 is 0.5", counts=[0.5] * NUM_EXPERTS),
        made("negative", "entry 0 is -1", counts=[-1] * NUM_EXPERTS),
        ("legacy", b"\x01\0\0\0\x04\0\0\0name", "not a readable GGUF file"),
        ("cut", whole[: len(whole) // 2], "not a readable GGUF file"),
        ("cut early", whole[:20], "not a readable GGUF file"),
        ("empty", b"", "not a readable GGUF file"),
    ]


class _Code:
    """Runs a function when it is unpickled without care."""

    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("run",))


def _saved(folder: Path, what: str, document: object, message: str) -> tuple[str, Path, str]:
    torch.save(document, folder / f"{what}.pt")
    return what, folder / f"{what}.pt", message


def _sglang(folder: Path) -> list[tuple[str, object, str]]:
    record = foreign.sglang_record(DECODED, [0, 1, 2, 3], 1, [4])
    trivial = torch.arange(NUM_EXPERTS).repeat(4, 1)
    outside = torch.full((4, 4, 8), NUM_EXPERTS)
    changes = [
        ("mode", {"forward_mode": 5}, "record 0: forward_mode 5"),
        ("lengths", {"extend_seq_lens": [3]}, "extend_seq_lens add up to 3"),
        ("positions", {"positions": [0, 1]}, "4 rows of ids, 2 positions"),
        ("position -1", {"positions": [0, 1, 2, -1]}, "positions: token 3: position -1, expected 0 to 4294967295"),
        ("no input", {"input_ids": None}, "input_ids"),
        ("id 8", {"topk_ids_of_layer": outside}, "layer 0, token 0: physical expert 8"),
        ("id -2", {"topk_ids_of_layer": outside - 10}, "layer, token 0 0: expert id -2"),
        ("layers", {"topk_ids_of_layer": torch.zeros(3, 4, 8).int()}, "3 layers"),
        ("no expert", {"topk_ids_of_layer": outside * 0 - 1}, "no token chose an expert"),
    ]
    records = [
        _saved(folder, what, {"records": [record | change], _MAP: trivial}, message)
        for what, change, message in changes
    ]
    (folder / "bare.pkl").write_bytes(pickle.dumps(_Code()))
    whole = foreign.logical_count(folder / "whole.pt", DECODED).read_bytes()
    return [
        *records,
        _saved(folder, "code", {"records": _Code()}, "could run code"),
        ("bare pickle", folder / "bare.pkl", "could run code"),
        ("cut", whole[: len(whole) // 2], "not a readable file of torch.save"),
        _saved(folder, "a list", [1, 2], "holds a list, expected a dictionary"),
        _saved(folder, "nothing", {"other": 1}, "has neither logical_count nor records"),
        _saved(folder, "no records", {"records": []}, "has neither logical_count nor records"),
        _saved(folder, "no map", {"records": [record]}, _MAP),
        ("empty", b"", "not a readable file of torch.save"),
    ]


_MAP = "last_physical_to_logical_map"


def _ktransformers(folder: Path) -> list[tuple[str, object, str]]:
    def counts(what: str, value: object, message: str) -> tuple[str, Path, str]:
        return _saved(folder, what, {"logical_count": value}, message)

    return [
        counts("code", _Code(), "could run code"),
        counts("one axis", torch.ones(3), "shape (3,)"),
        counts("negative", -torch.ones(2, 3, dtype=torch.int64), "step 0: layer 0, expert 0: -1, expected a count"),
        counts("nan", torch.full((2, 3), float("nan")), "expected whole numbers"),
        counts("text", "many", "expected whole numbers"),
        counts("zeros", torch.zeros(2, 8), "counts no assignments"),
        _saved(folder, "other", {"other": 1}, "has no logical_count, only other"),
        ("empty", b"", "not a readable file of torch.save"),
    ]


def _vllm(folder: Path) -> list[tuple[str, object, str]]:
    def response(what: str, document: object, message: str) -> tuple[str, str, str]:
        return what, json.dumps(document), message

    def routed(what: str, value: object, message: str) -> tuple[str, str, str]:
        return response(what, {"choices": [{"routed_experts": value}]}, message)

    np.savez(folder / "other.npz", ids=[1])
    np.savez(folder / "objects.npz", routed_experts=np.empty(1, object))
    prompt = {"prompt_routed_experts": [[[1, 2]]]}
    return [
        response("no choices", {"id": 1}, "no response with choices"),
        response("choices of text", {"choices": ["a"]}, "a choice is no object"),
        response("no routed experts", {"choices": [{}]}, "no routed_experts"),
        response("null", {"choices": [{"routed_experts": None}]}, "no routed_experts"),
        routed("two axes", [[1, 2]], "expected integers"),
        routed("ragged", [[[1, 2], [3]]], "no array of expert ids"),
        routed("bad base64", "%%%", "no array of expert ids"),
        routed("cut npy", "k05VTVBZ", "no array of expert ids"),
        routed("floats", [[[0.5]]], "float64 of shape"),
        routed("huge", [[[10**30]]], "object of shape"),
        response(
            "usage too small",
            {
                "usage": {"prompt_tokens": 1, "completion_tokens": 1},
                "choices": [{"routed_experts": [[[1, 2]]] * 4}],
            },
            "4 rows for 1 tokens of prompt and 1 generated",
        ),
        response(
            "usage is a list",
            {"usage": [1], "choices": [{"routed_experts": [[[1, 2]]]}]},
            "usage.prompt_tokens is null",
        ),
        response(
            "token ids of text",
            prompt | {"prompt_token_ids": "abc", "choices": [{"routed_experts": [[[1, 2]]]}]},
            "prompt_token_ids: no list of token ids",
        ),
        routed("no usage", [[[1, 2]]], "usage.prompt_tokens is null"),
        response("id -2", prompt | {"choices": [{"routed_experts": [[[1, -2]]]}]}, "expert id -2"),
        response(
            "widths", prompt | {"choices": [{"routed_experts": [[[1]]]}]}, "prompt rows of (1, 2)"
        ),
        response(
            "token ids",
            prompt
            | {
                "prompt_token_ids": [1, 2],
                "choices": [{"routed_experts": [[[1, 2]]], "token_ids": [3]}],
            },
            "2 rows from position 0 on, but 2 + 1 token ids",
        ),
        ("cut", '{"choices": [{"routed', "line 1: not JSON"),
        ("no zip", b"PK\x03\x04 and so on", "not a readable .npz file"),
        ("other npz", folder / "other.npz", "has no array routed_experts"),
        ("pickled npz", folder / "objects.npz", "not a readable .npz file"),
        ("empty", b"", "is empty"),
    ]


def _parquet(folder: Path) -> list[tuple[str, object, str]]:
    def table(name: str, columns: dict[str, object], message: str) -> tuple[str, Path, str]:
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
        return name, folder / f"{name}.parquet", message

    whole = folder / "layer_9.parquet"
    pq.write_table(pa.table({"indices": [[1, 2]] * 1000}), whole)
    return [
        table("layer_1", {"other": [1]}, "columns other"),
        table("layer_2", {"indices": [[1, 2], [3]]}, "row 1: 1 entries in indices"),
        table("layer_3", {"indices": [[1, 2], [3, -7]]}, "row 1: expert id -7"),
        table("layer_4", {"indices": [[1, 2], None]}, "has empty entries"),
        table("layer_5", {"indices": [[1.5, 2.5]]}, "expected integers"),
        table("layer", {"indices": [[1, 2]]}, "does not say which layer"),
        table("layer_6", {"indices": [[1, 2]], "scores": [[1.0, float("nan")]]}, "row 0: a score"),
        table("layer_7", {"indices": [1, 2]}, "expected lists"),
        table("layer_8", {"indices": [[1, 2]], "scores": [[1.0]]}, "differ in length"),
        table("layer_10", {"token_id": [1, 2]}, "no file has the column indices"),
        ("cut", whole.read_bytes()[:-50], "not a readable Parquet file"),
        ("empty", b"", "not a readable Parquet file"),
    ]
