from pathlib import Path

import pytest
from advising import DENSE, advise_on, make_machine, make_routed, without_batches
from matplotlib.collections import PolyCollection
from synthetic import Routing

from moeprof.plan import Advice
from moeprof.report.advice_figures import sweep_figure
from moeprof.report.advice_tables import LABELS


@pytest.fixture(scope="module")
def advice(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Advice]:
    trace = make_routed(tmp_path_factory.mktemp("sweep"), Routing(exponent=1.6))
    sweep = tuple(DENSE + 1000 * number for number in (4, 16, 32, 64))
    machines = {
        "both": make_machine(),
        "decode": without_batches(make_machine()),
        "none": None,
    }
    return {name: advise_on(trace, 24, machine, sweep=sweep) for name, machine in machines.items()}


def test_every_strategy_is_a_line_with_a_band_through_what_the_sweep_says(
    advice: dict[str, Advice],
) -> None:
    found = advice["both"]
    panels = sweep_figure(found).axes
    assert len(panels) == 2
    for axes, phase in zip(panels, ("decode", "prefill"), strict=True):
        lines = {line.get_label(): line for line in axes.get_lines()}
        assert set(LABELS.values()) <= set(lines)
        for name, label in LABELS.items():
            values = [
                one.phase(phase).tokens_per_s.value
                for point in found.sweep
                for one in point.strategies
                if one.name == name
            ]
            assert lines[label].get_ydata().tolist() == values
            vram = [point.vram_bytes / 2**10 for point in found.sweep]
            assert lines[label].get_xdata().tolist() == pytest.approx(vram)
        assert sum(isinstance(one, PolyCollection) for one in axes.collections) == len(LABELS)
        assert axes.get_xlabel() == "VRAM for everything, KiB"
        assert axes.get_ylim()[0] == 0


def test_only_what_is_priced_is_drawn_and_hit_rates_without_a_machine(
    advice: dict[str, Advice],
) -> None:
    (decode,) = sweep_figure(advice["decode"]).axes
    assert decode.get_ylabel() == "tokens/s"
    (hits,) = sweep_figure(advice["none"]).axes
    assert hits.get_ylabel() == "hit rate"
    assert hits.get_lines()[0].get_ydata().tolist() == [0, 0, 0, 0]


def test_the_title_says_where_it_is_worth_it(advice: dict[str, Advice]) -> None:
    title = " ".join(sweep_figure(advice["both"]).get_suptitle().split())
    worth = [point for point in advice["both"].sweep if point.answer == "pin it"]
    assert worth
    assert "pin it" in title
    assert "(routed on round numbers)" in title


def test_a_wide_sweep_is_drawn_over_the_logarithm(tmp_path: Path) -> None:
    trace = make_routed(tmp_path, Routing(exponent=1.6))
    narrow, wide = (
        advise_on(trace, 24, make_machine(), policies=("lru",), sweep=(DENSE + 1000, most))
        for most in (2 * DENSE, 10 * DENSE)
    )
    assert sweep_figure(narrow).axes[0].get_xscale() == "linear"
    assert sweep_figure(wide).axes[0].get_xscale() == "log"


def test_without_a_sweep_there_is_nothing_to_draw(tmp_path: Path) -> None:
    found = advise_on(make_routed(tmp_path, Routing()), 24, make_machine())
    with pytest.raises(ValueError, match="asked for"):
        sweep_figure(found)
