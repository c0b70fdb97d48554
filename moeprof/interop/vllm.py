"""Routed experts as vLLM returns them with `--enable-return-routed-experts`.

Read are JSON documents (one response or a list of them), JSON lines of responses, and .npz files
with the arrays of one request. A response has in each of its `choices` the field `routed_experts`:

- vLLM 0.21: a nested list [generated, moe_layers, k], and beside the choices
  `prompt_routed_experts` [prompt, moe_layers, k].
- vLLM 0.22 and later: a .npy array in base64, [prompt + generated - 1, moe_layers, k]: the last
  token was never fed. How many rows are prompt follows from `usage.prompt_tokens` or
  `prompt_token_ids`.

In a .npz the two arrays of 0.21 stand under their names, as `RequestOutput.prompt_routed_experts`
and `CompletionOutput.routed_experts` give them. Ids are int16 or wider, -1 at positions that came
from the prefix cache: rows without any id are left out. The layer axis is over MoE layers only,
which `--moe-layers` or `--model` number. `prompt_token_ids` and a choice's `token_ids` are used if
there.

Sources: docs.vllm.ai/en/v0.21.0/training/routed_experts_replay and
docs.vllm.ai/en/latest/training/routed_experts; github.com/vllm-project/vllm/pull/44638 (base64).
"""

import base64
import binascii
import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.interop.exporting import documents_of
from moeprof.interop.source import Facts, Source, Stated, Tokens, checked_ids
from moeprof.interop.text import content
from moeprof.trace import Trace
from moeprof.trace.schema import NO_EXPERT

_PROMPT, _ROUTED = "prompt_routed_experts", "routed_experts"
_EXPECTED = "name responses of vllm serve --enable-return-routed-experts, or their arrays as .npz"


def read(files: Sequence[Path], facts: Facts) -> Source:
    """The requests of the files; each choice is a document.

    Raises:
        TraceError: a file holds no such response, or its arrays are damaged.
    """
    documents = [
        tokens
        for path in files
        for where, response in _responses(path)
        for tokens in _documents(where, response)
    ]
    return Source(stated=Stated(), documents=documents)


def _responses(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every response with words for it."""
    data = content(path)
    if data.startswith(b"PK"):
        yield path.name, _arrays(path)
        return
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        for number, line in enumerate(data.split(b"\n"), start=1):
            if line.strip():
                where = f"{path}: line {number}"
                yield f"{path.name} line {number}", _object(where, _parsed(where, line))
        return
    entries = document if isinstance(document, list) else [document]
    for number, entry in enumerate(entries):
        name = path.name if len(entries) == 1 else f"{path.name} {number}"
        yield name, _object(name, entry)


def _parsed(where: str, line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{where}: not JSON ({error})", _EXPECTED) from error


def _object(where: str, entry: object) -> Mapping[str, Any]:
    if not isinstance(entry, dict) or not isinstance(entry.get("choices"), list):
        raise TraceError(f"{where}: no response with choices", _EXPECTED)
    if not all(isinstance(choice, dict) for choice in entry["choices"]):
        raise TraceError(f"{where}: a choice is no object", _EXPECTED)
    return entry


def _arrays(path: Path) -> Mapping[str, Any]:
    """The arrays of a .npz in the form of a response."""
    try:
        with np.load(io.BytesIO(content(path)), allow_pickle=False) as archive:
            found = dict(archive)
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise TraceError(f"{path}: not a readable .npz file ({error})", _EXPECTED) from error
    if _ROUTED not in found:
        raise TraceError(f"{path}: has no array {_ROUTED}, only {', '.join(found)}", _EXPECTED)
    choice = {name: found[name] for name in (_ROUTED, "token_ids") if name in found}
    return {"choices": [choice]} | {
        name: found[name] for name in found if name.startswith("prompt")
    }


def _documents(name: str, response: Mapping[str, Any]) -> Iterator[Tokens]:
    prompt = _ids(f"{name}: {_PROMPT}", response.get(_PROMPT))
    prompt_ids = response.get("prompt_token_ids")
    for index, choice in enumerate(response["choices"]):
        where = name if len(response["choices"]) == 1 else f"{name} choice {index}"
        routed = _ids(f"{where}: {_ROUTED}", choice.get(_ROUTED))
        if routed is None:
            raise TraceError(f"{where}: no {_ROUTED}", _EXPECTED)
        own = prompt_ids if prompt_ids is not None else choice.get("prompt_token_ids")
        if prompt is None:
            num_prompt = _prompt_length(where, response, own, len(routed))
            rows = routed
        elif prompt.shape[1:] != routed.shape[1:]:
            raise TraceError(
                f"{where}: prompt rows of {prompt.shape[1:]}, generated ones of {routed.shape[1:]}",
                _EXPECTED,
            )
        else:
            num_prompt, rows = len(prompt), np.concatenate([prompt, routed])
        yield _tokens(where, rows, num_prompt, (own, choice.get("token_ids")), index)


def _prompt_length(
    where: str, response: Mapping[str, Any], prompt_ids: Sequence[int] | None, num_rows: int
) -> int:
    """How many rows of a joint array are of the prompt."""
    usage = response.get("usage") or {}
    length = usage.get("prompt_tokens") if prompt_ids is None else len(prompt_ids)
    if not isinstance(length, int) or not 0 <= length <= num_rows:
        raise TraceError(
            f"{where}: {num_rows} rows, of which {length} are prompt",
            "keep usage.prompt_tokens or prompt_token_ids of the response",
        )
    return length


def _tokens(
    where: str, rows: NDArray[np.uint16], num_prompt: int, ids: tuple[Any, Any], index: int
) -> Tokens:
    """One choice; the prompt is of the first choice, which the others continue."""
    position = np.arange(len(rows), dtype=np.uint32)
    kept = (rows != NO_EXPERT).any(axis=(1, 2))
    if index > 0:
        kept &= position >= num_prompt
    token_id = None
    if ids[0] is not None and ids[1] is not None:
        # The last generated token was not fed, and may have no row.
        joint = np.concatenate([np.asarray(part, np.int64).reshape(-1) for part in ids])
        if len(joint) < len(rows) or len(ids[0]) != num_prompt or (joint < 0).any():
            raise TraceError(
                f"{where}: {len(rows)} rows, but {len(ids[0])} + {len(ids[1])} token ids", _EXPECTED
            )
        token_id = joint[: len(rows)].astype(np.uint32)[kept]
    return Tokens(
        name=where,
        experts=np.ascontiguousarray(rows[kept].transpose(1, 0, 2)),
        phase=(position >= num_prompt).astype(np.uint8)[kept],
        position=position[kept],
        token_id=token_id,
        continues=index > 0,
    )


def _ids(where: str, value: object) -> NDArray[np.uint16] | None:
    """[T, L, K] uint16 of a nested list, a base64 .npy or an array; None where there is none."""
    if value is None:
        return None
    try:
        if isinstance(value, str):
            raw = io.BytesIO(base64.b64decode(value, validate=True))
            array = np.load(raw, allow_pickle=False)
        else:
            array = np.asarray(value)
    except (binascii.Error, ValueError, EOFError, OSError, OverflowError) as error:
        raise TraceError(f"{where}: no array of expert ids ({error})", _EXPECTED) from error
    if array.ndim != 3 or array.dtype.kind not in "iu":
        raise TraceError(
            f"{where}: {array.dtype} of shape {array.shape}, expected integers [tokens, layers, k]",
            _EXPECTED,
        )
    return checked_ids(array, where, "token, layer")


def write(trace: Trace, path: Path) -> None:
    """Write the documents of a trace as JSON lines in the form of vLLM 0.21.

    Raises:
        TraceError: the trace has no rows, or the file cannot be written.
    """
    with_ids = "token_ids" not in trace.metadata.missing
    try:
        with path.open("w", encoding="utf-8") as stream:
            for tokens in documents_of(trace):
                print(json.dumps(_response(tokens, with_ids)), file=stream)
    except OSError as error:
        raise TraceError(
            f"{path}: cannot be written ({error.strerror})", "write elsewhere"
        ) from error


def _response(tokens: Tokens, with_ids: bool) -> dict[str, Any]:
    rows = np.where(tokens.experts == NO_EXPERT, -1, tokens.experts.astype(int)).transpose(1, 0, 2)
    prompt = tokens.num_tokens - tokens.num_decode
    choice: dict[str, Any] = {_ROUTED: rows[prompt:].tolist()}
    response: dict[str, Any] = {_PROMPT: rows[:prompt].tolist(), "choices": [choice]}
    if with_ids and tokens.token_id is not None:
        choice["token_ids"] = tokens.token_id[prompt:].tolist()
        response["prompt_token_ids"] = tokens.token_id[:prompt].tolist()
    return response
