"""What a reader of a foreign format is told, and what it gives back."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeprof.model_shape import ModelShape
from moeprof.trace.schema import PHASES, ModelIdentity

# What tokens stand as whose phase nobody says: a log of single tokens is read one by one.
STAND_IN_PHASE = PHASES.index("decode")


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

    @property
    def positions(self) -> NDArray[np.uint32]:
        """[T] uint32: `position`, counted from 0 where the files do not say it."""
        if self.position is None:
            return np.arange(self.num_tokens, dtype=np.uint32)
        return self.position

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


def is_ranked(documents: Sequence[Tokens]) -> bool:
    """Whether some row does not ascend: ids that all ascend were sorted, and lost their ranks."""
    for tokens in documents:
        if tokens.experts.shape[2] == 1:
            return True
        if (tokens.experts[:, :, 1:] < tokens.experts[:, :, :-1]).any():
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
