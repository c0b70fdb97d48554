from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

NO_EXPERT: int

def count_assignments(
    experts: NDArray[np.uint16],
    groups: NDArray[np.uint32],
    num_groups: int,
    num_experts: int,
) -> NDArray[np.int64]: ...
def pack_lookups(
    experts: Sequence[NDArray[np.uint16]],
    step_start: NDArray[np.int64],
    num_experts: int,
    cells: NDArray[np.uint32],
    uses: NDArray[np.uint16] | NDArray[np.uint32],
    batch_end: NDArray[np.int64],
) -> int: ...
def reuse_distances(
    batch_start: NDArray[np.int64],
    cells: NDArray[np.uint32],
    num_cells: int,
    cell_bytes: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]: ...

_Outcomes = tuple[
    NDArray[np.uint8],
    NDArray[np.uint16],
    NDArray[np.uint32],
    NDArray[np.uint16],
    NDArray[np.int64],
]

def replay_lookups(
    batch_start: NDArray[np.int64],
    cells: NDArray[np.uint32],
    uses: NDArray[np.uint16] | NDArray[np.uint32],
    batches_per_step: int,
    restarts: NDArray[np.int64],
    order: str,
    cell_bytes: NDArray[np.int64],
    pinned: NDArray[np.uint8],
    budgets: NDArray[np.int64],
    decay: float = 1.0,
    recent_share: float = 0.5,
    max_uploads: int | None = None,
    hysteresis: float | None = None,
    make_policy: Callable[[], object] | None = None,
) -> _Outcomes: ...
def look_up_sets(
    batch_start: NDArray[np.int64],
    cells: NDArray[np.uint32],
    uses: NDArray[np.uint16] | NDArray[np.uint32],
    is_member: NDArray[np.uint8],
    set_of_batch: NDArray[np.uint32],
) -> _Outcomes: ...
def replay_optimum(
    batch_start: NDArray[np.int64],
    cells: NDArray[np.uint32],
    uses: NDArray[np.uint16] | NDArray[np.uint32],
    batches_per_step: int,
    restarts: NDArray[np.int64],
    cell_bytes: NDArray[np.int64],
    capacities: NDArray[np.int64],
    is_scored: NDArray[np.uint8],
) -> _Outcomes: ...
def lag_overlap(
    experts: NDArray[np.uint16],
    runs: NDArray[np.int64],
    groups: NDArray[np.uint32],
    num_groups: int,
    num_experts: int,
    max_lag: int,
) -> NDArray[np.int64]: ...
def pair_counts(
    first: NDArray[np.uint16],
    second: NDArray[np.uint16],
    groups: NDArray[np.uint32],
    num_groups: int,
    num_experts: int,
) -> NDArray[np.int64]: ...
def candidate_ranks(
    given: NDArray[np.uint16],
    chosen: NDArray[np.uint16],
    evidence: NDArray[np.float32],
    tables: NDArray[np.uint32],
    groups: NDArray[np.uint32],
    num_groups: int,
) -> NDArray[np.int64]: ...
def chosen_pairs(
    experts: NDArray[np.uint16],
    marked: NDArray[np.uint8],
    tables: NDArray[np.uint32],
    groups: NDArray[np.uint32],
    num_groups: int,
) -> NDArray[np.int64]: ...
def paths() -> list[str]: ...
def expert_bytes(hidden_size: int, width: int, weight_format: str, has_biases: bool) -> int: ...
def pack_rows(stored: NDArray[np.uint8], weight_format: str) -> NDArray[np.uint8]: ...
def unpack_rows(
    packed: NDArray[np.uint8], num_rows: int, row_size: int, weight_format: str
) -> NDArray[np.uint8]: ...
def pack_expert(
    gate: NDArray[np.uint8],
    up: NDArray[np.uint8],
    down: NDArray[np.uint8],
    weight_format: str,
    packed: NDArray[np.uint8],
) -> None: ...
def project(
    packed: NDArray[np.uint8],
    rows: NDArray[np.float32],
    num_rows: int,
    weight_format: str,
    path: str | None = None,
) -> NDArray[np.float32]: ...
def gated_unit(
    gate: NDArray[np.float32],
    up: NDArray[np.float32],
    kind: str,
    alpha: float = 1.702,
    limit: float = 7.0,
    path: str | None = None,
) -> NDArray[np.float32]: ...
def quantize_expert(
    gate: int,
    up: int,
    down: int,
    value_type: str,
    hidden_size: int,
    width: int,
    weight_format: str,
    packed: NDArray[np.uint8],
    workers: Workers,
    biases: tuple[int, int, int] | None = None,
    path: str | None = None,
) -> None: ...
def quantize_matrix(
    values: int,
    value_type: str,
    num_rows: int,
    row_size: int,
    weight_format: str,
    packed: NDArray[np.uint8],
    workers: Workers,
) -> None: ...
def multiply_packed(
    workers: Workers,
    packed: int,
    bias: int,
    num_rows: int,
    row_size: int,
    weight_format: str,
    rows: int,
    type: str,
    num_tokens: int,
    output: int,
    path: str | None = None,
) -> None: ...

class HostMemory:
    def __init__(self, num_bytes: int) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...
    @property
    def huge_bytes(self) -> int: ...
    def array(self) -> NDArray[np.uint8]: ...

class Workers:
    def __init__(
        self,
        num_threads: int,
        cores: list[int] = ...,
        spin_us: int = 200,
        crowded: list[int] = ...,
    ) -> None: ...
    @property
    def num_threads(self) -> int: ...
    def processors(self) -> list[int]: ...

class ExpertLayer:
    def __init__(
        self,
        hidden_size: int,
        width: int,
        num_experts: int,
        top_k: int,
        weight_format: str,
        has_biases: bool = False,
        unit: str = "silu",
        alpha: float = 1.702,
        limit: float = 7.0,
        path: str | None = None,
    ) -> None: ...
    @property
    def path(self) -> str: ...
    def set_expert(self, expert_id: int, packed: NDArray[np.uint8]) -> None: ...
    def decode(
        self,
        workers: Workers,
        rows: NDArray[np.float32],
        ids: NDArray[np.uint16],
        weights: NDArray[np.float32],
        outputs: NDArray[np.float32],
        sums: NDArray[np.float32],
    ) -> None: ...
    def prefill(
        self,
        workers: Workers,
        rows: NDArray[np.float32],
        ids: NDArray[np.uint16],
        weights: NDArray[np.float32],
        outputs: NDArray[np.float32],
        sums: NDArray[np.float32],
    ) -> None: ...
    def prefill_slots(
        self,
        workers: Workers,
        hidden: int,
        hidden_type: str,
        ids: int,
        num_tokens: int,
        outputs: int,
    ) -> None: ...
    def forward(
        self,
        workers: Workers,
        hidden: int,
        hidden_type: str,
        ids: int,
        weights: int,
        weights_type: str,
        num_tokens: int,
        output: int,
        assignments: int = 0,
        reads: int = 0,
        group_of: int = 0,
        nanoseconds: int = 0,
    ) -> None: ...
    def xor_experts(self, workers: Workers, ids: NDArray[np.uint16]) -> int: ...

def exchange_layout(hidden_size: int, top_k: int) -> dict[str, int]: ...

class Answerer:
    def __init__(
        self, exchange: int, hidden_size: int, top_k: int, workers: Workers, core: int = -1
    ) -> None: ...
    @property
    def is_running(self) -> bool: ...
    def set_layer(self, index: int, layer: ExpertLayer) -> None: ...
    def take_nanoseconds(self, index: int) -> int: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...

class PrefillAnswerer:
    def __init__(self, exchange: int, workers: Workers) -> None: ...
    def set_layer(self, index: int, layer: ExpertLayer) -> None: ...
    @property
    def function(self) -> int: ...
    @property
    def address(self) -> int: ...
