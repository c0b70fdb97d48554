"""Checks of a manifest: its schema first, then what a schema cannot say."""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator, ValidationError

from moeprof.errors import PlacementError
from moeprof.placement.manifest import FORMAT, FORMAT_VERSION
from moeprof.placement.tier import parse_ranges
from moeprof.units import format_size

_REPLAN = "make the placement anew with: moeprof plan TRACE --model MODEL --vram SIZE"
_SPECIFICATION = "placements/README.md lists every field and its unit"
_JSON_TYPE = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    type(None): "null",
}
_ROUNDING = 1e-6


@cache
def schema() -> dict[str, Any]:
    """The published JSON Schema of the manifest."""
    text = (files("moeprof.placement") / "placement.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def check_document(document: object, where: str) -> dict[str, Any]:
    """The same document, once everything that the format asks for holds.

    Args:
        document: JSON values.
        where: names the manifest in errors.

    Raises:
        PlacementError: the first thing found wrong, with its place and a next step.
    """
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise PlacementError(f"{where}: not a moeprof placement", _REPLAN)
    version = document.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise PlacementError(
            f"{where}: format version {json.dumps(version)}, this moeprof reads {FORMAT_VERSION}",
            "use the version of moeprof that wrote it, or plan anew",
        )
    _check_schema(document, where)
    _check_layers(document, where)
    _check_budget(document, where)
    _check_predictions(document, where)
    return document


def _check_schema(document: dict[str, Any], where: str) -> None:
    errors = sorted(
        Draft202012Validator(schema()).iter_errors(document),
        key=lambda error: [str(step) for step in error.absolute_path],
    )
    if errors:
        error = _innermost(errors[0])
        raise PlacementError(
            f"{_place(where, error.absolute_path)}: {_what(error)}", _SPECIFICATION
        )


def _innermost(error: ValidationError) -> ValidationError:
    """The error inside the object branch of `object or null`, which says more than `neither`."""
    while error.validator == "anyOf" and error.instance is not None:
        inside = [cause for cause in error.context or () if cause.schema_path[0] == 0]
        error = inside[0]
    return error


def _place(where: str, path: Iterable[object]) -> str:
    return ": ".join([where, ".".join(str(step) for step in path)]).removesuffix(": ")


def _what(error: ValidationError) -> str:
    found: Any = error.instance
    expected: Any = error.validator_value
    shown = json.dumps(found) if not isinstance(found, dict | list) else _json_type(found)
    match error.validator:
        case "additionalProperties":
            return f"unknown field {_unknown_field(error)!r}"
        case "required":
            missing = next(name for name in expected if name not in found)
            return f"field {missing!r} is missing"
        case "type":
            names = expected if isinstance(expected, list) else [expected]
            return f"is {_json_type(found)}, expected {' or '.join(names)}"
        case "enum":
            return f"is {shown}, expected one of {', '.join(str(value) for value in expected)}"
        case "minimum":
            return f"is {shown}, expected at least {expected}"
        case "maximum":
            return f"is {shown}, expected at most {expected}"
        case "pattern":
            return f"{shown} is not a list of expert ids such as 0-3,7"
        case _:
            return "is empty"


def _unknown_field(error: ValidationError) -> str:
    rules: Any = error.schema
    found: Any = error.instance
    known = rules.get("properties", {})
    patterns = [re.compile(pattern) for pattern in rules.get("patternProperties", ())]
    unknown: str = next(
        name
        for name in found
        if name not in known and not any(pattern.search(name) for pattern in patterns)
    )
    return unknown


def _json_type(value: object) -> str:
    return _JSON_TYPE[type(value)]


def _check_layers(document: dict[str, Any], where: str) -> None:
    model, layers = document["model"], document["layers"]
    moe_layers = model["moe_layers"]
    if moe_layers != sorted(set(moe_layers)):
        raise PlacementError(f"{where}: model.moe_layers: must ascend, got {moe_layers}", _REPLAN)
    for index in sorted(map(int, layers)):
        if index not in moe_layers:
            raise PlacementError(
                f"{where}: layers.{index}: layer {index} is not in model.moe_layers",
                "remove it, or plan anew",
            )
    for index in moe_layers:
        if str(index) not in layers:
            raise PlacementError(f"{where}: layers: layer {index} is missing", _REPLAN)
        entry, place = layers[str(index)], f"{where}: layers.{index}"
        _check_partition(entry["tiers"], model["num_experts"], f"{place}.tiers")
        _check_partition(entry["formats"], model["num_experts"], f"{place}.formats")
    has_slots = any(entry["cache_slots"] for entry in layers.values())
    if has_slots != (document["cache_policy"] is not None):
        raise PlacementError(
            f"{where}: cache_policy: is {json.dumps(document['cache_policy'])} with"
            f"{'' if has_slots else 'out'} cache slots",
            "name a policy when layers have cache_slots, and none when they have not",
        )


def _check_partition(sets: dict[str, str], num_experts: int, place: str) -> None:
    owner: dict[int, str] = {}
    for name, text in sets.items():
        try:
            expert_ids = parse_ranges(text, num_experts)
        except ValueError as error:
            raise PlacementError(f"{place}.{name}: {error}", _SPECIFICATION) from error
        for expert_id in expert_ids:
            if expert_id in owner:
                other = owner[expert_id]
                also = "twice" if other == name else f"in both {other} and {name}"
                raise PlacementError(
                    f"{place}: expert {expert_id} is listed {also}", "list every expert once"
                )
            owner[expert_id] = name
    missing = sorted(set(range(num_experts)) - set(owner))
    if missing:
        raise PlacementError(
            f"{place}: expert {missing[0]} is missing, {len(owner)} of {num_experts} are listed",
            "list every expert once",
        )


def _check_budget(document: dict[str, Any], where: str) -> None:
    budget, num_experts = document["budget"], document["model"]["num_experts"]
    parts = ("dense_bytes", "kv_cache_bytes", "workspace_bytes", "device_context_bytes")
    available = budget["total_bytes"] - sum(budget[part] for part in parts)
    if budget["experts_available_bytes"] != available:
        raise PlacementError(
            f"{where}: budget.experts_available_bytes: is {budget['experts_available_bytes']}, "
            f"total_bytes less the other parts is {available}",
            _REPLAN,
        )
    used = sum(
        entry["expert_bytes"]
        * (len(parse_ranges(entry["tiers"].get("vram", ""), num_experts)) + entry["cache_slots"])
        for entry in document["layers"].values()
    )
    if budget["experts_used_bytes"] != used:
        raise PlacementError(
            f"{where}: budget.experts_used_bytes: is {budget['experts_used_bytes']}, "
            f"the experts in vram take {used}",
            "after moving experts by hand, write the new sum there; or plan anew",
        )
    if used > available:
        raise PlacementError(
            f"{where}: experts in vram take {format_size(used)} ({used} bytes), the budget has "
            f"{format_size(available)} ({available} bytes) for them",
            "move experts to ram, or plan anew with a larger --vram",
        )


def _check_predictions(document: dict[str, Any], where: str) -> None:
    places: Sequence[tuple[str, dict[str, Any]]] = [
        ("predicted", document["predicted"]),
        *(
            (f"baselines.{index}.predicted", baseline["predicted"])
            for index, baseline in enumerate(document["baselines"])
        ),
    ]
    for place, prediction in places:
        for phase, entry in prediction.items():
            if entry is not None:
                _check_phase(entry, f"{where}: {place}.{phase}")


def _check_phase(entry: dict[str, Any], place: str) -> None:
    hits, assignments = entry["hits"], entry["assignments"]
    if hits > assignments:
        raise PlacementError(f"{place}: {hits} hits of {assignments} assignments", _REPLAN)
    if abs(entry["in_sample_coverage"] - hits / assignments) > _ROUNDING:
        raise PlacementError(
            f"{place}.in_sample_coverage: is {entry['in_sample_coverage']}, hits / assignments is "
            f"{hits / assignments:.6f}",
            _REPLAN,
        )
    for name in ("coverage", "hit_rate", "tokens_per_s"):
        estimate = entry[name]
        if estimate is None or estimate["low"] is None or estimate["high"] is None:
            continue
        if estimate["low"] > estimate["high"]:
            raise PlacementError(
                f"{place}.{name}: interval from {estimate['low']} to {estimate['high']} runs "
                "backwards",
                _REPLAN,
            )
