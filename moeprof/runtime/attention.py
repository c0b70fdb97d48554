"""Attention of our own under ordinary transformers modules, registered under the name `moeprof`.

One query token is computed by `decode_attention`, which reads a grouped cache as it lies; several
go through torch's scaled dot product, or, where a model caps its scores or has sinks, through the
definition, a block of queries at a time.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from moeprof.errors import UnsupportedModelError
from moeprof.runtime.dense_ops import attend, attends, decode_attention

IMPLEMENTATION = "moeprof"
_QUERY_BLOCK = 256  # bounds the scores in memory, [B, H, 256, L] float32

# What modules hand through to their attention without a meaning for it: windows are in the mask.
_WITHOUT_MEANING = frozenset(
    {
        "cache_position",
        "is_causal",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "sliding_window",
        "use_cache",
    }
)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:
    """Attention as transformers' attention interface asks for it.

    Args:
        module: the attention module.
        query: [B, H, S, Dk].
        key: [B, G, L, Dk].
        value: [B, G, L, Dv].
        attention_mask: [B or 1, 1, S, L] boolean, or None for causal.
        dropout: 0, as in evaluation.
        scaling: of the scores; None for the inverse root of Dk.
        softcap: bound of the scores, or None.
        s_aux: [H], sinks, or None.
        kwargs: what else the module hands on.

    Returns:
        [B, S, H, Dv] and no weights.

    Raises:
        UnsupportedModelError: something is handed on that may change the result.
    """
    _refuse_unknown(module, dropout, kwargs)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    cap = softcap or 0.0
    sinks = None if s_aux is None else s_aux.to(query.dtype)
    if query.shape[2] == 1 and attends(query, key, value, attention_mask, sinks):
        return decode_attention(query, key, value, attention_mask, sinks, factor, cap), None
    if cap or sinks is not None:
        return _attend_in_blocks(query, key, value, attention_mask, sinks, factor, cap), None
    output: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=factor, is_causal=kwargs.get("is_causal")
    )
    return output


def _refuse_unknown(module: nn.Module, dropout: float, kwargs: dict[str, Any]) -> None:
    for name, value in kwargs.items():
        if name not in _WITHOUT_MEANING and value is not None and value is not False:
            raise UnsupportedModelError(f"{type(module).__name__}: its attention uses {name}")
    if dropout:
        raise UnsupportedModelError(f"{type(module).__name__}: its attention uses dropout")


def _attend_in_blocks(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    scaling: float,
    softcap: float,
) -> Tensor:
    num_queries = query.shape[2]
    if mask is None and num_queries > 1:
        # No mask means a prompt from its beginning; what the cache holds behind it is not there.
        keys, values = keys[:, :, :num_queries], values[:, :, :num_queries]
    places = torch.arange(num_queries, device=query.device)
    outputs = []
    for begin in range(0, num_queries, _QUERY_BLOCK):
        end = min(begin + _QUERY_BLOCK, num_queries)
        if mask is not None:
            seen: Tensor | None = mask[:, :, begin:end]
        elif num_queries > 1:
            seen = (places[None, :] <= places[begin:end, None])[None, None]
        else:
            seen = None
        block = query[:, :, begin:end]
        outputs.append(attend(block, keys, values, seen, sinks, scaling, softcap))
    return torch.cat(outputs, 1)


def use_own_attention(model: PreTrainedModel) -> str | None:
    """Switch a model's attention to ours where it goes through transformers' interface.

    Returns:
        None, or a sentence that says why the model keeps its own.
    """
    if not model._can_set_attn_implementation():
        return f"{type(model).__name__} computes attention outside transformers' interface"
    model.set_attn_implementation(IMPLEMENTATION)
    return None


AttentionInterface.register(IMPLEMENTATION, attention_forward)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
