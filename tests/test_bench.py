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
    assert set(cases) == {"plan", "all_ram", "first_layers", "uniform"}
    taken = {
        name: int(((case.tier_of == Tier.VRAM).sum(axis=1) * sizes).sum())
        for name, case in cases.items()
    }
    assert taken["plan"] == placement.expert_bytes_in(Tier.VRAM) == max(taken.values())
    assert taken["all_ram"] == 0
    per_layer = (cases["uniform"].tier_of == Tier.VRAM).sum(axis=1)
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
    assert "planned for a context of 512" in capsys.readouterr().err


def test_experts_that_torch_computes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--format", "stored", "--rounds", "1") == 1
    assert "--format q8_0, q4_0 or bf16" in capsys.readouterr().err
