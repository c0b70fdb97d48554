"""The published figures of a real trace: OLMoE-1B-7B, 299 decoded tokens of one document."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import moeprof.analyze
from moeprof.cli import main

RECORDING = Path(__file__).parents[2] / "shared" / "traces" / "olmoe-1b-7b.warp.jsonl.gz"
SCHEMA = Path(moeprof.analyze.__file__).with_name("analysis.schema.json")
pytestmark = pytest.mark.skipif(not RECORDING.exists(), reason=f"{RECORDING} is not here")


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert left.value.code == 0
    return capsys.readouterr().out


@pytest.fixture
def trace(tmp_path, capsys):
    facts = ["--num-experts", "64", "--phase", "decode", "--expert-bytes", "12MiB"]
    run(capsys, "import", "tok-layers", RECORDING, *facts, "-o", tmp_path / "olmoe")
    return tmp_path / "olmoe"


def test_the_published_figures(trace, capsys):
    document = json.loads(run(capsys, "analyze", trace, "--json"))
    jsonschema.validate(document, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert document["locality"]["lag_overlap"]["1"] == pytest.approx(0.435, abs=0.0005)
    assert document["locality"]["uniform"] == 8 / 64
    cells = document["concentration"]["cells_for_share"]
    assert cells["0.5"] == pytest.approx(0.21, abs=0.005)
    assert cells["0.8"] == pytest.approx(0.50, abs=0.005)
    assert cells["0.95"] == pytest.approx(0.73, abs=0.005)
    # a single document: neither held-out coverage nor intervals, and it is said
    assert document["locality"]["lags"][0]["overlap_low"] is None
    assert document["prediction"] == []
    assert document["sufficiency"][0]["more_documents"] is None
    assert any("a single document" in note for note in document["notes"])


def test_lag_overlap_and_reuse_equal_a_plain_count(trace):
    opened = moeprof.open_trace(trace)
    made = moeprof.analyze.analyze(opened)
    routed = np.stack([opened.routing(layer).experts for layer in opened.shape.moe_layers])
    chosen = np.zeros((16, 299, 64), bool)
    np.put_along_axis(chosen, routed.astype(int), True, axis=2)
    for lag in (1, 2, 17, 64):
        shared = (chosen[:, lag:] & chosen[:, :-lag]).sum() / (8 * 16 * (299 - lag))
        row = made.lag_overlap[made.lag_overlap["lag"] == lag].iloc[0]
        assert row["overlap"] == pytest.approx(shared)
    lru = made.lru.set_index("experts")["hit_rate"]
    for size in (8, 16, 48, 64):
        assert lru[size] == pytest.approx(lru_hits(routed, size) / routed.size)


def lru_hits(routed, size):
    """Hits of a cache of `size` experts in each layer, token by token, by plain replay."""
    hits = 0
    for tokens in routed.tolist():
        recent = []  # the least recently used first
        for experts in tokens:
            hits += len(set(experts) & set(recent))
            recent = [e for e in recent if e not in experts] + experts
            recent = recent[-size:]
    return hits


def test_the_advice_on_it_says_what_a_single_document_can_say(trace, capsys):
    machine = ["--gpu", "RTX 3060 12GB", "--ram", "ddr4-3200x2"]
    document = json.loads(run(capsys, "advise", trace, "--vram", "6GB", *machine, "--json"))
    speeds = {one["name"]: one["decode"]["tokens_per_s"]["value"] for one in document["strategies"]}
    # 43.5 % of the experts are chosen again by the next token, where even routing has 12.5 %.
    assert document["finding"]["answer"] == "cannot tell"
    assert "For more of the same text it would be pin it" in document["finding"]["sentence"]
    assert speeds["all_ram"] < speeds["whole_layers"] < speeds["hot_set"] < speeds["oracle"]
    assert max(speeds.values()) == speeds["oracle"]
    assert any("cut into 8 pieces" in line for line in document["missing"])
