"""Which machine a command is asked about: a measured profile, or one from data sheets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moeprof.errors import CapacityError

if TYPE_CHECKING:
    from moeprof.hardware import HardwareProfile

Hardware = Annotated[
    Path | None, typer.Option(help="Hardware profile, as moeprof hardware measures it.")
]
GpuName = Annotated[
    str | None, typer.Option("--gpu", help="A card of the catalogue, such as 'RTX 3090'.")
]
RamName = Annotated[
    str | None,
    typer.Option("--ram", help="Its host's memory: ddr5-6000x2, epyc-9004, ddr4-3200x2:64GB."),
]
NvmeClass = Annotated[str | None, typer.Option("--nvme", help="Its drive: gen3, gen4 or gen5.")]

DeviceContext = Annotated[
    str | None,
    typer.Option(
        help="VRAM the driver takes. [default: of the hardware profile, else measured on a CUDA "
        "device, 0 without one]"
    ),
]


def machine(
    hardware: Path | None, gpu: str | None, ram: str | None, nvme: str | None = None
) -> "HardwareProfile | None":
    """The profile that the options name, with a line on standard error on what it rests on.

    Args:
        hardware: `--hardware`.
        gpu: `--gpu`.
        ram: `--ram`.
        nvme: `--nvme`.

    Returns:
        None where none of them is given.

    Raises:
        CapacityError: the options contradict or are incomplete, or name something unknown.
    """
    from moeprof.hardware import catalogue_profile, read_hardware
    from moeprof.hardware.catalogue import UNSTATED_BYTES, find_gpu

    if hardware is not None:
        if gpu or ram or nvme:
            raise CapacityError(
                "--hardware names a whole machine, --gpu, --ram and --nvme parts of one",
                "give either",
            )
        return read_hardware(hardware)
    if gpu is None and ram is None and nvme is None:
        return None
    if gpu is None or ram is None:
        missing = (
            "--gpu, as in --gpu 'RTX 3090'" if gpu is None else "--ram, as in --ram ddr5-6000x2"
        )
        raise CapacityError(
            "a machine from data sheets needs both --gpu and --ram", f"add {missing}"
        )
    profile = catalogue_profile(gpu, ram, nvme)
    typer.echo(f"machine: {profile.name}, from data sheets, not measured", err=True)
    if profile.tiers["ram"].capacity_bytes == UNSTATED_BYTES:
        typer.echo("machine: enough RAM is assumed; say how much with --ram NAME:64GB", err=True)
    if find_gpu(gpu).vendor != "NVIDIA":
        typer.echo("machine: moeprof itself runs on CUDA cards only; this is an estimate", err=True)
    return profile


def vram_bytes(given: str | None, profile: "HardwareProfile | None") -> int | None:
    """The budget of `--vram`, or all that the machine has; None without either.

    Raises:
        CapacityError: what was given is not a size.
    """
    from moeprof.units import parse_size

    if given is not None:
        return parse_size(given)
    return None if profile is None else profile.tiers["vram"].capacity_bytes


def device_context_bytes(given: str | None, profile: "HardwareProfile | None") -> int:
    """Bytes of the device context, with a line on standard error on where the figure comes from.

    Args:
        given: `--device-context`.
        profile: of the machine, if any.

    Raises:
        CapacityError: what was given is not a size.
    """
    from moeprof.units import format_size, parse_size

    if given is not None:
        size, source = parse_size(given), "as given"
    elif profile is not None:
        size, source = profile.device_context_bytes, f"of hardware profile {profile.name}"
    else:
        size, source = _measured_context_bytes()
    typer.echo(f"device context: {format_size(size)}, {source}", err=True)
    return size


def _measured_context_bytes() -> tuple[int, str]:
    """Bytes of the context on this machine's device, and where the figure comes from."""
    import torch

    from moeprof.runtime.measurement import device_context_bytes

    if torch.cuda.is_available():
        return device_context_bytes(torch.device("cuda")), "measured on this device"
    return 0, "no CUDA device here; for a card elsewhere give --device-context, about 700MiB"
