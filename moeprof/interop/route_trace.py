"""`route_trace v1`: one CSV row per routed expert, as BigMoeOnEdge records it.

A preamble of `#` lines (`# route_trace v1`; `# model= arch= n_layer= n_expert= n_expert_used=`; one
`# layer= expert_bytes= dense_bytes=` per layer), then CSV with a header. Columns are read by name,
later versions append some: `turn, phase, step, layer, slot, expert` are needed, `weight` is used
where it is there, `residency, expert_bytes, dropped` describe a cache and are left out. `phase` is
0 for prefill and 1 for decode, `step` the absolute position, `slot` the router's rank; `weight` is
nan where it was not known. Each turn becomes a document; one that begins after position 0 continues
the conversation before it.

llama.cpp computes the last layer only for tokens whose logits are wanted, so that prefill has one
token there: the other tokens have empty slots in that layer. Anything else that lacks rows was cut
off or lost: such a file is refused, unless `--max-tokens` leaves out the token and all after it.

It cannot say which tokens were fed, the checkpoint and its sizes beyond the bytes that the preamble
states, nor a slot in which the router chose nothing.

Source: github.com/Helldez/BigMoeOnEdge, docs/telemetry.md, section "Route trace".
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.interop.checks import TORN, first_torn, remedy_of_torn, wanted_logits
from moeprof.interop.exporting import documents_of, phase_of, written
from moeprof.interop.preamble import MAGIC, Preamble, number_in, read_preamble
from moeprof.interop.source import Facts, Source, Stated, Tokens, cover
from moeprof.interop.tables import Table, header, read_table
from moeprof.interop.text import content
from moeprof.interop.values import MAX_EXPERTS, MAX_LAYER, MAX_WEIGHT, stored_weights
from moeprof.trace import Trace
from moeprof.trace.schema import NO_EXPERT, PHASES

_MAX_SLOTS = 2**10
_NEEDED = ("turn", "phase", "step", "layer", "slot", "expert")


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a file, [N] each, and its tokens, [T] each, in the order of turn and step.

    Attributes:
        table: where they are from.
        top_k: slots per token and layer.
        layers: [L] layers with rows, ascending.
        row: [N] int64, index into `layers`.
        token: [N] int64, index into the tokens.
        slot: [N] int64.
        expert: [N] int64.
        turn: [T] int64.
        step: [T] int64.
        phase: [T] uint8.
    """

    table: Table
    top_k: int
    layers: NDArray[np.int64]
    row: NDArray[np.int64]
    token: NDArray[np.int64]
    slot: NDArray[np.int64]
    expert: NDArray[np.int64]
    turn: NDArray[np.int64]
    step: NDArray[np.int64]
    phase: NDArray[np.uint8]


def read(files: Sequence[Path], facts: Facts) -> Source:
    """The turns of the files, each a document.

    Raises:
        TraceError: a file is not of this format, or its rows are damaged, cut or incomplete.
    """
    documents: list[Tokens] = []
    stated, notes = None, []
    for path in files:
        taken = sum(tokens.num_tokens for tokens in documents)
        if taken == facts.max_tokens:
            break
        data = content(path)
        preamble = read_preamble(path, data)
        data = data[preamble.num_bytes :]
        reals = ["weight"] if "weight" in header(data) else []
        table = read_table(path, data, _NEEDED, reals, preamble.num_lines + 1)
        rows = _rows(table, preamble)
        own = _stated(path, preamble, rows, facts)
        if stated not in (None, own):
            raise TraceError(
                f"{path}: is of another model than {files[0]}", "import them apart, one by one"
            )
        stated = own
        left = len(rows.turn) if facts.max_tokens is None else facts.max_tokens - taken
        _check_whole(rows, taken, left)
        found = _documents(rows, left)
        notes += _notes(rows, found)
        documents += found
    return Source(stated=stated or Stated(), documents=documents, notes=tuple(notes))


def _rows(table: Table, preamble: Preamble) -> _Rows:
    turn, phase, step, layer, slot, expert = (table.ints(name) for name in _NEEDED)
    top_k = _top_k(table, preamble, slot)
    for name, values, limit in (
        ("turn", turn, 2**31),
        ("phase", phase, len(PHASES)),
        ("step", step, 2**31),
        ("layer", layer, MAX_LAYER + 1),
        ("slot", slot, top_k),
        ("expert", expert, MAX_EXPERTS),
    ):
        _check_range(table, name, values, limit)
    layers, row = np.unique(layer, return_inverse=True)
    token_key, token = np.unique(turn << 32 | step, return_inverse=True)
    token_phase = np.zeros(len(token_key), np.uint8)
    token_phase[token] = phase
    mixed = token_phase[token] != phase
    if mixed.any():
        first = int(mixed.argmax())
        raise table.wrong(
            first, f"step {step[first]} is of prefill and of decode", "record the turn anew"
        )
    return _Rows(
        table=table,
        top_k=top_k,
        layers=layers,
        row=row,
        token=token,
        slot=slot,
        expert=expert,
        turn=token_key >> 32,
        step=token_key & 0xFFFFFFFF,
        phase=token_phase,
    )


def _top_k(table: Table, preamble: Preamble, slot: NDArray[np.int64]) -> int:
    """Slots per token: as stated, which the rows must fill, or as in the rows."""
    filled = max(int(slot.max()) + 1, 1)
    if "n_expert_used" not in preamble.model:
        return min(filled, _MAX_SLOTS)
    line = int(preamble.model["line"])
    stated = number_in(table.path, line, "n_expert_used", preamble.model)
    if stated < 1 or stated > filled:
        raise TraceError(
            f"{table.path}: line {line}: n_expert_used is {stated}, the rows have {filled} slots",
            "record the file anew",
        )
    return stated


def _check_whole(rows: _Rows, before: int, left: int) -> None:
    """Refuse tokens that lack rows, as where the file was cut off.

    Args:
        rows: of the file.
        before: tokens taken of other files.
        left: tokens that are taken of this one; what comes after may be incomplete.
    """
    taken = rows.token < left
    turns = np.split(rows.phase, np.flatnonzero(np.diff(rows.turn)) + 1)
    reaches_last = np.concatenate([wanted_logits(phase) for phase in turns])[:left]
    torn = first_torn(rows.token[taken], rows.row[taken], reaches_last, rows.layers, rows.top_k)
    if torn is None:
        return
    token, has = torn
    raise rows.table.wrong(
        int(np.flatnonzero(rows.token == token)[-1]),
        f"turn {rows.turn[token]}, step {rows.step[token]} has {has}{TORN}",
        remedy_of_torn(before + token),
    )


def _documents(rows: _Rows, left: int) -> list[Tokens]:
    """The turns, as far as they are among the first `left` tokens."""
    taken = rows.token < left
    num_tokens = min(left, len(rows.turn))
    shape = (len(rows.layers), num_tokens, rows.top_k)
    at = np.ravel_multi_index((rows.row[taken], rows.token[taken], rows.slot[taken]), shape)
    _check_once(rows.table, np.flatnonzero(taken), at, int(np.prod(shape)))
    experts = np.full(shape, NO_EXPERT, np.uint16)
    experts.reshape(-1)[at] = rows.expert[taken]
    weights = _weights(rows.table, shape, taken, at)
    turn, step, phase = rows.turn[:num_tokens], rows.step[:num_tokens], rows.phase[:num_tokens]
    documents: list[Tokens] = []
    for number in np.unique(turn):
        (mine,) = np.nonzero(turn == number)
        documents.append(
            Tokens(
                name=f"{rows.table.path.name} turn {number}",
                experts=experts[:, mine],
                phase=phase[mine],
                position=step[mine].astype(np.uint32),
                weights=None if weights is None else weights[:, mine],
                continues=bool(documents) and int(step[mine[0]]) > 0,
            )
        )
    return documents


def _check_range(table: Table, name: str, values: NDArray[np.int64], limit: int) -> None:
    wrong = (values < 0) | (values >= limit)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise table.wrong(
            row, f"{name} is {values[row]}, expected 0 to {limit - 1}", "record the file anew"
        )


def _check_once(
    table: Table, rows: NDArray[np.int64], at: NDArray[np.int64], num_places: int
) -> None:
    """Refuse a place that is filled twice; the line is looked for only then."""
    filled = np.zeros(num_places, bool)
    filled[at] = True
    if np.count_nonzero(filled) == len(at):
        return
    order = np.argsort(at, kind="stable")
    again = order[1:][at[order][1:] == at[order][:-1]]
    raise table.wrong(
        int(rows[again.min()]), "turn, step, layer and slot stand twice", "record the file anew"
    )


def _weights(
    table: Table, shape: tuple[int, ...], taken: NDArray[np.bool_], at: NDArray[np.int64]
) -> NDArray[np.float16] | None:
    """[L, T, K] float16, or None where some weight is unknown."""
    if "weight" not in table.columns:
        return None
    given = table.columns["weight"]
    stored = stored_weights(given)
    wrong = np.isinf(stored)
    if wrong.any():
        row = int(wrong.argmax())
        raise table.wrong(
            row,
            f"weight is {given[row]}, expected a number of at most {MAX_WEIGHT}, or nan",
            "record the file anew",
        )
    if np.isnan(stored).any():
        return None
    weights = np.zeros(shape, np.float16)
    weights.reshape(-1)[at] = stored[taken]
    return weights


def _stated(path: Path, preamble: Preamble, rows: _Rows, facts: Facts) -> Stated:
    present = tuple(rows.layers.tolist())
    model, line = preamble.model, int(preamble.model.get("line", "1"))
    listed = preamble.expert_bytes
    unlisted = [layer for layer in present if listed and layer not in listed]
    if unlisted:
        raise TraceError(
            f"{path}: layer {unlisted[0]} has rows, but no line in the preamble",
            "record the file anew",
        )
    silent = [layer for layer, size in listed.items() if size > 0 and layer not in present]
    if silent and facts.moe_layers is None:
        raise TraceError(
            f"{path}: has experts, but no rows of layer {cover(silent)}: the file is cut, or they "
            "never ran",
            "record the file anew, or say which layers have rows: --moe-layers "
            f"{cover(present).replace(' to ', '-').replace(', ', ',')}",
        )
    sizes = tuple(listed[layer] for layer in present) if listed else None
    return Stated(
        moe_layers=present,
        num_experts=number_in(path, line, "n_expert", model) if "n_expert" in model else None,
        top_k=rows.top_k,
        expert_bytes=sizes if sizes and min(sizes) > 0 else None,
        dense_bytes=sum(preamble.dense_bytes.values()),
        model_type=model.get("arch"),
        model_name=model.get("model", "").replace("\\", "/").rsplit("/", 1)[-1] or None,
    )


def _notes(rows: _Rows, documents: Sequence[Tokens]) -> list[str]:
    weights = rows.table.columns.get("weight")
    unknown = 0 if weights is None else int(np.isnan(weights.astype(np.float64)).sum())
    notes = []
    if weights is not None and 0 < unknown < len(weights):
        notes.append(
            f"{rows.table.path}: {unknown} of {len(weights)} weights are nan, so all are left out"
        )
    for tokens in documents:
        absent = (tokens.experts == NO_EXPERT).all(axis=2).sum(axis=1)
        notes += [
            f"{tokens.name}: layer {rows.layers[row]} routed {tokens.num_tokens - absent[row]} of "
            f"{tokens.num_tokens} tokens, the others have empty slots there"
            for row in np.flatnonzero(absent)
        ]
    return notes


def write(trace: Trace, path: Path) -> None:
    """Write the rows of a trace, one turn for each document, batches in the order they ran.

    Raises:
        TraceError: the trace has no rows, does not know its phases, documents or order, has empty
            slots elsewhere than in the last layer of a prompt, or the file cannot be written.
    """
    shape = trace.shape
    documents = documents_of(trace, ("order", "documents", "phase"))
    for tokens in documents:
        _check_slots(tokens)
    with_weight = all(tokens.weights is not None for tokens in documents)
    sizes = shape.expert_bytes
    if "expert_bytes" in trace.metadata.missing:
        sizes = (0,) * len(sizes)
    name = re.sub(r"\s+", "_", trace.metadata.model.name)
    with written(path) as stream:
        print(MAGIC, file=stream)
        print(
            f"# model={name} arch={shape.model_type} n_layer={shape.num_layers} "
            f"n_expert={shape.num_experts} n_expert_used={shape.top_k}",
            file=stream,
        )
        for index, (layer, size) in enumerate(zip(shape.moe_layers, sizes, strict=True)):
            dense = shape.dense_bytes if index == 0 else 0
            print(f"# layer={layer} expert_bytes={size} dense_bytes={dense}", file=stream)
        names = [*_NEEDED, "weight"] if with_weight else _NEEDED
        print(",".join(names), file=stream)
        for turn, tokens in enumerate(documents):
            frame = _frame(turn, tokens, shape.moe_layers)[[*names]]
            frame.to_csv(stream, header=False, index=False)


def _check_slots(tokens: Tokens) -> None:
    """Refuse what a reader would take for a file with lost lines."""
    empty = tokens.experts == NO_EXPERT
    row, token = np.nonzero(~empty.all(axis=2))
    layers = np.arange(len(tokens.experts))
    torn = first_torn(token, row, wanted_logits(phase_of(tokens)), layers)
    if torn is not None or (empty.any(axis=2) != empty.all(axis=2)).any():
        raise TraceError(
            f"{tokens.name}: has empty slots, which this format has only in the last layer of "
            "prompts",
            "write topk-csv or vllm",
        )


def _frame(turn: int, tokens: Tokens, moe_layers: Sequence[int]) -> pd.DataFrame:
    """One row per assignment: prefill layer by layer, then decode token by token."""
    row, token, slot = np.nonzero(tokens.experts != NO_EXPERT)
    phase = phase_of(tokens)
    decoded = phase[token] == 1
    order = np.lexsort(
        (slot, np.where(decoded, row, token), np.where(decoded, token, row), decoded)
    )
    row, token, slot = row[order], token[order], slot[order]
    columns = {
        "turn": turn,
        "phase": phase[token],
        "step": tokens.positions[token],
        "layer": np.asarray(moe_layers)[row],
        "slot": slot,
        "expert": tokens.experts[row, token, slot],
    }
    if tokens.weights is not None:
        columns["weight"] = tokens.weights[row, token, slot].astype(np.float64)
    return pd.DataFrame(columns)
