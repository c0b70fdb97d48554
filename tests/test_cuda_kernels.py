"""The CUDA kernels of experts against the definition, bit for bit."""

import numpy as np
import pytest
import torch
from cuda_cases import TYPES, Case, assert_same
from kernel_cases import make_rows

from moeprof.native import reference

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("weight_format", reference.BLOCK_BYTES)
@pytest.mark.parametrize(
    ("shape", "unit", "biases", "on_host"),
    [
        ((64, 32, 2), "silu", False, ()),
        ((256, 96, 4), "gelu_tanh", True, (1,)),
        ((2048, 768, 4), "silu", False, (0, 3)),
        ((2880, 800, 3), "clamped", True, ()),
        ((288, 160, 3), "clamped_silu", False, (0, 1, 2, 3, 4, 5)),
    ],
)
def test_a_layer_equals_the_definition(weight_format, shape, unit, biases, on_host) -> None:
    case = Case(shape, weight_format, unit, biases, on_host)
    for num_tokens in (1, 2, 3, 5, 8, 19):
        for dtype in TYPES:
            rows, ids, weights = case.tokens(num_tokens, num_tokens, dtype)
            chosen, expected = case.expected(rows, ids, weights)
            output = torch.full_like(rows, float("nan"), device="cuda")
            case.counts.zero_()
            case.run(rows.cuda(), ids.cuda(), weights.cuda(), output)
            torch.cuda.synchronize()
            assert case.exchange.take_faults() == 0
            assert_same(output, expected)
            assignments = np.bincount(chosen[chosen != 65535], minlength=case.num_experts)
            np.testing.assert_array_equal(case.counts[0].cpu(), assignments)
            np.testing.assert_array_equal(case.counts[1].cpu(), assignments > 0)
    case.answerer.stop()


@pytest.mark.parametrize("on_host", [(), (0, 2), (0, 1, 2, 3, 4, 5)])
def test_a_captured_graph_gives_the_same_bits_in_every_replay(on_host) -> None:
    case = Case((256, 96, 3), "q8_0", on_host=on_host)
    rows, ids, weights = (tensor.cuda() for tensor in case.tokens(0, 1))
    outputs = [torch.empty_like(rows) for _ in range(4)]
    case.run(rows, ids, weights, outputs[0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for output in outputs:
            case.run(rows, ids, weights, output)
    for seed in range(50):
        given = case.tokens(seed, 1)
        for tensor, values in zip((rows, ids, weights), given, strict=True):
            tensor.copy_(values)
        graph.replay()
        torch.cuda.synchronize()
        assert case.exchange.take_faults() == 0
        for output in outputs:
            assert_same(output, case.expected(*given)[1])
    case.answerer.stop()


@pytest.mark.parametrize("weight_format", reference.BLOCK_BYTES)
def test_one_token_may_have_more_slots_than_a_warp_has_lanes(weight_format) -> None:
    case = Case((96, 32, 40), weight_format, on_host=(1, 9), pool=48)
    for seed in range(3):
        given = case.tokens(seed, 1)
        output = torch.full_like(given[0], float("nan"), device="cuda")
        case.run(*(tensor.cuda() for tensor in given), output)
        torch.cuda.synchronize()
        assert case.exchange.take_faults() == 0
        assert_same(output, case.expected(*given)[1])
    case.answerer.stop()


def test_layers_of_other_sizes_share_a_workspace() -> None:
    cases = [Case((256, 96, 3), "q8_0"), Case((64, 32, 2), "q4_0"), Case((96, 160, 4), "bf16")]
    largest = max((case.workspace for case in cases), key=len)
    for case in cases:
        case.use_workspace(largest)
    order = np.random.default_rng(0).integers(0, len(cases), 40)
    for turn, (index, num_tokens) in enumerate(zip(order, [1, 1, 3, 1, 8] * 8, strict=True)):
        given = cases[index].tokens(turn, num_tokens)
        output = torch.full_like(given[0], float("nan"), device="cuda")
        cases[index].run(*(tensor.cuda() for tensor in given), output)
        torch.cuda.synchronize()
        assert cases[index].exchange.take_faults() == 0
        assert_same(output, cases[index].expected(*given)[1])


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_an_expert_that_stands_twice_in_a_token_is_a_fault(num_tokens) -> None:
    from moeprof.native import _cuda

    case = Case((64, 32, 2), "q8_0")
    rows = torch.from_numpy(make_rows(0, num_tokens, 64)).cuda()
    ids = torch.tensor([[0, 1]] * (num_tokens - 1) + [[2, 2]])
    case.run(rows, ids.cuda(), torch.ones(ids.shape).cuda(), torch.empty_like(rows))
    torch.cuda.synchronize()
    assert case.exchange.take_faults() == _cuda.FAULT_REPEATED_EXPERT


def test_what_nobody_can_answer_is_a_fault_and_not_a_hang() -> None:
    from moeprof.native import _cuda

    case = Case((64, 32, 2), "q8_0", on_host=(0,))
    case.answerer.stop()
    ids, weights = torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2)
    ids[0, 1] = 1
    rows = torch.from_numpy(make_rows(0, 1, 64)).cuda()
    case.run(rows, ids.cuda(), weights.cuda(), torch.empty_like(rows))
    torch.cuda.synchronize()
    assert case.exchange.take_faults() == _cuda.FAULT_NO_ANSWER


def test_an_activation_that_is_not_finite_is_a_fault() -> None:
    from moeprof.native import _cuda

    case = Case((64, 32, 2), "q8_0")
    rows = torch.from_numpy(make_rows(0, 1, 64)).cuda()
    rows[0, 5] = float("inf")
    ids, weights = torch.tensor([[0, 1]]), torch.ones(1, 2)
    case.run(rows, ids.cuda(), weights.cuda(), torch.empty_like(rows))
    torch.cuda.synchronize()
    assert case.exchange.take_faults() == _cuda.FAULT_NOT_FINITE
