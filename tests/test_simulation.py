import io
import json
import re
from dataclasses import replace

import foreign
import numpy as np
import pytest
from builders import make_block, make_shape, make_trace
from planning import make_hardware
from replaying import make_routed
from rich.console import Console

from moeprof.errors import CapacityError, TraceError
from moeprof.interop import Facts, import_trace
from moeprof.plan.simulation import SimulationRequest, simulate
from moeprof.plan.trace_facts import expert_bytes_in
from moeprof.policies import parse_policy
from moeprof.report.policy_figure import policy_figure
from moeprof.report.simulation_tables import simulation_tables
from moeprof.trace.origin import Origin

SHAPE = make_shape(moe_layers=(0, 1), num_experts=4, top_k=1, expert_bytes=1000)


def decoded(*experts):
    return [("d", [[expert], [0]]) for expert in experts]


def request(*policies, budgets=(4000,), **changes):
    return SimulationRequest(tuple(map(parse_policy, policies)), budgets, **changes)


def only(rows, **values):
    for name, value in values.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def test_rows_say_what_was_hit_read_and_how_fast(tmp_path):
    trace = make_routed(tmp_path / "t", SHAPE, {"a": [decoded(1, 1), decoded(1)]})
    found = simulate(trace, request("lru", hardware=make_hardware()))
    row = only(found.rows, policy="lru", phase="decode")
    # Three tokens of two layers, the first token misses both.
    assert row["hit_rate"] == pytest.approx(4 / 6, abs=1e-6)
    assert row["coverage"] == 4 / 6
    assert row["bytes_read"] == 2000
    assert (row["budget_bytes"], row["budget_share"], row["floor"]) == (4000, 0.5, 0.5)
    # Outside the experts 2 s a token. A miss takes 4 s in RAM and 2 s for the round trip, and its
    # copy 1000 bytes / (1e8 bytes/s) of RAM's bandwidth; a hit takes 1 s.
    seconds = 3 * 2 + 2 * (4 + 2 + 1e-5) + 4 * 1
    assert row["tokens_per_s"] == pytest.approx(3 / seconds, rel=1e-5)
    assert np.isnan(row["hit_rate_low"]) == np.isnan(row["tokens_per_s_low"])


def test_intervals_are_over_documents(tmp_path):
    alike = make_routed(tmp_path / "a", SHAPE, {"a": [decoded(1, 1)] * 6})
    mixed = make_routed(tmp_path / "b", SHAPE, {"a": [decoded(1, 1), decoded(2, 3)] * 3})
    widths = []
    for trace in (alike, mixed):
        row = simulate(trace, request("lru", restart=True)).rows.iloc[0]
        assert row["hit_rate_low"] <= row["hit_rate"] <= row["hit_rate_high"]
        widths.append(row["hit_rate_high"] - row["hit_rate_low"])
    assert widths[0] == 0
    assert widths[1] > 0


def test_a_phase_of_one_document_has_no_intervals_and_it_is_said(tmp_path):
    """Three prompts, but a reply to the first only."""
    prompts = [[("p", [[n], [0]])] for n in (1, 2, 3)]
    prompts[0] += decoded(1, 1)
    found = simulate(make_routed(tmp_path / "t", SHAPE, {"a": prompts}), request("lru"))
    known = {row["phase"]: not np.isnan(row["hit_rate_low"]) for _, row in found.rows.iterrows()}
    assert known == {"prefill": True, "decode": False}
    assert any(note.startswith("no intervals in decode:") for note in found.notes)


def test_a_cache_smaller_than_a_token_falls_off_the_cliff_and_it_is_said_where(tmp_path):
    shape = make_shape(moe_layers=(0, 1), num_experts=8, top_k=2, expert_bytes=1000)
    token = ("d", [[1, 2], [3, 4]])
    trace = make_routed(tmp_path / "t", shape, {"a": [[token] * 20]})
    found = simulate(trace, request("lru", "lfu", "belady", budgets=(1000, 2000, 4000)))
    assert only(found.rows, policy="lru", budget_bytes=2000)["hit_rate"] == 0
    assert only(found.rows, policy="lru", budget_bytes=4000)["hit_rate"] == 0.95
    assert found.working_set_bytes == {"decode": 4000}
    (warning,) = [text for text in found.warnings if text.startswith("lru")]
    assert warning.startswith(
        "lru, decode: hits 0.0% at 2.0 KiB, where arbitrary experts would hit 12.5%; "
        "the cliff starts below 3.9 KiB, what one token looks up"
    )
    assert not any(text.startswith("belady") for text in found.warnings)


def test_prompts_and_replies_stand_in_rows_of_their_own(tmp_path):
    made = {"a": [[("p", [[1], [2]]), *decoded(1)]] * 2}
    found = simulate(make_routed(tmp_path / "t", SHAPE, made), request("static", "optimum"))
    assert found.rows["phase"].tolist() == ["prefill", "decode"] * 2
    assert only(found.rows, policy="static", phase="decode")["tokens"] == 2
    document = json.loads(found.to_json())
    assert document["rows"][0]["tokens_per_s"] is None
    assert {"policy", "budget_bytes", "phase", "hit_rate", "bytes_read"} <= set(document["rows"][0])


def test_static_needs_two_documents_or_leave_to_learn_from_what_it_is_scored_on(tmp_path):
    trace = make_routed(tmp_path / "t", SHAPE, {"a": [decoded(1, 1)]})
    with pytest.raises(TraceError, match="one document has tokens to learn from"):
        simulate(trace, request("static"))
    found = simulate(trace, request("static", held_out=False))
    assert found.rows["hit_rate"].tolist() == [1.0]
    assert "not held out" in found.notes[0]
    found = simulate(trace, request())
    assert any(note.startswith("static is left out") for note in found.notes)
    assert any(note.startswith("optimum begins each phase with") for note in found.notes)
    names = found.rows["policy"].tolist()
    assert names == ["lru", "lfu", "lfru", "belady", "optimum"]
    assert simulate(trace, request(held_out=False)).rows["policy"][0] == "static"
    names = simulate(trace, request("lru", bounded=True)).rows["policy"].tolist()
    assert names == ["lru", "optimum"]


def test_ram_must_hold_what_a_policy_needs_there(tmp_path):
    trace = make_routed(tmp_path / "t", SHAPE, {"a": [decoded(1)] * 2})
    # Of 8000 bytes of experts, 4000 lie outside VRAM; a cache needs all of them in RAM.
    for policy, ram in (("static", 4000), ("lru", 8000)):
        machine = make_hardware(vram_bytes=3999, ram_bytes=ram)
        notes = simulate(trace, request(policy, hardware=machine)).notes
        assert any("has 3.9 KiB of VRAM: tokens/s under a larger" in note for note in notes)
        machine = make_hardware(vram_bytes=4000, ram_bytes=ram - 1)
        with pytest.raises(CapacityError, match="ram: the experts that it has to hold") as failed:
            simulate(trace, request(policy, hardware=machine))
        assert failed.value.hint
        notes = simulate(
            trace, request(policy, hardware=make_hardware(vram_bytes=4000, ram_bytes=ram))
        ).notes
        assert not any("of VRAM" in note for note in notes)


def test_what_the_trace_does_not_say_of_dense_weights_is_noted_beside_speeds(tmp_path):
    trace = make_routed(tmp_path / "t", SHAPE, {"a": [decoded(1)] * 2})
    origin = Origin("csv", ("routing.csv",), ("dense_bytes",))
    trace.metadata = replace(trace.metadata, origin=origin)
    wanted = "tokens/s leave out what lies outside the experts"
    notes = simulate(trace, request("lru", hardware=make_hardware())).notes
    assert any(note.startswith(wanted) for note in notes)
    assert not any(wanted in note for note in simulate(trace, request("lru")).notes)


def test_a_domain_that_is_not_there_and_a_format_that_is_not_known_are_refused(tmp_path):
    trace = make_routed(tmp_path / "t", SHAPE, {"a": [decoded(1)], "b": [decoded(2)]})
    with pytest.raises(TraceError, match="no domain 'c'"):
        simulate(trace, request("lru", domain="c"))
    with pytest.raises(CapacityError, match="no expert_time for q8_0"):
        simulate(trace, request("lru", hardware=make_hardware(), weight_format="q8_0"))
    assert simulate(trace, request("lru", domain="b")).rows["tokens"].tolist() == [1]


def test_a_format_changes_what_an_expert_takes():
    shape = make_shape(expert_bytes=6400)  # 3200 values in bfloat16, 100 blocks
    assert expert_bytes_in(shape, None) == (6400, 6400)
    assert expert_bytes_in(shape, "bf16") == (6400, 6400)
    assert expert_bytes_in(shape, "q8_0") == (3400, 3400)
    assert expert_bytes_in(shape, "q4_0") == (1800, 1800)


def test_no_policy_beats_the_optimum(tmp_path):
    uneven = np.array([[0.4, 0.3, 0.1, 0.1, 0.04, 0.03, 0.02, 0.01]] * 2)
    shape = make_shape(moe_layers=(0, 1), num_experts=8, top_k=2, expert_bytes=1000)
    block = make_block(shape, np.repeat(np.arange(6), 60).tolist(), decode=40, probabilities=uneven)
    trace = make_trace(tmp_path / "t", {"a": block}, shape)
    policies = ["static", "lru", "lfu", "lfru", "lfu:uploads=1", "lru:hysteresis=0.2", "belady"]
    found = simulate(trace, request(*policies, "optimum", budgets=(2000, 5000, 9000, 16000)))
    for _, rows in found.rows.groupby(["budget_bytes", "phase"]):
        bound = only(rows, policy="optimum")["hit_rate"]
        assert (rows["hit_rate"] <= bound).all()


def test_the_figure_draws_every_policy_between_chance_and_the_optimum(tmp_path):
    made = {"a": [[("p", [[1], [2]]), *decoded(1, 2)]] * 3}
    trace = make_routed(tmp_path / "t", SHAPE, made)
    found = simulate(trace, request("static", "lru", "optimum", budgets=(2000, 4000)))
    figure = policy_figure(found)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "prefill: share of lookups that hit",
        "decode: share of lookups that hit",
    ]
    for axes, phase in zip(figure.axes, ("prefill", "decode"), strict=True):
        lines = {line.get_label(): line for line in axes.get_lines()}
        assert {"chance", "static", "lru", "optimum"} <= set(lines)
        expected = found.rows[(found.rows["phase"] == phase) & (found.rows["policy"] == "lru")]
        assert lines["lru"].get_xdata().tolist() == [0.25, 0.5]
        assert lines["lru"].get_ydata().tolist() == expected["hit_rate"].tolist()


def test_the_figure_shows_speed_where_it_is_priced(tmp_path):
    trace = make_routed(tmp_path / "t", SHAPE, {"a": [decoded(1, 2, 1)] * 3})
    found = simulate(trace, request("lru", budgets=(2000, 4000), hardware=make_hardware()))
    *_, axes = policy_figure(found).axes
    assert axes.get_title(loc="left") == "decode: tokens/s, predicted"
    (line,) = axes.get_lines()
    assert line.get_ydata().tolist() == found.rows["tokens_per_s"].tolist()


def test_without_the_bytes_of_an_expert_sizes_are_in_experts(tmp_path):
    file = foreign.tok_layers(tmp_path / "a.jsonl", foreign.make_routing(30))
    facts = Facts(num_experts=foreign.NUM_EXPERTS, top_k=foreign.TOP_K, phase="decode")
    trace = import_trace("tok-layers", [file], tmp_path / "trace", facts)
    half = trace.shape.num_cells // 2
    found = simulate(trace, request("lru", budgets=(0, half), held_out=False))
    assert not found.has_bytes
    assert found.size_text(half) == f"{half} experts"
    assert "no expert fits into 0 experts: the smallest has 1 expert" in found.notes
    console = Console(width=120, file=io.StringIO())
    console.print(simulation_tables(found))
    text = console.file.getvalue()
    assert f"{half} experts" in text
    assert not re.search(r"\d (B|KiB)\b", text)
