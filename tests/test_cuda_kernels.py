"""The CUDA kernels of experts against the definition, bit for bit."""

import numpy as np
import pytest
import torch
from kernel_cases import make_expert, make_rows, on_a_line

from moeprof.native import Answerer, ExpertLayer, Workers, reference

pytestmark = pytest.mark.gpu
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class Case:
    """A layer split between the device and the host, and what it is to give."""

    def __init__(self, shape, weight_format, unit="silu", biases=False, on_host=(), pool=6):
        from moeprof.native import _cuda

        self.hidden_size, self.width, self.top_k = shape
        self.experts = [
            make_expert(seed, self.hidden_size, self.width, weight_format, biases)
            for seed in range(pool)
        ]
        self.unit = reference.GatedUnit(unit, 1.702, 7.0)
        self.num_experts = pool + 1
        resident = [e for e in range(pool) if e not in on_host]
        packed = [reference.pack_expert(expert) for expert in self.experts]
        stride = -(-packed[0].size // 256) * 256
        store = np.zeros((len(resident) + 1, stride), np.uint8)
        slots = np.full(self.num_experts, -1, np.int32)
        for slot, expert in enumerate(reversed(resident)):
            store[slot, : packed[expert].size] = packed[expert]
            slots[expert] = slot
        self.store = torch.from_numpy(store).cuda()
        self.slots = torch.from_numpy(slots).cuda()
        self.exchange = _cuda.Exchange(self.hidden_size, self.top_k, 5.0)
        sizes = (self.hidden_size, self.width, self.num_experts, self.top_k, weight_format, biases)
        self.layer = _cuda.DeviceLayer(self.exchange, 3, *sizes, unit, 1.702, 7.0)
        self.workspace = torch.zeros(self.layer.workspace_bytes, dtype=torch.uint8, device="cuda")
        addresses = (self.store, self.slots, self.workspace)
        store_at, slots_at, workspace_at = (tensor.data_ptr() for tensor in addresses)
        self.layer.set_weights(store_at, stride, slots_at, workspace_at)
        self.workers = Workers(2)
        host = ExpertLayer(*sizes, unit, 1.702, 7.0)
        for expert in on_host:
            host.set_expert(expert, on_a_line(packed[expert]))
        self.answerer = Answerer(self.exchange.address, self.hidden_size, self.top_k, self.workers)
        self.answerer.set_layer(3, host)
        if on_host:
            self.answerer.start()
        self.counts = torch.zeros(2, self.num_experts, dtype=torch.int64, device="cuda")

    def tokens(self, seed, num_tokens, dtype=torch.float32):
        rng = np.random.default_rng(seed)
        rows = torch.from_numpy(make_rows(seed, num_tokens, self.hidden_size)).to(dtype)
        ids = rng.random((num_tokens, self.num_experts - 1)).argsort(1)[:, : self.top_k]
        ids[rng.random(ids.shape) < 0.15] = self.num_experts + 3
        weights = rng.random(ids.shape, np.float32)
        weights[rng.random(ids.shape) < 0.1] = 0
        return rows, torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(weights)

    def expected(self, rows, ids, weights):
        used = (ids < self.num_experts) & (weights != 0)
        chosen = np.where(used, ids, 65535).astype(np.uint16)
        return chosen, reference.decode_layer(
            self.experts, rows.float().numpy(), chosen, weights.numpy(), self.unit
        )[0]

    def run(self, rows, ids, weights, output):
        self.layer.forward(
            torch.cuda.current_stream().cuda_stream,
            rows.data_ptr(),
            TYPES[rows.dtype],
            ids.data_ptr(),
            weights.data_ptr(),
            TYPES[weights.dtype],
            len(rows),
            output.data_ptr(),
            self.counts[0].data_ptr(),
            self.counts[1].data_ptr(),
        )


def assert_same(got: torch.Tensor, expected: np.ndarray) -> None:
    kinds = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
    kind = kinds[got.dtype]
    rounded = torch.from_numpy(expected).to(got.dtype)
    assert torch.equal(got.cpu().view(kind), rounded.view(kind))


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
