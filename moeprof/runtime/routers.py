"""Plain routers computed by one operation of ours while decoding.

What a router does is found out by calling it: its choices and weights on random rows must be those
of `route` with some setting. A router that does anything else is left as it is.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moeprof.runtime.dense_ops import HAS_KERNELS, route, route_rows
from moeprof.runtime.kernel_call import ELEMENT_NAMES

_TRIED_ROWS = 64
_MOST_EXPERTS = 1024
_MOST_CHOSEN = 32
# Of the weights: a few roundings of their own type, or of float32.
_ROUNDINGS = 4


@dataclass(frozen=True, slots=True)
class RouterSetting:
    """What `route` needs to do what a router does.

    Attributes:
        weight: name of its matrix.
        bias: name of what it adds to its logits, or None.
        correction: name of what it adds to its scores for choosing only, or None.
        logit_dtype: element type of its logits.
        weight_dtype: element type of its weights.
        top_k: experts that it chooses.
        score: `softmax` or `sigmoid`.
        normalized: whether its weights are divided by their sum.
        scaling: of its weights.
    """

    weight: str
    bias: str | None
    correction: str | None
    logit_dtype: torch.dtype
    weight_dtype: torch.dtype
    top_k: int
    score: str
    normalized: bool
    scaling: float

    def arguments(self, module: nn.Module) -> tuple[Any, ...]:
        """The arguments of `route` after the row."""
        return (
            getattr(module, self.weight),
            getattr(module, self.bias) if self.bias else None,
            getattr(module, self.correction).float() if self.correction else None,
            self.logit_dtype,
            self.weight_dtype,
            self.top_k,
            self.score,
            self.normalized,
            self.scaling,
        )


def fuse_routers(model: nn.Module, num_experts: int) -> int:
    """Let every plain router of a model compute single rows by `route`.

    Args:
        model: in evaluation mode.
        num_experts: routed experts of a layer (E).

    Returns:
        How many routers were recognised.
    """
    if num_experts > _MOST_EXPERTS:
        return 0
    fused = 0
    for module in list(model.modules()):
        matrices = _matrices(module, num_experts)
        setting = recognise(module, num_experts) if len(matrices) == 1 else None
        if setting is not None:
            module.moeprof_router = setting  # type: ignore[assignment]
            module.__class__ = _fused_class(type(module))
            fused += 1
    return fused


@torch.no_grad()
def recognise(module: nn.Module, num_experts: int) -> RouterSetting | None:
    """The setting of `route` that does what a module does on random rows, if there is one.

    Args:
        module: perhaps a router, with weights.
        num_experts: routed experts (E).
    """
    (weight_name,) = _matrices(module, num_experts)
    weight: Tensor = getattr(module, weight_name)
    if weight.dtype not in ELEMENT_NAMES or weight.shape[1] % 8 or not weight.is_contiguous():
        return None
    if weight.is_cuda and not HAS_KERNELS:
        return None
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn((_TRIED_ROWS, weight.shape[1]), generator=generator).to(weight)
    # Logits that spread as a trained router's do: with narrow ones all settings look alike.
    rows = rows * (2 / (rows @ weight.T).float().std().clamp(min=1e-6)).to(rows.dtype)
    try:
        outcome = module(rows)
    except Exception:  # it takes something else than rows, so it is no plain router
        return None
    if not _is_outcome(outcome, num_experts):
        return None
    logits, weights, ids = outcome
    vectors = [
        name
        for name, tensor in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        )
        if tensor.shape == (num_experts,)
    ]
    for bias, correction in itertools.product((None, *vectors), repeat=2):
        if bias is not None and bias == correction:
            continue
        for score, normalized in itertools.product(("softmax", "sigmoid"), (True, False)):
            setting = RouterSetting(
                weight_name, bias, correction, logits.dtype, weights.dtype, ids.shape[1], score,
                normalized, 1.0,
            )  # fmt: skip
            scaling = _scaling(setting, module, rows, outcome)
            if scaling is not None:
                return RouterSetting(
                    weight_name, bias, correction, logits.dtype, weights.dtype, ids.shape[1],
                    score, normalized, scaling,
                )  # fmt: skip
    return None


def _matrices(module: nn.Module, num_experts: int) -> list[str]:
    """Names of a module's own [E, H] parameters."""
    return [
        name
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 2 and parameter.shape[0] == num_experts
    ]


def _is_outcome(outcome: object, num_experts: int) -> bool:
    """Whether a module returned logits, weights and ids of its choices."""
    if not isinstance(outcome, tuple) or len(outcome) != 3:
        return False
    if not all(isinstance(part, Tensor) and part.dim() == 2 for part in outcome):
        return False
    logits, weights, ids = outcome
    return (
        tuple(logits.shape) == (_TRIED_ROWS, num_experts)
        and weights.shape == ids.shape
        and ids.shape[0] == _TRIED_ROWS
        and ids.dtype == torch.int64
        and ids.shape[1] <= min(_MOST_CHOSEN, num_experts - 1)
        and {logits.dtype, weights.dtype} <= ELEMENT_NAMES.keys()
    )


def _scaling(
    setting: RouterSetting, module: nn.Module, rows: Tensor, outcome: tuple[Tensor, ...]
) -> float | None:
    """The factor between a module's weights and a setting's, if all else agrees."""
    logits, weights, ids = outcome
    arguments = setting.arguments(module)
    own_logits, own_weights, own_ids = route_rows(rows, *arguments)
    step = _ROUNDINGS * max(torch.finfo(t).eps for t in (setting.logit_dtype, setting.weight_dtype))
    if not torch.allclose(own_logits.float(), logits.float(), rtol=step, atol=step):
        return None
    # Where the last choice and the first that was left out are equal, either may be taken.
    wider = (*arguments[:5], setting.top_k + 1, *arguments[6:])
    choice, wide_ids = _choice(own_logits, setting, module), route_rows(rows, *wider)[2]
    edge = choice.gather(1, wide_ids[:, -2:])
    certain = edge[:, 0] != edge[:, 1]
    order, own_order = ids.argsort(-1), own_ids.argsort(-1)
    if not certain.any() or not torch.equal(
        ids.gather(1, order)[certain], own_ids.gather(1, own_order)[certain]
    ):
        return None
    theirs = weights.gather(1, order)[certain].float()
    ours = own_weights.gather(1, own_order)[certain].float()
    scaling = _plain((theirs / ours).median().item())
    return scaling if torch.allclose(ours * scaling, theirs, rtol=step, atol=1e-7) else None


def _choice(logits: Tensor, setting: RouterSetting, module: nn.Module) -> Tensor:
    scores = logits.float().softmax(-1) if setting.score == "softmax" else logits.float().sigmoid()
    return scores + getattr(module, setting.correction).float() if setting.correction else scores


def _plain(value: float) -> float:
    """A factor as someone would have written it: the measured one, free of its last roundings."""
    return float(f"{value:.3g}") if abs(value - float(f"{value:.3g}")) < 1e-4 * value else value


_FUSED: dict[type[nn.Module], type[nn.Module]] = {}


def _fused_class(router_class: type[nn.Module]) -> type[nn.Module]:
    """A subclass that computes single rows by `route`; one for all routers of a class."""

    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        setting: RouterSetting = self.moeprof_router
        weight = getattr(self, setting.weight)
        if hidden_states.numel() != weight.shape[1] or args or kwargs:
            return router_class.forward(self, hidden_states, *args, **kwargs)
        row = hidden_states.reshape(1, -1).contiguous()
        return route(row, *setting.arguments(self))

    if router_class not in _FUSED:
        _FUSED[router_class] = type(router_class.__name__, (router_class,), {"forward": forward})
    return _FUSED[router_class]
