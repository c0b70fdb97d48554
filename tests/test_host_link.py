"""What experts in host memory cost a prefill: whose times are compared, and what is told."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from kernel_cases import make_expert, on_a_line

from moeprof.native import ExpertLayer, Workers, reference
from moeprof.runtime import host_link
from moeprof.runtime.host_link import HostLayer, HostLink, measure_host

HIDDEN, WIDTH, TOP_K, NUM_EXPERTS = 64, 32, 2, 6


def make_layer(held: tuple[int, ...], on_device: object = None) -> HostLayer:
    """A layer with these experts in host memory."""
    kernel = ExpertLayer(HIDDEN, WIDTH, NUM_EXPERTS, TOP_K, "q8_0")
    experts: list[torch.Tensor | None] = [None] * NUM_EXPERTS
    for expert in held:
        packed = on_a_line(reference.pack_expert(make_expert(expert, HIDDEN, WIDTH, "q8_0")))
        kernel.set_expert(expert, packed)
        experts[expert] = torch.from_numpy(packed)
    return HostLayer(on_device, kernel, experts)


def test_experts_are_timed_in_groups_that_differ_where_there_are_enough() -> None:
    one, some, many = host_link._groups(range(40))
    assert list(one) == [0]
    assert list(some) == list(range(32, 40))
    assert list(many) == list(range(1, 9))
    one, some, many = host_link._groups([5, 9, 11])
    assert (list(one), list(some), list(many)) == ([5], [11], [9])
    assert [list(group) for group in host_link._groups([7])] == [[7], [7], [7]]


def test_a_slope_is_the_time_of_each_one_more() -> None:
    assert host_link._slope(10.0, 1, 45.0, 8) == 5.0
    assert host_link._slope(10.0, 1, 12.0, 1) == 12.0
    assert host_link._slope(10.0, 1, 9.0, 8) == 1.0, "noise is not a gain"


@pytest.mark.parametrize("held", [(0, 1, 2, 3, 4), (2,)])
def test_only_experts_in_host_memory_are_computed_to_time_them(held: tuple[int, ...]) -> None:
    expert_ns, token_ns = measure_host([make_layer(held)], Workers(2), (HIDDEN, TOP_K))
    assert expert_ns >= 1
    assert token_ns >= 0


class FakeLayer:
    """A layer on a device that is not there."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.told: list[tuple[list[int], object, host_link.PrefillCosts]] = []

    def set_host(self, addresses, room, costs) -> None:
        self.told.append((addresses.tolist(), room, costs))

    def compute_one_each(self, ids) -> None:
        assert self.told[-1][1] is None, "every expert is copied while that is timed"


@pytest.fixture
def device(monkeypatch):
    """The binding without a device: memory is seen 4096 bytes further on."""
    fake = ModuleType("moeprof.native._cuda")
    fake.can_pin = True

    def pin(owner, address, num_bytes):
        if not fake.can_pin:
            raise RuntimeError("cudaHostRegister: no")
        return SimpleNamespace(device_address=address + 4096)

    fake.HostPin = pin
    fake.HostRoom = lambda *arguments: ("room", arguments[1:3])
    monkeypatch.setitem(sys.modules, "moeprof.native._cuda", fake)
    monkeypatch.setattr("moeprof.native._cuda", fake, raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    return fake


@pytest.mark.parametrize(
    ("is_exact", "can_pin", "has_room"),
    [(True, True, True), (False, True, False), (False, False, True)],
)
def test_layers_are_told_where_their_experts_are_and_who_computes_them(
    device, is_exact, can_pin, has_room
) -> None:
    device.can_pin = can_pin
    layers = [make_layer(held, FakeLayer()) for held in ((0, 1, 3), (), (5,))]
    memory = torch.zeros(4096, dtype=torch.uint8)
    link = HostLink(memory, is_exact)
    header = np.zeros(4096, np.uint8)
    exchange = SimpleNamespace(address=header.ctypes.data, hidden_size=HIDDEN, top_k=TOP_K)
    link.connect(layers, exchange, Workers(1))
    assert bool(link.notes) == (not can_pin)
    for layer in layers:
        addresses, room, costs = layer.on_device.told[-1]
        places = [0 if e is None or not can_pin else e.data_ptr() + 4096 for e in layer.experts]
        assert addresses == places
        assert (room == ("room", (HIDDEN, TOP_K))) == has_room
        assert costs.copy_ns >= 1
