"""What of a VRAM budget remains for experts."""

from moeprof.errors import CapacityError
from moeprof.hardware import HardwareProfile
from moeprof.placement import Budget
from moeprof.plan.request import ModelFacts, PlanRequest
from moeprof.units import format_size


def expert_budget(model: ModelFacts, request: PlanRequest) -> Budget:
    """The budget broken down, with no expert placed yet.

    Raises:
        CapacityError: the parts outside the experts do not fit, or the machine of the hardware
            profile has less VRAM than the budget.
    """
    parts = {
        "weights outside the experts": model.dense_bytes,
        "KV cache": model.kv_cache_bytes,
        "workspace": model.workspace_bytes,
        "device context": request.device_context_bytes,
    }
    needed = sum(parts.values())
    if needed > request.vram_bytes:
        raise CapacityError(*_does_not_fit(parts, request))
    profile = request.hardware
    if profile is not None and request.vram_bytes > profile.tiers["vram"].capacity_bytes:
        capacity = profile.tiers["vram"].capacity_bytes
        raise CapacityError(
            f"vram: budget is {format_size(request.vram_bytes)}, {profile.name} has "
            f"{format_size(capacity)}",
            f"lower --vram to {_at_least(capacity, round_up=False)}",
        )
    return Budget(
        total_bytes=request.vram_bytes,
        dense_bytes=model.dense_bytes,
        kv_cache_bytes=model.kv_cache_bytes,
        workspace_bytes=model.workspace_bytes,
        device_context_bytes=request.device_context_bytes,
        experts_available_bytes=request.vram_bytes - needed,
        experts_used_bytes=0,
        context_tokens=request.context_tokens,
        batch_size=request.batch_size,
    )


def check_ram(
    needed: int,
    profile: HardwareProfile | None,
    remedy: str = "raise --vram, or use a machine with more memory",
) -> None:
    """Refuse a machine whose RAM cannot hold so many bytes of experts.

    Args:
        needed: bytes of experts that RAM has to hold.
        profile: of the machine, if any.
        remedy: one next step.

    Raises:
        CapacityError: it cannot.
    """
    if profile is not None and needed > profile.tiers["ram"].capacity_bytes:
        raise CapacityError(
            f"ram: the experts that it has to hold take {format_size(needed)}, {profile.name} has "
            f"{format_size(profile.tiers['ram'].capacity_bytes)}",
            remedy,
        )


def _does_not_fit(parts: dict[str, int], request: PlanRequest) -> tuple[str, str]:
    needed = sum(parts.values())
    largest = max(parts, key=lambda part: parts[part])
    sizes = [f"{name} {format_size(size)}" for name, size in parts.items()]
    what = (
        f"vram: {format_size(needed)} needed before the first expert, budget is "
        f"{format_size(request.vram_bytes)}: {', '.join(sizes)}; the largest part is the {largest}"
    )
    raised = f"raise --vram to {_at_least(needed)} or more"
    if parts["KV cache"] + parts["workspace"] > needed / 2:
        given = f"--context {request.context_tokens} --batch {request.batch_size}"
        return what, f"KV cache and workspace follow {given}: lower them, or {raised}"
    return what, raised


def _at_least(num_bytes: int, round_up: bool = True) -> str:
    """A size for `--vram`, in whole decimal units small enough to stay within 1 %."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= 100 * scale:
            return f"{-(-num_bytes // scale) if round_up else num_bytes // scale}{unit}"
    return f"{num_bytes}B"
