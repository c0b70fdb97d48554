"""Placements to and from the text of the manifest; what it says is checked in `validation`."""

import dataclasses
import json
from typing import Any, TypeVar

from moeprof.placement.manifest import (
    DENSE_AS_STORED,
    FORMAT,
    FORMAT_VERSION,
    Baseline,
    Budget,
    Estimate,
    HardwareOrigin,
    LayerPlacement,
    PhasePrediction,
    PlacedModel,
    Placement,
    Prediction,
    SolverRecord,
    TraceOrigin,
    Verdict,
)
from moeprof.placement.tier import Tier, format_ranges, parse_ranges

_LINE = 96
_Key = TypeVar("_Key")


def to_document(placement: Placement) -> dict[str, Any]:
    """The manifest as JSON values."""
    document = dataclasses.asdict(placement)
    document["layers"] = {str(layer.layer): _layer_entry(layer) for layer in placement.layers}
    if placement.dense_format == DENSE_AS_STORED:
        del document["dense_format"]  # as in files from before it had a name
    document = {"format": FORMAT, "format_version": FORMAT_VERSION, **document}
    for predicted in (document["predicted"], *(one["predicted"] for one in document["baselines"])):
        for phase in filter(None, predicted.values()):
            if phase["prompt_tokens"] is None:
                del phase["prompt_tokens"]
    # Tuples become lists here, as they will when the text is read back.
    values: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))
    return values


def from_document(document: dict[str, Any]) -> Placement:
    """The placement in a manifest that `validation.check_document` has passed."""
    model = document["model"]
    hardware = document["hardware"]
    return Placement(
        model=PlacedModel(**{**model, "moe_layers": tuple(model["moe_layers"])}),
        trace=TraceOrigin(**{**document["trace"], "domains": tuple(document["trace"]["domains"])}),
        hardware=None if hardware is None else HardwareOrigin(**hardware),
        budget=Budget(**document["budget"]),
        layers=tuple(
            _layer(int(layer), document["layers"][layer], model["num_experts"])
            for layer in sorted(document["layers"], key=int)
        ),
        cache_policy=document["cache_policy"],
        predicted=_prediction(document["predicted"]),
        baselines=tuple(
            Baseline(**{**entry, "predicted": _prediction(entry["predicted"])})
            for entry in document["baselines"]
        ),
        solver=SolverRecord(**document["solver"]),
        verdict=Verdict(**document["verdict"]),
        notes=tuple(document["notes"]),
        dense_format=document.get("dense_format", DENSE_AS_STORED),
    )


def to_text(document: dict[str, Any]) -> str:
    """JSON with sorted keys, indented where a line would be long; one line per layer.

    Keys that are layer indices are sorted as numbers.
    """
    return _text(document, "", as_line=False) + "\n"


def _layer_entry(layer: LayerPlacement) -> dict[str, Any]:
    present = [tier for tier in Tier if tier in layer.tiers]
    return {
        "cache_slots": layer.cache_slots,
        "expert_bytes": layer.expert_bytes,
        "formats": {
            name: format_ranges(i for i, stored in enumerate(layer.formats) if stored == name)
            for name in sorted(set(layer.formats))
        },
        "tiers": {
            tier.label: format_ranges(i for i, placed in enumerate(layer.tiers) if placed == tier)
            for tier in present
        },
    }


def _layer(index: int, entry: dict[str, Any], num_experts: int) -> LayerPlacement:
    tiers = {Tier[label.upper()]: text for label, text in entry["tiers"].items()}
    return LayerPlacement(
        layer=index,
        expert_bytes=entry["expert_bytes"],
        tiers=_by_expert(tiers, num_experts),
        formats=_by_expert(entry["formats"], num_experts),
        cache_slots=entry["cache_slots"],
    )


def _by_expert(sets: dict[_Key, str], num_experts: int) -> tuple[_Key, ...]:
    owner = {
        expert_id: key
        for key, text in sets.items()
        for expert_id in parse_ranges(text, num_experts)
    }
    return tuple(owner[expert_id] for expert_id in range(num_experts))


def _prediction(entry: dict[str, Any]) -> Prediction:
    return Prediction(
        prefill=_phase_prediction(entry["prefill"]), decode=_phase_prediction(entry["decode"])
    )


def _phase_prediction(entry: dict[str, Any] | None) -> PhasePrediction | None:
    if entry is None:
        return None
    estimates = {name: _estimate(entry[name]) for name in ("coverage", "hit_rate", "tokens_per_s")}
    return PhasePrediction(**{**entry, **estimates})


def _estimate(entry: dict[str, Any] | None) -> Estimate | None:
    return None if entry is None else Estimate(**entry)


def _text(value: object, indent: str, as_line: bool) -> str:
    line = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    short = len(indent) + len(line) <= _LINE
    if as_line or not isinstance(value, dict | list) or not value or (indent and short):
        return line
    inner = indent + "  "
    if isinstance(value, list):
        entries = [_text(entry, inner, as_line=False) for entry in value]
        return "[\n" + ",\n".join(inner + entry for entry in entries) + f"\n{indent}]"
    entries = [
        f"{json.dumps(key, ensure_ascii=False)}: {_text(value[key], inner, key.isdigit())}"
        for key in sorted(value, key=_numbers_as_numbers)
    ]
    return "{\n" + ",\n".join(inner + entry for entry in entries) + f"\n{indent}}}"


def _numbers_as_numbers(key: str) -> tuple[int, str]:
    return (int(key), key) if key.isdigit() else (0, key)
