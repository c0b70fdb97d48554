"""Files of SGLang's expert distribution recorder: `stat`, `per_pass` and `per_token`.

Each is a dictionary of torch.save.

- `stat`: `logical_count` [steps, num_hidden_layers, num_experts], the sum over all ranks.
- `per_token` and `per_pass`: `records`, one for each forward, and `last_physical_to_logical_map`
  [num_hidden_layers, physical experts]. A record of `per_token` has `input_ids` and `positions` of
  its T tokens, `forward_mode` (1 extend, 2 decode, 3 both), `extend_seq_lens`, and
  `topk_ids_of_layer` [num_hidden_layers, T, 8] of physical ids, -1 where a layer is dense or a slot
  unused; one of `per_pass` has `global_physical_count` [num_hidden_layers, physical experts].

Tokens of an extend are split by `extend_seq_lens`; a decoded token is taken to continue the one
sequence that has reached its position. Where several have, the file is kept as one document whose
tokens have no order. Ranks of tensor parallelism repeat each other: give one of them.

It cannot say which request a token is of, weights, the model or its bytes; modes `stat` and
`per_pass` neither which experts a token chose together, the order, documents, phase, top-k or
tokens. The map is that of the end: with rebalancing in between, earlier ids are translated wrongly,
and nothing in the file tells.

Source: github.com/sgl-project/sglang, python/sglang/srt/eplb/expert_distribution.py and
python/sglang/srt/model_executor/forward_batch_info.py (`ForwardMode`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.interop.ktransformers import KEY, counted_source
from moeprof.interop.source import Facts, Source, Stated, Tokens
from moeprof.interop.torch_files import integers, load
from moeprof.interop.values import checked_ids, checked_uint32, summed
from moeprof.trace.schema import NO_EXPERT

_MAP = "last_physical_to_logical_map"
_IDS = "topk_ids_of_layer"
_COUNTS = "global_physical_count"
_EXTEND, _DECODE, _MIXED, _IDLE = 1, 2, 3, 4
_RECORD = "record it anew, in mode per_token or stat"


def read(files: Sequence[Path], facts: Facts) -> Source:
    """The tokens or counts of the files.

    Raises:
        TraceError: a file is of no known mode, or damaged, or the files are of different modes.
    """
    opened = [(path, load(path)) for path in files]
    stat = [path for path, document in opened if KEY in document]
    if len(stat) == len(opened):
        return counted_source(opened)
    if stat:
        raise TraceError(
            f"{stat[0]}: has {KEY}, other files have not", "import files of one mode together"
        )
    records = [_records(path, document) for path, document in opened]
    modes = {_IDS in record for forwards in records for record in forwards}
    if len(modes) > 1:
        raise TraceError(
            f"{files[0]}: some records have {_IDS}, others have not",
            "import files of one mode together",
        )
    if modes == {True}:
        return _per_token(
            [_file(*one, forwards) for one, forwards in zip(opened, records, strict=True)]
        )
    return counted_source(
        [
            (path, _per_pass(path, document, forwards))
            for (path, document), forwards in zip(opened, records, strict=True)
        ]
    )


def _records(path: Path, document: dict[str, Any]) -> list[dict[str, Any]]:
    """The forwards of a file."""
    records = document.get("records")
    if not isinstance(records, list) or not records:
        raise TraceError(f"{path}: has neither {KEY} nor records", _RECORD)
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise TraceError(f"{path}: record {number}: a {kind}, expected a dictionary", _RECORD)
    return records


@dataclass
class _Sequence:
    """Tokens that are taken for one request: indices into the file's tokens."""

    tokens: list[int] = field(default_factory=list)
    next_position: int = 0


@dataclass(frozen=True, slots=True)
class _File:
    """All tokens of a file, in the order of its forwards.

    Attributes:
        path: the file.
        num_experts: logical experts of a layer, by the map.
        ids: [T, num_hidden_layers, 8] uint16, logical.
        token_id: [T] uint32.
        position: [T] uint32.
        phase: [T] uint8.
        sequences: token indices of each request; None where they cannot be told apart.
    """

    path: Path
    num_experts: int
    ids: NDArray[np.uint16]
    token_id: NDArray[np.uint32]
    position: NDArray[np.uint32]
    phase: NDArray[np.uint8]
    sequences: list[list[int]] | None


def _per_token(files: Sequence[_File]) -> Source:
    widths = {one.ids.shape[1:] for one in files}
    if len(widths) > 1:
        raise TraceError(
            f"{files[0].path}: the files differ in layers or slots", "import one model at a time"
        )
    used = np.concatenate([one.ids for one in files]) != NO_EXPERT
    if not used.any():
        raise TraceError(f"{files[0].path}: no token chose an expert", _RECORD)
    layers = np.flatnonzero(used.any(axis=(0, 2)))
    top_k = int(used.sum(axis=2).max())
    missing, documents = set(), []
    for one in files:
        sequences = one.sequences
        if sequences is None:
            missing |= {"documents", "order"}
            sequences = [list(range(len(one.ids)))]
        for index, tokens in enumerate(sequences):
            documents.append(
                Tokens(
                    name=one.path.name if len(sequences) == 1 else f"{one.path.name} {index}",
                    experts=one.ids[tokens][:, layers, :top_k].transpose(1, 0, 2),
                    phase=one.phase[tokens],
                    position=None if one.sequences is None else one.position[tokens],
                    token_id=one.token_id[tokens],
                )
            )
    return Source(
        stated=Stated(
            moe_layers=tuple(layers.tolist()),
            num_experts=max(one.num_experts for one in files),
            top_k=top_k,
        ),
        documents=documents,
        missing=frozenset(missing),
    )


def _file(path: Path, document: dict[str, Any], records: Sequence[dict[str, Any]]) -> _File:
    logical = _map(path, document)
    ids, token_ids, positions, phases = [], [], [], []
    sequences: list[_Sequence] = []
    ambiguous = False
    count = 0
    for number, record in enumerate(records):
        where = f"{path}: record {number}"
        physical = integers(record.get(_IDS), f"{where}: {_IDS}", (3,))
        position = _numbers(record, "positions", "position", where)
        token_id = _numbers(record, "input_ids", "token id", where)
        if not physical.shape[1] == len(position) == len(token_id):
            raise TraceError(
                f"{where}: {physical.shape[1]} rows of ids, {len(position)} positions, "
                f"{len(token_id)} tokens",
                _RECORD,
            )
        ids.append(_logical(physical, logical, where).transpose(1, 0, 2))
        if ids[-1].shape[2] != ids[0].shape[2]:
            raise TraceError(
                f"{where}: {ids[-1].shape[2]} slots, the records before have {ids[0].shape[2]}",
                _RECORD,
            )
        spans, decoded = _spans(record, len(position), where)
        phases.append(decoded)
        for begin, end in spans:
            ambiguous |= _file_under(sequences, position[begin:end], range(begin, end), count)
        positions.append(position)
        token_ids.append(token_id)
        count += len(position)
    return _File(
        path=path,
        num_experts=int(logical.max()) + 1,
        ids=np.concatenate(ids),
        token_id=np.concatenate(token_ids),
        position=np.concatenate(positions),
        phase=np.concatenate(phases),
        sequences=None if ambiguous else [one.tokens for one in sequences],
    )


def _numbers(record: dict[str, Any], key: str, what: str, where: str) -> NDArray[np.uint32]:
    place = f"{where}: {key}"
    return checked_uint32(integers(record.get(key), place, (1,)), place, what, "token")


def _spans(
    record: dict[str, Any], num_tokens: int, where: str
) -> tuple[list[tuple[int, int]], NDArray[np.uint8]]:
    """The tokens of each request in a forward, and [T] uint8 which of them are decoded."""
    mode = record.get("forward_mode")
    if not isinstance(mode, int) or mode not in (_EXTEND, _DECODE, _MIXED, _IDLE):
        found = mode if isinstance(mode, int | None) else type(mode).__name__
        raise TraceError(
            f"{where}: forward_mode {found}, expected 1 (extend), 2 (decode) or 3 (both)",
            "record without speculative decoding",
        )
    if mode == _DECODE:
        return [(at, at + 1) for at in range(num_tokens)], np.ones(num_tokens, np.uint8)
    given = record.get("extend_seq_lens")
    lengths = integers([num_tokens] if given is None else given, f"{where}: extend_seq_lens", (1,))
    total = sum(lengths.tolist())
    if (lengths < 0).any() or total != num_tokens:
        raise TraceError(
            f"{where}: extend_seq_lens add up to {total}, there are {num_tokens} tokens", _RECORD
        )
    ends = np.cumsum(lengths).tolist()
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    decoded = np.zeros(num_tokens, np.uint8)
    if mode == _MIXED:
        # In a mixed forward, requests of a single token are those that are decoding.
        decoded[[begin for begin, end in spans if end - begin == 1]] = 1
    return [span for span in spans if span[1] > span[0]], decoded


def _file_under(
    sequences: list[_Sequence], position: NDArray[np.uint32], tokens: range, offset: int
) -> bool:
    """Add tokens to the request they continue; whether several requests could be it."""
    begin = int(position[0])
    waiting = [one for one in sequences if begin > 0 and one.next_position == begin]
    if len(waiting) > 1:
        return True
    if not waiting:
        waiting = [_Sequence()]
        sequences += waiting
    waiting[0].tokens += [offset + token for token in tokens]
    waiting[0].next_position = int(position[-1]) + 1
    return False


def _map(path: Path, document: dict[str, Any]) -> NDArray[np.int64]:
    """[num_hidden_layers, physical experts] int64."""
    found = integers(document.get(_MAP), f"{path}: {_MAP}", (2,))
    if found.size == 0 or (found < 0).any() or found.max() >= NO_EXPERT:
        raise TraceError(f"{path}: {_MAP} does not hold expert ids", _RECORD)
    return found


def _logical(
    physical: NDArray[np.int64], logical: NDArray[np.int64], where: str
) -> NDArray[np.uint16]:
    """[num_hidden_layers, T, 8] uint16: the ids through the map of their layer."""
    if len(physical) != len(logical):
        raise TraceError(f"{where}: {len(physical)} layers, {_MAP} has {len(logical)}", _RECORD)
    checked = checked_ids(physical, f"{where}: {_IDS}", "layer, token")
    outside = (physical >= logical.shape[1]) & (physical >= 0)
    if outside.any():
        layer, token, slot = np.argwhere(outside)[0]
        raise TraceError(
            f"{where}: layer {layer}, token {token}: physical expert "
            f"{physical[layer, token, slot]}, {_MAP} has {logical.shape[1]}",
            _RECORD,
        )
    layers = np.arange(len(physical))[:, None, None]
    mapped = logical[layers, np.where(physical < 0, 0, physical)]
    # Slots beyond the model's top-k hold -1; those in front must not, for ids to be cut behind.
    ordered = np.argsort(checked == NO_EXPERT, axis=2, kind="stable")
    filled = np.where(checked == NO_EXPERT, NO_EXPERT, mapped).astype(np.uint16)
    return np.take_along_axis(filled, ordered, axis=2)


def _per_pass(
    path: Path, document: dict[str, Any], records: Sequence[dict[str, Any]]
) -> dict[str, NDArray[np.int64]]:
    """The counts of a file as mode `stat` would have written them."""
    logical = _map(path, document)

    def passes() -> Iterator[NDArray[np.int64]]:
        for number, record in enumerate(records):
            where = f"{path}: record {number}: {_COUNTS}"
            physical = integers(record.get(_COUNTS), where, (2,))
            if physical.shape != logical.shape:
                raise TraceError(f"{where}: does not fit {_MAP}", _RECORD)
            yield physical

    physical = summed(passes(), f"{path}: {_COUNTS}", "record")
    counts = np.zeros((len(logical), int(logical.max()) + 1), np.int64)
    np.add.at(counts, (np.arange(len(logical))[:, None], logical), physical)
    return {KEY: counts}
