"""The host's side of the hand-over, with this test in the device's place."""

import time

import numpy as np
import pytest
from kernel_cases import assert_same_bits, make_expert, make_rows, on_a_line

from moeprof.native import NO_EXPERT, Answerer, ExpertLayer, Workers, exchange_layout, reference

HIDDEN, WIDTH, TOP_K = 64, 32, 2
ABORTED = 2**64 - 1


class Device:
    """Posts questions and reads answers as the decode kernel does."""

    def __init__(self, hidden_size: int = HIDDEN, top_k: int = TOP_K) -> None:
        self.places = exchange_layout(hidden_size, top_k)
        memory = np.zeros(self.places["num_bytes"] + 64, np.uint8)
        self.memory = memory[-memory.ctypes.data % 64 :][: self.places["num_bytes"]]
        self.number = 0
        self.word("answered", np.uint64)[0] = ABORTED

    def word(self, name: str, dtype: type, count: int = 1) -> np.ndarray:
        start = self.places[name]
        return self.memory[start : start + count * np.dtype(dtype).itemsize].view(dtype)

    def ask(self, layer: int, rows: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> None:
        self.word("rows", np.float32, rows.size)[:] = rows.ravel()
        self.word("ids", np.uint16, ids.size)[:] = ids.ravel()
        self.word("weights", np.float32, weights.size)[:] = weights.ravel()
        self.word("layer", np.uint32)[0] = layer
        self.word("num_tokens", np.uint32)[0] = len(rows)
        self.number += 1
        self.word("posted", np.uint64)[0] = self.number

    def wait(self) -> int:
        end = time.monotonic() + 60
        while self.word("answered", np.uint64)[0] < self.number:
            assert time.monotonic() < end, "no answer"
        return int(self.word("answered", np.uint64)[0])


def make_layer() -> tuple[list[reference.ExpertWeights], ExpertLayer]:
    experts = [make_expert(seed, HIDDEN, WIDTH, "q8_0") for seed in range(4)]
    layer = ExpertLayer(HIDDEN, WIDTH, 5, TOP_K, "q8_0")
    for expert_id, expert in enumerate(experts):
        layer.set_expert(expert_id, on_a_line(reference.pack_expert(expert)))
    return experts, layer


@pytest.fixture
def answering():
    device = Device()
    experts, layer = make_layer()
    workers = Workers(2)
    answerer = Answerer(device.memory.ctypes.data, HIDDEN, TOP_K, workers)
    answerer.set_layer(7, layer)
    answerer.start()
    yield device, experts, answerer
    answerer.stop()


def test_answers_equal_the_definition(answering) -> None:
    device, experts, _ = answering
    rng = np.random.default_rng(0)
    for turn in range(50):
        num_tokens = 1 + turn % 8
        rows = make_rows(turn, num_tokens, HIDDEN)
        ids = rng.random((num_tokens, 4)).argsort(1)[:, :TOP_K].astype(np.uint16)
        ids[rng.random(ids.shape) < 0.3] = NO_EXPERT
        weights = rng.random(ids.shape, np.float32)
        device.ask(7, rows, ids, weights)
        assert device.wait() == turn + 1
        sums, outputs = reference.decode_layer(experts, rows, ids, weights, reference.GatedUnit())
        got = device.word("outputs", np.float32, outputs.size).copy()
        assert_same_bits(got, outputs.ravel())
        assert_same_bits(device.word("sums", np.float32, sums.size).copy(), sums.ravel())
    assert device.word("host_fault", np.uint32)[0] == 0


def test_what_cannot_be_answered_is_a_fault_and_the_thread_goes_on(answering) -> None:
    device, _, _ = answering
    weights = np.ones((1, TOP_K), np.float32)
    rows = make_rows(1, 1, HIDDEN)
    for layer, row, ids, fault in (
        (3, rows, [[0, 1]], 16),
        (7, rows, [[4, 1]], 2),
        (7, rows * np.float32("inf"), [[0, 1]], 1),
        (7, rows, [[1, 1]], 4),
    ):
        device.word("host_fault", np.uint32)[0] = 0
        device.ask(layer, row, np.array(ids, np.uint16), weights)
        device.wait()
        assert device.word("host_fault", np.uint32)[0] == fault
    device.word("host_fault", np.uint32)[0] = 0
    device.ask(7, rows, np.array([[0, 1]], np.uint16), weights)
    device.wait()
    assert device.word("host_fault", np.uint32)[0] == 0


def test_only_timed_questions_are_timed_each_layer_apart(answering) -> None:
    device, _, answerer = answering
    rows, weights = make_rows(1, 1, HIDDEN), np.ones((1, TOP_K), np.float32)
    ids = np.array([[0, 1]], np.uint16)
    device.ask(7, rows, ids, weights)
    device.wait()
    assert answerer.take_nanoseconds(7) == 0
    begun = time.perf_counter_ns()
    for is_timed in (1, 0, 1):
        device.word("is_timed", np.uint32)[0] = is_timed
        device.ask(7, rows, ids, weights)
        device.wait()
    found = answerer.take_nanoseconds(7)
    assert 0 < found <= time.perf_counter_ns() - begun
    assert answerer.take_nanoseconds(7) == 0
    assert answerer.take_nanoseconds(6) == answerer.take_nanoseconds(8) == 0


def test_a_stopped_exchange_lets_nobody_wait_and_can_be_started_again(answering) -> None:
    device, _, answerer = answering
    rows, weights = make_rows(1, 1, HIDDEN), np.ones((1, TOP_K), np.float32)
    answerer.stop()
    assert not answerer.is_running
    device.ask(7, rows, np.array([[0, 1]], np.uint16), weights)
    assert device.wait() == ABORTED
    answerer.start()
    device.ask(7, rows, np.array([[0, 1]], np.uint16), weights)
    assert device.wait() == 2


def test_layers_that_do_not_fit_are_refused() -> None:
    device = Device()
    workers = Workers(1)
    answerer = Answerer(device.memory.ctypes.data, HIDDEN, TOP_K, workers)
    with pytest.raises(ValueError, match="the exchange has room for 64 and 2"):
        answerer.set_layer(0, ExpertLayer(96, WIDTH, 5, TOP_K, "q8_0"))
    answerer.start()
    with pytest.raises(RuntimeError, match="stop it before set_layer"):
        answerer.set_layer(0, make_layer()[1])
    answerer.stop()
