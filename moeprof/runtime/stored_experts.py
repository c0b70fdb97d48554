"""The tiers of experts as the model's own element type has them, computed by torch."""

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from moeprof.checkpoint.expert_layout import read_layout
from moeprof.checkpoint.modules import ExpertsModule
from moeprof.checkpoint.packed_shape import expert_parameters, parameter_shapes
from moeprof.errors import UnsupportedModelError
from moeprof.native import Workers
from moeprof.placement.tier import Tier
from moeprof.runtime.experts import LayerExperts
from moeprof.runtime.layer_times import LayerClock
from moeprof.runtime.stores import ParameterSpec, allocate_stores
from moeprof.runtime.torch_experts import TorchExperts

if TYPE_CHECKING:
    from moeprof.runtime.split import ExpertsRequest


class StoredExperts:
    """Experts as the model's own element type has them, computed by torch.

    Args:
        request: what is to be split.

    Raises:
        UnsupportedModelError: they are to be movable.
    """

    def __init__(self, request: "ExpertsRequest") -> None:
        if request.movable:
            raise _not_packed("be moved")
        self._request = request
        self.notes: tuple[str, ...] = ()
        self.table = request.table
        self.weight_format = request.weight_format
        self._layouts = [read_layout(experts.module) for experts in request.modules]
        specs = [_specs(experts) for experts in request.modules]
        self.expert_bytes = tuple(sum(spec.num_bytes for spec in layer) for layer in specs)
        self.stores = allocate_stores(request.table, specs, request.device)
        self.clock = (
            LayerClock(len(specs), request.meter, request.device) if request.timed else None
        )

    @cached_property
    def workers(self) -> Workers:
        """See `SplitExperts.workers`."""
        return self._request.start_workers()

    def put(self, row: int, expert: int, values: Mapping[str, Tensor]) -> None:
        """See `SplitExperts.put`."""
        store = self.stores[Tier(self.table.tier[row, expert])]
        store.put(row, int(self.table.slot[row, expert]), values)

    def layers(self) -> list[LayerExperts]:
        """See `SplitExperts.layers`."""
        return [
            TorchExperts(
                row=row,
                num_experts=self._request.shape.num_experts,
                layout=layout,
                stores=self.stores,
                tiers=tuple(Tier(int(tier)) for tier in self.table.tier[row]),
                slots=tuple(int(slot) for slot in self.table.slot[row]),
                meter=self._request.meter,
                clock=self.clock,
            )
            for row, layout in enumerate(self._layouts)
        ]

    def put_packed(self, row: int, expert: int, packed: NDArray[np.uint8]) -> None:
        """See `SplitExperts.put_packed`; the kernels do not read these."""
        raise _not_packed("be packed")

    def packed(self, row: int, expert: int) -> NDArray[np.uint8]:
        """See `SplitExperts.packed`; the kernels do not read these."""
        raise _not_packed("be packed")

    def place(self, tier_of: NDArray[np.uint8]) -> None:
        """See `SplitExperts.place`; these stay where they are."""
        raise _not_packed("be moved")

    def check(self) -> None:
        """See `SplitExperts.check`; torch raises on its own."""

    def read_bandwidth(self) -> float:
        """See `SplitExperts.read_bandwidth`; the kernels do not read these."""
        raise _not_packed("be read by the kernels")


def _not_packed(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"format stored: its experts cannot {what}", "use --format q8_0, q4_0 or bf16"
    )


def _specs(experts: ExpertsModule) -> list[ParameterSpec]:
    """The parameters of one expert of a module, exactly those that its layout computes with."""
    shapes = parameter_shapes(experts, read_layout(experts.module).parameter_names)
    dtypes = {name: p.dtype for name, p in expert_parameters(experts.module).items()}
    return [ParameterSpec(name, shape, dtypes[name]) for name, shape in shapes.items()]
