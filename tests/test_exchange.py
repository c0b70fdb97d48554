"""The host's side of the hand-over, with this test in the device's place."""

import time

import numpy as np
import pytest
from kernel_cases import (
    FORMATS,
    assert_same_bits,
    make_expert,
    make_rows,
    on_a_line,
    ready_words,
)

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

    def post(self, name: str, data: np.ndarray) -> None:
        words = data.ravel().astype(np.uint64) | np.uint64(self.number << 32)
        self.word(name, np.uint64, words.size)[:] = words

    def ask(
        self,
        layer: int,
        rows: np.ndarray,
        ids: np.ndarray,
        weights: np.ndarray,
        *,
        weight_format: str = "q8_0",
        wants_sums: bool = False,
        is_timed: bool = False,
    ) -> None:
        """The header first: the host waits for the words that it announces."""
        self.number += 1
        flags = wants_sums << 30 | is_timed << 31
        self.post("posted", np.array([layer | len(rows) << 16 | flags], np.uint32))
        self.post("rows", ready_words(rows, weight_format))
        self.post("weights", weights.view(np.uint32))
        self.post("ids", ids)

    def wait(self) -> int:
        end = time.monotonic() + 60
        while self.word("answered", np.uint64)[0] < self.number:
            assert time.monotonic() < end, "no answer"
        return int(self.word("answered", np.uint64)[0])

    def answer(self, name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Data as float32, and which of it belongs to the last question."""
        words = self.word(name, np.uint64, count).copy()
        return words.astype(np.uint32).view(np.float32), words >> np.uint64(32) == self.number


def make_layer(
    weight_format: str = "q8_0", hidden_size: int = HIDDEN, width: int = WIDTH
) -> tuple[list[reference.ExpertWeights], ExpertLayer]:
    experts = [make_expert(seed, hidden_size, width, weight_format) for seed in range(4)]
    layer = ExpertLayer(hidden_size, width, 5, TOP_K, weight_format)
    for expert_id, expert in enumerate(experts):
        layer.set_expert(expert_id, on_a_line(reference.pack_expert(expert)))
    return experts, layer


@pytest.fixture
def answering():
    device = Device()
    workers = Workers(2)
    answerer = Answerer(device.memory.ctypes.data, HIDDEN, TOP_K, workers)
    answerer.set_layer(7, make_layer()[1])
    answerer.start()
    yield device, answerer
    answerer.stop()


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("hidden_size", [64, 288])
def test_answers_equal_the_definition(weight_format, hidden_size) -> None:
    device = Device(hidden_size)
    experts, layer = make_layer(weight_format, hidden_size, 96)
    answerer = Answerer(device.memory.ctypes.data, hidden_size, TOP_K, Workers(2))
    answerer.set_layer(7, layer)
    answerer.start()
    rng = np.random.default_rng(0)
    for turn in range(48):
        num_tokens, wants_sums = 1 + turn % 8, turn % 3 == 0
        rows = make_rows(turn, num_tokens, hidden_size)
        ids = rng.random((num_tokens, 4)).argsort(1)[:, :TOP_K].astype(np.uint16)
        ids[rng.random(ids.shape) < 0.3] = NO_EXPERT
        weights = rng.random(ids.shape, np.float32)
        given = {"weight_format": weight_format, "wants_sums": wants_sums}
        device.ask(7, rows, ids, weights, **given)
        assert device.wait() == turn + 1
        sums, outputs = reference.decode_layer(experts, rows, ids, weights, reference.GatedUnit())
        got, is_new = device.answer("outputs", outputs.size)
        used = np.repeat(ids.ravel() != NO_EXPERT, hidden_size) & (not wants_sums)
        np.testing.assert_array_equal(is_new, used)
        assert_same_bits(got[used], outputs.ravel()[used])
        got, is_new = device.answer("sums", sums.size)
        assert is_new.all() if wants_sums else not is_new.any()
        assert not wants_sums or got.tobytes() == sums.tobytes()
    answerer.stop()
    assert device.word("host_fault", np.uint32)[0] == 0


def test_what_cannot_be_answered_is_a_fault_and_the_thread_goes_on(answering) -> None:
    device = answering[0]
    weights = np.ones((1, TOP_K), np.float32)
    rows = make_rows(1, 1, HIDDEN)
    for layer, ids, fault in (
        (3, [[0, 1]], 16),
        (7, [[4, 1]], 2),
        (7, [[1, 1]], 4),
    ):
        device.word("host_fault", np.uint32)[0] = 0
        device.ask(layer, rows, np.array(ids, np.uint16), weights)
        device.wait()
        assert device.word("host_fault", np.uint32)[0] == fault
        for name in ("outputs", "sums"):  # nobody waits in vain
            assert device.answer(name, HIDDEN)[1].all()
    device.word("host_fault", np.uint32)[0] = 0
    device.ask(7, rows, np.array([[0, 1]], np.uint16), weights)
    device.wait()
    assert device.word("host_fault", np.uint32)[0] == 0


def test_a_value_that_is_not_finite_between_the_projections_is_a_fault(answering) -> None:
    device = answering[0]
    rows = make_rows(3, 1, HIDDEN) * np.float32(1e30)
    device.ask(7, rows, np.array([[0, 1]], np.uint16), np.ones((1, TOP_K), np.float32))
    device.wait()
    assert device.word("host_fault", np.uint32)[0] == 1
    assert device.answer("outputs", TOP_K * HIDDEN)[1].all()


def test_only_timed_questions_are_timed_each_layer_apart(answering) -> None:
    device, answerer = answering
    rows, weights = make_rows(1, 1, HIDDEN), np.ones((1, TOP_K), np.float32)
    ids = np.array([[0, 1]], np.uint16)
    device.ask(7, rows, ids, weights)
    device.wait()
    assert answerer.take_nanoseconds(7) == 0
    begun = time.perf_counter_ns()
    for is_timed in (True, False, True):
        device.ask(7, rows, ids, weights, is_timed=is_timed)
        device.wait()
    found = answerer.take_nanoseconds(7)
    assert 0 < found <= time.perf_counter_ns() - begun
    assert answerer.take_nanoseconds(7) == 0
    assert answerer.take_nanoseconds(6) == answerer.take_nanoseconds(8) == 0


def test_a_stopped_exchange_lets_nobody_wait_and_can_be_started_again(answering) -> None:
    device, answerer = answering
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
