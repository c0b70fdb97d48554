"""Forwards whose routing is dictated, so that layers with given numbers of experts are timed."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moeprof.checkpoint.modules import find_moe_layers
from moeprof.placement.tier import Tier
from moeprof.runtime.model import SplitModel


@dataclass(frozen=True, slots=True)
class Routing:
    """What a layer is dictated: some experts of each tier, and as many tokens for each of them.

    Attributes:
        num_vram: experts in VRAM.
        num_ram: experts in RAM.
        num_tokens: tokens that each of these experts is given.
        num_slots: experts that each routed token is given; the other tokens get none.
    """

    num_vram: int
    num_ram: int
    num_tokens: int
    num_slots: int

    @classmethod
    def of_token(cls, num_vram: int, num_ram: int) -> "Routing":
        """One token, given all the experts."""
        return cls(num_vram, num_ram, 1, num_vram + num_ram)

    @property
    def num_experts(self) -> int:
        """Experts that are given tokens."""
        return self.num_vram + self.num_ram

    def slots(self, experts: NDArray[np.int64]) -> NDArray[np.int64]:
        """[routed tokens, num_slots] int64: the experts that each routed token is given.

        Args:
            experts: [num_experts] distinct ids.
        """
        places = np.arange(self.num_experts * self.num_tokens) % self.num_experts
        return experts[places].reshape(-1, self.num_slots)


class Dictation:
    """Replaces the routing of every layer by given ones in turn, and times the layers.

    What a layer takes depends on what ran before it (caches, clocks, sleeping threads), so it is
    timed inside a real forward. Routings take turns, so that what disturbs one disturbs the
    others, and every call uses other experts.

    Attributes:
        inside_s: time spent in the experts of the current forward.

    Args:
        loaded: the model.
        routings: dictated in turn.
        num_tokens: of the forwards that are dictated; others are left alone.
    """

    def __init__(self, loaded: SplitModel, routings: Sequence[Routing], num_tokens: int) -> None:
        self.inside_s = 0.0
        self._seconds: dict[Routing, list[float]] = {routing: [] for routing in routings}
        self._loaded = loaded
        self._num_tokens = num_tokens
        self._turns = cycle(routings)
        self._random = np.random.default_rng(0)
        self._routing = routings[0]
        self._begin = 0.0
        self._measured = False
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        for experts in find_moe_layers(self._loaded.model):
            self._hooks.append(experts.module.register_forward_pre_hook(self._start))
            self._hooks.append(experts.module.register_forward_hook(self._stop))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def start_forward(self, measured: bool) -> None:
        """Start adding up the time inside layers."""
        self.inside_s = 0.0
        self._measured = measured

    def medians(self) -> dict[Routing, float]:
        """Seconds of the experts of one layer for each routing, over the measured forwards."""
        return {routing: statistics.median(found) for routing, found in self._seconds.items()}

    def _start(
        self, module: nn.Module, args: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...] | None:
        hidden, index, *rest = args
        if hidden.shape[0] != self._num_tokens:
            return None
        self._routing = next(self._turns)
        tiers = self._loaded.table.tier[0]
        counts = (self._routing.num_vram, self._routing.num_ram)
        chosen = np.concatenate(
            [
                self._random.choice(np.flatnonzero(tiers == tier), count, replace=False)
                for tier, count in zip((Tier.VRAM, Tier.RAM), counts, strict=True)
            ]
        )
        slots = torch.from_numpy(self._routing.slots(chosen)).to(index)
        dictated = torch.full_like(index, len(tiers))  # no expert
        dictated[: slots.shape[0], : slots.shape[1]] = slots
        rest[0] = torch.full_like(rest[0], 1 / rest[0].shape[-1])
        self._loaded.synchronize()
        self._begin = time.perf_counter()
        return (hidden, dictated, *rest)

    def _stop(self, module: nn.Module, args: tuple[torch.Tensor, ...], output: object) -> None:
        if args[0].shape[0] != self._num_tokens:
            return
        self._loaded.synchronize()
        seconds = time.perf_counter() - self._begin
        self.inside_s += seconds
        if self._measured:
            self._seconds[self._routing].append(seconds)
