"""How a checkpoint's weights are quantised, and which ways can be read."""

from dataclasses import dataclass
from typing import Any

from moeprof.errors import UnsupportedModelError

# Values with one scale for each block; `mxfp8` differs in its block size alone.
_BLOCK_FP8 = frozenset({"fp8", "mxfp8"})
_USE_OTHER = "use the checkpoint with bfloat16, FP8 (block scales) or MXFP4 weights"

_COPY_AGAIN = "copy or download the checkpoint again"

_KNOWN = {
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "fbgemm_fp8": "FBGEMM FP8",
    "gptq": "GPTQ",
    "modelopt": "ModelOpt",
    "torchao": "torchao",
}


@dataclass(frozen=True, slots=True)
class Quantization:
    """What config.json says of quantised weights.

    Attributes:
        method: `fp8` or `mxfp4`.
        block: rows and columns that share a scale; None where it does not say.
    """

    method: str
    block: tuple[int, int] | None


def read_quantization(name: str, content: dict[str, Any]) -> Quantization | None:
    """How a checkpoint is quantised; None for plain weights.

    Args:
        name: of the checkpoint, for the error.
        content: of its config.json.

    Raises:
        UnsupportedModelError: in a way that cannot be read.
    """
    settings = content.get("quantization_config")
    if settings is None:
        text = content.get("text_config")
        settings = text.get("quantization_config") if isinstance(text, dict) else None
    if not settings:
        return None
    if not isinstance(settings, dict):
        raise UnsupportedModelError(
            f"{name}: quantization_config in config.json is not a JSON object", _COPY_AGAIN
        )
    method = settings.get("quant_method")
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        method = "bitsandbytes"
    if method == "mxfp4":
        return Quantization("mxfp4", None)
    if method in _BLOCK_FP8:
        return Quantization("fp8", _block(name, settings.get("weight_block_size")))
    kind = "a method that it does not name" if method is None else _KNOWN.get(method, method)
    raise UnsupportedModelError(
        f"{name}: its weights are quantised with {kind}, which moeprof cannot read",
        _USE_OTHER,
    )


def _block(name: str, size: object) -> tuple[int, int] | None:
    if size is None:
        return None
    if not isinstance(size, list) or len(size) != 2 or not all(_is_count(n) for n in size):
        raise UnsupportedModelError(
            f"{name}: weight_block_size in config.json is {size!r}, expected two positive numbers",
            _COPY_AGAIN,
        )
    return size[0], size[1]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
