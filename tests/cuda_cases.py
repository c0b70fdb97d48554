"""A layer of experts split between a CUDA device and the host, for the tests of its kernels."""

import numpy as np
import torch
from kernel_cases import make_expert, make_rows

from moeprof.native import Answerer, ExpertLayer, HostMemory, PrefillAnswerer, Workers, reference

TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class Case:
    """A layer split between the device and the host, and what it is to give."""

    def __init__(
        self, shape, weight_format, unit="silu", biases=False, on_host=(), pool=6, answers=True
    ):
        from moeprof.native import _cuda

        self.hidden_size, self.width, self.top_k = shape
        self.weight_format = weight_format
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
        self.stride = stride
        self.use_workspace(self.workspace)
        self.workers = Workers(2)
        host = ExpertLayer(*sizes, unit, 1.702, 7.0)
        self.memory = HostMemory(stride * pool)
        self.places = self.memory.array().reshape(pool, stride)
        for expert in on_host:
            place = self.places[expert, : packed[expert].size]
            place[:] = packed[expert]
            host.set_expert(expert, place)
        self.on_host, self.host = on_host, host
        self.answerer = Answerer(self.exchange.address, self.hidden_size, self.top_k, self.workers)
        self.answerer.set_layer(3, host)
        if on_host and answers:
            self.answerer.start()
        self.pin = None
        self.counts = torch.zeros(2, self.num_experts, dtype=torch.int64, device="cuda")

    def use_workspace(self, workspace: torch.Tensor) -> None:
        self.workspace = workspace
        addresses = (self.slots, self.workspace)
        slots_at, workspace_at = (tensor.data_ptr() for tensor in addresses)
        self.layer.set_weights(self.store.data_ptr(), self.stride, slots_at, workspace_at)

    def use_host(self, copies: bool, computes: bool, costs=(1.0, 1.0, 1.0)) -> None:
        """Let prefills copy experts from host memory, or let the host compute them, or both."""
        from moeprof.native import _cuda

        addresses = np.zeros(self.num_experts, np.int64)
        if copies and self.on_host:
            if self.pin is None:
                start = self.places.ctypes.data
                self.pin = _cuda.HostPin(self.places, start, self.places.nbytes)
            for expert in self.on_host:
                addresses[expert] = self.pin.device_address + expert * self.places.shape[1]
        room = None
        if computes:
            answerer = PrefillAnswerer(self.exchange.address, self.workers)
            answerer.set_layer(3, self.host)
            sizes = (self.hidden_size, self.top_k)
            room = _cuda.HostRoom(answerer, *sizes, answerer.function, answerer.address)
        self.addresses = torch.from_numpy(addresses).cuda()
        self.layer.set_host(self.addresses.data_ptr() if copies else 0, room, *costs)

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
        arguments, counts = self._arguments(rows, ids, weights, output)
        self.layer.forward(*arguments, *counts)

    def prefill(self, rows, ids, weights, output):
        arguments, counts = self._arguments(rows, ids, weights, output)
        size = self.layer.prefill_workspace_bytes(len(rows))
        workspace = torch.full((size,), 0xFE, dtype=torch.uint8, device="cuda")
        self.layer.prefill(*arguments, workspace.data_ptr(), *counts)

    def _arguments(self, rows, ids, weights, output):
        stream = torch.cuda.current_stream().cuda_stream
        given = (rows.data_ptr(), TYPES[rows.dtype], ids.data_ptr(), weights.data_ptr())
        rest = (TYPES[weights.dtype], len(rows), output.data_ptr())
        return (stream, *given, *rest), [counts.data_ptr() for counts in self.counts]


def assert_same(got: torch.Tensor, expected: np.ndarray) -> None:
    kinds = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
    kind = kinds[got.dtype]
    rounded = torch.from_numpy(expected).to(got.dtype)
    assert torch.equal(got.cpu().view(kind), rounded.view(kind))
