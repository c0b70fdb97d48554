"""Loading a checkpoint under a placement: each expert is read once, straight into its tier."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PretrainedConfig, PreTrainedModel

from moeprof.checkpoint import Checkpoint, read_checkpoint
from moeprof.checkpoint.conversion import CheckpointMap, map_checkpoint
from moeprof.checkpoint.device import resolve_device
from moeprof.checkpoint.modules import find_moe_layers
from moeprof.checkpoint.skeleton import build_skeleton, load_config, text_config
from moeprof.checkpoint.weights import LoadProgress, TensorReader, lazy_weights
from moeprof.errors import UnsupportedModelError
from moeprof.placement.manifest import Placement
from moeprof.placement.tier import Tier
from moeprof.runtime.experts import IMPLEMENTATION, attach
from moeprof.runtime.formats import (
    STORED,
    choose_dense_format,
    choose_format,
    notes_on_format,
)
from moeprof.runtime.kept_stores import KeptStore
from moeprof.runtime.kernel_call import DTYPES
from moeprof.runtime.meter import Meter
from moeprof.runtime.model import LoadedModel, SplitModel
from moeprof.runtime.q8_linear import quantize_dense
from moeprof.runtime.shells import load_without_experts
from moeprof.runtime.split import ExpertsRequest, SplitExperts, make_experts
from moeprof.runtime.stores import SlotTable
from moeprof.runtime.vram import check_dense, measure_vram

# What a load reports its progress on.
DENSE, EXPERTS = "weights outside the experts", "experts"


class LoadOptions(TypedDict, total=False):
    """How to load a model; every one may be left out.

    Attributes:
        device: `cpu`, `cuda`, `cuda:N`, or `auto` for CUDA where there is one.
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for the checkpoint's own.
        weight_format: `q8_0`, `q4_0`, `bf16`, or `stored` for torch's own arithmetic in `dtype`;
            None for the placement's, see `choose_format`.
        dense_format: of the linear layers outside the experts, `q8_0`, or `stored` for `dtype`;
            None for the placement's. Which ones: see `quantizable_linears`.
        num_threads: threads that compute experts in host memory, at most one per processor of this
            process; None for one per physical core.
        within_budget: whether to refuse a model that overruns the VRAM of its plan; True unless
            given. A replay compares routing, in the trace's element type, whatever was planned.
        movable: whether other placements may follow within the same bytes of VRAM; all experts
            are kept in host memory, too.
        progress: told how far reading is, of `DENSE` and then of `EXPERTS`, in bytes as stored.
        layer_times: whether to add up the time of decoding layer by layer.
        store: directory that keeps packed experts for the next start; None to keep none.
        tell: called with a line on what is kept, or was decided.
    """

    device: str
    dtype: str
    weight_format: str | None
    dense_format: str | None
    num_threads: int | None
    within_budget: bool
    movable: bool
    layer_times: bool
    progress: LoadProgress | None
    store: Path | None
    tell: Callable[[str], object] | None


def load(
    placement: Placement,
    model: str | Path | Checkpoint | None = None,
    **options: Unpack[LoadOptions],
) -> LoadedModel:
    """Load a model with its experts split as planned; no expert is in memory twice.

    Args:
        placement: which expert lives in which tier.
        model: directory, hub id or checkpoint; None for the one that the placement names.
        options: see `LoadOptions`.

    Raises:
        PlacementError: the placement is for another checkpoint or format, or uses the nvme tier.
        UnsupportedModelError: the model cannot be found or run.
        CapacityError: no such device, fewer processors than threads, a tier or the kept store does
            not fit, or the run would overrun its VRAM budget.
    """
    checkpoint = planned_checkpoint(placement, model)
    device = resolve_device(options.get("device", "auto"))
    before = _allocated(device)
    if device.type == "cuda" and options.get("within_budget", True):
        _check_dense(placement, checkpoint, options)
    split = _load(checkpoint, placement.tier_of, placement, options)
    tensors = sum(1 for _ in split.model.parameters()) + sum(1 for _ in split.model.buffers())
    slots = int((placement.tier_of == Tier.VRAM).sum())
    vram = None
    if options.get("within_budget", True):
        vram = measure_vram(placement.budget, split.device, before, tensors + slots)
    facts = {field.name: getattr(split, field.name) for field in fields(split)}
    return LoadedModel(**facts, placement=placement, vram=vram)


def planned_checkpoint(placement: Placement, model: str | Path | Checkpoint | None) -> Checkpoint:
    """The files of the model that a placement is for; no weights.

    Args:
        placement: of the model.
        model: as `load` takes it.

    Raises:
        PlacementError: the placement is for another checkpoint, or for layers or experts that it
            does not have.
        UnsupportedModelError: the model cannot be found or read.
    """
    if isinstance(model, Checkpoint):
        checkpoint = model
    else:
        try:
            checkpoint = read_checkpoint(placement.model.name if model is None else model)
        except UnsupportedModelError as error:
            if model is not None:
                raise
            raise UnsupportedModelError(
                f"placement: its model is not there: {error}",
                "name the model that the placement is for with --model",
            ) from error
    placement.check_model(checkpoint.fingerprint, str(checkpoint.path))
    shape = checkpoint.shape
    placement.check_cells(shape.moe_layers, shape.num_experts, str(checkpoint.path))
    return checkpoint


def _check_dense(placement: Placement, checkpoint: Checkpoint, options: LoadOptions) -> None:
    chosen = choose_dense_format(placement, options.get("dense_format"))
    if chosen == STORED != placement.dense_format:
        check_dense(placement.budget, checkpoint.dense_loaded_bytes)


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def load_split(
    checkpoint: Checkpoint, tier_of: NDArray[np.uint8], **options: Unpack[LoadOptions]
) -> SplitModel:
    """Load a model with its experts split over tiers; no expert is in memory twice.

    Args:
        checkpoint: the model's files.
        tier_of: [L, E] uint8, the value of `Tier` of every cell.
        options: see `LoadOptions`.

    Raises:
        PlacementError: the nvme tier is used.
        UnsupportedModelError: the model cannot be run.
        CapacityError: no such device, fewer processors than threads, or a tier does not fit.
    """
    return _load(checkpoint, tier_of, None, options)


def _load(
    checkpoint: Checkpoint,
    tier_of: NDArray[np.uint8],
    placement: Placement | None,
    options: LoadOptions,
) -> SplitModel:
    place = resolve_device(options.get("device", "auto"))
    config = load_config(checkpoint.path)
    element = _element_type(options.get("dtype", "auto"), config)
    weight_format = choose_format(
        placement, options.get("weight_format"), checkpoint.shape.dtype, element
    )
    tell = options.get("tell")
    if tell is not None:
        for note in notes_on_format(placement, weight_format):
            tell(f"note: {note}")
    dense_format = choose_dense_format(placement, options.get("dense_format"))
    skeleton = build_skeleton(config, element)
    modules = find_moe_layers(skeleton)
    table = SlotTable.from_tiers(tier_of)
    meter = Meter(checkpoint.shape)
    experts = make_experts(
        ExpertsRequest(
            modules=modules,
            shape=checkpoint.shape,
            table=table,
            device=place,
            weight_format=weight_format,
            num_threads=options.get("num_threads"),
            meter=meter,
            movable=options.get("movable", False),
            timed=options.get("layer_times", False),
        )
    )
    mapped = map_checkpoint(skeleton, modules, checkpoint.weights)
    progress = options.get("progress")
    with TensorReader(checkpoint.path) as reader, _kept(checkpoint, experts, options) as kept:
        dense = lazy_weights(mapped.dense, reader, DENSE, progress)
        loaded = load_without_experts(checkpoint.path, skeleton, modules, dense, element)
        if dense_format != STORED:
            quantize_dense(loaded, find_moe_layers(loaded), place, experts.workers)
        loaded = loaded.to(place)
        _fill(experts, _Source(checkpoint, skeleton, mapped, reader), kept, progress)
    for found, layer in zip(find_moe_layers(loaded), experts.layers(), strict=True):
        attach(found.module, layer)
    clock = experts.clock
    if clock is not None:
        loaded.register_forward_pre_hook(lambda module, given: clock.begin_step())
    loaded.set_experts_implementation(IMPLEMENTATION)
    return SplitModel(loaded, checkpoint, experts, meter, place, element, dense_format)


def _element_type(dtype: str, config: PretrainedConfig) -> torch.dtype:
    if dtype == "auto":
        own: torch.dtype | None = getattr(text_config(config), "dtype", None)
        return own or torch.float32
    if dtype not in DTYPES:
        raise UnsupportedModelError(
            f"dtype {dtype!r}: not supported", f"use auto, {', '.join(DTYPES)}"
        )
    return DTYPES[dtype]


@dataclass(frozen=True, slots=True)
class _Source:
    """Where experts are read from."""

    checkpoint: Checkpoint
    skeleton: PreTrainedModel
    mapped: CheckpointMap
    reader: TensorReader

    def read_expert(self, row: int, expert: int) -> dict[str, torch.Tensor]:
        """The parameters of an expert in its module's layout, through transformers' converters."""
        read = self.reader.read
        return {
            name.rsplit(".", 1)[-1]: value
            for source in self.mapped.experts[row]
            for name, value in source.read_expert(expert, read, self.skeleton).items()
        }


@contextmanager
def _kept(
    checkpoint: Checkpoint, experts: SplitExperts, options: LoadOptions
) -> Iterator[KeptStore | None]:
    """The kept store that is asked for; what was not finished is removed."""
    directory = options.get("store")
    if directory is None:
        yield None
        return
    if experts.weight_format == STORED:
        raise UnsupportedModelError(
            f"{directory}: keeps packed experts, and format stored has none",
            "run with --format q8_0, q4_0 or bf16, or without --store",
        )
    tell = options.get("tell") or (lambda line: None)
    store = KeptStore.open_or_create(
        directory, checkpoint, experts.weight_format, experts.expert_bytes
    )
    with store:
        if store.note is not None:
            tell(store.note)
        is_read = store.is_whole
        if is_read:
            tell(f"{store.path}: experts are read from there")
        yield store
        if not is_read:
            tell(f"{store.path}: experts were kept there for the next start")


def _fill(
    experts: SplitExperts,
    source: _Source,
    kept: KeptStore | None,
    progress: LoadProgress | None,
) -> None:
    """Bring every expert into its slot, from what is kept or from the checkpoint."""
    shape = source.checkpoint.shape
    done = 0
    for row, num_bytes in enumerate(shape.expert_bytes):
        for expert in range(shape.num_experts):
            if kept is not None and kept.has(row, expert):
                experts.put_packed(row, expert, kept.expert(row, expert))
            else:
                _convert(experts, source, row, expert)
                if kept is not None:
                    kept.put(row, expert, experts.packed(row, expert))
            done += num_bytes
            if progress is not None:
                progress(EXPERTS, done, shape.total_expert_bytes)
    if kept is not None:
        kept.finish()


def _convert(experts: SplitExperts, source: _Source, row: int, expert: int) -> None:
    try:
        experts.put(row, expert, source.read_expert(row, expert))
    except ValueError as error:
        layer = source.checkpoint.shape.moe_layers[row]
        raise UnsupportedModelError(
            f"{source.checkpoint.name}: layer {layer}, expert {expert}: {error}",
            "the checkpoint is of another model than its config.json says, or damaged",
        ) from error
