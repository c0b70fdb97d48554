"""`route_trace v1`: one CSV row per routed expert, as BigMoeOnEdge records it.

A preamble of `#` lines (`# route_trace v1`; `# model= arch= n_layer= n_expert= n_expert_used=`; one
`# layer= expert_bytes= dense_bytes=` per layer), then CSV with a header. Columns are read by name,
later versions append some: `turn, phase, step, layer, slot, expert` are needed, `weight` is used
where it is there, `residency, expert_bytes, dropped` describe a cache and are left out. `phase` is
0 for prefill and 1 for decode, `step` the absolute position, `slot` the router's rank; `weight` is
nan where it was not known. Each turn becomes a document; one that begins after position 0 continues
the conversation before it.

llama.cpp computes the last layer only for tokens whose logits are wanted, so that prefill has one
token there: the other tokens have empty slots in that layer.

Source: github.com/Helldez/BigMoeOnEdge, docs/telemetry.md, section "Route trace".
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.interop.exporting import documents_of, written
from moeprof.interop.source import Facts, Source, Stated, Tokens, checked_ids
from moeprof.interop.tables import Table, header, read_table
from moeprof.interop.text import content
from moeprof.trace import Trace
from moeprof.trace.schema import NO_EXPERT, PHASES

_MAGIC = "# route_trace v1"
_NEEDED = ("turn", "phase", "step", "layer", "slot", "expert")
_PAIR = re.compile(r"(\w+)=(\S*)")


@dataclass
class _Preamble:
    """The `#` lines: facts on the model, and bytes by layer."""

    model: dict[str, str] = field(default_factory=dict)
    expert_bytes: dict[int, int] = field(default_factory=dict)
    dense_bytes: dict[int, int] = field(default_factory=dict)
    num_lines: int = 0
    num_bytes: int = 0


def read(files: Sequence[Path], facts: Facts) -> Source:
    """The turns of the files, each a document.

    Raises:
        TraceError: a file is not of this format, or its rows are damaged.
    """
    documents: list[Tokens] = []
    stated, notes = None, []
    for path in files:
        data = content(path)
        preamble = _preamble(path, data)
        data = data[preamble.num_bytes :]
        reals = ["weight"] if "weight" in header(data) else []
        table = read_table(path, data, _NEEDED, reals, preamble.num_lines + 1)
        found, top_k, layers = _documents(table, preamble)
        own = _stated(path, preamble, layers, top_k)
        if stated not in (None, own):
            raise TraceError(
                f"{path}: is of another model than {files[0]}", "import them apart, one by one"
            )
        stated = own
        notes += _notes(path, preamble, layers, found)
        documents += found
    return Source(stated=stated or Stated(), documents=documents, notes=tuple(notes))


def _preamble(path: Path, data: bytes) -> _Preamble:
    found = _Preamble()
    for line in io.BytesIO(data):
        text = line.decode("utf-8", errors="replace").rstrip("\r\n")
        if found.num_lines == 0 and text.strip() != _MAGIC:
            raise TraceError(
                f"{path}: line 1: begins with {text[:40]!r}, expected {_MAGIC!r}",
                "name a file recorded as route_trace v1",
            )
        if not text.startswith("#"):
            return found
        found.num_lines += 1
        found.num_bytes += len(line)
        pairs = dict(_PAIR.findall(text))
        if "layer" in pairs:
            layer = _number(path, found.num_lines, "layer", pairs)
            found.expert_bytes[layer] = _number(path, found.num_lines, "expert_bytes", pairs)
            found.dense_bytes[layer] = _number(path, found.num_lines, "dense_bytes", pairs)
        elif pairs:
            found.model |= {"line": str(found.num_lines)} | pairs
    raise TraceError(f"{path}: ends after its preamble", "the file is cut; export it anew")


def _number(path: Path, line: int, name: str, pairs: dict[str, str]) -> int:
    value = pairs.get(name, "")
    if not value.isdecimal() or len(value) > 18:
        raise TraceError(
            f"{path}: line {line}: {name} is {value!r}, expected an integer of at least 0",
            "export the file anew",
        )
    return int(value)


def _documents(table: Table, preamble: _Preamble) -> tuple[list[Tokens], int, NDArray[np.int64]]:
    """The turns, slots per token and the layers with rows."""
    turn, phase, step, layer, slot, expert = (table.ints(name) for name in _NEEDED)
    _check_range(table, "turn", turn, 2**31)
    _check_range(table, "phase", phase, len(PHASES))
    _check_range(table, "step", step, 2**31)
    _check_range(table, "layer", layer, 2**16 - 1)
    stated_top_k = preamble.model.get("n_expert_used")
    line = int(preamble.model.get("line", "1"))
    limit = 2**10
    if stated_top_k is not None:
        limit = _number(table.path, line, "n_expert_used", preamble.model)
    _check_range(table, "slot", slot, limit)
    _check_range(table, "expert", expert, NO_EXPERT)
    layers, row = np.unique(layer, return_inverse=True)
    top_k = limit if stated_top_k is not None else int(slot.max()) + 1
    token_key, token = np.unique(turn << 32 | step, return_inverse=True)
    shape = (len(layers), len(token_key), top_k)
    at = np.ravel_multi_index((row, token, slot), shape)
    _check_once(table, at, int(np.prod(shape)))
    experts = np.full(shape, NO_EXPERT, np.uint16)
    experts.reshape(-1)[at] = checked_ids(expert, str(table.path))
    token_phase = np.zeros(len(token_key), np.uint8)
    token_phase[token] = phase
    mixed = token_phase[token] != phase
    if mixed.any():
        first = int(np.flatnonzero(mixed)[0])
        raise table.wrong(
            first, f"step {step[first]} is of prefill and of decode", "record the turn anew"
        )
    weights = _weights(table, experts, at)
    position = (token_key & 0xFFFFFFFF).astype(np.uint32)
    documents: list[Tokens] = []
    for number in np.unique(token_key >> 32):
        (mine,) = np.nonzero(token_key >> 32 == number)
        documents.append(
            Tokens(
                name=f"{table.path.name} turn {number}",
                experts=experts[:, mine],
                phase=token_phase[mine],
                position=position[mine],
                weights=None if weights is None else weights[:, mine],
                continues=bool(documents) and int(position[mine[0]]) > 0,
            )
        )
    return documents, top_k, layers


def _check_range(table: Table, name: str, values: NDArray[np.int64], limit: int) -> None:
    wrong = (values < 0) | (values >= limit)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise table.wrong(
            row, f"{name} is {values[row]}, expected 0 to {limit - 1}", "record the file anew"
        )


def _check_once(table: Table, at: NDArray[np.int64], num_places: int) -> None:
    """Refuse a place that is filled twice; the line is looked for only then."""
    filled = np.zeros(num_places, bool)
    filled[at] = True
    if np.count_nonzero(filled) == len(at):
        return
    order = np.argsort(at, kind="stable")
    again = order[1:][at[order][1:] == at[order][:-1]]
    raise table.wrong(
        int(again.min()), "turn, step, layer and slot stand twice", "record the file anew"
    )


def _weights(
    table: Table, experts: NDArray[np.uint16], at: NDArray[np.int64]
) -> NDArray[np.float16] | None:
    """[L, T, K] float16, or None where some weight is unknown."""
    if "weight" not in table.columns or np.isnan(table.columns["weight"].astype(float)).any():
        return None
    weights = np.zeros(experts.shape, np.float16)
    weights.reshape(-1)[at] = table.columns["weight"]
    return weights


def _stated(path: Path, preamble: _Preamble, layers: NDArray[np.int64], top_k: int) -> Stated:
    present = tuple(layers.tolist())
    model, line = preamble.model, int(preamble.model.get("line", "1"))
    unlisted = [layer for layer in present if layer not in preamble.expert_bytes]
    if preamble.expert_bytes and unlisted:
        raise TraceError(
            f"{path}: layer {unlisted[0]} has rows, but no line in the preamble",
            "record the file anew",
        )
    sizes = tuple(preamble.expert_bytes[layer] for layer in present) if not unlisted else None
    return Stated(
        moe_layers=present,
        num_experts=_number(path, line, "n_expert", model) if "n_expert" in model else None,
        top_k=top_k,
        expert_bytes=sizes if sizes and min(sizes) > 0 else None,
        dense_bytes=sum(preamble.dense_bytes.values()),
        model_type=model.get("arch"),
        model_name=model.get("model", "").replace("\\", "/").rsplit("/", 1)[-1] or None,
    )


def _notes(
    path: Path, preamble: _Preamble, layers: NDArray[np.int64], documents: Sequence[Tokens]
) -> list[str]:
    notes = []
    silent = [n for n, size in preamble.expert_bytes.items() if size > 0 and n not in layers]
    if silent:
        notes.append(f"{path}: layer {silent[0]} has experts but no rows, and is left out")
    for tokens in documents:
        absent = (tokens.experts == NO_EXPERT).all(axis=2).sum(axis=1)
        notes += [
            f"{tokens.name}: layer {layers[row]} routed {tokens.num_tokens - absent[row]} of "
            f"{tokens.num_tokens} tokens, the others have empty slots there"
            for row in np.flatnonzero(absent)
        ]
    return notes


def write(trace: Trace, path: Path) -> None:
    """Write the rows of a trace, one turn for each document, batches in the order they ran.

    Raises:
        TraceError: the trace has no rows, or the file cannot be written.
    """
    shape = trace.shape
    documents = documents_of(trace)
    with_weight = all(tokens.weights is not None for tokens in documents)
    with written(path) as stream:
        print(_MAGIC, file=stream)
        print(
            f"# model={trace.metadata.model.name} arch={shape.model_type} "
            f"n_layer={shape.num_layers} n_expert={shape.num_experts} n_expert_used={shape.top_k}",
            file=stream,
        )
        for index, (layer, size) in enumerate(
            zip(shape.moe_layers, shape.expert_bytes, strict=True)
        ):
            dense = shape.dense_bytes if index == 0 else 0
            print(f"# layer={layer} expert_bytes={size} dense_bytes={dense}", file=stream)
        names = [*_NEEDED, "weight"] if with_weight else _NEEDED
        print(",".join(names), file=stream)
        for turn, tokens in enumerate(documents):
            frame = _rows(turn, tokens, shape.moe_layers)[[*names]]
            frame.to_csv(stream, header=False, index=False)


def _rows(turn: int, tokens: Tokens, moe_layers: Sequence[int]) -> pd.DataFrame:
    """One row per assignment: prefill layer by layer, then decode token by token."""
    row, token, slot = np.nonzero(tokens.experts != NO_EXPERT)
    phase = np.zeros(tokens.num_tokens, np.uint8) if tokens.phase is None else tokens.phase
    decoded = phase[token] == 1
    order = np.lexsort(
        (slot, np.where(decoded, row, token), np.where(decoded, token, row), decoded)
    )
    row, token, slot = row[order], token[order], slot[order]
    position = np.arange(tokens.num_tokens) if tokens.position is None else tokens.position
    columns = {
        "turn": turn,
        "phase": phase[token],
        "step": position[token],
        "layer": np.asarray(moe_layers)[row],
        "slot": slot,
        "expert": tokens.experts[row, token, slot],
    }
    if tokens.weights is not None:
        columns["weight"] = tokens.weights[row, token, slot].astype(np.float64)
    return pd.DataFrame(columns)
