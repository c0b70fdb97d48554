"""Every speed of a page is of one machine, which the verdict names."""

import numpy as np
import pytest
from paging import inputs_of, make_advice, skewed_counts
from planning import make_placement

from moeprof.placement import HardwareOrigin
from moeprof.report.page import PageInputs
from moeprof.report.page.about import about_section
from moeprof.report.page.placement import placement_section
from moeprof.report.page.verdict import verdict

DESK, CARD = HardwareOrigin("desk", "measured"), HardwareOrigin("a card", "data-sheet")
COUNTS = skewed_counts(3, 2, 4)


def page_of(**changes: object) -> PageInputs:
    return inputs_of({"text": COUNTS}, {"text": COUNTS}, **changes)


def columns_of(inputs: PageInputs) -> list[str]:
    """Columns of the plan's predictions."""
    return [column.name for column in placement_section(inputs).tables[0].columns]


@pytest.mark.parametrize(
    ("planned", "advised", "named", "is_priced"),
    [
        (DESK, DESK, "desk, measured", True),
        (DESK, CARD, "a card, from data sheets, not measured", False),
        (DESK, None, "desk, measured", True),
        (None, CARD, "a card, from data sheets, not measured", False),
    ],
    ids=["one", "two", "the plan's", "the verdict's"],
)
def test_a_page_has_the_speeds_of_one_machine_and_says_of_which(
    planned: HardwareOrigin | None,
    advised: HardwareOrigin | None,
    named: str,
    is_priced: bool,
) -> None:
    inputs = page_of(
        placement=make_placement(hardware=planned), advice=make_advice(hardware=advised)
    )
    said = f"All speeds of this page are predicted for {named}."
    assert verdict(inputs).sentences[1] == said
    assert ("tokens/s" in columns_of(inputs)) == is_priced
    left_out = [one for one in placement_section(inputs).prose if "are left out" in one]
    assert bool(left_out) == (planned is not None and not is_priced)
    assert all("predicted for another machine, desk, and" in one for one in left_out)


def test_a_plan_alone_brings_its_own_machine() -> None:
    inputs = page_of(placement=make_placement(hardware=CARD))
    assert inputs.machine == CARD
    assert "tokens/s" in columns_of(inputs)


def test_without_a_machine_no_speed_is_spoken_of() -> None:
    inputs = inputs_of({"text": np.full((8, 2, 16), 100)})
    assert inputs.machine is None
    assert not any("speeds" in one for one in verdict(inputs).sentences)


@pytest.mark.parametrize("advised", [DESK, CARD], ids=["its machine", "another"])
def test_notes_on_speeds_of_the_plan_stand_beside_them_and_name_no_field(
    advised: HardwareOrigin,
) -> None:
    notes = ("tokens/s are of a single sequence in decode; prefill is not priced", "all fits")
    inputs = page_of(
        placement=make_placement(hardware=DESK, notes=notes),
        advice=make_advice(hardware=advised),
    )
    said = about_section(inputs).prose
    assert "All fits." in said
    speed = "Of the plan: tokens/s are of a single sequence in decode; prefill is not priced."
    assert (speed in said) == (advised == DESK)
    assert not any("priced" in one for one in said if one != speed)
    assert not any("okens_per_s" in one for one in said)
