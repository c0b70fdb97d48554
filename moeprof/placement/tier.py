"""Where the weights of an expert live, and runs of expert ids as text."""

import enum
import re
from collections.abc import Iterable

_RUN = re.compile(r"(0|[1-9][0-9]*)(?:-(0|[1-9][0-9]*))?")


class Tier(enum.IntEnum):
    """A place for weights, the fastest first; the value is what `Placement.tier_of` holds."""

    VRAM = 0
    RAM = 1
    NVME = 2

    @property
    def label(self) -> str:
        """The word that files, options and tables use: `vram`, `ram` or `nvme`."""
        return self.name.lower()


def format_ranges(expert_ids: Iterable[int]) -> str:
    """Ids as ascending runs, such as `0-3,7,9-12`; no id is the empty text.

    Args:
        expert_ids: distinct ids in any order.
    """
    runs: list[list[int]] = []
    for expert_id in sorted(expert_ids):
        if runs and expert_id == runs[-1][1] + 1:
            runs[-1][1] = expert_id
        else:
            runs.append([expert_id, expert_id])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def parse_ranges(text: str, num_experts: int) -> list[int]:
    """Ids in a text such as `0-3,7,9-12`, in the order in which they stand, repeats included.

    Args:
        text: runs separated by commas, without blanks; the empty text holds no id.
        num_experts: every id must be below it.

    Raises:
        ValueError: a run is malformed, or names an id that does not exist; the message is one
            clause without the place, which the caller knows.
    """
    expert_ids: list[int] = []
    for run in text.split(",") if text else []:
        match = _RUN.fullmatch(run)
        if match is None:
            raise ValueError(f"{run!r} is not an expert id or a range such as 4-7")
        low, high = int(match[1]), int(match[2] or match[1])
        if high >= num_experts:
            raise ValueError(f"expert {high} is out of range, expected below {num_experts}")
        if low > high:
            raise ValueError(f"range {run} runs backwards")
        expert_ids.extend(range(low, high + 1))
    return expert_ids
