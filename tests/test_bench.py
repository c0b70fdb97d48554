import json
from pathlib import Path

import numpy as np
import pytest

from moeprof.cli import main
from moeprof.native import expert_bytes
from moeprof.placement import read_placement
from moeprof.placement.tier import Tier
from moeprof.runtime.bench import cases_of, median_interval

PLACEMENT = Path(__file__).parent.parent / "placements" / "demo.json"


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, (1, 1, 0.0)),
        (3, (1, 3, 1 - 2 / 8)),
        (7, (1, 7, 1 - 2 / 128)),
        (10, (2, 9, 1 - 2 * (1 + 10) / 1024)),
    ],
)
def test_intervals_of_medians_by_hand(count: int, expected: tuple[float, ...]) -> None:
    assert median_interval(range(1, count + 1)) == expected


def test_every_case_keeps_to_the_bytes_of_the_plan() -> None:
    placement = read_placement(PLACEMENT)
    sizes = [layer.expert_bytes for layer in placement.layers]
    cases = {case.name: case for case in cases_of(placement, sizes)}
    assert set(cases) == {"plan", "all_ram", "first_layers", "any_experts"}
    taken = {
        name: int(((case.tier_of == Tier.VRAM).sum(axis=1) * sizes).sum())
        for name, case in cases.items()
    }
    assert taken["plan"] == placement.expert_bytes_in(Tier.VRAM) == max(taken.values())
    assert taken["all_ram"] == 0
    per_layer = (cases["any_experts"].tier_of == Tier.VRAM).sum(axis=1)
    assert len(set(per_layer.tolist())) == 1
    assert per_layer[0] == taken["plan"] // sum(sizes)
    whole = (cases["first_layers"].tier_of == Tier.VRAM).all(axis=1)
    assert np.flatnonzero(whole).tolist() == list(range(whole.sum()))


def bench(*arguments: str) -> object:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--placement", str(PLACEMENT), "--device", "cpu", *arguments])
    return stopped.value.code


def test_figures_of_the_bundled_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "bench.json"
    sizes = ("--rounds", "2", "--prompt-tokens", "16", "--decode-tokens", "4")
    assert not bench(*sizes, "--format", "q4_0", "--json", "-o", str(written))
    text = capsys.readouterr().out
    assert text == written.read_text()
    document = json.loads(text)
    assert document["weight_format"] == "q4_0"
    figures = {(f["placement"], f["phase"], f["state"]): f for f in document["figures"]}
    assert len(figures) == len(document["figures"]) == 4 * 2 * 2
    one = expert_bytes(128, 64, "q4_0", False)
    for (placement, phase, _), figure in figures.items():
        assert figure["low"] <= figure["tokens_per_s"] <= figure["high"]
        expected = figure["tokens_per_s"] / figure["roofline_tokens_per_s"]
        assert figure["of_roofline"] == pytest.approx(expected)
        if placement == "all_ram":
            assert figure["hit_rate"] == figure["bytes_per_token"]["vram"] == 0
        if phase == "decode":
            assert sum(figure["bytes_per_token"].values()) == pytest.approx(6 * 4 * one)


def test_what_is_drawn_at_random_does_not_go_by_the_name_of_the_plans_baseline(
    capsys: pytest.CaptureFixture[str],
) -> None:
    placement = read_placement(PLACEMENT)
    sizes = [layer.expert_bytes for layer in placement.layers]
    first, second = (
        {case.name: case.tier_of for case in cases_of(placement, sizes, seed)} for seed in (0, 1)
    )
    assert not np.array_equal(first.pop("any_experts"), second.pop("any_experts"))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert "uniform" in {baseline.name for baseline in placement.baselines} - set(first)
    assert not bench("--rounds", "1", "--prompt-tokens", "8", "--decode-tokens", "2")
    out, err = capsys.readouterr()
    assert "any_experts" in out and "uniform" not in out
    assert "any_experts: the same number of experts of each layer, drawn at random" in err


def test_one_round_gives_no_interval(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--prompt-tokens", "8", "--decode-tokens", "2")
    assert not bench("--rounds", "1", *sizes)
    out, err = capsys.readouterr()
    rows = [line.split("│")[1:-1] for line in out.splitlines() if "first_layers" in line]
    assert [row[4].strip() for row in rows] == ["-"] * 4
    assert "one round gives no interval" in err and "0.0%" not in err
    assert not bench("--rounds", "2", *sizes)
    out, err = capsys.readouterr()
    assert out.count(" to ") == 16
    assert "each interval holds the median with 50.0%" in err


def test_a_text_that_is_too_short_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "short.txt"
    text.write_text("def main():")
    assert bench("--text", str(text)) == 1
    assert "160 are needed" in capsys.readouterr().err


def test_more_tokens_than_the_plan_has_room_for_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bench("--prompt-tokens", "480", "--decode-tokens", "33") == 1
    err = capsys.readouterr().err
    assert "planned for a context of 512" in err
    assert "plan again with --context 513" in err
    assert bench("--prompt-tokens", "2048", "--decode-tokens", "1") == 1
    err = capsys.readouterr().err
    assert "2048 prompt and 1 decode tokens, model was made for 2048" in err
    assert "plan again" not in err


def test_experts_that_torch_computes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--format", "stored", "--rounds", "1") == 1
    assert "--format q8_0, q4_0 or bf16" in capsys.readouterr().err
