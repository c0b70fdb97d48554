from collections.abc import Sequence

MOST_HEAD_SIZE: int
MOST_PRODUCTS: int
MOST_ROUTED: int
MOST_CHOSEN: int

def attention_workspace(shape: Sequence[int]) -> tuple[int, int, int]: ...
def decode_attention(
    addresses: Sequence[int],
    shape: Sequence[int],
    strides: Sequence[int],
    element: str,
    scaling: float,
    softcap: float,
    stream: int,
) -> None: ...
def row_products(
    row: int,
    weights: Sequence[int],
    biases: Sequence[int],
    outputs: Sequence[int],
    rows: Sequence[int],
    columns: int,
    element: str,
    stream: int,
    scales: Sequence[int] = (),
) -> None: ...
def route(
    addresses: Sequence[int],
    elements: Sequence[str],
    shape: Sequence[int],
    score: str,
    normalized: bool,
    scaling: float,
    stream: int,
) -> None: ...

DECODE_TOKENS: int
FAULT_NOT_FINITE: int
FAULT_UNKNOWN_EXPERT: int
FAULT_REPEATED_EXPERT: int
FAULT_NO_ANSWER: int
FAULT_UNKNOWN_LAYER: int
FAULT_BUSY: int

def unavailable() -> str | None: ...
def xor_words(bytes: int, num_bytes: int, result: int, stream: int) -> None: ...

class Exchange:
    def __init__(self, hidden_size: int, top_k: int, timeout_s: float = 10.0) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def top_k(self) -> int: ...
    def take_faults(self) -> int: ...

class HostPin:
    def __init__(self, owner: object, address: int, num_bytes: int) -> None: ...
    @property
    def device_address(self) -> int: ...

class HostRoom:
    def __init__(
        self, owner: object, hidden_size: int, top_k: int, answer: int, answerer: int
    ) -> None: ...

class DeviceLayer:
    def __init__(
        self,
        exchange: Exchange,
        index: int,
        hidden_size: int,
        width: int,
        num_experts: int,
        top_k: int,
        weight_format: str,
        has_biases: bool = False,
        unit: str = "silu",
        alpha: float = 1.702,
        limit: float = 7.0,
    ) -> None: ...
    @property
    def workspace_bytes(self) -> int: ...
    def prefill_workspace_bytes(self, num_tokens: int) -> int: ...
    def set_host(
        self,
        address_of: int,
        room: HostRoom | None,
        copy_ns: float,
        host_ns: float,
        host_token_ns: float,
    ) -> None: ...
    def prefill(
        self,
        stream: int,
        hidden: int,
        hidden_type: str,
        ids: int,
        weights: int,
        weights_type: str,
        num_tokens: int,
        output: int,
        workspace: int,
        assignments: int = 0,
        reads: int = 0,
    ) -> None: ...
    def set_weights(self, packed: int, stride: int, slot_of: int, workspace: int) -> None: ...
    def forward(
        self,
        stream: int,
        hidden: int,
        hidden_type: str,
        ids: int,
        weights: int,
        weights_type: str,
        num_tokens: int,
        output: int,
        assignments: int = 0,
        reads: int = 0,
        overlaps: bool = True,
        nanoseconds: int = 0,
    ) -> None: ...
    def begin_step(self, stream: int) -> None: ...
