"""Routed experts as vLLM returns them with `--enable-return-routed-experts`.

Read are JSON documents (one response or a list of them), JSON lines of responses, and .npz files
with the arrays of one request. A response has in each of its `choices` the field `routed_experts`:

- vLLM 0.21: a nested list [generated, moe_layers, k], and beside the choices
  `prompt_routed_experts` [prompt, moe_layers, k].
- vLLM 0.22 and later: a .npy array in base64, [prompt + generated - 1, moe_layers, k]: the last
  token was never fed. How many rows are prompt follows from `usage` or the token ids; a prefix
  that `routed_experts_prompt_start` left out is noticed by them.

In a .npz the two arrays of 0.21 stand under their names, as `RequestOutput.prompt_routed_experts`
and `CompletionOutput.routed_experts` give them. Ids are int16 or wider, -1 at positions that came
from the prefix cache: rows without any id are left out. The layer axis is over MoE layers only,
which `--moe-layers` or `--model` number. `prompt_token_ids` and a choice's `token_ids` are used if
there.

It cannot say how many experts a layer has, which layers of the checkpoint these are, weights, the
model or its bytes. Prompt that follows a reply, as in a conversation, is not written.

Sources: docs.vllm.ai/en/v0.21.0/training/routed_experts_replay and
docs.vllm.ai/en/latest/training/routed_experts; github.com/vllm-project/vllm/pull/44638 (base64).
"""

import base64
import io
import json
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.interop.exporting import documents_of, prompt_length, written
from moeprof.interop.source import Facts, Source, Stated, Tokens
from moeprof.interop.text import content, shown
from moeprof.interop.values import MAX_UINT32, checked_ids, checked_uint32
from moeprof.trace import Trace
from moeprof.trace.schema import NO_EXPERT

# What numpy raises on bytes that it did not write, by mutating those that it did.
_DAMAGED = (
    ValueError, OSError, EOFError, OverflowError, TypeError, LookupError, MemoryError,
    RuntimeError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_PROMPT, _ROUTED = "prompt_routed_experts", "routed_experts"
_EXPECTED = "name responses of vllm serve --enable-return-routed-experts, or their arrays as .npz"
# Rows of -1 that are written at most for what lies before a document, or between its tokens.
_MAX_CACHED = 2**20


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
        if tokens.num_tokens
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
        raise TraceError(f"{where}: not JSON ({shown(str(error))})", _EXPECTED) from error


def _object(where: str, entry: object) -> Mapping[str, Any]:
    if not isinstance(entry, dict) or not isinstance(entry.get("choices"), list):
        raise TraceError(f"{where}: no response with choices", _EXPECTED)
    if not all(isinstance(choice, dict) for choice in entry["choices"]):
        raise TraceError(f"{where}: a choice is no object", _EXPECTED)
    return entry


def _arrays(path: Path) -> Mapping[str, Any]:
    """The arrays of a .npz in the form of a response."""
    try:
        found = _loaded(content(path))
    except _DAMAGED as error:
        reason = shown(str(error))
        raise TraceError(f"{path}: not a readable .npz file ({reason})", _EXPECTED) from error
    if _ROUTED not in found:
        names = shown(", ".join(found))
        raise TraceError(f"{path}: has no array {_ROUTED}, only {names}", _EXPECTED)
    choice = {name: found[name] for name in (_ROUTED, "token_ids") if name in found}
    return {"choices": [choice]} | {
        name: found[name] for name in found if name.startswith("prompt")
    }


def _loaded(data: bytes) -> Any:  # noqa: ANN401
    """The array of a .npy, or those of a .npz by name; numpy's remarks on odd headers are muted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = np.load(io.BytesIO(data), allow_pickle=False)
        return found if isinstance(found, np.ndarray) else dict(found)


def _documents(name: str, response: Mapping[str, Any]) -> Iterator[Tokens]:
    prompt = _ids(f"{name}: {_PROMPT}", response.get(_PROMPT))
    for index, choice in enumerate(response["choices"]):
        where = name if len(response["choices"]) == 1 else f"{name} choice {index}"
        rows = _ids(f"{where}: {_ROUTED}", choice.get(_ROUTED))
        if rows is None:
            raise TraceError(f"{where}: no {_ROUTED}", _EXPECTED)
        given = response.get("prompt_token_ids", choice.get("prompt_token_ids"))
        prompt_ids = _token_ids(f"{where}: prompt_token_ids", given)
        token_ids = _token_ids(f"{where}: token_ids", choice.get("token_ids"))
        if prompt is None:
            counted = _usage(where, response, prompt_ids, token_ids)
            start, num_prompt = _span(where, len(rows), *counted)
        else:
            start, num_prompt = 0, len(prompt)
            rows = _joined(where, prompt, rows)
        joint = None
        if prompt_ids is not None and token_ids is not None:
            # The last generated token was not fed, and may have no row.
            joint = np.concatenate([prompt_ids, token_ids])[start : start + len(rows)]
            if len(joint) < len(rows) or len(prompt_ids) != num_prompt:
                raise TraceError(
                    f"{where}: {len(rows)} rows from position {start} on, but {len(prompt_ids)} + "
                    f"{len(token_ids)} token ids",
                    _EXPECTED,
                )
        yield _tokens(where, rows, start, num_prompt, joint, index > 0)


def _joined(
    where: str, prompt: NDArray[np.uint16], generated: NDArray[np.uint16]
) -> NDArray[np.uint16]:
    """[T, L, K] uint16: the rows of a prompt and of its reply; an empty list has no shape."""
    if len(prompt) and len(generated) and prompt.shape[1:] != generated.shape[1:]:
        raise TraceError(
            f"{where}: prompt rows of {prompt.shape[1:]}, generated ones of {generated.shape[1:]}",
            _EXPECTED,
        )
    parts = [part for part in (prompt, generated) if len(part)]
    return np.concatenate(parts) if parts else generated


def _usage(
    where: str,
    response: Mapping[str, Any],
    prompt_ids: NDArray[np.uint32] | None,
    token_ids: NDArray[np.uint32] | None,
) -> tuple[int, int | None]:
    """Tokens of the prompt, and tokens generated where that is known."""
    usage = response.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    prompt = usage.get("prompt_tokens") if prompt_ids is None else len(prompt_ids)
    generated = None if token_ids is None else len(token_ids)
    if generated is None and len(response["choices"]) == 1:
        generated = usage.get("completion_tokens")
    for name, count in (("prompt_tokens", prompt), ("completion_tokens", generated)):
        wanted = name == "prompt_tokens" or count is not None
        if wanted and not _is_number_of_tokens(count):
            raise TraceError(
                f"{where}: usage.{name} is {shown(json.dumps(count))}, so that it is not known "
                "which rows are of the prompt",
                "keep usage, or prompt_token_ids and token_ids, of the response",
            )
    return int(prompt or 0), generated


def _is_number_of_tokens(count: object) -> bool:
    return isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= MAX_UINT32


def _span(where: str, num_rows: int, prompt: int, generated: int | None) -> tuple[int, int]:
    """Position of the first row of a joint array, and tokens of the prompt.

    Rows of a prefix that the client knew may have been left out (`routed_experts_prompt_start`):
    the array ends with the token before the last in any case.
    """
    start = 0 if generated is None else max(0, prompt + generated - 1 - num_rows)
    too_many = generated is not None and num_rows > prompt + generated
    beyond = start + num_rows - 1 > MAX_UINT32
    if too_many or beyond or start > prompt or (generated is None and num_rows < prompt):
        raise TraceError(
            f"{where}: {num_rows} rows for {prompt} tokens of prompt and "
            f"{'an unknown number' if generated is None else generated} generated",
            "keep usage.prompt_tokens and usage.completion_tokens of the response",
        )
    return start, prompt


def _token_ids(where: str, value: object) -> NDArray[np.uint32] | None:
    if value is None:
        return None
    try:
        ids = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise TraceError(f"{where}: no list of token ids", _EXPECTED) from error
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
        raise TraceError(
            f"{where}: no list of token ids, but {ids.dtype} of shape {ids.shape}", _EXPECTED
        )
    return checked_uint32(ids, where, "token id", "entry") if len(ids) else ids.astype(np.uint32)


def _tokens(
    where: str,
    rows: NDArray[np.uint16],
    start: int,
    num_prompt: int,
    token_id: NDArray[np.uint32] | None,
    continues: bool,
) -> Tokens:
    """One choice; the prompt is of the first choice, which the others continue."""
    position = np.arange(start, start + len(rows), dtype=np.uint32)
    kept = (rows != NO_EXPERT).any(axis=(1, 2))
    if continues:
        kept &= position >= num_prompt
    return Tokens(
        name=where,
        experts=np.ascontiguousarray(rows[kept].transpose(1, 0, 2)),
        phase=(position >= num_prompt).astype(np.uint8)[kept],
        position=position[kept],
        token_id=None if token_id is None else token_id[kept],
        continues=continues,
    )


def _ids(where: str, value: object) -> NDArray[np.uint16] | None:
    """[T, L, K] uint16 of a nested list, a base64 .npy or an array; None where there is none."""
    if value is None:
        return None
    try:
        if isinstance(value, str):
            array = np.asarray(_loaded(base64.b64decode(value, validate=True)))
        else:
            array = np.asarray(value)
    except _DAMAGED as error:
        reason = shown(str(error))
        raise TraceError(f"{where}: no array of expert ids ({reason})", _EXPECTED) from error
    if array.shape == (0,):
        return np.zeros((0, 1, 1), np.uint16)
    if array.ndim != 3 or array.dtype.kind not in "iu" or 0 in array.shape[1:]:
        raise TraceError(
            f"{where}: {shown(str(array.dtype))} of shape {array.shape}, expected integers "
            "[tokens, layers, k]",
            _EXPECTED,
        )
    return checked_ids(array, where, "token, layer")


def write(trace: Trace, path: Path) -> None:
    """Write the documents of a trace as JSON lines in the form of vLLM 0.21.

    Positions that a document lacks, such as the turns before it, are written as cached ones: rows
    of -1, and token id 0.

    Raises:
        TraceError: the trace has no rows, prompt follows a reply, too many positions are lacking,
            or the file cannot be written.
    """
    with_ids = "token_ids" not in trace.metadata.missing
    with written(path) as stream:
        for tokens in documents_of(trace, ("order", "documents", "phase")):
            print(json.dumps(_response(tokens, with_ids)), file=stream)


def _response(tokens: Tokens, with_ids: bool) -> dict[str, Any]:
    position = tokens.positions.astype(np.int64)
    length = int(position[-1]) + 1
    if length - tokens.num_tokens > _MAX_CACHED:
        raise TraceError(
            f"{tokens.name}: {tokens.num_tokens} tokens up to position {length - 1}, expected at "
            f"most {_MAX_CACHED} positions without a token",
            "write route-trace",
        )
    num_layers, _, slots = tokens.experts.shape
    rows = np.full((length, num_layers, slots), -1, np.int32)
    rows[position] = tokens.experts.transpose(1, 0, 2)
    rows[rows == NO_EXPERT] = -1
    after = prompt_length(tokens)
    prompt = int(position[after]) if after < tokens.num_tokens else length
    choice: dict[str, Any] = {_ROUTED: rows[prompt:].tolist()}
    response: dict[str, Any] = {_PROMPT: rows[:prompt].tolist(), "choices": [choice]}
    if with_ids and tokens.token_id is not None:
        token_id = np.zeros(length, np.int64)
        token_id[position] = tokens.token_id
        choice["token_ids"] = token_id[prompt:].tolist()
        response["prompt_token_ids"] = token_id[:prompt].tolist()
    return response
