"""Every Mixture-of-Experts language model type of the installed transformers, or a reason."""

import pytest
import torch
from architectures import (
    ALL_TYPES,
    IS_CURRENT,
    LOOPED_TYPES,
    NOT_BUILT_TYPES,
    REFUSED_TYPES,
    SHORT_SELECTION,
    installed,
    tiny_model,
    types_with_experts,
)
from routing_checks import check_architecture

from moeprof.capture.routing import RoutingTap
from moeprof.errors import UnsupportedModelError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.mark.all
@pytest.mark.parametrize(
    "model_type", [name for name in installed(ALL_TYPES) if name not in SHORT_SELECTION]
)
def test_recorded_routing_is_what_the_model_used(model_type):
    check_architecture(model_type)


@pytest.mark.all
@pytest.mark.parametrize("model_type", installed(list(REFUSED_TYPES)))
def test_a_type_with_two_sets_of_experts_is_refused_by_name(model_type):
    with pytest.raises(UnsupportedModelError, match="has two experts modules") as refusal:
        RoutingTap(tiny_model(model_type))
    assert refusal.value.hint


@pytest.mark.all
@pytest.mark.parametrize("model_type", installed(LOOPED_TYPES))
def test_a_type_that_passes_through_layers_several_times_is_refused_when_it_runs(model_type):
    model = tiny_model(model_type)
    with pytest.raises(UnsupportedModelError, match="ran twice in one forward"), RoutingTap(model):
        model(input_ids=torch.tensor([[1, 2, 3]]))


@pytest.mark.skipif(not IS_CURRENT, reason="the list is that of transformers 5.24")
def test_every_type_with_experts_is_tested_or_has_its_reason():
    known = {*ALL_TYPES, *REFUSED_TYPES, *LOOPED_TYPES, *NOT_BUILT_TYPES}
    assert types_with_experts() - known == set()


@pytest.mark.skipif(not IS_CURRENT, reason="older versions know fewer types")
def test_more_than_55_types_are_built():
    assert len(installed(ALL_TYPES)) == len(ALL_TYPES) > 55
