"""Loading a checkpoint under a placement: each expert is read once, straight into its tier."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PretrainedConfig, PreTrainedModel

from moeprof.checkpoint import Checkpoint, read_checkpoint
from moeprof.checkpoint.conversion import CheckpointMap, map_checkpoint
from moeprof.checkpoint.device import resolve_device
from moeprof.checkpoint.modules import ExpertsModule, find_moe_layers
from moeprof.checkpoint.skeleton import build_skeleton, load_config, text_config
from moeprof.errors import UnsupportedModelError
from moeprof.placement.manifest import Placement
from moeprof.placement.tier import Tier
from moeprof.runtime.experts import IMPLEMENTATION, LayerExperts, read_layout
from moeprof.runtime.meter import Meter
from moeprof.runtime.model import LoadedModel, SplitModel
from moeprof.runtime.shells import expert_parameters, load_without_experts
from moeprof.runtime.stores import ExpertStore, ParameterSpec, SlotTable, allocate_stores
from moeprof.runtime.weights import TensorReader

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    placement: Placement,
    model: str | Path | Checkpoint | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
) -> LoadedModel:
    """Load a model with its experts split as planned; no expert is in memory twice.

    Args:
        placement: which expert lives in which tier.
        model: directory, hub id or checkpoint; None for the one that the placement names.
        device: `cpu`, `cuda`, `cuda:N`, or `auto` for CUDA where there is one.
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for the checkpoint's own.

    Raises:
        PlacementError: the placement is for another checkpoint, or uses the nvme tier.
        UnsupportedModelError: the model cannot be found or run.
        CapacityError: no such device, or a tier does not fit.
    """
    checkpoint = model if isinstance(model, Checkpoint) else _read(placement, model)
    placement.check_model(checkpoint.fingerprint, str(checkpoint.path))
    split = load_split(checkpoint, placement.tier_of, device, dtype)
    facts = {field.name: getattr(split, field.name) for field in fields(split)}
    return LoadedModel(**facts, placement=placement)


def load_split(
    checkpoint: Checkpoint, tier_of: NDArray[np.uint8], device: str = "auto", dtype: str = "auto"
) -> SplitModel:
    """Load a model with its experts split over tiers; no expert is in memory twice.

    Args:
        checkpoint: the model's files.
        tier_of: [L, E] uint8, the value of `Tier` of every cell.
        device: as in `load`.
        dtype: as in `load`.

    Raises:
        PlacementError: the nvme tier is used.
        UnsupportedModelError: the model cannot be run.
        CapacityError: no such device, or a tier does not fit.
    """
    place = resolve_device(device)
    config = load_config(checkpoint.path)
    _refuse_quantized(checkpoint, config)
    element = _element_type(dtype, config)
    skeleton = build_skeleton(config, element)
    modules = find_moe_layers(skeleton)
    mapped = map_checkpoint(skeleton, modules, checkpoint.tensors)
    specs = [_specs(experts) for experts in modules]
    table = SlotTable.from_tiers(tier_of)
    stores = allocate_stores(table, specs, place)
    loaded = load_without_experts(checkpoint.path, config, modules, element).to(place)
    _fill(stores, table, skeleton, mapped, checkpoint)
    meter = Meter(checkpoint.shape)
    for row, experts in enumerate(find_moe_layers(loaded)):
        experts.module.moeprof_layer = LayerExperts(  # type: ignore[assignment]
            row=row,
            num_experts=experts.num_experts,
            layout=read_layout(experts.module),
            stores=stores,
            tiers=tuple(Tier(int(tier)) for tier in table.tier[row]),
            slots=tuple(int(slot) for slot in table.slot[row]),
            meter=meter,
        )
    loaded.set_experts_implementation(IMPLEMENTATION)
    sizes = tuple(sum(spec.num_bytes for spec in layer) for layer in specs)
    return SplitModel(loaded, checkpoint, stores, table, meter, place, element, sizes)


def _read(placement: Placement, model: str | Path | None) -> Checkpoint:
    try:
        return read_checkpoint(placement.model.name if model is None else model)
    except UnsupportedModelError as error:
        if model is not None:
            raise
        hint = "name the model that the placement is for with --model"
        raise UnsupportedModelError(f"placement: its model is not there: {error}", hint) from error


def _element_type(dtype: str, config: PretrainedConfig) -> torch.dtype:
    if dtype == "auto":
        own: torch.dtype | None = getattr(text_config(config), "dtype", None)
        return own or torch.float32
    if dtype not in DTYPES:
        raise UnsupportedModelError(
            f"dtype {dtype!r}: not supported", f"use auto, {', '.join(DTYPES)}"
        )
    return DTYPES[dtype]


def _refuse_quantized(checkpoint: Checkpoint, config: PretrainedConfig) -> None:
    for part in (config, text_config(config)):
        if getattr(part, "quantization_config", None):
            raise UnsupportedModelError(
                f"{checkpoint.name}: its weights are quantised, which run cannot load yet",
                "use the checkpoint with bfloat16 weights",
            )


def _specs(experts: ExpertsModule) -> list[ParameterSpec]:
    """The parameters of one expert of a module, exactly those that its layout computes with."""
    layout = read_layout(experts.module)
    found = expert_parameters(experts.module)
    if set(found) != set(layout.parameter_names):
        raise UnsupportedModelError(
            f"{experts.name}: has parameters {sorted(found)}, expected "
            f"{sorted(layout.parameter_names)}",
            "this architecture can be traced and analysed, but not run under a placement yet",
        )
    return [
        ParameterSpec(name, tuple(parameter.shape[1:]), parameter.dtype)
        for name, parameter in found.items()
    ]


def _fill(
    stores: Mapping[Tier, ExpertStore],
    table: SlotTable,
    skeleton: PreTrainedModel,
    mapped: CheckpointMap,
    checkpoint: Checkpoint,
) -> None:
    """Stream every expert from the checkpoint through transformers' converters into its slot."""
    with TensorReader(checkpoint.path) as reader:
        for row, sources in enumerate(mapped.experts):
            for expert in range(checkpoint.shape.num_experts):
                store = stores[Tier(table.tier[row, expert])]
                values = {
                    name.rsplit(".", 1)[-1]: value
                    for source in sources
                    for name, value in source.read_expert(expert, reader.read, skeleton).items()
                }
                try:
                    store.put(row, int(table.slot[row, expert]), values)
                except ValueError as error:
                    layer = checkpoint.shape.moe_layers[row]
                    raise UnsupportedModelError(
                        f"{checkpoint.name}: layer {layer}, expert {expert}: {error}",
                        "the checkpoint is of another model than its config.json says, or damaged",
                    ) from error
