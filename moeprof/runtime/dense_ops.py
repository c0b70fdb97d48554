"""What a decode step computes outside the experts, as torch operations of our own.

Each is opaque to torch.compile, runs our kernel on CUDA, and has a definition in plain torch that
runs everywhere else and that the kernels are tested against.
"""

from functools import cache

import torch
from torch import Tensor
from torch.library import custom_op

from moeprof.runtime.kernel_call import ELEMENT_NAMES

# Added to a sum that divides, so that a router whose scores all vanish gives zeros.
_TINY = 1e-20


try:
    from moeprof.native import _cuda as _kernels
except ImportError:  # built without a CUDA compiler
    _kernels = None  # type: ignore[assignment]

# Plain values: torch.compile cannot look into the module.
HAS_KERNELS = _kernels is not None
_MOST_HEAD_SIZE: int = getattr(_kernels, "MOST_HEAD_SIZE", 0)
_CHUNK_BYTES = 16


@cache
def _workspace(device: torch.device, kind: str, num_words: int) -> Tensor:
    """Memory, zero at first, that launches of one kind use one after the other.

    A first launch inside a capture would leave it to the graph, so there must be one before.
    """
    del kind
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("an operation must run once before it is captured")
    return torch.zeros(num_words, dtype=torch.int32, device=device)


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@custom_op("moeprof::decode_attention", mutates_args=())
def decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    scaling: float,
    softcap: float,
) -> Tensor:
    """Attention of one query token per sequence over a cache with grouped heads.

    Args:
        query: [B, H, 1, Dk] floating.
        keys: [B, G, L, Dk], H a multiple of G; head h reads group h // (H / G).
        values: [B, G, L, Dv].
        mask: [B or 1, 1, 1, L] boolean, true where a position is seen; None where all are.
        sinks: [H], a logit per head that takes probability and adds nothing, or None.
        scaling: of the scores.
        softcap: scores become softcap * tanh(score / softcap); 0 for none.

    Returns:
        [B, 1, H, Dv] contiguous, in the type of `query`; zeros where nothing is seen.
    """
    if query.is_cuda:
        return _attend_on_device(query, keys, values, mask, sinks, scaling, softcap)
    return attend(query, keys, values, mask, sinks, scaling, softcap)


@decode_attention.register_fake
def _(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    scaling: float,
    softcap: float,
) -> Tensor:
    del keys, mask, sinks, scaling, softcap
    return query.new_empty((query.shape[0], 1, query.shape[1], values.shape[3]))


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    scaling: float,
    softcap: float,
) -> Tensor:
    """The definition of `decode_attention`, for any number of query tokens, in float32.

    Args:
        query: [B, H, S, Dk] floating.
        keys: as in `decode_attention`.
        values: as in `decode_attention`.
        mask: [B or 1, 1, S, L] boolean, or None.
        sinks: as in `decode_attention`.
        scaling: as in `decode_attention`.
        softcap: as in `decode_attention`.

    Returns:
        [B, S, H, Dv] contiguous, in the type of `query`.
    """
    batch, heads, num_queries, _ = query.shape
    groups = keys.shape[1]
    work = torch.promote_types(query.dtype, torch.float32)
    grouped = query.to(work).reshape(batch, groups, heads // groups * num_queries, -1)
    scores = grouped @ keys.to(work).transpose(2, 3) * scaling
    scores = scores.reshape(batch, heads, num_queries, -1)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        column = sinks.to(work).reshape(1, heads, 1, 1).expand(batch, -1, num_queries, -1)
        scores = torch.cat((scores, column), -1)
    weights = scores.softmax(-1).nan_to_num(0.0)[..., : keys.shape[2]]
    weights = weights.reshape(batch, groups, heads // groups * num_queries, -1)
    output = (weights @ values.to(work)).reshape(batch, heads, num_queries, -1)
    return output.transpose(1, 2).to(query.dtype).contiguous()


def _attend_on_device(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    scaling: float,
    softcap: float,
) -> Tensor:
    batch, heads, _, key_size = query.shape
    shape = (batch, heads, *keys.shape[1:3], key_size, values.shape[3])
    _, num_floats, num_tickets = _kernels.attention_workspace(shape)
    stream = _stream(query.device)
    partial = _workspace(query.device, "attention", num_floats)
    tickets = _workspace(query.device, "attention tickets", num_tickets)
    output = query.new_empty((batch, 1, heads, values.shape[3]))
    addresses = [_address(t) for t in (query, keys, values, mask, sinks, output, partial, tickets)]
    mask_stride = mask.stride(0) if mask is not None and mask.shape[0] == batch else 0
    strides = (*query.stride()[:2], *keys.stride()[:3], *values.stride()[:3], mask_stride)
    _kernels.decode_attention(
        addresses, shape, strides, ELEMENT_NAMES[query.dtype], scaling, softcap, stream
    )
    return output


def attends(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, sinks: Tensor | None
) -> bool:
    """Whether `decode_attention` computes these tensors; its arguments."""
    if query.shape[2] != 1 or query.shape[1] % keys.shape[1]:
        return False
    if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape[1:3]) != (1, 1)):
        return False
    if any(t.dtype != query.dtype for t in (keys, values, *([] if sinks is None else [sinks]))):
        return False
    if any(t.stride(3) != 1 for t in (query, keys, values)):
        return False
    if not query.is_cuda:
        return True
    unit = _CHUNK_BYTES // query.element_size()
    return (
        HAS_KERNELS
        and query.dtype in ELEMENT_NAMES
        and (mask is None or mask.stride(3) == 1)
        and all(
            0 < t.shape[3] <= _MOST_HEAD_SIZE and t.shape[3] % unit == 0 for t in (keys, values)
        )
    )


def _empty_products(row: Tensor, weights: list[Tensor]) -> list[Tensor]:
    return [row.new_empty((*row.shape[:-1], weight.shape[0])) for weight in weights]


def _launch_row_products(
    row: Tensor, weights: list[Tensor], biases: list[Tensor | None], scales: list[Tensor]
) -> list[Tensor]:
    """The products on a device; without scales, matrices are in the type of `row`."""
    outputs = _empty_products(row, weights)
    _kernels.row_products(
        row.data_ptr(),
        [weight.data_ptr() for weight in weights],
        [_address(bias) for bias in biases],
        [output.data_ptr() for output in outputs],
        [weight.shape[0] for weight in weights],
        row.shape[-1],
        ELEMENT_NAMES[row.dtype],
        _stream(row.device),
        [scale.data_ptr() for scale in scales],
    )
    return outputs


@custom_op("moeprof::row_products", mutates_args=())
def row_products(row: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> list[Tensor]:
    """Products of up to four matrices with the same row.

    Args:
        row: [..., K] with one row, contiguous.
        weights: each [N, K] in the type of `row`, contiguous.
        biases: each [N], or None.

    Returns:
        For each matrix [..., N] in the type of `row`.
    """
    if not row.is_cuda:
        return [
            torch.nn.functional.linear(row, weight, bias)
            for weight, bias in zip(weights, biases, strict=True)
        ]
    return _launch_row_products(row, weights, biases, [])


@row_products.register_fake
def _(row: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> list[Tensor]:
    del biases
    return _empty_products(row, weights)


@custom_op("moeprof::q8_row_products", mutates_args=())
def q8_row_products(
    row: Tensor, weights: list[Tensor], scales: list[Tensor], biases: list[Tensor | None]
) -> list[Tensor]:
    """As `row_products`, of matrices in `q8_0`.

    Args:
        row: [..., K] with one row, contiguous, K a multiple of 32.
        weights: each [N, K] uint8, integers plus 128, contiguous.
        scales: each [N, K / 32] float16, contiguous.
        biases: each [N] in the type of `row`, or None.

    Returns:
        For each matrix [..., N] in the type of `row`; summed in float32.
    """
    if not row.is_cuda:
        return [
            torch.nn.functional.linear(
                row.float(), q8_values(weight, scale), None if bias is None else bias.float()
            ).to(row.dtype)
            for weight, scale, bias in zip(weights, scales, biases, strict=True)
        ]
    return _launch_row_products(row, weights, biases, scales)


@q8_row_products.register_fake
def _(
    row: Tensor, weights: list[Tensor], scales: list[Tensor], biases: list[Tensor | None]
) -> list[Tensor]:
    del scales, biases
    return _empty_products(row, weights)


def q8_values(weight: Tensor, scale: Tensor) -> Tensor:
    """[N, K] float32, exact: what a matrix in `q8_0` stands for; its parts as `q8_row_products`."""
    blocks = weight.view(*scale.shape, -1).to(torch.float32) - 128
    return (blocks * scale.to(torch.float32)[..., None]).view(weight.shape)


@custom_op("moeprof::route", mutates_args=())
def route(
    row: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    correction: Tensor | None,
    logit_dtype: torch.dtype,
    weight_dtype: torch.dtype,
    top_k: int,
    score: str,
    normalized: bool,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """A plain router for one token.

    Scores are the softmax or the sigmoid of the logits; the `top_k` experts with the largest
    score + correction are chosen, in descending order, equal ones by ascending id.

    Args:
        row: [1, K] floating, contiguous.
        weight: [E, K] floating, contiguous.
        bias: [E] in the type of `weight`, added to the logits, or None.
        correction: [E] float32, only for choosing, or None.
        logit_dtype: logits are rounded to it before they are scored.
        weight_dtype: of the weights.
        top_k: at most 32.
        score: `softmax` or `sigmoid`.
        normalized: weights are divided by their sum.
        scaling: of the weights.

    Returns:
        Logits [1, E], weights [1, top_k] and ids [1, top_k] int64.
    """
    if not row.is_cuda:
        return route_rows(
            row, weight, bias, correction, logit_dtype, weight_dtype, top_k, score, normalized,
            scaling,
        )  # fmt: skip
    experts, columns = weight.shape
    logits = row.new_empty((1, experts), dtype=logit_dtype)
    weights = row.new_empty((1, top_k), dtype=weight_dtype)
    ids = row.new_empty((1, top_k), dtype=torch.int64)
    stream = _stream(row.device)
    ticket = _workspace(row.device, "route ticket", 1)
    tensors = (row, weight, bias, correction, logits, weights, ids, ticket)
    _kernels.route(
        [_address(tensor) for tensor in tensors],
        [ELEMENT_NAMES[dtype] for dtype in (row.dtype, weight.dtype, logit_dtype, weight_dtype)],
        (columns, experts, top_k),
        score,
        normalized,
        scaling,
        stream,
    )
    return logits, weights, ids


@route.register_fake
def _(
    row: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    correction: Tensor | None,
    logit_dtype: torch.dtype,
    weight_dtype: torch.dtype,
    top_k: int,
    score: str,
    normalized: bool,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    del bias, correction, score, normalized, scaling
    return (
        row.new_empty((1, weight.shape[0]), dtype=logit_dtype),
        row.new_empty((1, top_k), dtype=weight_dtype),
        row.new_empty((1, top_k), dtype=torch.int64),
    )


def route_rows(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    correction: Tensor | None,
    logit_dtype: torch.dtype,
    weight_dtype: torch.dtype,
    top_k: int,
    score: str,
    normalized: bool,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition of `route`, for any number of rows.

    Args:
        rows: [T, K] floating.
        weight: as in `route`, like all that follow.
        bias: see there.
        correction: see there.
        logit_dtype: see there.
        weight_dtype: see there.
        top_k: see there.
        score: see there.
        normalized: see there.
        scaling: see there.

    Returns:
        Logits [T, E], weights [T, top_k] and ids [T, top_k] int64.
    """
    work = torch.promote_types(rows.dtype, logit_dtype)
    logits = torch.nn.functional.linear(
        rows.to(work), weight.to(work), None if bias is None else bias.to(work)
    ).to(logit_dtype)
    exact = logits.float()
    scores = exact.softmax(-1) if score == "softmax" else exact.sigmoid()
    choice = scores if correction is None else scores + correction
    ids = torch.sort(choice, dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = scores.gather(1, ids)
    if normalized:
        weights = weights / (weights.sum(-1, keepdim=True) + _TINY)
    return logits, (weights * scaling).to(weight_dtype), ids
