"""The shape of the model an imported trace is of, from what files, user and checkpoint say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from moeprof.errors import TraceError
from moeprof.interop.source import Facts, Stated, cover
from moeprof.interop.values import MAX_EXPERTS, MAX_LAYER
from moeprof.model_shape import ModelShape
from moeprof.trace.schema import ModelIdentity

T = TypeVar("T", int, str, tuple[int, ...])
# Adding up the counts of a trace takes 2 KiB for each cell; no model comes near.
_MAX_CELLS = 2**20
_MAX_BYTES = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """The model, and what nobody said of it.

    Attributes:
        identity: name and fingerprint, the latter empty where unknown.
        shape: its numbers.
        missing: words of `origin.UNSAID`.
        notes: sentences on what was assumed.
    """

    identity: ModelIdentity
    shape: ModelShape
    missing: frozenset[str]
    notes: tuple[str, ...]


def imported_model(
    stated: Stated, facts: Facts, num_rows: int, least_top_k: int | None, name: str
) -> ImportedModel:
    """Put together what is known of the model.

    Args:
        stated: by the files.
        facts: by the user.
        num_rows: layers in the files (L).
        least_top_k: slots in the files' rows; None where they hold counts.
        name: of the first file; of the model, too, where nobody names it.

    Raises:
        TraceError: something needed was not said by anybody, or two of them contradict.
    """
    known = None if facts.model is None else facts.model.shape
    notes = []
    num_experts = _agreed(
        "experts", "--num-experts", facts.num_experts, stated.num_experts,
        None if known is None else known.num_experts,
    )  # fmt: skip
    top_k = _agreed("top-k", "--top-k", facts.top_k, stated.top_k or least_top_k, None)
    if top_k is None and known is not None:
        top_k = known.top_k
    if known is not None and top_k != known.top_k:
        notes.append(f"top-k is {top_k}, that of the checkpoint {known.top_k}")
    layers = _agreed(
        "MoE layers", "--moe-layers", facts.moe_layers, stated.moe_layers,
        None if known is None else known.moe_layers,
    )  # fmt: skip
    if layers is None:
        layers = tuple(range(num_rows))
        notes.append(
            f"layers are numbered {cover(layers)}; give --moe-layers if some layers are dense"
        )
    if len(layers) != num_rows:
        raise TraceError(
            f"{num_rows} layers in the files, {len(layers)} MoE layers were named: {cover(layers)}",
            "correct --moe-layers or --model",
        )
    experts = _needed(num_experts, "how many experts a layer has", "--num-experts N")
    check_cells(layers, experts, name)
    chosen = _needed(top_k, "how many experts a token chooses", "--top-k K")
    if not 1 <= chosen <= experts:
        raise TraceError(
            f"{name}: {chosen} experts chosen per token and layer, expected 1 to {experts}",
            "correct --top-k or --num-experts, or name the right files",
        )
    sizes = _sizes(stated, facts, known, num_rows)
    dense_bytes = (stated.dense_bytes or 0) if known is None else known.dense_bytes
    _check_bytes(sizes or (1,), experts, dense_bytes, name)
    shape = ModelShape(
        model_type=facts.model_type
        or stated.model_type
        or (known.model_type if known else "unknown"),
        num_layers=layers[-1] + 1 if known is None else known.num_layers,
        moe_layers=layers,
        num_experts=experts,
        top_k=chosen,
        hidden_size=0 if known is None else known.hidden_size,
        vocab_size=0 if known is None else known.vocab_size,
        expert_bytes=sizes or (1,) * num_rows,
        dense_bytes=dense_bytes,
        dtype="unknown" if known is None else known.dtype,
    )
    if facts.model is not None:
        return ImportedModel(facts.model.identity, shape, frozenset(), tuple(notes))
    missing = {"fingerprint", "hidden_size", "vocab_size", "dense_bytes"}
    if sizes is None:
        missing.add("expert_bytes")
        notes.append("nothing says how large an expert is; --expert-bytes does, for budgets")
    identity = ModelIdentity(stated.model_name or name, "", "")
    return ImportedModel(identity, shape, frozenset(missing), tuple(notes))


def check_cells(layers: Sequence[int], num_experts: int, name: str) -> None:
    """Refuse layers and experts that a trace does not hold.

    Args:
        layers: checkpoint indices, ascending.
        num_experts: experts of each.
        name: of the file.

    Raises:
        TraceError: there are too many of one or of both.
    """
    remedy = "name the right files, or correct --num-experts or --moe-layers"
    if not 1 <= num_experts <= MAX_EXPERTS:
        raise TraceError(
            f"{name}: {num_experts} experts of a layer, expected 1 to {MAX_EXPERTS}", remedy
        )
    if layers[-1] > MAX_LAYER:
        raise TraceError(f"{name}: layer {layers[-1]}, expected 0 to {MAX_LAYER}", remedy)
    if len(layers) * num_experts > _MAX_CELLS:
        raise TraceError(
            f"{name}: {len(layers)} layers of {num_experts} experts, expected at most {_MAX_CELLS} "
            "experts in all",
            remedy,
        )


def _check_bytes(sizes: Sequence[int], num_experts: int, dense_bytes: int, name: str) -> None:
    if min(sizes) <= 0:
        raise TraceError(
            f"{name}: an expert of {min(sizes)} bytes, expected at least 1",
            "correct --expert-bytes",
        )
    if sum(sizes) * num_experts + dense_bytes > _MAX_BYTES:
        raise TraceError(
            f"{name}: a model of {sum(sizes) * num_experts + dense_bytes} bytes, expected at most "
            f"{_MAX_BYTES}",
            "correct --expert-bytes, or name the right files",
        )


def _sizes(
    stated: Stated, facts: Facts, known: ModelShape | None, num_rows: int
) -> tuple[int, ...] | None:
    """Bytes of one expert of each layer: as in the files, as given, or the checkpoint's."""
    given = None if facts.expert_bytes is None else (facts.expert_bytes,) * num_rows
    if stated.expert_bytes is not None:
        if given not in (None, stated.expert_bytes):
            raise TraceError(
                "--expert-bytes: the files state the size of the experts themselves", "leave it out"
            )
        return stated.expert_bytes
    return known.expert_bytes if given is None and known is not None else given


def _agreed(what: str, option: str, given: T | None, stated: T | None, known: T | None) -> T | None:
    """What anybody said, once nobody contradicts."""
    voices = {option: given, "the files": stated, "--model": known}
    said = {voice: value for voice, value in voices.items() if value is not None}
    for voice, value in said.items():
        first, other = next(iter(said.items()))
        if value != other:
            raise TraceError(
                f"{what}: {first} says {_words(other)}, {voice} says {_words(value)}",
                f"correct {option}, or name the right files",
            )
    return next(iter(said.values()), None)


def _words(value: int | str | Sequence[int]) -> str:
    return str(value) if isinstance(value, int | str) else cover(value)


def _needed(value: T | None, what: str, option: str) -> T:
    if value is None:
        raise TraceError(f"the files do not say {what}", f"add {option}")
    return value
