"""Which tensors of a checkpoint make which expert, through transformers' own conversion tables.

Everything here rests on `transformers.core_model_loading`, which is not a public interface; it
is used in this module alone.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from moeprof.checkpoint.modules import ExpertsModule, takes_routing
from moeprof.checkpoint.stored import StoredTensor
from moeprof.errors import UnsupportedModelError

# Reads a weight, or of a stacked one the rows of one expert: (weight, expert or None) -> tensor.
ReadTensor = Callable[[StoredTensor, int | None], torch.Tensor]


@dataclass(frozen=True, slots=True)
class ParameterSource:
    """The weights of a checkpoint that make one parameter of one experts module.

    Attributes:
        parameter: full name of the (first) parameter that they make.
        converter: transformers' operations from them to the parameter; None for a plain copy.
        tensors: for each source pattern either one stacked weight, its first dimension the
            experts, or one weight per expert in their order.
        num_experts: experts of the module.
    """

    parameter: str
    converter: WeightConverter | None
    tensors: dict[str, tuple[StoredTensor, ...]]
    num_experts: int

    @property
    def num_bytes(self) -> int:
        """Bytes of all its weights as stored."""
        return sum(entry.num_bytes for group in self.tensors.values() for entry in group)

    @property
    def num_weights(self) -> int:
        """Elements of all its weights."""
        return sum(entry.num_weights for group in self.tensors.values() for entry in group)

    def read_expert(
        self, expert: int, read: ReadTensor, model: PreTrainedModel
    ) -> dict[str, torch.Tensor]:
        """The parameters of one expert in the layout of its module.

        Args:
            expert: index in [0, num_experts).
            read: reads a weight of the checkpoint.
            model: the model on the meta device.

        Returns:
            full parameter name -> tensor of the parameter's shape without its first dimension.
        """
        collected: Any = {
            pattern: [
                read(group[expert], None)
                if len(group) == self.num_experts
                else read(group[0], expert)
            ]
            for pattern, group in self.tensors.items()
        }
        if self.converter is None:
            return {self.parameter: next(iter(collected.values()))[0].squeeze(0)}
        for operation in deepcopy(self.converter).operations:
            collected = operation.convert(
                collected,
                source_patterns=self.converter.source_patterns,
                target_patterns=self.converter.target_patterns,
                full_layer_name=self.parameter,
                model=_OneExpertView(model),
                config=model.config,
                missing_keys=set(),
            )
        return {
            self._full_name(target): (value[0] if isinstance(value, list) else value).squeeze(0)
            for target, value in collected.items()
        }

    def _full_name(self, target: str) -> str:
        """Name of the parameter that an operation returned under one of the target patterns."""
        if target in self.parameter:
            return self.parameter
        assert self.converter is not None
        return self.parameter.replace(self.converter.target_patterns[0], target)


class _OneExpertView:
    """A model whose parameters claim to hold one expert, for operations that compare shapes."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.config = model.config

    def get_parameter(self, name: str) -> torch.Tensor:
        """The parameter of that name, cut to its first expert."""
        parameter: torch.Tensor = self._model.get_parameter(name)[:1]
        return parameter


@dataclass(frozen=True, slots=True)
class CheckpointMap:
    """How the tensors of a checkpoint are used by its model.

    Attributes:
        experts: for each experts module, in their order, the sources of its parameters.
        dense: the weights of everything else that the model loads.
    """

    experts: tuple[tuple[ParameterSource, ...], ...]
    dense: tuple[StoredTensor, ...]


def map_checkpoint(
    model: PreTrainedModel, modules: list[ExpertsModule], weights: tuple[StoredTensor, ...]
) -> CheckpointMap:
    """Sort a checkpoint's weights into experts and the rest, as loading would use them.

    Args:
        model: on the meta device, unchanged by `make_weightless` or not.
        modules: its experts modules.
        weights: the checkpoint's weights.

    Raises:
        UnsupportedModelError: tensors of an expert are missing.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    parameters = model.state_dict()
    owner = {
        f"{experts.name}.{name}": index
        for index, experts in enumerate(modules)
        for name, parameter in experts.module.named_parameters()
        if _belongs_to_experts(experts, name, parameter)
    }
    dense = []
    grouped: dict[str, dict[str, list[StoredTensor]]] = {}
    for entry in sorted(weights, key=lambda entry: dot_natural_key(entry.name)):
        name, pattern = rename_source_key(
            entry.name, renamings, converters, model.base_model_prefix, parameters
        )
        if name not in parameters and entry.name in parameters:
            name, pattern = entry.name, None
        if name in owner:
            grouped.setdefault(name, {}).setdefault(pattern or "", []).append(entry)
        elif name in parameters:
            dense.append(entry)
    sources: list[list[ParameterSource]] = [[] for _ in modules]
    for name, by_source in grouped.items():
        experts = modules[owner[name]]
        for group in by_source.values():
            _check_group(experts, name, parameters[name].shape[0], group)
        converter = by_pattern.get(next(iter(by_source)))
        groups = {pattern: tuple(group) for pattern, group in by_source.items()}
        sources[owner[name]].append(ParameterSource(name, converter, groups, experts.num_experts))
    for experts, found in zip(modules, sources, strict=True):
        if not found:
            raise UnsupportedModelError(
                f"layer {experts.layer}: the checkpoint has no tensors for {experts.name}",
                "the checkpoint is of another model than its config.json says, or damaged",
            )
    return CheckpointMap(tuple(tuple(found) for found in sources), tuple(dense))


def _belongs_to_experts(experts: ExpertsModule, name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter of a MoE layer holds expert weights.

    An experts module holds them in all its matrices (its vectors are norms); a block that has
    none also holds the router and shared experts.
    """
    if takes_routing(experts.module):
        return parameter.dim() >= 2
    stacked = parameter.dim() >= 2 and parameter.shape[0] == experts.num_experts
    return stacked and not any(word in name for word in ("router", "shared"))


def _check_group(
    experts: ExpertsModule, parameter: str, rows: int, group: list[StoredTensor]
) -> None:
    """Refuse tensors that are neither one stack of all experts nor one tensor for each.

    A stack with another first dimension than E (dbrx flattens experts and rows, longcat_flash
    keeps rows for its identity experts) is let through: its bytes are known, only running it is
    not possible.
    """
    if len(group) not in (1, experts.num_experts, rows):
        raise UnsupportedModelError(
            f"layer {experts.layer} has {len(group)} experts in the checkpoint for {parameter}, "
            f"config.json says {experts.num_experts}",
            "the checkpoint is of another model than its config.json says, or incomplete",
        )
