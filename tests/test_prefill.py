"""Many tokens through a layer, and the layer as a model calls it, against the definition."""

import ctypes

import numpy as np
import pytest
import torch
from kernel_cases import FORMATS, PATHS, assert_same_bits, make_expert, make_rows, on_a_line

from moeprof.native import NO_EXPERT, ExpertLayer, Workers, reference

TOP_K = 3
NUM_EXPERTS = 6
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Layer:
    """A layer of five experts of six, and what defines it."""

    def __init__(
        self, weight_format, hidden_size=96, width=160, unit="silu", biases=False, path=None
    ):
        self.experts = [
            make_expert(i, hidden_size, width, weight_format, biases)
            for i in range(NUM_EXPERTS - 1)
        ]
        self.unit = reference.GatedUnit(unit)
        self.hidden_size = hidden_size
        self.weight_format = weight_format
        self.native = ExpertLayer(
            hidden_size, width, NUM_EXPERTS, TOP_K, weight_format, biases, unit, path=path
        )
        for expert_id, expert in enumerate(self.experts):
            self.native.set_expert(expert_id, on_a_line(reference.pack_expert(expert)))

    def expected(self, rows, ids, weights):
        return reference.decode_layer(self.experts, rows, ids, weights, self.unit)

    def tolerance(self, rows, ids):
        """[T, K, H]: a 128th of the sum of the magnitudes that `down` adds, else 0.

        A matrix unit sums bf16 products in another order, which can move a value between the
        projections to its neighbour in bf16, 2**-7 of it away.
        """
        bound = np.zeros((*ids.shape, self.hidden_size), np.float32)
        if (self.native.path, self.weight_format) != ("amx", "bf16"):
            return bound
        for expert_id, expert in enumerate(self.experts):
            tokens, slots = np.nonzero(ids == expert_id)
            gate, up = (
                reference.project(stored, rows[tokens], "bf16") + (0 if bias is None else bias)
                for stored, bias in (
                    (expert.gate, expert.gate_bias),
                    (expert.up, expert.up_bias),
                )
            )
            magnitudes = expert.down.copy()
            magnitudes[:, 1::2] &= 0x7F
            hidden = np.abs(self.unit(gate, up))
            bound[tokens, slots] = reference.project(magnitudes, hidden, "bf16") / 128
        return bound

    def prefill(self, workers, rows, ids, weights):
        outputs = np.full((*ids.shape, self.hidden_size), np.nan, np.float32)
        sums = np.full(rows.shape, np.nan, np.float32)
        self.native.prefill(workers, rows, ids, weights, outputs, sums)
        return sums, outputs

    def forward(self, workers, hidden, ids, weights, counts=(None, None)):
        output = torch.full_like(hidden, torch.nan)
        self.native.forward(
            workers,
            hidden.data_ptr(),
            str(hidden.dtype).removeprefix("torch."),
            ids.data_ptr(),
            weights.data_ptr(),
            str(weights.dtype).removeprefix("torch."),
            len(hidden),
            output.data_ptr(),
            *(0 if array is None else array.ctypes.data for array in counts),
        )
        return output


def make_routing(num_tokens: int, busiest: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ids of five experts, a fifth of the slots empty, and weights; `busiest` leads every row."""
    rng = np.random.default_rng(num_tokens)
    scores = rng.random((num_tokens, NUM_EXPERTS - 1))
    scores[:, busiest] -= 0.5
    ids = scores.argsort(1)[:, :TOP_K].astype(np.uint16)
    ids[rng.random(ids.shape) < 0.2] = NO_EXPERT
    return ids, rng.random(ids.shape, np.float32)


def check_prefill(layer: Layer, workers: list[Workers], num_tokens: int) -> None:
    rows = make_rows(num_tokens, num_tokens, layer.hidden_size)
    ids, weights = make_routing(num_tokens)
    expected_sums, expected_outputs = layer.expected(rows, ids, weights)
    tolerance = layer.tolerance(rows, ids)
    for pool in workers:
        sums, outputs = layer.prefill(pool, rows, ids, weights)
        if tolerance.any():
            assert (np.abs(outputs - expected_outputs) <= tolerance).all()
            assert_same_bits(sums, reference.slot_sum(outputs, ids, weights))
        else:
            assert_same_bits(outputs, expected_outputs)
            assert_same_bits(sums, expected_sums)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize(
    ("hidden_size", "width", "unit", "biases"),
    [(32, 32, "silu", False), (96, 544, "gelu_tanh", False), (288, 96, "clamped", True)],
)
def test_a_prefill_equals_the_definition(
    path, weight_format, hidden_size, width, unit, biases
) -> None:
    layer = Layer(weight_format, hidden_size, width, unit, biases, path)
    workers = [Workers(n, spin_us=0) for n in (1, 3)]
    for num_tokens in (0, 1, 9, 17, 95):
        check_prefill(layer, workers, num_tokens)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_prefill_in_several_passes_equals_the_definition(path, weight_format) -> None:
    check_prefill(Layer(weight_format, 32, 32, path=path), [Workers(2)], 16384 // TOP_K + 5)


@pytest.mark.parametrize("num_tokens", [5, 70])
def test_slots_alone_fill_what_has_an_expert_and_leave_the_rest(num_tokens) -> None:
    layer, workers = Layer("q8_0"), Workers(2)
    rows = make_rows(1, num_tokens, layer.hidden_size)
    ids, weights = make_routing(num_tokens)
    hidden = torch.from_numpy(rows).bfloat16()
    outputs = np.full((*ids.shape, layer.hidden_size), 7, np.float32)
    layer.native.prefill_slots(
        workers, hidden.data_ptr(), "bfloat16", ids.ctypes.data, num_tokens, outputs.ctypes.data
    )
    expected = layer.expected(hidden.float().numpy(), ids, weights)[1]
    expected[ids == NO_EXPERT] = 7
    assert_same_bits(outputs, expected)


@pytest.mark.parametrize("num_tokens", [0, 1, 8, 9, 70])
@pytest.mark.parametrize("weights_type", TYPES)
@pytest.mark.parametrize("hidden_type", TYPES)
def test_a_layer_takes_and_gives_the_models_own_types(
    hidden_type, weights_type, num_tokens
) -> None:
    layer, workers = Layer("q4_0", unit="gelu_tanh"), Workers(2)
    rows = torch.from_numpy(make_rows(2, num_tokens, layer.hidden_size)).to(TYPES[hidden_type])
    ids, weights = make_routing(num_tokens)
    weights = torch.from_numpy(weights).to(TYPES[weights_type])
    ids = torch.from_numpy(ids.astype(np.int64))
    none = ids == NO_EXPERT
    ids[none] = torch.tensor([NUM_EXPERTS, -1, 2**40, NO_EXPERT]).repeat(ids.numel())[: none.sum()]
    output = layer.forward(workers, rows, ids, weights)
    inside = torch.where(none, NO_EXPERT, ids)
    sums, _ = layer.expected(
        rows.float().numpy(), inside.numpy().astype(np.uint16), weights.float().numpy()
    )
    expected = torch.from_numpy(sums).to(TYPES[hidden_type])
    assert output.dtype == expected.dtype
    assert torch.equal(output, expected)


@pytest.mark.parametrize("num_tokens", [2, 9])
def test_weights_of_zero_are_no_expert_and_the_rest_is_counted(num_tokens) -> None:
    layer, workers = Layer("q8_0"), Workers(2)
    rows = torch.from_numpy(make_rows(3, num_tokens, layer.hidden_size))
    ids = torch.zeros(num_tokens, TOP_K, dtype=torch.int64)
    ids[:, 1:] = torch.tensor([1, 5])  # of expert 5 there are no weights
    weights = torch.tensor([[0.5, -0.0, 0.0]]).repeat(num_tokens, 1)
    weights[0] = torch.tensor([0.0, 0.25, 0.0])
    assignments, reads = np.full((2, NUM_EXPERTS), 10, np.int64)
    layer.forward(workers, rows, ids, weights, (assignments, reads))
    np.testing.assert_array_equal(assignments, [10 + num_tokens - 1, 11, 10, 10, 10, 10])
    np.testing.assert_array_equal(reads, [11, 11, 10, 10, 10, 10])


@pytest.mark.parametrize("num_tokens", [3, 20])
def test_what_cannot_be_computed_is_refused_and_nothing_is_counted(num_tokens) -> None:
    layer, workers = Layer("q8_0"), Workers(2)
    rows = torch.from_numpy(make_rows(4, num_tokens, layer.hidden_size))
    ids = torch.tensor([[0, 1, 2]]).repeat(num_tokens, 1)
    weights = torch.ones(num_tokens, TOP_K)
    assignments, reads = np.zeros((2, NUM_EXPERTS), np.int64)
    counts = (assignments, reads)
    before = layer.forward(workers, rows, ids, weights)
    for bad, error, message in (
        ([5, 1, 2], IndexError, "ids: an expert of which this layer has no weights"),
        ([1, 0, 1], ValueError, "ids: an expert stands twice in a row"),
    ):
        faulty = ids.clone()
        faulty[-1] = torch.tensor(bad)
        with pytest.raises(error, match=message):
            layer.forward(workers, rows, faulty, weights, counts)
    for value in (np.nan, np.inf, 1e30):  # the last overflows between the projections
        faulty = rows.clone()
        faulty[-1, 40] = value
        with pytest.raises(ValueError, match="activations: a value is not finite"):
            layer.forward(workers, faulty, ids, weights, counts)
    with pytest.raises(ValueError, match="number type: 'float64', expected one of float32"):
        layer.forward(workers, rows.double(), ids, weights)
    assert not assignments.any() and not reads.any()
    assert torch.equal(layer.forward(workers, rows, ids, weights, counts), before)
    np.testing.assert_array_equal(assignments, [num_tokens] * 3 + [0] * 3)
    np.testing.assert_array_equal(reads, [1] * 3 + [0] * 3)


@pytest.mark.parametrize("hidden_type", ["bfloat16", "float16"])
def test_sums_are_rounded_as_torch_rounds_them(hidden_type) -> None:
    layer, workers = Layer("q8_0"), Workers(1)
    rows = torch.from_numpy(make_rows(5, 12, layer.hidden_size)).to(TYPES[hidden_type])
    ids = torch.tensor([[0, 1, 2]]).repeat(12, 1)
    for scale in (1e-9, 1e-6, 1e3, 1e7, 3e38, torch.inf, torch.nan):
        weights = torch.tensor([[scale, 1e-12, 1e-12]]).repeat(12, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            sums, _ = layer.expected(
                rows.float().numpy(), ids.numpy().astype(np.uint16), weights.numpy()
            )
        expected = torch.from_numpy(sums).to(TYPES[hidden_type])
        got = layer.forward(workers, rows, ids, weights)
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_memory_does_not_grow_over_ten_thousand_tokens() -> None:
    layer, workers = Layer("q4_0", 64, 32), Workers(1)
    rows = torch.from_numpy(make_rows(6, 40, layer.hidden_size)).bfloat16()
    ids = torch.tensor([[0, 1, 2]]).repeat(40, 1)
    weights = torch.ones(40, TOP_K)
    output = torch.empty_like(rows)
    pointers = (rows.data_ptr(), "bfloat16", ids.data_ptr(), weights.data_ptr(), "float32")

    def run(tokens: int) -> int:
        """Forwards many tokens once, one token so often, and the allocator's bytes in use."""
        layer.native.forward(workers, *pointers, 40, output.data_ptr())
        for _ in range(tokens):
            layer.native.forward(workers, *pointers, 1, output.data_ptr())
        return heap_bytes()

    before = run(100)
    assert abs(run(10_000) - before) < 10_000  # a byte a token would be more


def heap_bytes() -> int:
    """What malloc has handed out in this process, mapped blocks included."""

    class Mallinfo2(ctypes.Structure):
        _fields_ = (
            *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks")),
            *((name, ctypes.c_size_t) for name in ("hblkhd", "usmblks", "fsmblks", "uordblks")),
            *((name, ctypes.c_size_t) for name in ("fordblks", "keepcost")),
        )

    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("this C library does not tell what malloc has handed out")
    libc.mallinfo2.restype = Mallinfo2
    info = libc.mallinfo2()
    return info.uordblks + info.hblkhd
