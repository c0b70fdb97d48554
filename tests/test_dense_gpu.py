"""The kernels of a decode step outside the experts, against their definitions in float64."""

import numpy as np
import pytest
import torch

from moeprof.runtime.dense_ops import (
    attend,
    attends,
    decode_attention,
    q8_row_products,
    q8_values,
    route,
    route_rows,
)
from moeprof.runtime.dense_ops import row_products as products

pytestmark = pytest.mark.gpu

# Roundings of the result, and of sums in float32, relative to the largest value of a row.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
DTYPES = list(TOLERANCE)


def randn(*shape, dtype, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator)).to(dtype)


def check_attention(query, keys, values, mask=None, sinks=None, softcap=0.0):
    scaling = query.shape[-1] ** -0.5
    exact = [t.double() if t is not None else None for t in (query, keys, values)]
    wide_sinks = None if sinks is None else sinks.double()
    expected = attend(*exact, mask, wide_sinks, scaling, softcap)
    hidden_keys, hidden_values = keys.clone(), values.clone()
    if mask is not None:
        # What is hidden must not even be looked at.
        seen = mask[:, 0, 0].expand(keys.shape[0], -1)
        hidden_keys.masked_fill_(~seen[:, None, :, None], torch.nan)
        hidden_values.masked_fill_(~seen[:, None, :, None], torch.nan)
    on_device = [
        t.cuda() if t is not None else None
        for t in (query, hidden_keys, hidden_values, mask, sinks)
    ]
    assert attends(*on_device)
    found = decode_attention(*on_device, scaling, softcap)
    again = decode_attention(*on_device, scaling, softcap)
    assert torch.equal(found, again), "the same bits every time"
    assert found.shape == expected.shape
    error = (found.cpu().double() - expected).abs()
    allowed = TOLERANCE[query.dtype] * (1e-2 + expected.abs()) + 1e-5
    assert (error <= allowed).all(), f"largest error {error.max()}, at {error.argmax()}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes", [(64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (256, 256)]
)
@pytest.mark.parametrize("shared_by", [1, 2, 4, 6, 8, 12, 16])
def test_attention_of_every_head_size_and_group(dtype, sizes, shared_by):
    groups, length = 2, 200
    check_attention(
        randn(1, groups * shared_by, 1, sizes[0], dtype=dtype, seed=1),
        randn(1, groups, length, sizes[0], dtype=dtype, seed=2),
        randn(1, groups, length, sizes[1], dtype=dtype, seed=3),
    )


@pytest.mark.parametrize("length", [1, 63, 64, 65, 1000, 5000, 20000])
@pytest.mark.parametrize("seen", ["all", "first", "window", "holes", "one"])
def test_attention_reads_what_the_mask_shows(length, seen):
    generator = torch.Generator().manual_seed(length)
    mask = torch.zeros((2, 1, 1, length), dtype=torch.bool)
    if seen == "all":
        mask[:] = True
    elif seen == "first":
        mask[0, ..., : length // 2 + 1] = True
        mask[1, ..., : length // 3 + 1] = True
    elif seen == "window":
        mask[0, ..., length // 3 : length // 3 + 100] = True
        mask[1, ..., length // 2 : length // 2 + 7] = True
    elif seen == "holes":
        mask[:] = torch.rand(mask.shape, generator=generator) < 0.3
        mask[..., 0] = True
    else:
        mask[..., length - 1] = True
    check_attention(
        randn(2, 16, 1, 128, dtype=torch.bfloat16, seed=4, scale=2.0),
        randn(2, 2, length, 128, dtype=torch.bfloat16, seed=5),
        randn(2, 2, length, 128, dtype=torch.bfloat16, seed=6),
        mask,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("sinks", [False, True])
def test_attention_with_capped_scores_and_sinks(dtype, softcap, sinks):
    mask = torch.arange(300)[None, None, None] < 250
    check_attention(
        randn(1, 64, 1, 64, dtype=dtype, seed=7, scale=3.0),
        randn(1, 8, 300, 64, dtype=dtype, seed=8, scale=3.0),
        randn(1, 8, 300, 64, dtype=dtype, seed=9),
        mask,
        randn(64, dtype=dtype, seed=10, scale=4.0) if sinks else None,
        softcap,
    )


def test_attention_that_sees_nothing_gives_zeros():
    mask = torch.ones((2, 1, 1, 100), dtype=torch.bool)
    mask[1] = False
    check_attention(
        randn(2, 8, 1, 128, dtype=torch.bfloat16, seed=1),
        randn(2, 1, 100, 128, dtype=torch.bfloat16, seed=2),
        randn(2, 1, 100, 128, dtype=torch.bfloat16, seed=3),
        mask,
    )


def test_attention_takes_the_strides_of_transformers_states():
    query = randn(1, 1, 8, 128, dtype=torch.bfloat16, seed=1).transpose(1, 2)
    states = randn(1, 2, 70, 256, dtype=torch.bfloat16, seed=2)
    scaling = 128**-0.5
    expected = attend(
        query.double(), states[..., :128].double(), states[..., 128:].double(), None, None,
        scaling, 0.0,
    )  # fmt: skip
    device = states.cuda()
    found = decode_attention(
        query.cuda(), device[..., :128], device[..., 128:], None, None, scaling, 0.0
    )
    assert (found.cpu().double() - expected).abs().max() < 2**-7


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [8, 24, 768, 2048, 4104])
@pytest.mark.parametrize(
    "rows", [[1], [128], [1030], [4096, 512, 512], [5000, 7, 1, 3], [17000], [1500, 33000]]
)
def test_row_products(dtype, columns, rows):
    row = randn(1, 1, columns, dtype=dtype, seed=1)
    weights = [randn(n, columns, dtype=dtype, seed=2 + i) for i, n in enumerate(rows)]
    biases = [randn(n, dtype=dtype, seed=9 + i) if i % 2 else None for i, n in enumerate(rows)]
    device = [bias if bias is None else bias.cuda() for bias in biases]
    found = products(row.cuda(), [weight.cuda() for weight in weights], device)
    for output, weight, bias in zip(found, weights, biases, strict=True):
        expected = weight.double() @ row.double().flatten()
        expected = expected if bias is None else expected + bias.double()
        assert output.shape == (1, 1, len(expected))
        error = (output.cpu().double().flatten() - expected).abs()
        allowed = TOLERANCE[dtype] * expected.abs() + 3e-6 * columns**0.5
        assert (error <= allowed).all(), f"largest error {error.max()}, at {error.argmax()}"


@pytest.mark.parametrize("experts", [3, 32, 128, 160, 512, 1000])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(
    ("element", "logit_dtype", "weight_dtype"),
    [
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.float32, torch.float32),
        (torch.float16, torch.float16, torch.float32),
    ],
)
def test_route(experts, score, normalized, element, logit_dtype, weight_dtype):
    columns, top_k = 2048, min(8, experts)
    row = randn(1, columns, dtype=element, seed=experts)
    weight = randn(experts, columns, dtype=element, seed=1, scale=0.05)
    bias = randn(experts, dtype=element, seed=2) if experts % 3 else None
    correction = randn(experts, dtype=torch.float32, seed=3) if experts % 2 == 0 else None
    rest = (logit_dtype, weight_dtype, top_k, score, normalized, 2.5)
    device = [t if t is None else t.cuda() for t in (row, weight, bias, correction)]
    logits, weights, ids = (t.cpu() for t in route(*device, *rest))
    exact = weight.double() @ row.double().flatten()
    exact = exact if bias is None else exact + bias.double()
    error = (logits.double().flatten() - exact).abs()
    assert (error <= TOLERANCE[logit_dtype] * exact.abs() + 1e-4).all()
    # The choice follows from the logits; the definition is given the very logits it was made from.
    eye = torch.eye(experts)
    _, own_weights, own_ids = route_rows(
        logits.float(), eye, None, correction, torch.float32, weight_dtype, *rest[2:]
    )
    np.testing.assert_array_equal(ids, own_ids)
    torch.testing.assert_close(
        weights.float(), own_weights.float(), rtol=2 * TOLERANCE[weight_dtype] + 1e-5, atol=0
    )


def test_equal_scores_are_chosen_by_ascending_id():
    row, weight = torch.zeros((1, 64)).cuda(), torch.ones((70, 64)).cuda()
    _, weights, ids = route(
        row, weight, None, None, torch.float32, torch.float32, 5, "softmax", True, 1.0
    )
    assert ids.tolist() == [[0, 1, 2, 3, 4]]
    torch.testing.assert_close(weights.cpu(), torch.full((1, 5), 0.2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [32, 96, 768, 2048, 4128])
@pytest.mark.parametrize(
    "rows", [[32], [128], [1030], [4096, 512, 512], [5000, 7, 1, 3], [17000], [1500, 33000]]
)
def test_q8_row_products(dtype, columns, rows):
    row = randn(1, 1, columns, dtype=dtype, seed=1)
    generator = torch.Generator().manual_seed(2)
    weights = [
        torch.randint(1, 256, (n, columns), generator=generator, dtype=torch.uint8) for n in rows
    ]
    scales = [randn(n, columns // 32, dtype=torch.float16, seed=3 + i) for i, n in enumerate(rows)]
    biases = [randn(n, dtype=dtype, seed=9 + i) if i % 2 else None for i, n in enumerate(rows)]
    on_device = [[t if t is None else t.cuda() for t in part] for part in (weights, scales, biases)]
    found = q8_row_products(row.cuda(), *on_device)
    again = q8_row_products(row.cuda(), *on_device)
    for output, same, weight, scale, bias in zip(
        found, again, weights, scales, biases, strict=True
    ):
        values = q8_values(weight, scale).double()
        expected = values @ row.double().flatten()
        expected = expected if bias is None else expected + bias.double()
        assert output.shape == (1, 1, len(expected))
        assert torch.equal(output, same), "the same bits every time"
        error = (output.cpu().double().flatten() - expected).abs()
        # of the result, and of sums of so many products in float32
        room = 2**-23 * columns**0.5 * (values.abs() @ row.double().abs().flatten())
        allowed = TOLERANCE[dtype] * expected.abs() + room
        assert (error <= allowed).all(), f"largest error {error.max()}, at {error.argmax()}"
