"""Which processors the workers are pinned to."""

import os
from pathlib import Path

from moeprof.native._core import Workers

# How long a worker without work keeps its core. A device leaves gaps of whole steps between two
# questions, as layers whose experts are all in VRAM ask nothing, and a worker that has parked is
# missing for longer than an expert takes.
_DEVICE_SPIN_US = 10_000


def resident_workers(num_threads: int | None, leaves_one: bool) -> Workers:
    """Threads that stay, pinned to physical cores.

    Args:
        num_threads: how many; None for one per core.
        leaves_one: whether one core is left to a thread that waits for a device: a worker that
            shares its core with another thread makes all others wait.
    """
    cores = physical_cores()
    if not leaves_one:
        return Workers(num_threads or len(cores), cores)
    if len(cores) > 1:
        cores = cores[:-1]
    return Workers(num_threads or len(cores), cores, _DEVICE_SPIN_US)


def physical_cores(
    allowed: set[int] | None = None, topology: Path = Path("/sys/devices/system/cpu")
) -> list[int]:
    """One processor of every physical core that this process may use, in increasing order.

    Args:
        allowed: processors to choose from; those of this process unless given.
        topology: the kernel's folder of processors; where it tells nothing of a processor, that
            processor counts as a core.

    Returns:
        The lowest allowed processor of each core.
    """
    if allowed is None:
        affinity = getattr(os, "sched_getaffinity", None)
        allowed = set(affinity(0)) if affinity else set(range(os.cpu_count() or 1))
    cores: dict[str, int] = {}
    for processor in sorted(allowed):
        siblings = topology / f"cpu{processor}" / "topology" / "thread_siblings_list"
        core = siblings.read_text().strip() if siblings.exists() else f"processor {processor}"
        cores.setdefault(core, processor)
    return list(cores.values())
