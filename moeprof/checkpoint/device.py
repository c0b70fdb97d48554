"""The device to run a model on."""

import torch

from moeprof.errors import CapacityError


def resolve_device(device: str) -> torch.device:
    """The device that an option names.

    Args:
        device: `cpu`, `cuda`, `cuda:N`, or `auto` for CUDA where there is one.

    Raises:
        CapacityError: not such a device, or not on this machine.
    """
    name = device
    if device == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(name)
    except RuntimeError:
        place = torch.device("meta")
    if place.type not in ("cpu", "cuda"):
        raise CapacityError(f"device {name!r}: no such device", "use cpu, cuda, cuda:N or auto")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise CapacityError(
            f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices",
            "use --device cpu",
        )
    return torch.device("cuda", place.index or 0) if place.type == "cuda" else place
