"""Counting what a run routed: assignments, the tier that served them, and the experts read."""

import numpy as np
import torch
from numpy.typing import NDArray

from moeprof.errors import UnsupportedModelError
from moeprof.model_shape import ModelShape
from moeprof.placement.tier import Tier
from moeprof.trace.schema import PHASES

_DECODE = PHASES.index("decode")


class Meter:
    """Counts of a run, apart for each phase; nothing is timed here.

    Attributes:
        assignments: [2, L, E] int64, assignments of every cell; the first axis is `PHASES`.
        reads: [2, L, E] int64, forwards in which the cell was used, so its weights were read once.
        tokens: [2] int64, tokens fed.
        forwards: [2] int64, forwards of the model.

    Args:
        shape: the model's numbers.
    """

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape
        size = (len(PHASES), shape.num_moe_layers, shape.num_experts)
        self.assignments: NDArray[np.int64] = np.zeros(size, np.int64)
        self.reads: NDArray[np.int64] = np.zeros(size, np.int64)
        self.tokens: NDArray[np.int64] = np.zeros(len(PHASES), np.int64)
        self.forwards: NDArray[np.int64] = np.zeros(len(PHASES), np.int64)
        self._on_device: torch.Tensor | None = None
        self._phase = 0
        self._calls = np.zeros(shape.num_moe_layers, np.int64)

    @property
    def is_decoding(self) -> bool:
        """Whether the current forward is one of decoding."""
        return self._phase == _DECODE

    @property
    def num_decoded(self) -> int:
        """Tokens fed while decoding."""
        return int(self.tokens[_DECODE])

    def reset(self) -> None:
        """Forget every count."""
        if self._on_device is not None:
            self._on_device.zero_()
        for counts in (self.assignments, self.reads, self.tokens, self.forwards):
            counts[:] = 0

    def count_on(self, device: torch.device) -> None:
        """Let kernels on a device count there until `collect`."""
        size = (2, *self.assignments.shape)
        self._on_device = torch.zeros(size, dtype=torch.int64, device=device)

    def collect(self) -> None:
        """Bring in what was counted on a device; waits for it."""
        if self._on_device is not None:
            assignments, reads = self._on_device.cpu().numpy()
            self.assignments += assignments
            self.reads += reads
            self._on_device.zero_()

    def begin(self, phase: str, num_tokens: int) -> None:
        """Note that a forward of `num_tokens` tokens in `phase` starts."""
        self._phase = PHASES.index(phase)
        self._calls[:] = 0
        self.tokens[self._phase] += num_tokens
        self.forwards[self._phase] += 1

    def record(self, row: int, counts: NDArray[np.int64]) -> None:
        """Add what one layer routed in the current forward.

        Args:
            row: index of the layer in `moe_layers`.
            counts: [E] int64, assignments of each expert.
        """
        self._calls[row] += 1
        self.assignments[self._phase, row] += counts
        self.reads[self._phase, row] += counts > 0

    def addresses(self, row: int) -> tuple[int, int]:
        """Where a kernel adds what one layer routes in the current forward.

        Args:
            row: index of the layer in `moe_layers`.

        Returns:
            addresses of [E] int64 assignments and [E] int64 reads.
        """
        self._calls[row] += 1
        counts = (self.assignments[self._phase, row], self.reads[self._phase, row])
        return counts[0].ctypes.data, counts[1].ctypes.data

    def device_addresses(self, row: int) -> tuple[int, int]:
        """As `addresses`, on the device of `count_on`; a captured graph keeps the phase."""
        assert self._on_device is not None
        self._calls[row] += 1
        assignments, reads = self._on_device[:, self._phase, row]
        return assignments.data_ptr(), reads.data_ptr()

    def finish(self) -> None:
        """Check that the forward went through every layer's experts exactly once.

        Raises:
            UnsupportedModelError: a layer computed its experts in another way, or twice.
        """
        if (self._calls != 1).any():
            row = int(np.flatnonzero(self._calls != 1)[0])
            raise UnsupportedModelError(
                f"{self._shape.model_type}: layer {self._shape.moe_layers[row]} called its "
                f"experts {self._calls[row]} times in a forward, expected once",
                "this version of transformers computes the model's experts in another way",
            )

    def hits(self, tier_of: NDArray[np.uint8]) -> NDArray[np.int64]:
        """[2, L, 3] int64: assignments of each phase and layer that each tier served.

        Args:
            tier_of: [L, E] uint8, the value of `Tier` of every cell.
        """
        return hits_by_tier(self.assignments, tier_of)


def hits_by_tier(assignments: NDArray[np.int64], tier_of: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Assignments summed over the experts of each tier.

    Args:
        assignments: [2, L, E] int64.
        tier_of: [L, E] uint8, the value of `Tier` of every cell.

    Returns:
        [2, L, 3] int64; the last axis is `Tier`.
    """
    return np.stack(
        [np.where(tier_of == tier, assignments, 0).sum(axis=2) for tier in Tier], axis=2
    )
