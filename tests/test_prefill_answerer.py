"""The host's side of a prefill on a device, with this test in the device's place."""

import ctypes

import numpy as np
import pytest
from kernel_cases import assert_same_bits, make_expert, make_rows, on_a_line

from moeprof.native import NO_EXPERT, ExpertLayer, PrefillAnswerer, Workers, reference

HIDDEN, WIDTH, TOP_K, NUM_TOKENS = 64, 32, 2, 30


class Room(ctypes.Structure):
    """`PrefillRoom` of native/prefill_room.hpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("answer", "answerer")),
        *((name, ctypes.c_uint32) for name in ("layer", "num_tokens", "num_slots")),
        ("hidden_type", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("rows", "ids", "outputs")),
    )


class Device:
    """Asks as a device does, through the function that its stream calls."""

    def __init__(self) -> None:
        self.experts = [make_expert(seed, HIDDEN, WIDTH, "q8_0") for seed in range(4)]
        self.workers = Workers(2)
        layer = ExpertLayer(HIDDEN, WIDTH, 5, TOP_K, "q8_0")
        for expert_id, expert in enumerate(self.experts):
            layer.set_expert(expert_id, on_a_line(reference.pack_expert(expert)))
        header = np.zeros(4096 + 64, np.uint8)
        self.header = header[-header.ctypes.data % 64 :]
        self.answerer = PrefillAnswerer(self.header.ctypes.data, self.workers)
        self.answerer.set_layer(7, layer)
        self.outputs = np.full((NUM_TOKENS, TOP_K, HIDDEN), 9, np.float32)

    def ask(self, layer: int, rows: np.ndarray, ids: np.ndarray) -> int:
        """The faults of a question."""
        self.header[:] = 0
        room = Room(
            self.answerer.function, self.answerer.address, layer, len(rows),
            int((ids != NO_EXPERT).sum()), 0, rows.ctypes.data, ids.ctypes.data,
            self.outputs.ctypes.data,
        )  # fmt: skip
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(room.answer)(ctypes.addressof(room))
        return int(np.bitwise_or.reduce(self.header.view(np.uint32)))


def make_question() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.random((NUM_TOKENS, 4)).argsort(1)[:, :TOP_K].astype(np.uint16)
    ids[rng.random(ids.shape) < 0.5] = NO_EXPERT
    return make_rows(0, NUM_TOKENS, HIDDEN), ids


def test_slots_that_are_asked_for_are_filled_and_the_others_left() -> None:
    device = Device()
    rows, ids = make_question()
    assert device.ask(7, rows, ids) == 0
    weights = np.ones(ids.shape, np.float32)
    unit = reference.GatedUnit()
    expected = reference.decode_layer(device.experts, rows, ids, weights, unit)[1]
    expected[ids == NO_EXPERT] = 9
    assert_same_bits(device.outputs, expected)


def test_without_slots_there_is_nothing_to_do() -> None:
    device = Device()
    rows, ids = make_question()
    ids[:] = NO_EXPERT
    assert device.ask(3, rows, ids) == 0, "not even the layer is looked up"
    assert (device.outputs == 9).all()


@pytest.mark.parametrize(
    ("layer", "value", "expert", "fault"), [(3, 1, 0, 16), (7, 1, 4, 2), (7, np.inf, 0, 1)]
)
def test_what_cannot_be_answered_is_a_fault(layer, value, expert, fault) -> None:
    device = Device()
    rows, ids = make_question()
    ids[5] = (expert, NO_EXPERT)
    rows[5, 3] = value
    assert device.ask(layer, rows, ids) == fault
