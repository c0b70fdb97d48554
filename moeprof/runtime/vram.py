"""What a loaded model takes of a card, beside what its plan set aside."""

from dataclasses import dataclass

import torch

from moeprof.errors import CapacityError
from moeprof.placement.manifest import Budget
from moeprof.units import format_size

# The caching allocator rounds every tensor up to this; PyTorch, "CUDA semantics".
ALLOCATION_BYTES = 512


@dataclass(frozen=True, slots=True)
class VramReport:
    """VRAM of a run, planned and measured; in bytes.

    Attributes:
        planned_bytes: weights as the plan counts them, those outside the experts and the experts.
        loaded_bytes: what loading allocated.
        needed_bytes: that, and what the plan sets aside for KV cache, workspace and context.
        budget_bytes: of the plan.
        free_bytes: left on the card after loading.
    """

    planned_bytes: int
    loaded_bytes: int
    needed_bytes: int
    budget_bytes: int
    free_bytes: int


def compare_vram(
    budget: Budget, loaded_bytes: int, free_bytes: int, num_allocations: int
) -> VramReport:
    """Compare a loaded model with its plan.

    Args:
        budget: of the plan.
        loaded_bytes: allocated for weights.
        free_bytes: left on the card.
        num_allocations: tensors of the model; the rounding of each is forgiven.

    Raises:
        CapacityError: the run would overrun its budget, or what is free on the card.
    """
    later = budget.kv_cache_bytes + budget.workspace_bytes
    report = VramReport(
        planned_bytes=budget.dense_bytes + budget.experts_used_bytes,
        loaded_bytes=loaded_bytes,
        needed_bytes=loaded_bytes + later + budget.device_context_bytes,
        budget_bytes=budget.total_bytes,
        free_bytes=free_bytes,
    )
    if report.needed_bytes > report.budget_bytes + num_allocations * ALLOCATION_BYTES:
        raise CapacityError(
            f"vram: the run needs {format_size(report.needed_bytes)}, its plan has "
            f"{format_size(report.budget_bytes)}: loading took {format_size(loaded_bytes)} for "
            f"{format_size(report.planned_bytes)} planned",
            "plan again with --format and --dense-format set to what you run, or with a smaller "
            "--vram",
        )
    if later > free_bytes:
        raise CapacityError(
            f"vram: KV cache and workspace need {format_size(later)}, {format_size(free_bytes)} "
            "are free on the card",
            "end what else uses the card, or plan with a smaller --vram or --context",
        )
    return report


def check_dense(budget: Budget, dense_bytes: int) -> None:
    """Refuse weights outside the experts that overrun a plan, before any is loaded.

    Args:
        budget: of the plan.
        dense_bytes: of those weights as they are asked for.

    Raises:
        CapacityError: what the plan leaves free is less than they take beyond it.
    """
    more = dense_bytes - budget.dense_bytes
    spare = budget.experts_available_bytes - budget.experts_used_bytes
    if more > spare:
        raise CapacityError(
            f"vram: weights outside the experts take {format_size(dense_bytes)}, the plan has "
            f"{format_size(budget.dense_bytes)} for them and {format_size(spare)} to spare",
            "run without --dense-format, as planned, or plan again with --dense-format stored",
        )


def measure_vram(
    budget: Budget, device: torch.device, before_bytes: int, num_allocations: int
) -> VramReport | None:
    """Compare what is allocated now with a plan; None without a card.

    Args:
        budget: of the plan.
        device: of the model.
        before_bytes: allocated on it before loading.
        num_allocations: as in `compare_vram`.

    Raises:
        CapacityError: as `compare_vram`.
    """
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    loaded = torch.cuda.memory_allocated(device) - before_bytes
    return compare_vram(budget, loaded, torch.cuda.mem_get_info(device)[0], num_allocations)
