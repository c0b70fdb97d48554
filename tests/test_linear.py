"""One packed matrix on the processor: every path gives the bits of the definition."""

import numpy as np
import pytest
import torch
from kernel_cases import FORMATS, PATHS, make_rows, on_a_line

from moeprof.native import Workers, multiply_packed, reference

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def multiply(
    stored: np.ndarray,
    rows: torch.Tensor,
    weight_format: str,
    path: str,
    bias: np.ndarray | None = None,
    num_threads: int = 2,
) -> torch.Tensor:
    packed = on_a_line(reference.pack_rows(stored, weight_format).ravel())
    output = torch.full((len(rows), len(stored)), 7.0, dtype=rows.dtype)
    name = next(name for name, dtype in DTYPES.items() if dtype == rows.dtype)
    multiply_packed(
        Workers(num_threads),
        packed.ctypes.data,
        0 if bias is None else bias.ctypes.data,
        len(stored),
        rows.shape[1],
        weight_format,
        rows.data_ptr(),
        name,
        len(rows),
        output.data_ptr(),
        path,
    )
    return output


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize(("num_rows", "row_size"), [(32, 32), (96, 288), (64, 768)])
def test_few_and_many_tokens_give_the_bits_of_the_definition(
    num_rows: int, row_size: int, weight_format: str, path: str
) -> None:
    stored = reference.quantize(make_rows(1, num_rows, row_size), weight_format)
    bias = np.random.default_rng(2).standard_normal(num_rows).astype(np.float32)
    rows = make_rows(3, 70, row_size)
    sums = reference.project(stored, rows, weight_format)
    for num_tokens in (1, 3, 8, 9, 70):
        # The matrix unit sums bf16 products in an order of its own.
        if path == "amx" and weight_format == "bf16" and num_tokens > 8:
            continue
        given = torch.from_numpy(rows[:num_tokens])
        found = multiply(stored, given, weight_format, path)
        np.testing.assert_array_equal(found.numpy(), sums[:num_tokens])
        found = multiply(stored, given, weight_format, path, bias, num_threads=3)
        np.testing.assert_array_equal(found.numpy(), sums[:num_tokens] + bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_tokens", [1, 12])
def test_narrow_types_are_widened_and_rounded_half_to_even(
    dtype: torch.dtype, num_tokens: int
) -> None:
    stored = reference.quantize(make_rows(1, 64, 96) * 0.1, "q8_0")
    rows = torch.from_numpy(make_rows(2, num_tokens, 96)).to(dtype)
    sums = reference.project(stored, rows.float().numpy(), "q8_0")
    found = multiply(stored, rows, "q8_0", PATHS[-1])
    assert torch.equal(found, torch.from_numpy(sums).to(dtype))


@pytest.mark.parametrize("num_tokens", [1, 12])
def test_a_value_that_is_not_finite_is_refused(num_tokens: int) -> None:
    stored = reference.quantize(make_rows(1, 32, 64), "q8_0")
    rows = torch.from_numpy(make_rows(2, num_tokens, 64))
    rows[-1, 40] = torch.inf
    with pytest.raises(ValueError, match="activations: a value is not finite"):
        multiply(stored, rows, "q8_0", PATHS[-1])


def test_sizes_that_are_no_whole_blocks_are_refused() -> None:
    stored = reference.quantize(make_rows(1, 30, 64), "q8_0")
    with pytest.raises(ValueError, match="rows of the matrix"):
        multiply(stored, torch.zeros((1, 64)), "q8_0", PATHS[-1])
