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
