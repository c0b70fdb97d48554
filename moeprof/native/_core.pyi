import numpy as np
from numpy.typing import NDArray

NO_EXPERT: int

def count_assignments(
    experts: NDArray[np.uint16],
    groups: NDArray[np.uint32],
    num_groups: int,
    num_experts: int,
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
    def __init__(self, num_threads: int, cores: list[int] = ..., spin_us: int = 200) -> None: ...
    @property
    def num_threads(self) -> int: ...

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
    def start(self) -> None: ...
    def stop(self) -> None: ...

class PrefillAnswerer:
    def __init__(self, exchange: int, workers: Workers) -> None: ...
    def set_layer(self, index: int, layer: ExpertLayer) -> None: ...
    @property
    def function(self) -> int: ...
    @property
    def address(self) -> int: ...
