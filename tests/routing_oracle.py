"""Which experts each token used, found without reading ids, weights or router outputs.

The block of one MoE layer is run again on the inputs it just had, once for each expert, with that
expert's output matrix scaled. The rows of the block's output that change are the tokens that used
the expert; by how much tells the weight, since the sum over experts is linear in each of them.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_SCALE = 257.0
_DECODER_CHILD = re.compile(r"^((?:.*\.)?(?:layers|blocks)\.(\d+)\.\w+)")
_NOT_ROUTED = re.compile(r"vision|visual|audio|shared")


@dataclass(frozen=True)
class Usage:
    """What the oracle saw of one layer in one forward.

    Attributes:
        used: [T, E] bool, whether the token's output depends on the expert.
        changes: [T, E, H] float32, what the expert added to the token's output.
        hidden: [T, H] float32, input of the experts.
        contribution: (hidden rows, expert, weights) to what the expert adds at these weights.
    """

    used: Tensor
    changes: Tensor
    hidden: Tensor
    contribution: Callable[[Tensor, int, Tensor], Tensor]


@dataclass(frozen=True)
class _Layer:
    layer: int
    block: nn.Module
    experts: nn.Module
    matrices: Tensor
    contribution: Callable[[Tensor, int, Tensor], Tensor]


@torch.no_grad()
def observe(model: nn.Module, run: Callable[[], Any]) -> dict[int, list[Usage]]:
    """For each MoE layer, what every forward inside `run` used."""
    seen: dict[int, list[Usage]] = {}
    handles = [
        found.block.register_forward_hook(_observer(found, seen), with_kwargs=True)
        for found in _layers(model)
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return dict(sorted(seen.items()))


def _observer(found: _Layer, seen: dict[int, list[Usage]]) -> Callable[..., None]:
    def after(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        def replay() -> tuple[Tensor, Tensor, Tensor]:
            with _captured(found.experts) as captured:
                rows = _rows(block.forward(*args, **kwargs))
            hidden, summed = captured or (_rows(args or tuple(kwargs.values())), rows)
            return rows, summed, hidden

        before, summed, hidden = replay()
        if not torch.equal(before, _rows(output)):
            raise AssertionError(f"layer {found.layer}: running its block again gave other values")
        used, changes = [], []
        # A norm behind the expert undoes a scale, but not a sign.
        scale = -1.0 if _is_normed(found.experts) else _SCALE
        for matrix in found.matrices:
            original = matrix.clone()
            matrix.mul_(scale)
            after_rows, after_summed, _ = replay()
            matrix.copy_(original)
            used.append((after_rows != before).any(-1))
            changes.append((after_summed - summed) / (scale - 1))
        seen.setdefault(found.layer, []).append(
            Usage(torch.stack(used, 1), torch.stack(changes, 1), hidden, found.contribution)
        )

    return after


@contextmanager
def _captured(experts: nn.Module) -> Iterator[list[Tensor]]:
    """The input and output rows of the experts module while the context lasts."""
    captured: list[Tensor] = []

    def after(_module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        captured[:] = [_rows(args or tuple(kwargs.values())), _rows(output)]

    handle = experts.register_forward_hook(after, with_kwargs=True)
    try:
        yield captured
    finally:
        handle.remove()


def _rows(value: Any) -> Tensor:
    tensor = value if isinstance(value, Tensor) else value[0]
    return tensor.reshape(-1, tensor.shape[-1]).clone()


def _layers(model: nn.Module) -> list[_Layer]:
    found = []
    for name, module in model.named_modules():
        match = _DECODER_CHILD.match(name)
        if match is None or _NOT_ROUTED.search(name):
            continue
        described = _described(module)
        if described is not None:
            block = model.get_submodule(match[1])
            found.append(_Layer(int(match[2]), block, *described))
    return found


def _described(module: nn.Module) -> tuple[nn.Module, Tensor, Callable[..., Tensor]] | None:
    kind = type(module).__name__
    if kind == "DbrxExperts":
        matrices = module.mlp.w2.data.view(module.num_experts, -1)
        return module, matrices, lambda x, e, w: _dbrx(module.mlp, x, e) * w[:, None]
    if kind == "JetMoeMoE":
        matrices = module.output_linear.weight.data
        # The block itself is measured: its input and output frame the weighted sum.
        return nn.Identity(), matrices, lambda x, e, w: _jetmoe(module, x, e) * w[:, None]
    if kind == "DogeCDMoE":
        matrices = module.up_embed.weight.data
        return nn.Identity(), matrices, lambda x, e, w: _doge(module, x, e) * w[:, None]
    down = getattr(module, "down_proj", None)
    if not isinstance(down, nn.Parameter) or down.dim() != 3:
        return None
    if kind == "Llama4TextExperts":  # weights scale the expert's input, not its output
        return nn.Identity(), down.data, lambda x, e, w: _expert(module, x * w[:, None], e, True)
    transposed = getattr(module, "is_transposed", False)
    return module, down.data, lambda x, e, w: _expert(module, x, e, transposed) * w[:, None]


def _expert(module: nn.Module, x: Tensor, e: int, transposed: bool) -> Tensor:
    def multiply(rows: Tensor, matrix: Tensor) -> Tensor:
        return rows @ matrix if transposed else rows @ matrix.T

    gated = getattr(module, "has_gate", True)
    up = multiply(x, (module.gate_up_proj if gated else module.up_proj)[e])
    if getattr(module, "has_bias", False):
        up = up + module.gate_up_proj_bias[e]
    if not gated:
        hidden = module.act_fn(up)
    elif hasattr(module, "_apply_gate"):
        hidden = module._apply_gate(up)
    else:
        gate, up = up.chunk(2, dim=-1)
        hidden = module.act_fn(gate) * up
    result = multiply(hidden, module.down_proj[e])
    return module.post_expert_norm(result) if _is_normed(module) else result


def _is_normed(experts: nn.Module) -> bool:
    return getattr(experts, "has_post_expert_norm", False)


def _dbrx(glu: nn.Module, x: Tensor, e: int) -> Tensor:
    gate, up, down = (
        getattr(glu, name).view(glu.moe_num_experts, -1, x.shape[-1])[e]
        for name in ("w1", "v1", "w2")
    )
    return (glu.activation_fn(x @ gate.T) * (x @ up.T)) @ down


def _jetmoe(block: nn.Module, x: Tensor, e: int) -> Tensor:
    gate, up = (x @ block.input_linear.weight[e].T).chunk(2, dim=-1)
    return (block.activation(gate) * up) @ block.output_linear.weight[e].T


def _doge(block: nn.Module, x: Tensor, e: int) -> Tensor:
    return block.act_fn(x @ block.down_embed.weight[e])[:, None] * block.up_embed.weight[e]
