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
