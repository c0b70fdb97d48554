"""What a reader of a foreign format is told, and what it gives back."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.errors import TraceError
from moeprof.model_shape import ModelShape
from moeprof.trace.schema import NO_EXPERT, PHASES, ModelIdentity

# What tokens stand as whose phase nobody says: a log of single tokens is read one by one.
STAND_IN_PHASE = PHASES.index("decode")
# Ids are stored as uint16, of which the last is NO_EXPERT.
MAX_EXPERTS = NO_EXPERT


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A checkpoint that the imported routing is of."""

    identity: ModelIdentity
    shape: ModelShape


@dataclass(frozen=True, slots=True)
class Facts:
    """What the user says of the files; None where it is left to the files.

    Attributes:
        num_experts: routed experts of each MoE layer (E).
        top_k: experts chosen per token (K).
        moe_layers: checkpoint indices of the MoE layers, ascending.
        expert_bytes: bytes of one expert, in every layer.
        phase: `prefill` or `decode`.
        model_type: transformers' `model_type`.
        model: a checkpoint, for whatever neither the files nor the fields above say.
        domain: the domain that all tokens are filed under.
        max_tokens: tokens to take at most, from the beginning; None for all.
        document_tokens: length of every document of a stream that is not divided; None where the
            files divide it, or nobody knows.
    """

    num_experts: int | None = None
    top_k: int | None = None
    moe_layers: tuple[int, ...] | None = None
    expert_bytes: int | None = None
    phase: str | None = None
    model_type: str | None = None
    model: KnownModel | None = None
    domain: str = "imported"
    max_tokens: int | None = None
    document_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Stated:
    """What the files themselves say of the model; None where they do not.

    Attributes:
        moe_layers: checkpoint indices of the MoE layers; None where the files only number them.
        num_experts: routed experts of each layer.
        top_k: slots per token.
        expert_bytes: bytes of one expert of each of `moe_layers`.
        dense_bytes: bytes outside the experts, those that are stated.
        model_type: the architecture's name.
        model_name: what the files call the model.
    """

    moe_layers: tuple[int, ...] | None = None
    num_experts: int | None = None
    top_k: int | None = None
    expert_bytes: tuple[int, ...] | None = None
    dense_bytes: int | None = None
    model_type: str | None = None
    model_name: str | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one document.

    Attributes:
        name: of the document.
        experts: [L, T, K] uint16, `NO_EXPERT` in a slot that chose none.
        phase: [T] uint8, index into `PHASES`; None where the files do not say.
        position: [T] uint32; None for 0 to T - 1.
        token_id: [T] uint32; None where the files do not say.
        weights: [L, T, K] float16; None where the files do not say.
        continues: whether it goes on with the document before, as a further turn of one
            conversation; such documents are not independent and share a document group.
    """

    name: str
    experts: NDArray[np.uint16]
    phase: NDArray[np.uint8] | None = None
    position: NDArray[np.uint32] | None = None
    token_id: NDArray[np.uint32] | None = None
    weights: NDArray[np.float16] | None = None
    continues: bool = False

    @property
    def num_decode(self) -> int:
        """Tokens known to be of decode."""
        return 0 if self.phase is None else int(np.count_nonzero(self.phase))

    @property
    def num_tokens(self) -> int:
        """Tokens of the document (T)."""
        return int(self.experts.shape[1])

    def between(self, begin: int, end: int, apart: bool) -> "Tokens":
        """Some of the tokens; `apart`: as a document of its own, with positions from 0."""

        def part(values: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if values is None else values[begin:end]

        return Tokens(
            name=f"{self.name} {begin}" if apart else self.name,
            experts=self.experts[:, begin:end],
            phase=part(self.phase),
            position=None if apart else part(self.position),
            token_id=part(self.token_id),
            weights=None if self.weights is None else self.weights[:, begin:end],
            continues=self.continues and not apart,
        )


@dataclass(frozen=True, slots=True)
class Counted:
    """Counts of one document, or of tokens that cannot be told apart.

    Attributes:
        name: of what was counted.
        counts: [L, E] int64, assignments.
        phase: index into `PHASES`; None where the files do not say.
    """

    name: str
    counts: NDArray[np.int64]
    phase: int | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """What the files hold, rows or counts.

    Attributes:
        stated: what they say of the model.
        documents: tokens of each document; empty where the files hold counts.
        counted: counts; empty where the files hold rows.
        missing: words of `origin.UNSAID` beyond those that follow from the fields left None.
        notes: sentences on what was read in a way that a reader of the trace should know.
    """

    stated: Stated
    documents: Sequence[Tokens] = ()
    counted: Sequence[Counted] = ()
    missing: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def checked_ids(ids: NDArray[np.generic], where: str, rows: str = "row") -> NDArray[np.uint16]:
    """Expert ids as they are stored, -1 as `NO_EXPERT`.

    Args:
        ids: [..., K] integers.
        where: names the ids in errors.
        rows: what an index into the axes before the last is called in errors.

    Returns:
        The ids as uint16, of the same shape.

    Raises:
        TraceError: an id is below -1 or does not fit.
    """
    if ids.dtype.kind not in "iu":
        raise TraceError(
            f"{where}: ids are {ids.dtype}, expected integers", "export the ids as integers"
        )
    wide = ids.astype(np.int64) if ids.dtype.kind == "i" else ids.astype(np.uint64)
    wrong = (wide >= MAX_EXPERTS) | ((wide < -1) if ids.dtype.kind == "i" else False)
    if wrong.any():
        at = np.argwhere(wrong)[0]
        place = " ".join(map(str, at[:-1].tolist()))
        raise TraceError(
            f"{where}: {rows} {place}: expert id {wide[tuple(at)]}, expected 0 to "
            f"{MAX_EXPERTS - 1}, or -1 for none",
            "check that the file holds expert ids, and is not cut or misread",
        )
    return np.where(wide < 0, NO_EXPERT, wide).astype(np.uint16)


def is_ranked(documents: Sequence[Tokens]) -> bool:
    """Whether some row does not ascend: ids that all ascend were sorted, and lost their ranks."""
    for tokens in documents:
        if tokens.experts.shape[2] == 1:
            return True
        filled = np.where(tokens.experts == NO_EXPERT, MAX_EXPERTS, tokens.experts)
        if (filled[:, :, 1:] < filled[:, :, :-1]).any():
            return True
    return False


def cover(layers: Iterable[int]) -> str:
    """Layers in words, runs of them as `a to b`."""
    ordered = sorted(layers)
    runs: list[list[int]] = []
    for layer in ordered:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
