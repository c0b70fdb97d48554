import numpy as np
import pytest
from builders import make_block, make_shape, make_trace
from replaying import make_routed

from moeprof.errors import MoeprofError, TraceError
from moeprof.policies import (
    Policy,
    hold_out,
    parse_policy,
    read_accesses,
    replay,
    replay_held_out,
    training_counts,
)
from moeprof.policies.static_set import static_set

SHAPE = make_shape(moe_layers=(0, 1), num_experts=4, top_k=1, expert_bytes=10)
SIZES = np.full((2, 4), 10, np.int64)


def decoded(*experts):
    """A document whose tokens choose these experts in the first layer, expert 0 in the second."""
    return [("d", [[expert], [0]]) for expert in experts]


def rate(trace, text, budget, **options):
    found = replay(read_accesses(trace), parse_policy(text), budget, SIZES, **options)
    return found.hit_rate("decode")


@pytest.mark.parametrize(
    ("text", "policy", "name"),
    [
        ("lru", Policy("lru"), "lru"),
        ("lfu:decay=0.9:scope=layer", Policy("lfu", decay=0.9, scope="layer"), None),
        ("lru:uploads=2:hysteresis=0.5", Policy("lru", uploads=2, hysteresis=0.5), None),
        ("lfru:recent=0.25", Policy("lfru", recent=0.25), "lfru:recent=0.25"),
        ("lfru:recent=0.5", Policy("lfru"), "lfru"),
        ("lru+pinned:share=0.5", Policy("lru", pinned=0.5), "lru+pinned:share=0.5"),
        ("lfu:uploads=1+pinned:share=0.2", Policy("lfu", uploads=1, pinned=0.2), None),
        ("static:scope=layer", Policy("static", scope="layer"), None),
    ],
)
def test_a_policy_is_named_by_a_text_that_names_it(text, policy, name):
    assert parse_policy(text) == policy
    assert parse_policy(policy.name) == policy
    assert name is None or policy.name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fifo", "there is no policy 'fifo'"),
        ("lru:speed=3", "there is no option 'speed=3'"),
        ("lfu:decay=often", "'decay=often' has no number"),
        ("lfu:decay=0", "decay is 0.0, expected above 0"),
        ("lru:uploads=0", "uploads is 0, expected at least 1"),
        ("lru:scope=expert", "scope is expert, expected one of global, layer"),
        ("lru:decay=0.5", "lru: has no decay"),
        ("belady:uploads=1", "belady: has no uploads"),
        ("static+pinned:share=0.5", "static: has no pinned"),
        ("lru+pinned", "'pinned' is not pinned:share=SHARE"),
        ("lru+pinned:share=2", "the pinned share is 2.0, expected above 0 and at most 1"),
        ("lru+pinned:share=0", "the pinned share is 0.0, expected above 0 and at most 1"),
        ("lru+pinned:share=nan", "the pinned share is nan, expected above 0"),
        ("lfu:decay=0.9:decay=0.5", "names decay twice"),
        ("", "there is no policy ''"),
    ],
)
def test_a_text_that_names_no_policy_is_refused_with_the_reason(text, message):
    with pytest.raises(MoeprofError, match=message):
        parse_policy(text)


def test_the_static_set_takes_what_serves_most_per_byte_and_fits():
    uses, sizes = np.array([9.0, 8.0, 5.0, 0.0]), np.array([3, 1, 1, 1])
    # Per byte: 3, 8, 5, 0. After cells 1 and 2 the first no longer fits, the idle one does.
    assert static_set(uses, sizes, 4).tolist() == [False, True, True, True]
    assert static_set(uses, sizes, 5).tolist() == [True, True, True, False]
    assert static_set(uses, sizes, 0).tolist() == [False] * 4


def test_a_static_list_is_scored_on_documents_it_was_not_chosen_on(tmp_path):
    # Each document uses experts of its own, so that the others' lists serve nothing of layer 0.
    trace = make_routed(tmp_path / "t", SHAPE, {"a": [decoded(0, 0), decoded(1, 1), decoded(2, 2)]})
    accesses, static = read_accesses(trace), parse_policy("static:scope=layer")
    held_out = hold_out(trace, folds=3)
    found = replay_held_out(accesses, static, 20, SIZES, held_out)
    assert found.hit_rate("decode") == 0.5  # expert 0 of layer 1 alone
    assert not found.bytes_read.any()
    # Learned from all, the list keeps expert 0 of both layers, which serves the first document.
    learned = training_counts(trace).sum(axis=0)
    found = replay(accesses, static, 20, SIZES, learned)
    assert found.hits.tolist() == [1, 1] * 2 + [0, 1] * 4


def test_folds_learn_from_the_other_documents_of_the_domain_and_phase_asked_for(tmp_path):
    prompt = [("p", [[3], [3]])]
    made = {"a": [prompt + decoded(0), prompt + decoded(1)], "b": [decoded(2), decoded(2)]}
    trace = make_routed(tmp_path / "t", SHAPE, made)
    held_out = hold_out(trace, domain="a", folds=2)
    for document, other in ((0, 1), (1, 0)):
        training = held_out.training[held_out.fold_of_sequence[document]]
        assert training[0].tolist() == [int(expert == other) for expert in range(4)]
        assert training[1].tolist() == [1, 0, 0, 0]
    both = hold_out(trace, domain="a", phase="all", folds=2).training
    assert both[:, 0, 3].tolist() == [1, 1]


def test_one_document_cannot_be_held_out(tmp_path):
    trace = make_routed(tmp_path / "t", SHAPE, {"a": [decoded(0, 1)]})
    with pytest.raises(TraceError, match="one document has tokens to learn from") as refused:
        hold_out(trace)
    assert "--all-documents" in refused.value.hint
    with pytest.raises(TraceError, match="has no prefill tokens to learn from"):
        hold_out(trace, phase="prefill")


def test_a_cache_goes_on_across_documents_unless_restarted(tmp_path):
    trace = make_routed(tmp_path / "t", SHAPE, {"a": [decoded(1), decoded(1)]})
    assert rate(trace, "lru", 80) == 0.5
    assert rate(trace, "lru", 80, restart=True) == 0.0
    accesses = read_accesses(trace)
    for policy in ("belady", "lfu", "lfru"):
        assert rate(trace, policy, 80, restart=True) == 0.0
    # The bound may begin with what it needs, anew in each document.
    found = replay(accesses, parse_policy("optimum"), 80, SIZES, restart=True)
    assert found.hit_rate("decode") == 1.0


def test_the_cache_goes_on_from_prefill_to_decode(tmp_path):
    made = {"a": [[("p", [[1], [2]]), ("p", [[1], [2]]), ("d", [[1], [3]])]]}
    found = replay(
        read_accesses(make_routed(tmp_path / "t", SHAPE, made)), parse_policy("lru"), 80, SIZES
    )
    assert found.hits.tolist() == [0, 0, 1, 0]
    assert found.total_bytes_read("prefill") == 20
    assert found.total_bytes_read("decode") == 10
    assert found.coverage("prefill") == 0.0


def test_pinned_cells_stay_and_the_rest_of_the_budget_is_a_cache(tmp_path):
    trace = make_routed(tmp_path / "t", SHAPE, {"a": [decoded(1, 2, 3, 1, 2, 3)]})
    learned = np.zeros((2, 4))
    learned[0, 3] = 5
    # A third of the room pins expert 3; the other two entries serve layer 1 and what came last.
    found = replay(read_accesses(trace), parse_policy("lru+pinned:share=0.34"), 30, SIZES, learned)
    assert found.hits.reshape(-1, 2)[:, 0].tolist() == [0, 0, 1, 0, 0, 1]
    assert found.hits.reshape(-1, 2)[:, 1].tolist() == [0, 1, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="training is needed"):
        rate(trace, "lru+pinned:share=0.5", 30)


def test_a_budget_for_each_layer_follows_the_bytes_of_its_experts(tmp_path):
    trace = make_routed(tmp_path / "t", SHAPE, {"a": [decoded(1, 2, 1, 2)]})
    uneven = np.repeat(np.array([[30], [10]]), 4, axis=1)
    found = replay(read_accesses(trace), parse_policy("lru:scope=layer"), 40, uneven)
    # 30 bytes hold one expert of layer 0, 10 bytes one of layer 1.
    assert found.hits.reshape(-1, 2).tolist() == [[0, 0], [0, 1], [0, 1], [0, 1]]
    found = replay(read_accesses(trace), parse_policy("lru:scope=layer"), 80, uneven)
    assert found.hits.reshape(-1, 2).tolist() == [[0, 0], [0, 1], [1, 1], [1, 1]]


def test_at_most_so_many_experts_are_brought_in_for_each_layer_and_token(tmp_path):
    shape = make_shape(moe_layers=(0,), num_experts=4, top_k=3, expert_bytes=10)
    trace = make_routed(tmp_path / "t", shape, {"a": [[("d", [[2, 0, 1]])] * 3]})
    accesses, sizes = read_accesses(trace), np.full((1, 4), 10)
    found = replay(accesses, parse_policy("lru:uploads=1"), 40, sizes)
    assert found.uploads.tolist() == [1, 1, 1]
    assert found.hits.tolist() == [0, 1, 2]
    assert found.bytes_read.tolist() == [10, 10, 10]
    # The router's first choice comes first.
    assert found.is_hit.reshape(3, 3)[1].tolist() == [True, False, False]


@pytest.mark.parametrize("text", ["static:scope=layer", "lru:scope=layer", "lfu:scope=layer"])
def test_even_routing_gives_no_policy_more_than_chance(tmp_path, text):
    shape = make_shape(moe_layers=(0, 1), num_experts=16, top_k=2, expert_bytes=10)
    block = make_block(shape, np.repeat(np.arange(20), 400).tolist(), decode=400)
    trace = make_trace(tmp_path / "t", {"a": block}, shape)
    accesses, sizes = read_accesses(trace), np.full((2, 16), 10)
    policy = parse_policy(text)
    for share in (0.25, 0.5):
        budget = int(share * sizes.sum())
        found = replay_held_out(accesses, policy, budget, sizes, hold_out(trace))
        # What is present does not depend on the token that comes: each lookup hits by chance.
        error = np.sqrt(share * (1 - share) / len(accesses.cells))
        assert abs(found.hit_rate("decode") - share) < 4 * error
