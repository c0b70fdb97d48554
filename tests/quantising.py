"""Checkpoints with quantised weights, made from plain ones by the formats' own definitions."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FP8_MAX = 448.0  # largest finite E4M3 value
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


@dataclass(frozen=True)
class Fp8Style:
    """How a publisher writes FP8 weights.

    Attributes:
        scale_of: name of a weight -> name of its scales.
        block: rows and columns with one scale; None for one scale for each matrix.
        encode: float32 power-of-two or free scales -> as stored.
        powers: whether scales are rounded up to powers of two.
    """

    scale_of: Callable[[str], str] = lambda name: f"{name}_scale_inv"
    block: tuple[int, int] | None = (8, 8)
    encode: Callable[[Tensor], Tensor] = lambda scales: scales
    powers: bool = False


FP8_STYLES = {
    "deepseek_v3, float32 scales": Fp8Style(),
    "qwen3, bfloat16 scales": Fp8Style(encode=lambda scales: scales.to(torch.bfloat16)),
    "deepseek_v4, power-of-two scales": Fp8Style(
        scale_of=lambda name: name.replace(".weight", ".scale"),
        encode=lambda scales: scales.to(torch.float8_e8m0fnu),
        powers=True,
    ),
    "exponents as bytes": Fp8Style(
        encode=lambda scales: (torch.log2(scales) + 127).to(torch.uint8), powers=True
    ),
    "one scale for each matrix": Fp8Style(block=None),
}


def quantise_fp8(weight: Tensor, style: Fp8Style) -> tuple[Tensor, Tensor, Tensor]:
    """E4M3 values, scales as stored, and the weight that they mean, in float32.

    Element [..., i, j] belongs to block (i // rows, j // columns); a last block may be short.
    """
    rows, columns = style.block or weight.shape[-2:]
    row = torch.arange(weight.shape[-2]) // rows
    column = torch.arange(weight.shape[-1]) // columns
    grid = (*weight.shape[:-2], int(row[-1]) + 1, int(column[-1]) + 1)
    scales = torch.ones(grid)
    for i in range(grid[-2]):
        for j in range(grid[-1]):
            part = weight[..., row == i, :][..., column == j].abs().amax(dim=(-2, -1))
            scales[..., i, j] = part.clamp_min(1e-12) / FP8_MAX
    if style.powers:
        scales = torch.exp2(torch.ceil(torch.log2(scales)))
    stored = style.encode(scales)
    if stored.dtype == torch.uint8:
        meant = torch.exp2(stored.to(torch.float32) - 127)
    else:
        meant = stored.to(torch.float32)
    by_element = meant[..., row, :][..., column]
    values = (weight / by_element).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    if style.block is None:
        stored = stored.reshape(weight.shape[:-2])
    return values, stored, values.to(torch.float32) * by_element


def quantise_mxfp4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks, scales and meaning of [E, in, out] as gpt-oss stores it: [E, out, in / 32, 16]."""
    groups = weight.transpose(1, 2).unflatten(-1, (-1, 32))
    largest = groups.abs().amax(-1).clamp_min(1e-30)
    exponents = torch.floor(torch.log2(largest)) - 2
    scaled = groups / torch.exp2(exponents)[..., None]
    nearest = (scaled.abs()[..., None] - E2M1).abs().argmin(-1)
    codes = nearest + 8 * (scaled < 0)
    blocks = (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8)
    signed = torch.where(codes < 8, 1.0, -1.0) * E2M1[codes % 8]
    meant = signed * torch.exp2(exponents)[..., None]
    scales = (exponents + 127).to(torch.uint8)
    return blocks, scales, meant.flatten(-2).transpose(1, 2)


def rewrite(source: Path, quantised: Path, plain: Path, convert: Callable[..., object]) -> None:
    """Write two checkpoints: one with what `convert` stores, one with what that means.

    Args:
        source: checkpoint of one file.
        quantised: directory to write.
        plain: directory to write.
        convert: (name, weight) -> ({name: stored}, meaning, or None to leave it as it is).
    """
    stored, meant = {}, {}
    for name, weight in load_file(source / "model.safetensors").items():
        found = convert(name, weight)
        if found is None:
            stored[name] = meant[name] = weight
        else:
            tensors, meaning = found
            stored |= {key: value.contiguous() for key, value in tensors.items()}
            meant[name] = meaning.to(weight.dtype).contiguous()
    for path, tensors in ((quantised, stored), (plain, meant)):
        path.mkdir()
        for file in source.iterdir():
            if file.suffix != ".safetensors":
                (path / file.name).write_bytes(file.read_bytes())
        save_file(tensors, path / "model.safetensors", {"format": "pt"})


def set_config(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def is_expert_or_linear(name: str, weight: Tensor) -> bool:
    """What publishers quantise: matrices, but not embeddings, routers, norms and the head."""
    kept = ("embed", "lm_head", "gate.weight", "norm", "router", "visual", "shared_expert_gate")
    return weight.dim() >= 2 and not any(word in name for word in kept)


def save_fp8(source: Path, quantised: Path, plain: Path, style: Fp8Style) -> None:
    """Quantise a checkpoint's matrices to FP8."""

    def convert(name: str, weight: Tensor) -> object:
        if not is_expert_or_linear(name, weight):
            return None
        values, scales, meaning = quantise_fp8(weight.to(torch.float32), style)
        return {name: values, style.scale_of(name): scales}, meaning

    rewrite(source, quantised, plain, convert)
    block = None if style.block is None else list(style.block)
    set_config(
        quantised,
        quantization_config={
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": block,
        },
    )


def save_mxfp4(source: Path, quantised: Path, plain: Path) -> None:
    """Quantise the experts of a gpt-oss checkpoint to MXFP4."""

    def convert(name: str, weight: Tensor) -> object:
        if not name.endswith(("gate_up_proj", "down_proj")):
            return None
        blocks, scales, meaning = quantise_mxfp4(weight.to(torch.float32))
        return {f"{name}_blocks": blocks, f"{name}_scales": scales}, meaning

    rewrite(source, quantised, plain, convert)
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]
    set_config(
        quantised, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": kept}
    )
