"""Many tokens through a layer on a CUDA device, against the definition and the decode kernel."""

import numpy as np
import pytest
import torch
from cuda_cases import TYPES, Case, assert_same
from kernel_cases import make_rows

from moeprof.native import reference

pytestmark = pytest.mark.gpu
ALL = (0, 1, 2, 3, 4, 5)
# Who computes the experts of the host: copied to the device; the host; both, the busiest copied.
HELP = {
    "copied": (True, False, (1.0, 1.0, 1.0)),
    "host": (False, True, (1.0, 1.0, 1.0)),
    "both": (True, True, (6.0, 1.0, 0.2)),
}


def tolerance(case: Case, rows: torch.Tensor, chosen: np.ndarray, weights: torch.Tensor):
    """[T, H]: a 128th of the sum of the magnitudes that `down` and the slots add.

    A matrix unit sums bf16 products in another order, which can move a value between the
    projections to its neighbour in bf16, 2**-7 of it away.
    """
    bound = np.zeros(rows.shape, np.float32)
    for expert_id, expert in enumerate(case.experts):
        tokens, slots = np.nonzero(chosen == expert_id)
        gate, up = (
            reference.project(stored, rows[tokens].float().numpy(), "bf16")
            + (0 if bias is None else bias)
            for stored, bias in ((expert.gate, expert.gate_bias), (expert.up, expert.up_bias))
        )
        magnitudes = expert.down.copy()
        magnitudes[:, 1::2] &= 0x7F
        sizes = reference.project(magnitudes, np.abs(case.unit(gate, up)), "bf16")
        bound[tokens] += np.abs(weights.numpy()[tokens, slots, None]) * sizes / 128
    return bound


def check(case: Case, num_tokens: int, dtype: torch.dtype) -> None:
    rows, ids, weights = case.tokens(num_tokens, num_tokens, dtype)
    chosen, expected = case.expected(rows, ids, weights)
    output = torch.full_like(rows, float("nan"), device="cuda")
    case.counts.zero_()
    case.prefill(rows.cuda(), ids.cuda(), weights.cuda(), output)
    torch.cuda.synchronize()
    assert case.exchange.take_faults() == 0
    if case.weight_format == "bf16":
        kind = torch.finfo(dtype)
        rounding = kind.eps * np.maximum(np.abs(expected), kind.smallest_normal)
        error = np.abs(output.float().cpu().numpy() - expected)
        assert (error <= tolerance(case, rows, chosen, weights) + rounding).all()
    else:
        assert_same(output, expected)
    assignments = np.bincount(chosen[chosen != 65535], minlength=case.num_experts)
    np.testing.assert_array_equal(case.counts[0].cpu(), assignments)
    np.testing.assert_array_equal(case.counts[1].cpu(), assignments > 0)


@pytest.mark.parametrize("weight_format", reference.BLOCK_BYTES)
@pytest.mark.parametrize(
    ("shape", "unit", "biases", "on_host", "help_of_host"),
    [
        ((64, 32, 2), "silu", False, (), "copied"),
        ((256, 96, 4), "gelu_tanh", True, (1,), "copied"),
        ((256, 96, 4), "gelu_tanh", True, ALL, "both"),
        ((288, 160, 3), "clamped_silu", False, ALL, "copied"),
        ((288, 160, 3), "clamped_silu", False, (0, 2, 5), "host"),
        ((1600, 64, 3), "silu", False, ALL, "both"),
    ],
)
def test_a_prefill_equals_the_definition(
    weight_format, shape, unit, biases, on_host, help_of_host
) -> None:
    case = Case(shape, weight_format, unit, biases, on_host, answers=False)
    case.use_host(*HELP[help_of_host])
    for num_tokens in (0, 1, 9, 17, 64, 512):
        check(case, num_tokens, torch.float32)
    for dtype in TYPES:
        check(case, 33, dtype)


@pytest.mark.parametrize("weight_format", reference.BLOCK_BYTES)
@pytest.mark.parametrize(
    ("shape", "unit", "biases", "on_host"),
    [((2048, 768, 4), "silu", False, (0, 3)), ((2880, 800, 3), "clamped", True, (1,))],
)
def test_a_prefill_of_wide_experts_equals_the_definition(
    weight_format, shape, unit, biases, on_host
) -> None:
    case = Case(shape, weight_format, unit, biases, on_host, answers=False)
    for help_of_host in HELP:
        case.use_host(*HELP[help_of_host])
        check(case, 64, torch.bfloat16)


@pytest.mark.parametrize("weight_format", ["q8_0", "q4_0"])
@pytest.mark.parametrize("num_tokens", [9, 64, 4000])
def test_a_prefill_gives_the_bits_of_the_decode_kernel(weight_format, num_tokens) -> None:
    case = Case((2880, 96, 6), weight_format, answers=False)  # some 1,900 tokens in a pass
    given = [tensor.cuda() for tensor in case.tokens(1, num_tokens, torch.bfloat16)]
    outputs = [torch.full_like(given[0], float("nan")) for _ in range(2)]
    case.prefill(*given, outputs[0])
    counts = case.counts.clone()
    case.counts.zero_()
    case.run(*given, outputs[1])
    torch.cuda.synchronize()
    assert case.exchange.take_faults() == 0
    assert torch.equal(*(output.view(torch.int16) for output in outputs))
    assert torch.equal(case.counts[0], counts[0])
    np.testing.assert_array_equal(counts[1].cpu(), counts[0].cpu() > 0)


@pytest.mark.parametrize("weight_format", reference.BLOCK_BYTES)
def test_where_an_expert_lies_does_not_change_a_bit(weight_format) -> None:
    outputs = []
    for on_host in ((), (1, 3), ALL):
        case = Case((256, 160, 3), weight_format, on_host=on_host, answers=False)
        case.use_host(True, False)
        given = [tensor.cuda() for tensor in case.tokens(5, 70)]
        outputs.append(torch.full_like(given[0], float("nan")))
        case.prefill(*given, outputs[-1])
        torch.cuda.synchronize()
        assert case.exchange.take_faults() == 0
    assert outputs[0].isfinite().all()
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@pytest.mark.parametrize("help_of_host", HELP)
def test_what_cannot_be_computed_is_a_fault(help_of_host) -> None:
    from moeprof.native import _cuda

    case = Case((64, 32, 2), "q8_0", on_host=(0,), answers=False)
    case.use_host(*HELP[help_of_host])
    rows = torch.from_numpy(make_rows(0, 20, 64)).cuda()
    weights = torch.ones(20, 2).cuda()
    ids = torch.tensor([[0, 1]]).repeat(20, 1).cuda()

    def faults(rows: torch.Tensor, ids: torch.Tensor) -> int:
        case.prefill(rows, ids, weights, torch.empty_like(rows))
        torch.cuda.synchronize()
        return case.exchange.take_faults()

    repeated, unknown = ids.clone(), ids.clone()
    repeated[7, 0] = 1
    unknown[7, 0] = case.num_experts - 1  # of which nobody has the weights
    endless, huge = rows.clone(), rows.clone()
    endless[11, 5] = float("inf")
    huge[11, 5] = 1e30  # overflows between the projections
    assert faults(rows, repeated) == _cuda.FAULT_REPEATED_EXPERT
    assert faults(rows, unknown) == _cuda.FAULT_UNKNOWN_EXPERT
    assert faults(endless, ids) == _cuda.FAULT_NOT_FINITE
    assert faults(huge, ids) == _cuda.FAULT_NOT_FINITE
    assert faults(rows, ids) == 0
