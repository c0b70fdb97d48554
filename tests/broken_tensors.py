"""Broken files of foreign formats that hold arrays; see `broken`."""

import base64
import io
import json
import pickle
import struct
from pathlib import Path

import foreign
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from foreign import NUM_EXPERTS, make_routing

DECODED = make_routing(4, seed=1)


def imatrix(folder: Path) -> list[tuple[str, object, str]]:
    def made(what: str, message: str, **changes: object) -> tuple[str, Path, str]:
        return what, foreign.imatrix(folder / f"{what}.gguf", DECODED, **changes), message

    def gguf(what: str, message: str, layer: str, counts: np.ndarray) -> tuple[str, Path, str]:
        tensors = {f"{layer}.ffn_up_exps.weight.counts": counts}
        return what, foreign.gguf(folder / f"{what}.gguf", tensors), message

    whole = foreign.imatrix(folder / "whole.gguf", DECODED).read_bytes()
    numbered = gguf("numbered", "", "blk.0", np.ones((8, 1), np.float32))[1].read_bytes()
    endless = numbered.replace(struct.pack("<IQ", 5, 3), struct.pack("<IQ", 5, 2**40))
    return [
        made("a model", "but no importance matrix", kind="model"),
        made("nan", "entry 0 is nan", counts=[float("nan")] * NUM_EXPERTS),
        made("half", "entry 0 is 0.5", counts=[0.5] * NUM_EXPERTS),
        made("negative", "entry 0 is -1", counts=[-1] * NUM_EXPERTS),
        made("huge", "entry 0 is 3.0", counts=[3e38] * NUM_EXPERTS),
        made("inf", "entry 0 is inf", counts=[float("inf")] * NUM_EXPERTS),
        gguf("layer", "layer 70000, expected", "blk.70000", np.ones((8, 1), np.float32)),
        gguf("float64", "is F64, expected F32", "blk.0", np.ones((8, 1))),
        gguf("two axes", "expected one count for each expert", "blk.0", np.ones((8, 2), "f4")),
        ("legacy", b"\x01\0\0\0\x04\0\0\0name", "not a readable GGUF file"),
        ("cut", whole[: len(whole) // 2], "not a readable GGUF file"),
        ("endless array", endless, "not a readable GGUF file (it ends early)"),
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


def sglang(folder: Path) -> list[tuple[str, object, str]]:
    record = foreign.sglang_record(DECODED, [0, 1, 2, 3], 1, [4])
    trivial = torch.arange(NUM_EXPERTS).repeat(4, 1)
    outside = torch.full((4, 4, 8), NUM_EXPERTS)
    changes = [
        ("mode", {"forward_mode": 5}, "record 0: forward_mode 5"),
        ("lengths", {"extend_seq_lens": [3]}, "extend_seq_lens add up to 3"),
        ("positions", {"positions": [0, 1]}, "4 rows of ids, 2 positions"),
        (
            "position -1",
            {"positions": [0, 1, 2, -1]},
            "positions: token 3: position -1, expected 0 to 4294967295",
        ),
        ("no input", {"input_ids": None}, "input_ids"),
        ("id 8", {"topk_ids_of_layer": outside}, "layer 0, token 0: physical expert 8"),
        ("id -2", {"topk_ids_of_layer": outside - 10}, "layer, token 0 0: expert id -2"),
        ("layers", {"topk_ids_of_layer": torch.zeros(3, 4, 8).int()}, "3 layers"),
        ("no expert", {"topk_ids_of_layer": outside * 0 - 1}, "no token chose an expert"),
        ("mode of text", {"forward_mode": "2"}, "record 0: forward_mode str, expected 1"),
        ("mode of many", {"forward_mode": torch.ones(4)}, "record 0: forward_mode Tensor"),
        ("no mode", {"forward_mode": None}, "record 0: forward_mode None"),
        (
            "lengths of text",
            {"extend_seq_lens": ["4"]},
            "extend_seq_lens: no numbers of shape (1,)",
        ),
        ("long lengths", {"extend_seq_lens": [2**62] * 4 + [4]}, "add up to 18446744073709551620"),
        (
            "no positions",
            {"positions": None},
            "positions: absent, expected whole numbers in 1 axes",
        ),
        ("positions of text", {"positions": list("abcd")}, "positions: no numbers of shape (4,)"),
        (
            "positions, two axes",
            {"positions": torch.ones(2, 2)},
            "float32 of shape (2, 2), expected",
        ),
        ("positions, ragged", {"positions": [[1, 2], [3]]}, "positions: no tensor of numbers"),
        ("half a position", {"positions": [0, 1, 2, 2.5]}, "positions: 2.5, expected whole"),
        (
            "position 2^32",
            {"positions": [0, 1, 2, 2**32]},
            "token 3: position 4294967296, expected",
        ),
        ("position 2^63", {"positions": [0, 1, 2, 2**63]}, "positions: 9.22"),
        ("position inf", {"positions": torch.tensor([0, 1, 2, torch.inf])}, "positions: inf"),
        ("token 2^32", {"input_ids": [0, 1, 2, 2**32]}, "token 3: token id 4294967296, expected"),
        ("ids of text", {"topk_ids_of_layer": [["a"]]}, "topk_ids_of_layer: no numbers of shape"),
        ("ids, two axes", {"topk_ids_of_layer": torch.ones(4, 4)}, "shape (4, 4), expected whole"),
        ("ids in a dict", {"topk_ids_of_layer": {"a": 1}}, "topk_ids_of_layer: no numbers"),
        ("no slots", {"topk_ids_of_layer": torch.zeros(4, 4, 0).int()}, "no token chose an expert"),
        ("position twice", {"positions": [0, 1, 1, 2]}, "position 1 stands twice"),
    ]
    records = [
        _saved(folder, what, {"records": [record | change], _MAP: trivial}, message)
        for what, change, message in changes
    ]
    narrow = record | {"topk_ids_of_layer": foreign.all_layers(DECODED, width=6)}
    idle = foreign.sglang_record(DECODED[:0], [], 4)
    counted = {"global_physical_count": torch.ones(4, NUM_EXPERTS).int()}
    huge = {"global_physical_count": torch.full((4, NUM_EXPERTS), 2**52)}
    forwards: list[tuple[str, list[object], str]] = [
        ("a number", [5], "record 0: a int, expected a dictionary"),
        ("a text", ["topk_ids_of_layer"], "record 0: a str, expected a dictionary"),
        ("a tensor", [record, torch.ones(3)], "record 1: a Tensor, expected a dictionary"),
        ("nothing at all", [None], "record 0: a NoneType, expected a dictionary"),
        ("two widths", [record, narrow], "record 1: 6 slots, the records before have 8"),
        ("two modes", [record, counted], "some records have topk_ids_of_layer, others have not"),
        ("only idle", [idle], "no token chose an expert"),
        ("absurd counts", [huge] * 3, "record 2: layer 0, expert 0: 4503599627370496, expected"),
        ("counts of text", [{"global_physical_count": "a"}], "no numbers of shape ()"),
    ]
    records += [
        _saved(folder, what, {"records": listed, _MAP: trivial}, message)
        for what, listed, message in forwards
    ]
    records += [
        _saved(folder, what, {"records": [record], _MAP: mapping}, message)
        for what, mapping, message in (
            ("map of text", "abc", f"{_MAP}: no numbers of shape ()"),
            ("map of none", torch.zeros(4, 0), f"{_MAP} does not hold expert ids"),
            ("map beyond", torch.full((4, 8), 70_000), f"{_MAP} does not hold expert ids"),
        )
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


def ktransformers(folder: Path) -> list[tuple[str, object, str]]:
    def counts(what: str, value: object, message: str) -> tuple[str, Path, str]:
        return _saved(folder, what, {"logical_count": value}, message)

    return [
        counts("code", _Code(), "could run code"),
        counts("one axis", torch.ones(3), "shape (3,)"),
        counts(
            "negative",
            -torch.ones(2, 3, dtype=torch.int64),
            "step 0: layer 0, expert 0: -1, expected a count",
        ),
        counts("nan", torch.full((2, 3), float("nan")), "expected whole numbers"),
        counts("text", "many", "expected whole numbers"),
        counts("zeros", torch.zeros(2, 8), "counts no assignments"),
        counts("nothing", torch.zeros(0, 2, 8).int(), "counts no assignments"),
        counts("none", None, "logical_count: absent, expected whole numbers in 2 or 3 axes"),
        counts("huge", torch.full((2, 8), 2**62), "step 0: layer 0, expert 0: 4611686018427387904"),
        counts("sum", torch.full((5, 2, 8), 2**51), "step 4: layer 0, expert 0: 2251799813685248"),
        counts("total", torch.full((2, 8), 2**50), "add up to 1.801e+16, expected at most"),
        counts("inf", torch.full((2, 8), torch.inf), "logical_count: inf, expected whole numbers"),
        counts(
            "unsigned", torch.full((2, 8), 2**63, dtype=torch.uint64), "logical_count: 92233720"
        ),
        counts("70000 layers", torch.ones(70_000, 8).int(), "layer 69999, expected 0 to 65534"),
        _saved(folder, "other", {"other": 1}, "has no logical_count, only other"),
        ("empty", b"", "not a readable file of torch.save"),
    ]


def vllm(folder: Path) -> list[tuple[str, object, str]]:
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
        response(
            "token id 2^32",
            prompt
            | {
                "prompt_token_ids": [2**32],
                "choices": [{"routed_experts": [[[1, 2]]], "token_ids": [3]}],
            },
            "prompt_token_ids: entry 0: token id 4294967296, expected 0 to 4294967295",
        ),
        response(
            "usage 10^30",
            {"usage": {"prompt_tokens": 10**30}, "choices": [{"routed_experts": [[[1, 2]]]}]},
            "usage.prompt_tokens is 1000000000000000000000000000000, so that",
        ),
        response(
            "position 2^32",
            {
                "usage": {"prompt_tokens": 2**32 - 1, "completion_tokens": 3},
                "choices": [{"routed_experts": [[[1, 2]]] * 2}],
            },
            "2 rows for 4294967295 tokens of prompt and 3 generated",
        ),
        response(
            "70000 layers",
            {"prompt_routed_experts": [], "choices": [{"routed_experts": [[[1, 2]] * 70_000]}]},
            "layer 69999, expected 0 to 65534",
        ),
        response("no tokens", {_PROMPT: [], "choices": [{"routed_experts": []}]}, "no tokens"),
        response("no layers", {_PROMPT: [[]], "choices": [{"routed_experts": []}]}, "shape (1, 0)"),
        routed("npy of objects", _npy((1, 1, 1), "|O"), "no array of expert ids"),
        routed("npy too large", _npy((2**40, 2, 2), "<i8"), "no array of expert ids"),
        routed("npy of floats", foreign.npy_base64(np.ones((1, 1, 2))), "float64 of shape"),
        routed("npz for npy", base64.b64encode(b"PK\x05\x06" + bytes(18)).decode(), "object of"),
        ("UTF-16", json.dumps(prompt).encode("utf-16"), "UTF-16 text, expected UTF-8"),
        ("cut npz", (folder / "other.npz").read_bytes()[:60], "not a readable .npz file"),
        ("cut", '{"choices": [{"routed', "line 1: not JSON"),
        ("no zip", b"PK\x03\x04 and so on", "not a readable .npz file"),
        ("other npz", folder / "other.npz", "has no array routed_experts"),
        ("pickled npz", folder / "objects.npz", "not a readable .npz file"),
        ("empty", b"", "is empty"),
    ]


_PROMPT = "prompt_routed_experts"


def _npy(shape: tuple[int, ...], descr: str) -> str:
    """A header that promises an array, and no array."""
    stream = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return base64.b64encode(stream.getvalue()).decode()


def parquet(folder: Path) -> list[tuple[str, object, str]]:
    def table(name: str, columns: dict[str, object], message: str) -> tuple[str, Path, str]:
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
        return name, folder / f"{name}.parquet", message

    def scored(scores: list[object]) -> dict[str, object]:
        return {"indices": [[1, 2]], "scores": [scores]}

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
        table("layer_11", scored(["a", "b"]), "scores is list<element: string>, expected lists of"),
        table("layer_12", scored(["0.5", "0.5"]), "scores is list<element: string>, expected"),
        table("layer_13", scored([True, False]), "scores is list<element: bool>, expected lists"),
        table("layer_14", scored([np.inf, 0.5]), "row 0: a score is inf, expected a number of at"),
        table("layer_15", scored([0.5, 65520.0]), "row 0: a score is 65520.0, expected a number"),
        table("layer_16", scored([None, 0.5]), "column scores has empty entries"),
        table("layer_17", {"indices": [["1", "2"]]}, "indices is list<element: string>, expected"),
        table(
            "layer_18",
            {"indices": pa.array([[], []], pa.list_(pa.int64()))},
            "row 0: 0 entries in indices, expected at least",
        ),
        table("layer_19", {"indices": pa.array([], pa.list_(pa.int64()))}, "has no rows"),
        table("layer_20", {"indices": [[1, 8]]}, "expert 8, the model has 8"),
        table("layer_21", {"indices": [[1, 1]]}, "expert 1 stands twice in one row"),
        table("layer_22", {"scores": [[0.5]]}, "has scores, but no column indices"),
        table("layer_23", {"indices": [[{"a": 1}]]}, "expected lists of numbers"),
        table("layer_70000", {"indices": [[1, 2]]}, "does not say which layer"),
        ("cut", whole.read_bytes()[:-50], "not a readable Parquet file"),
        ("empty", b"", "not a readable Parquet file"),
    ]
