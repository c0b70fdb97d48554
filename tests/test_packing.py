"""Experts of a model on their way to packed bytes."""

import numpy as np
import pytest
import torch
from architectures import randomize, tiny_model

from moeprof.checkpoint.modules import find_moe_layers
from moeprof.native import Workers
from moeprof.runtime.packing import ExpertPacker


@pytest.mark.parametrize("bias_type", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_format", ["q8_0", "q4_0", "bf16"])
def test_experts_with_biases_are_packed_by_their_values_whatever_their_type(
    weight_format: str, dtype: torch.dtype, bias_type: torch.dtype
) -> None:
    model = tiny_model("gpt_oss")
    randomize(model)
    experts = find_moe_layers(model)[0]
    packer = ExpertPacker.of(experts, weight_format)
    values = {
        name: getattr(experts.module, name)[1].detach().to(bias_type if "bias" in name else dtype)
        for name in packer.layout.parameter_names
    }
    found, expected = (np.empty(packer.shape.num_bytes, np.uint8) for _ in range(2))
    packer.pack(values, found, Workers(1))
    packer.pack({name: value.float() for name, value in values.items()}, expected, Workers(1))
    np.testing.assert_array_equal(found, expected)
