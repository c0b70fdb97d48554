"""The self-check of what was read: shapes, ids in range, unique in their row, and sums."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.interop.source import Counted, Tokens
from moeprof.interop.values import MAX_ASSIGNMENTS
from moeprof.model_shape import ModelShape
from moeprof.trace.schema import NO_EXPERT

_STRIDED = (
    "compare the row with the engine: ids of a strided view that were written as packed memory "
    "look like this"
)
TORN = ": the file is cut, or has lost lines"


def check_tokens(documents: Sequence[Tokens], shape: ModelShape) -> None:
    """Check the rows of every document.

    Raises:
        TraceError: no token chose an expert, documents differ in layers or slots, an id is out of
            range or stands twice in a row, or a position stands twice.
    """
    if not any((tokens.experts != NO_EXPERT).any() for tokens in documents):
        raise TraceError(
            f"{documents[0].name}: no token chose an expert", "name files with routing"
        )
    for tokens in documents:
        num_layers, _, slots = tokens.experts.shape
        if (num_layers, slots) != (shape.num_moe_layers, shape.top_k):
            raise TraceError(
                f"{tokens.name}: {num_layers} layers of {slots} ids, expected "
                f"{shape.num_moe_layers} of {shape.top_k}",
                "import files of one model together",
            )
        if tokens.position is not None and len(np.unique(tokens.position)) != tokens.num_tokens:
            values, times = np.unique(tokens.position, return_counts=True)
            twice = int(values[times > 1][0])
            raise TraceError(
                f"{tokens.name}: position {twice} stands twice", "one row per token and layer"
            )
        for layer, experts in zip(shape.moe_layers, tokens.experts, strict=True):
            _check_rows(tokens, layer, experts, shape.num_experts)


def _check_rows(tokens: Tokens, layer: int, experts: NDArray[np.uint16], num_experts: int) -> None:
    ordered = np.sort(experts, axis=1)
    outside = (ordered >= num_experts) & (ordered != NO_EXPERT)
    if outside.any():
        token, slot = np.argwhere(outside)[0]
        raise TraceError(
            f"{_place(tokens, int(token), layer)}: expert {ordered[token, slot]}, the model has "
            f"{num_experts}",
            "correct --num-experts, or name the right file",
        )
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NO_EXPERT)
    if twice.any():
        token, slot = np.argwhere(twice)[0]
        raise TraceError(
            f"{_place(tokens, int(token), layer)}: expert {ordered[token, slot]} stands twice in "
            "one row",
            _STRIDED,
        )


def _place(tokens: Tokens, token: int, layer: int) -> str:
    position = token if tokens.position is None else int(tokens.position[token])
    return f"{tokens.name}: position {position}, layer {layer}"


def first_torn(
    token: NDArray[np.int64],
    row: NDArray[np.int64],
    reaches_last: NDArray[np.bool_],
    layers: NDArray[np.int64],
    slots: int = 1,
) -> tuple[int, str] | None:
    """The first token that lacks rows which an engine such as llama.cpp must have written.

    A token passes through every layer. The last one alone is computed only for tokens whose logits
    are wanted: those of decode, and the last of each prompt at least.

    Args:
        token: [N] token of each row, indices into `reaches_last`.
        row: [N] its layer, index into `layers`.
        reaches_last: [T] whether a token must have rows in the last layer, too.
        layers: [L] checkpoint indices.
        slots: rows of each token in a layer.

    Returns:
        Index of the token, and words for what it has; None where every token is whole.
    """
    num_layers = len(layers)
    cells, filled = np.unique(token * num_layers + row, return_counts=True)
    of_token, of_row = np.divmod(cells, num_layers)
    reached = np.bincount(of_token, minlength=len(reaches_last))
    in_last = np.zeros(len(reaches_last), np.int64)
    in_last[of_token[of_row == num_layers - 1]] = 1
    torn = (reached - in_last < num_layers - 1) | (reaches_last & (in_last == 0))
    short = filled < slots
    torn[of_token[short]] = True
    if not torn.any():
        return None
    first = int(torn.argmax())
    for cell in np.flatnonzero(short & (of_token == first)):
        return first, f"{filled[cell]} of {slots} slots in layer {layers[of_row[cell]]}"
    return first, f"rows in {reached[first]} of {num_layers} layers"


def remedy_of_torn(whole: int) -> str:
    """What to do about a token that lacks rows; `whole` tokens of the import lie before it."""
    beside = f", or take the tokens before it: --max-tokens {whole}" if whole else ""
    return f"record the file anew{beside}"


def wanted_logits(phase: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """[T] whether a token is of decode or the last of a prompt, in the order of one document."""
    ends_prompt = np.append(phase[1:] == 1, True)
    wanted: NDArray[np.bool_] = (phase == 1) | ends_prompt
    return wanted


def empty_slots(tokens: Tokens) -> int:
    """Slots of a document that chose no expert."""
    return int(np.count_nonzero(tokens.experts == NO_EXPERT))


def check_counts(counted: Sequence[Counted], shape: ModelShape) -> bool:
    """Check counts; no expert can be chosen more often than there are tokens.

    Returns:
        Whether every layer counts the same number of whole tokens.

    Raises:
        TraceError: counts are negative or none, differ in shape, or cannot be of `top_k` different
            experts for each token.
    """
    if not any(entry.counts.any() for entry in counted):
        raise TraceError(f"{counted[0].name}: counts no assignments", "name files with routing")
    complete, total = True, 0
    for entry in counted:
        expected = (shape.num_moe_layers, shape.num_experts)
        if entry.counts.shape != expected:
            raise TraceError(
                f"{entry.name}: counts of {entry.counts.shape[0]} layers x "
                f"{entry.counts.shape[1]} experts, expected {expected[0]} x {expected[1]}",
                "correct --num-experts or --moe-layers, or import files of one model together",
            )
        if (entry.counts < 0).any():
            row, expert = np.argwhere(entry.counts < 0)[0]
            raise TraceError(
                f"{entry.name}: layer {shape.moe_layers[row]}, expert {expert}: "
                f"{entry.counts[row, expert]} assignments",
                "name a file with counts",
            )
        total += int(entry.counts.sum(dtype=np.float64))
        if total > MAX_ASSIGNMENTS:
            raise TraceError(
                f"{entry.name}: counts add up to {total:.4g}, expected at most {MAX_ASSIGNMENTS}",
                "name a file with counts, or import fewer files together",
            )
        sums = entry.counts.sum(axis=1)
        tokens = -(-int(sums.max()) // shape.top_k)
        complete &= bool((sums == tokens * shape.top_k).all())
        if (entry.counts > tokens).any():
            row, expert = np.argwhere(entry.counts > tokens)[0]
            raise TraceError(
                f"{entry.name}: layer {shape.moe_layers[row]}, expert {expert} was chosen "
                f"{entry.counts[row, expert]} times by {tokens} tokens",
                f"correct --top-k {shape.top_k}; counts of a strided tensor that was read as "
                "packed memory look like this, too",
            )
    return complete
