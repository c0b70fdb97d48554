"""What the kernels need to know of a layer's experts, and their sizes packed."""

from dataclasses import dataclass
from typing import Self

from torch import nn

from moeprof.checkpoint.expert_layout import ExpertLayout, Gating, read_gating, read_layout
from moeprof.checkpoint.modules import ExpertsModule, num_experts
from moeprof.errors import UnsupportedModelError
from moeprof.native import expert_bytes
from moeprof.native.reference import BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class PackedShape:
    """Sizes of the packed experts of one layer.

    Attributes:
        hidden_size: width of the residual stream (H).
        width: of the experts (F), filled up with zeros to a multiple of 32.
        weight_format: `q8_0`, `q4_0` or `bf16`.
        has_biases: whether each matrix has a bias.
    """

    hidden_size: int
    width: int
    weight_format: str
    has_biases: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of one expert."""
        return expert_bytes(self.hidden_size, self.width, self.weight_format, self.has_biases)


@dataclass(frozen=True, slots=True)
class PackableExperts:
    """What the kernels need to know of the experts of one layer.

    Attributes:
        layout: how the module lays out its parameters.
        gating: its gated unit.
        shape: sizes of a packed expert.
        width: of the experts (F) in the module.
    """

    layout: ExpertLayout
    gating: Gating
    shape: PackedShape
    width: int

    @classmethod
    def of(cls, experts: ExpertsModule, weight_format: str) -> Self:
        """What an experts module says, read and probed once.

        Args:
            experts: the module, with or without weights.
            weight_format: `q8_0`, `q4_0` or `bf16`.

        Raises:
            UnsupportedModelError: the kernels cannot compute these experts.
        """
        layout = read_layout(experts.module)
        gating = read_gating(experts.module, layout)
        hidden, width = _matrix_sizes(experts, layout)
        if hidden % BLOCK_SIZE:
            raise UnsupportedModelError(
                f"{experts.name}: hidden size {hidden} is no multiple of {BLOCK_SIZE}, which the "
                "kernels need",
                "compute it with torch instead: --format stored",
            )
        padded = -(-width // BLOCK_SIZE) * BLOCK_SIZE
        shape = PackedShape(hidden, padded, weight_format, layout.has_bias)
        return cls(layout, gating, shape, width)


def _matrix_sizes(experts: ExpertsModule, layout: ExpertLayout) -> tuple[int, int]:
    """Hidden size (H) and width (F) of a layer's experts, as their module has them."""
    shapes = parameter_shapes(experts, layout.parameter_names)
    first, second = shapes[layout.parameter_names[1]]
    return (second, first) if layout.is_transposed else (first, second)


def parameter_shapes(experts: ExpertsModule, names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter of one expert.

    Raises:
        UnsupportedModelError: the module has other parameters than `names`.
    """
    found = expert_parameters(experts.module)
    if set(found) != set(names):
        raise UnsupportedModelError(
            f"{experts.name}: has parameters {sorted(found)}, expected {sorted(names)}",
            "this architecture can be traced and analysed, but not run under a placement yet",
        )
    return {name: tuple(parameter.shape[1:]) for name, parameter in found.items()}


def expert_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of an experts module whose first dimension is the experts."""
    count = num_experts(module)
    return {
        name: parameter
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() >= 2 and parameter.shape[0] == count
    }
