import dataclasses
import json
import os
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import N, R, V, make_document, make_placement

from moeprof.errors import PlacementError
from moeprof.placement import (
    AS_STORED,
    Budget,
    LayerPlacement,
    Placement,
    Tier,
    check_free,
    diff,
    format_ranges,
    parse_placement,
    parse_ranges,
    placement_text,
    read_placement,
    schema,
    write_placement,
)

LAYERS_TEXT = """\
  "layers": {
    "1": {"cache_slots": 0, "expert_bytes": 1000, "formats": {"as_stored": "0-3"}, \
"tiers": {"ram": "2-3", "vram": "0-1"}},
    "2": {"cache_slots": 0, "expert_bytes": 1000, "formats": {"as_stored": "0-3"}, \
"tiers": {"nvme": "3", "ram": "0,2", "vram": "1"}}
  },
"""


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    """Placements of any shape whose sums are right."""
    num_experts = draw(st.integers(1, 12))
    indices = draw(st.lists(st.integers(0, 120), min_size=1, max_size=12, unique=True))
    slots = draw(st.sampled_from([0, 3]))
    layers = tuple(
        LayerPlacement(
            layer=index,
            expert_bytes=draw(st.integers(1, 10**12)),
            tiers=tuple(draw(st.sampled_from(Tier)) for _ in range(num_experts)),
            formats=(AS_STORED,) * num_experts,
            cache_slots=slots,
        )
        for index in sorted(indices)
    )
    used = sum(layer.expert_bytes * (layer.num_experts_in(V) + slots) for layer in layers)
    spare = draw(st.integers(0, 1000))
    base = make_placement()
    return dataclasses.replace(
        base,
        model=dataclasses.replace(
            base.model,
            name=draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1)),
            num_experts=num_experts,
            moe_layers=tuple(layer.layer for layer in layers),
        ),
        hardware=draw(st.sampled_from([None, base.hardware])),
        budget=Budget(used + spare + 60, 10, 20, 30, 0, used + spare, used, 4096, 2),
        layers=layers,
        cache_policy="lru" if slots else None,
    )


@settings(deadline=None)
@given(placements())
def test_a_placement_reads_back_as_it_was_written(placement: Placement) -> None:
    text = placement_text(placement)
    assert parse_placement(text, "plan.json") == placement
    assert placement_text(parse_placement(text, "plan.json")) == text


@settings(deadline=None)
@given(st.sets(st.integers(0, 300)))
def test_ranges_read_back_as_they_were_written(expert_ids: set[int]) -> None:
    assert parse_ranges(format_ranges(expert_ids), 301) == sorted(expert_ids)


def test_ranges_join_neighbours() -> None:
    assert format_ranges([12, 0, 1, 2, 3, 7, 9, 10, 11]) == "0-3,7,9-12"
    assert format_ranges([]) == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0-4", "expert 4 is out of range, expected below 4"),
        ("3-1", "range 3-1 runs backwards"),
        ("1,,2", "'' is not an expert id or a range such as 4-7"),
        ("01", "'01' is not an expert id or a range such as 4-7"),
        ("-1", "'-1' is not an expert id or a range such as 4-7"),
    ],
)
def test_a_bad_range_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_ranges(text, 4)
    assert str(caught.value) == message


def test_tier_of_is_the_tier_of_every_cell() -> None:
    tier_of = make_placement().tier_of
    assert tier_of.dtype == np.uint8
    assert tier_of.tolist() == [[V, V, R, R], [R, V, R, N]]
    assert make_placement().expert_bytes_in(Tier.RAM) == 4000


def test_the_manifest_has_sorted_keys_and_one_line_per_layer() -> None:
    text = placement_text(make_placement())
    assert LAYERS_TEXT in text
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_layers_stand_in_numerical_order() -> None:
    tiers = ((V, R),) * 11
    text = placement_text(make_placement(tiers))
    assert list(json.loads(text)["layers"]) == [str(index) for index in range(1, 12)]


def test_the_published_schema_is_the_one_in_the_package() -> None:
    published = Path(__file__).parent.parent / "placements" / "placement.schema.json"
    assert json.loads(published.read_text(encoding="utf-8")) == schema()
    jsonschema.Draft202012Validator.check_schema(schema())


def test_the_dense_format_is_written_where_it_is_not_the_models_own() -> None:
    plain = make_placement()
    assert "dense_format" not in json.loads(placement_text(plain))
    assert parse_placement(placement_text(plain), "plan.json").dense_format == "stored"
    quantised = dataclasses.replace(plain, dense_format="q8_0")
    assert json.loads(placement_text(quantised))["dense_format"] == "q8_0"
    assert parse_placement(placement_text(quantised), "plan.json") == quantised
    explicit = make_document() | {"dense_format": "stored"}
    assert parse_placement(json.dumps(explicit), "plan.json") == plain
    unknown = make_document() | {"dense_format": "q4_0"}
    with pytest.raises(PlacementError, match='dense_format: is "q4_0", expected one of stored'):
        parse_placement(json.dumps(unknown), "plan.json")


def test_a_place_where_nothing_can_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlacementError, match=r"cannot be written, .*/file is a file") as caught:
        check_free(tmp_path / "file" / "deep" / "plan.json", force=True)
    assert caught.value.hint == "choose another name"
    check_free(tmp_path / "new" / "deep" / "plan.json", force=False)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(PlacementError, match=f"{tmp_path} is read-only"):
        check_free(tmp_path / "new" / "deep" / "plan.json", force=False)


def test_the_schema_accepts_what_is_written() -> None:
    jsonschema.validate(make_document(), schema(), jsonschema.Draft202012Validator)


def fields_of(part: dict) -> list[dict]:
    """Every field that the schema describes, however deep."""
    found = list(part.get("properties", {}).values())
    for value in part.values():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                found += fields_of(inner)
    return found


def test_every_field_of_the_schema_is_described_and_every_object_is_closed() -> None:
    fields = fields_of(schema())
    assert len(fields) > 60
    assert all(field["title"] and field["description"] for field in fields)
    objects = [field for field in [schema(), *fields] if field.get("type") == "object"]
    assert all(field["additionalProperties"] is False for field in objects)


def damage(path: str, value: object) -> str:
    """The text of a sound manifest with one value set, or removed where `value` is `...`."""
    document = make_document()
    entry = document
    *above, last = path.split("/")
    for step in above:
        entry = entry[int(step)] if isinstance(entry, list) else entry[step]
    if value is ...:
        del entry[last]
    else:
        entry[last] = value
    return json.dumps(document)


DAMAGES = [
    ("format", "other", ": not a moeprof placement"),
    ("format_version", 2, ": format version 2, this moeprof reads 1"),
    ("format_version", ..., ": format version null, this moeprof reads 1"),
    ("colour", "red", ": unknown field 'colour'"),
    ("layers/1/colour", "red", ": layers.1: unknown field 'colour'"),
    ("layers/1/tiers/tape", "0", ": layers.1.tiers: unknown field 'tape'"),
    ("layers/first", {}, ": layers: unknown field 'first'"),
    ("model/fingerprint", ..., ": model: field 'fingerprint' is missing"),
    ("model/num_experts", "4", ": model.num_experts: is a string, expected integer"),
    ("model/num_experts", True, ": model.num_experts: is a boolean, expected integer"),
    ("budget/batch_size", 0, ": budget.batch_size: is 0, expected at least 1"),
    (
        "predicted/decode/in_sample_coverage",
        1.5,
        ": predicted.decode.in_sample_coverage: is 1.5, expected at most 1",
    ),
    (
        "predicted/decode/coverage/value",
        "high",
        ": predicted.decode.coverage.value: is a string, expected number",
    ),
    ("predicted/decode/coverage", 3, ": predicted.decode.coverage: is an integer, expected object"),
    (
        "solver/phase",
        "both",
        ': solver.phase: is "both", expected one of prefill, decode, all',
    ),
    ("verdict/reason", "", ": verdict.reason: is empty"),
    (
        "layers/1/tiers/vram",
        "0;1",
        ': layers.1.tiers.vram: "0;1" is not a list of expert ids such as 0-3,7',
    ),
    ("layers/1/tiers/vram", "0-2", ": layers.1.tiers: expert 2 is listed in both ram and vram"),
    ("layers/1/tiers/vram", "0-1,1", ": layers.1.tiers: expert 1 is listed twice"),
    ("layers/1/tiers/vram", "0", ": layers.1.tiers: expert 1 is missing, 3 of 4 are listed"),
    (
        "layers/1/tiers/vram",
        "0-1,4",
        ": layers.1.tiers.vram: expert 4 is out of range, expected below 4",
    ),
    (
        "layers/1/formats/as_stored",
        "0-2",
        ": layers.1.formats: expert 3 is missing, 3 of 4 are listed",
    ),
    ("layers/2", ..., ": layers: layer 2 is missing"),
    ("model/moe_layers", [1], ": layers.2: layer 2 is not in model.moe_layers"),
    ("model/moe_layers", [2, 1], ": model.moe_layers: must ascend, got [2, 1]"),
    ("cache_policy", "lru", ': cache_policy: is "lru" without cache slots'),
    (
        "budget/experts_available_bytes",
        6000,
        ": budget.experts_available_bytes: is 6000, total_bytes less the other parts is 5000",
    ),
    (
        "budget/experts_used_bytes",
        2000,
        ": budget.experts_used_bytes: is 2000, the experts in vram take 3000",
    ),
    ("predicted/decode/hits", 201, ": predicted.decode: 201 hits of 200 assignments"),
    (
        "predicted/decode/hits",
        100,
        ": predicted.decode.in_sample_coverage: is 0.75, hits / assignments is 0.500000",
    ),
    (
        "baselines/0/predicted/decode/coverage/low",
        0.9,
        ": baselines.0.predicted.decode.coverage: interval from 0.9 to 0.8 runs backwards",
    ),
]


@pytest.mark.parametrize(("path", "value", "message"), DAMAGES)
def test_a_damaged_manifest_is_refused_with_its_place(
    path: str, value: object, message: str
) -> None:
    with pytest.raises(PlacementError) as caught:
        parse_placement(damage(path, value), "plan.json")
    assert str(caught.value) == "plan.json" + message
    assert caught.value.hint


def test_experts_beyond_the_budget_are_refused() -> None:
    document = make_document()
    document["budget"] |= {"total_bytes": 5000, "experts_available_bytes": 2000}
    with pytest.raises(PlacementError, match=r"take 2.9 KiB \(3000 bytes\), the budget has 2.0"):
        parse_placement(json.dumps(document), "plan.json")


def test_a_field_that_stands_twice_is_refused() -> None:
    text = placement_text(make_placement()).replace('"2": {', '"1": {')
    with pytest.raises(PlacementError, match="field '1' stands twice in one object"):
        parse_placement(text, "plan.json")


@pytest.mark.parametrize("text", ["", "{", "NaN", "[" * 100_000])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(PlacementError, match=r"^plan\.json: not valid JSON"):
        parse_placement(text, "plan.json")


def test_a_missing_file_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(PlacementError, match="no such file") as caught:
        read_placement(tmp_path / "plan.json")
    assert caught.value.hint.startswith("make one with: moeprof plan")


def test_writing_makes_the_folder_and_leaves_only_the_file(tmp_path: Path) -> None:
    path = tmp_path / "placements" / "plan.json"
    write_placement(make_placement(), path)
    assert read_placement(path) == make_placement()
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(PlacementError, match="already exists"):
        write_placement(make_placement(), path)
    assert path.read_text(encoding="utf-8") == "mine"
    write_placement(make_placement(), path, force=True)
    assert read_placement(path) == make_placement()


def test_a_placement_whose_sums_are_wrong_is_not_written(tmp_path: Path) -> None:
    wrong = dataclasses.replace(
        make_placement(),
        budget=dataclasses.replace(make_placement().budget, experts_used_bytes=1),
    )
    with pytest.raises(PlacementError, match="experts_used_bytes"):
        write_placement(wrong, tmp_path / "plan.json")
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_behind_where_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(PlacementError, match="cannot be written"):
        write_placement(make_placement(), tmp_path / "file" / "plan.json")
    with pytest.raises(PlacementError, match="is a folder"):
        write_placement(make_placement(), tmp_path, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_diff_lists_the_experts_that_moved() -> None:
    old = make_placement(((V, V, R, R), (R, V, R, N)))
    new = make_placement(((V, R, R, R), (R, V, R, V)))
    found = diff(old, new)
    moves = [(move.layer, move.expert_id, move.old, move.new) for move in found.moves]
    assert moves == [(1, 1, V, R), (2, 3, N, V)]
    assert found.moved_bytes == 2000
    assert found.budget == ()


def test_diff_of_a_placement_with_itself_is_empty() -> None:
    assert diff(make_placement(), make_placement()).moves == ()


def test_diff_of_placements_for_two_models_is_refused() -> None:
    base = make_placement()
    other = dataclasses.replace(base, model=dataclasses.replace(base.model, fingerprint="another"))
    with pytest.raises(PlacementError, match="fingerprint another, but org/model has fingerprint"):
        diff(base, other)
