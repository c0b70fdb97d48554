"""Which processors the workers are pinned to."""

import os
from dataclasses import dataclass
from pathlib import Path

from moeprof.errors import CapacityError
from moeprof.native._core import Workers

_TOPOLOGY = Path("/sys/devices/system/cpu")

# How long a worker without work keeps its core. A device leaves gaps of whole steps between two
# questions, as layers whose experts are all in VRAM ask nothing, and a worker that has parked is
# missing for longer than an expert takes.
_DEVICE_SPIN_US = 10_000


@dataclass(frozen=True, slots=True)
class Seats:
    """Where workers sit.

    Attributes:
        pinned: the processor of each worker, the caller's first; no two are the same.
        crowded: processors without a worker whose physical core has one other than the caller.
    """

    pinned: list[int]
    crowded: list[int]

    @classmethod
    def of(cls, num_threads: int | None, cores: list[list[int]]) -> "Seats":
        """One processor of each physical core first, then their siblings.

        Args:
            num_threads: workers; None for one per physical core.
            cores: for each physical core its processors.

        Raises:
            CapacityError: there are not so many processors.
        """
        deepest = max(map(len, cores))
        order = [core[depth] for depth in range(deepest) for core in cores if depth < len(core)]
        if num_threads is None:
            num_threads = len(cores)
        if not 1 <= num_threads <= len(order):
            raise CapacityError(
                f"threads: {num_threads}, expected at least 1 and at most {len(order)}, the "
                "processors that there are for them: workers that share one wait for each other",
                f"lower --threads to {len(order)}, or leave it out for one per core",
            )
        pinned = order[:num_threads]
        busy = [core for core in cores if not set(pinned[1:]).isdisjoint(core)]
        crowded = [processor for core in busy for processor in core if processor not in pinned]
        return cls(pinned, crowded)


def seats(num_threads: int | None, leaves_one: bool) -> Seats:
    """Where workers sit on this machine.

    Args:
        num_threads: how many; None for one per physical core.
        leaves_one: whether one core is left to a thread that waits for a device: a worker that
            shares its core with another thread makes all others wait.

    Raises:
        CapacityError: this process has not so many processors.
    """
    cores = _allowed_cores(None, _TOPOLOGY)
    return Seats.of(num_threads, cores[:-1] if leaves_one and len(cores) > 1 else cores)


def resident_workers(num_threads: int | None, leaves_one: bool) -> Workers:
    """Threads that stay, each pinned to a processor of its own; see `seats`.

    Raises:
        CapacityError: as `seats`.
    """
    found = seats(num_threads, leaves_one)
    spin = {"spin_us": _DEVICE_SPIN_US} if leaves_one else {}
    return Workers(len(found.pinned), found.pinned, crowded=found.crowded, **spin)


def physical_cores(allowed: set[int] | None = None, topology: Path = _TOPOLOGY) -> list[int]:
    """One processor of every physical core that this process may use, in increasing order.

    Args:
        allowed: processors to choose from; those of this process unless given.
        topology: the kernel's folder of processors; where it tells nothing of a processor, that
            processor counts as a core.

    Returns:
        The lowest allowed processor of each core.
    """
    return [core[0] for core in _allowed_cores(allowed, topology)]


def _allowed_cores(allowed: set[int] | None, topology: Path) -> list[list[int]]:
    """For each physical core the processors that may be used, in increasing order of the first."""
    if allowed is None:
        affinity = getattr(os, "sched_getaffinity", None)
        allowed = set(affinity(0)) if affinity else set(range(os.cpu_count() or 1))
    cores: dict[str, list[int]] = {}
    for processor in sorted(allowed):
        siblings = topology / f"cpu{processor}" / "topology" / "thread_siblings_list"
        core = siblings.read_text().strip() if siblings.exists() else f"processor {processor}"
        cores.setdefault(core, []).append(processor)
    return list(cores.values())
