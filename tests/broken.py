"""Broken files of foreign formats, each with words of the sentence that must refuse it."""

import gzip
import json
import re
from pathlib import Path

import broken_tensors
import foreign
from foreign import make_routing

PROMPT, DECODED = make_routing(5), make_routing(4, seed=1)
Cases = dict[str, tuple[Path, str]]


def broken_files(name: str, folder: Path) -> Cases:
    """What is wrong: the file, and what the error must say."""
    made = {
        "route-trace": _route_trace,
        "tok-layers": _tok_layers,
        "topk-csv": _topk_csv,
        "layer-expert-csv": _layer_expert_csv,
        "imatrix": broken_tensors.imatrix,
        "sglang": broken_tensors.sglang,
        "vllm": broken_tensors.vllm,
        "ktransformers": broken_tensors.ktransformers,
        "parquet": broken_tensors.parquet,
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

    def without(begin: int, end: int) -> str:
        return "\n".join([*lines[: first + begin], *lines[first + end :]])

    def stating(name: str, value: str) -> str:
        return re.sub(rf"{name}=\d+", f"{name}={value}", good)

    ragged = [*lines]
    ragged[first + 4] += ",1,2"
    after = f"line {len(lines) + 1}: "
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
        ("cut in a layer", "\n".join(lines[:-1]), "turn 0, step 8 has 1 of 2 slots in layer 3"),
        ("cut in a step", "\n".join(lines[:-2]), "turn 0, step 8 has rows in 2 of 3 layers"),
        ("lost lines", without(24, 26), f"line {first + 26}: turn 0, step 5 has rows in 2 of 3"),
        ("lost line", without(1, 2), "line 18: turn 0, step 0 has 1 of 2 slots in layer 1"),
        ("lost prompt", without(21, 22), "turn 0, step 4 has 1 of 2 slots in layer 3"),
        ("cut in the prompt", "\n".join(lines[: first + 9]), "no rows of layer 2 to 3"),
        ("no slots", stating("n_expert_used", "0"), "line 2: n_expert_used is 0, the rows have 2"),
        ("negative slots", stating("n_expert_used", "-1"), "line 2: n_expert_used is '-1'"),
        ("slots beyond rows", stating("n_expert_used", "3"), "line 2: n_expert_used is 3"),
        ("absurd slots", stating("n_expert_used", str(10**9)), "n_expert_used is 1000000000"),
        ("no experts", stating("n_expert", "0"), "0 experts of a layer, expected 1 to 65535"),
        ("absurd experts", stating("n_expert", str(10**9)), "1000000000 experts of a layer"),
        (
            "absurd bytes",
            re.sub(r"bytes=\d000", f"bytes={'9' * 18}", good),
            "a model of 24000000000000000016",
        ),
        cell("weight inf", 1, 6, "inf", "weight is inf, expected a number of at most 65504"),
        cell("weight -inf", 1, 6, "-inf", "weight is -inf, expected a number"),
        cell("weight beyond float16", 1, 6, "65520", "weight is 65520.0, expected a number"),
        cell("position beyond 32 bits", 1, 2, str(2**32), "step is 4294967296, expected 0 to"),
        cell("layer of 70000", 1, 3, "70000", "layer is 70000, expected 0 to 65534"),
        # Whether this is a field at all depends on what other libraries allow the csv module.
        ("long field", good + "0,1,9,1,0," + "1" * 200_000 + ",nan,1,0,0", after),
        ("stray return", good + "0,1,9,1\r,0,1,nan,1,0,0", "no line of comma-separated numbers"),
        (
            "column twice",
            good.replace("slot,expert,", "slot,slot,expert,", 1),
            "has 2 columns 'slot",
        ),
        ("UTF-16", good.encode("utf-16"), "UTF-16 text, expected UTF-8"),
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
        line(
            "ragged ids",
            '{"tok": 3, "layers": [[0, 1], [1, 2], [1]]}',
            "its layers have from 1 to 2 ids",
        ),
        line("tok beyond 32 bits", '{"tok": 4294967296, "layers": [[0, 1]]}', "tok is 4294967296"),
        ("70000 layers", json.dumps({"tok": 1, "layers": [[0, 1]] * 70_000}), "layer 69999"),
        ("nine ids", '{"tok": 1, "layers": [[0, 1, 2, 3, 4, 5, 6, 7, 8]]}', "--top-k says 2"),
        line("tok negative", '{"tok": -3, "layers": [[0, 1]]}', "tok is -3"),
        ("not UTF-8", b'{"tok": 1, "layers": [[\xff]]}', "line 1: not UTF-8"),
        ("id of 8", '{"tok": 1, "layers": [[8, 1]]}', "expert 8, the model has 8"),
        ("id twice", '{"tok": 1, "layers": [[3, 3]]}', "expert 3 stands twice"),
        ("empty", b"", "is empty"),
    ]


def _topk_csv(folder: Path) -> list[tuple[str, object, str]]:
    lines = foreign.moe_trace(folder / "good.csv", PROMPT, DECODED).read_text().splitlines()
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
        ("cut in a step", "\n".join(lines[:-1]), "line 22: position 3 has rows in 2 of 3 layers"),
        ("lost lines", "\n".join(lines[:13] + lines[14:]), "position 0 has rows in 2 of 3 layers"),
        (
            "lost prompt",
            "\n".join(lines[:3] + lines[4:]),
            "line 8: position -2 has rows in 1 of 3 layers",
        ),
        ("only a header", "pos,layer,id0,id1\n", "has no rows"),
        ("least position", f"{-(2**63)},1,2,3\n", "line 1: position -9223372036854775808"),
        ("position beyond 31 bits", f"{2**32},1,2,3\n", "line 1: position 4294967296"),
        ("layer of 70000", "0,70000,2,3\n", "layer 70000, expected positions"),
        ("nothing chosen", "0,1,-1,-1\n", "no token chose an expert"),
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
        ("sums", f"{head}1,0,{2**52}\n1,1,{2**52}\n1,2,2\n", "line 4: the counts up to here add"),
        ("expert -2", f"{head}1,-2,4\n", "line 2: expert is -2"),
        ("shared alone", f"{head}1,-1,4\n", "counts no routed expert"),
        ("column twice", "layer,expert,layer,count\n1,2,3,4\n", "has 2 columns 'layer'"),
        ("expert of 8", f"{head}1,8,4\n", "line 2: expert 8, the model has 8"),
        ("no layer", "expert,count\n0,1\n", "no column 'layer'"),
        ("impossible", f"{head}1,0,9\n1,1,1\n", "expert 0 was chosen 9 times by 5 tokens"),
        ("nothing", f"{head}1,0,0\n", "counts no assignments"),
        ("no rows", head, "has a header and no rows"),
        ("empty", b"", "is empty"),
    ]
