import json
from pathlib import Path

import pytest
import torch
from architectures import randomize
from architectures import tiny_model as tiny_model_of
from builders import make_capture
from placing import make_placement
from quantising import (
    FP8_STYLES,
    Fp8Style,
    quantise_fp8,
    quantise_mxfp4,
    save_fp8,
    save_mxfp4,
    set_config,
)
from safetensors.torch import load_file, save_file
from tiny import make_tokenizer, save_model
from torch import Tensor
from transformers import FineGrainedFP8Config, GptOssConfig, GptOssForCausalLM, Mxfp4Config

from moeprof.capture.tracer import TraceRequest, trace
from moeprof.checkpoint import Checkpoint, read_checkpoint, workspace_bytes
from moeprof.checkpoint.conversion import map_checkpoint
from moeprof.checkpoint.facts import model_facts
from moeprof.checkpoint.headers import TensorEntry
from moeprof.checkpoint.modules import find_moe_layers
from moeprof.checkpoint.skeleton import auto_class, build_skeleton, load_config
from moeprof.checkpoint.stored import StoredTensor, unpack_e2m1
from moeprof.checkpoint.weights import TensorReader
from moeprof.errors import UnsupportedModelError
from moeprof.plan import PlanRequest, plan
from moeprof.runtime import load

IDS = list(range(3, 19))
TEXT = "def main(argument):\n    return argument + 1\n" * 4


def make_gpt_oss(path: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=256,
        eos_token_id=256,
        pad_token_id=256,
        initializer_range=0.3,
    )
    model = GptOssForCausalLM(config)
    randomize(model)
    model.to(dtype).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def fp8_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("fp8")
    source = save_model(folder / "source")
    save_fp8(source, folder / "quantised", folder / "plain", Fp8Style())
    return folder / "quantised", folder / "plain"


@pytest.fixture(scope="module")
def mxfp4_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("mxfp4")
    source = make_gpt_oss(folder / "source")
    save_mxfp4(source, folder / "quantised", folder / "plain")
    return folder / "quantised", folder / "plain"


@pytest.fixture
def fp8_without_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a host without GPU, transformers asks for accelerate and then makes no use of it."""
    import transformers.quantizers.quantizer_finegrained_fp8 as module

    monkeypatch.setattr(module, "is_accelerate_available", lambda: True)


def check_equal_to(checkpoint: Checkpoint, whole: torch.nn.Module, dtype: torch.dtype) -> None:
    """Each expert, read alone, equals its slice of the whole model, and no other's; so do logits.

    Args:
        checkpoint: quantised.
        whole: the same weights, dequantised, all in memory.
        dtype: in which `whole` is.
    """
    skeleton = build_skeleton(load_config(checkpoint.path), dtype)
    modules = find_moe_layers(skeleton)
    mapped = map_checkpoint(skeleton, modules, checkpoint.weights)
    merged = {experts.name: experts.module for experts in find_moe_layers(whole)}
    num_experts = checkpoint.shape.num_experts
    with TensorReader(checkpoint.path) as reader:
        for experts, sources in zip(modules, mapped.experts, strict=True):
            for expert in range(num_experts):
                read = {
                    name.rsplit(".", 1)[-1]: value.to(dtype)
                    for source in sources
                    for name, value in source.read_expert(expert, reader.read, skeleton).items()
                }
                assert {"down_proj"} < read.keys()
                for name, value in read.items():
                    parameter = getattr(merged[experts.name], name)
                    assert torch.equal(value, parameter[expert])
                    assert not torch.equal(value, parameter[(expert + 1) % num_experts])
    loaded = load(
        make_placement(checkpoint),
        checkpoint,
        device="cpu",
        dtype=str(dtype).split(".")[1],
        weight_format="stored",
    )
    whole.set_experts_implementation("eager")
    ids = torch.tensor([IDS])
    with torch.inference_mode():
        # Not bit for bit: slices of a transposed parameter are other matrices to the product.
        torch.testing.assert_close(loaded.model(ids).logits, whole(ids).logits)


def whole_model(path: Path, dtype: torch.dtype) -> torch.nn.Module:
    loader = auto_class(load_config(path))
    return loader.from_pretrained(path, dtype=dtype).eval()


# Equality with the weights that the format means


@pytest.mark.parametrize("style", FP8_STYLES)
def test_fp8_of_any_style_runs_as_the_weights_that_it_means(style: str, tmp_path: Path) -> None:
    source = save_model(tmp_path / "source")
    save_fp8(source, tmp_path / "quantised", tmp_path / "plain", FP8_STYLES[style])
    whole = whole_model(tmp_path / "plain", torch.float32)
    check_equal_to(read_checkpoint(tmp_path / "quantised"), whole, torch.float32)


@pytest.mark.parametrize("model_type", ["deepseek_v3", "mixtral", "qwen2_moe", "qwen3_vl_moe"])
def test_fp8_of_an_architecture_runs_as_the_weights_that_it_means(
    model_type: str, tmp_path: Path
) -> None:
    # 24 columns of the experts and 24 rows of keys and values end in a short block of 16
    tiny_model_of(model_type).save_pretrained(tmp_path / "source")
    style = Fp8Style(block=(16, 16))
    save_fp8(tmp_path / "source", tmp_path / "quantised", tmp_path / "plain", style)
    whole = whole_model(tmp_path / "plain", torch.float32)
    check_equal_to(read_checkpoint(tmp_path / "quantised"), whole, torch.float32)


def test_mxfp4_runs_as_the_weights_that_it_means(mxfp4_pair: tuple[Path, Path]) -> None:
    quantised, plain = mxfp4_pair
    check_equal_to(read_checkpoint(quantised), whole_model(plain, torch.bfloat16), torch.bfloat16)


# Equality with transformers' own dequantised load of the same files


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["qwen3_moe", "deepseek_v3"])
@pytest.mark.usefixtures("fp8_without_accelerate")
def test_fp8_runs_as_transformers_loads_it(
    model_type: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    # What is not quantised is stored in the model's type: transformers does not cast it.
    tiny_model_of(model_type).to(dtype).save_pretrained(tmp_path / "source")
    save_fp8(tmp_path / "source", tmp_path / "quantised", tmp_path / "plain", Fp8Style())
    loader = auto_class(load_config(tmp_path / "quantised"))
    whole = loader.from_pretrained(
        tmp_path / "quantised",
        dtype=dtype,
        quantization_config=FineGrainedFP8Config(dequantize=True),
    )
    check_equal_to(read_checkpoint(tmp_path / "quantised"), whole.eval(), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mxfp4_runs_as_transformers_loads_it(
    mxfp4_pair: tuple[Path, Path], dtype: torch.dtype
) -> None:
    whole = GptOssForCausalLM.from_pretrained(
        mxfp4_pair[0], dtype=dtype, quantization_config=Mxfp4Config(dequantize=True)
    )
    if dtype == torch.float32:
        whole.float()  # some versions stop at bfloat16, in which values and scales are exact
    check_equal_to(read_checkpoint(mxfp4_pair[0]), whole.eval(), dtype)


# Formats, by hand


def test_two_values_of_a_byte_are_read_low_bits_first() -> None:
    # 0x21: low 1 -> 0.5, high 2 -> 1.0; 0xF7: low 7 -> 6.0, high 15 -> -6.0; 0x98: -0.0, -0.5
    packed = torch.tensor([[0x21, 0xF7, 0x98]], dtype=torch.uint8)
    expected = torch.tensor([[0.5, 1.0, 6.0, -6.0, -0.0, -0.5]])
    found = unpack_e2m1(packed)
    assert torch.equal(found, expected)
    assert torch.signbit(found).tolist() == [[False, False, False, True, True, True]]
    assert torch.equal(unpack_e2m1(packed.view(torch.int8)), expected)


def stored(values: Tensor, scales: Tensor, dtype: str, block: tuple[int, int] | None) -> Tensor:
    entries = [
        TensorEntry(name, "", tuple(t.shape), "file", t.nbytes)
        for name, t in (("w", values), ("s", scales))
    ]
    return StoredTensor("w", *entries, block, dtype).decode(values, scales)


def test_packed_e2m1_values_have_a_scale_for_each_32() -> None:
    packed = torch.full((2, 32), 0x21, dtype=torch.int8)
    scales = torch.tensor([[1.0, 2.0], [4.0, 0.5]])
    found = stored(packed, scales, "float4_e2m1", (128, 128))
    assert found.shape == (2, 64)
    assert found[0].tolist() == [0.5, 1.0] * 16 + [1.0, 2.0] * 16
    assert found[1].tolist() == [2.0, 4.0] * 16 + [0.25, 0.5] * 16


def test_mxfp4_blocks_are_transposed_and_scaled() -> None:
    # one expert, 2 rows of 2 groups of 32; exponents 127 -> 1, 128 -> 2, 126 -> 1/2, 0 -> 2^-127
    blocks = torch.full((1, 2, 2, 16), 0x42, dtype=torch.uint8)
    scales = torch.tensor([[[127, 128], [126, 0]]], dtype=torch.uint8)
    found = stored(blocks, scales, "mxfp4", None)
    assert found.shape == (1, 64, 2)
    assert found.dtype == torch.bfloat16
    assert found[0, :32, 0].tolist() == [1.0, 2.0] * 16
    assert found[0, 32:, 0].tolist() == [2.0, 4.0] * 16
    assert found[0, :32, 1].tolist() == [0.5, 1.0] * 16
    assert found[0, 32:, 1].tolist() == [2.0**-127, 2.0**-126] * 16


@pytest.mark.parametrize("size", [(8, 16), (9, 20), (3, 5), (12, 8)])
def test_short_last_blocks_are_those_of_the_config(size: tuple[int, int]) -> None:
    style = Fp8Style(block=(8, 8))
    weight = torch.randn(size, generator=torch.manual_seed(1))
    values, scales, meaning = quantise_fp8(weight, style)
    assert torch.equal(stored(values, scales, "float8_e4m3fn", style.block), meaning)


@pytest.mark.parametrize("shape", [(3, 2), (2,), (2, 2, 2)])
def test_scales_that_fit_no_blocks_are_refused(shape: tuple[int, ...]) -> None:
    values = torch.zeros((16, 16), dtype=torch.float8_e4m3fn)
    with pytest.raises(UnsupportedModelError, match=r"w: a weight of shape \[16, 16\] has scales"):
        stored(values, torch.ones(shape), "float8_e4m3fn", (8, 8))


# Facts


def test_experts_and_the_rest_are_all_bytes_of_an_fp8_file(fp8_pair: tuple[Path, Path]) -> None:
    shape = read_checkpoint(fp8_pair[0]).shape
    # 3 matrices of 32 x 16 values of a byte, with 4 x 2 scales of 4 bytes each
    assert shape.expert_bytes == (3 * (32 * 16 + 4 * 2 * 4),) * 2
    assert shape.dtype == "float8_e4m3fn"
    tensors = load_file(fp8_pair[0] / "model.safetensors").values()
    assert shape.total_expert_bytes + shape.dense_bytes == sum(t.nbytes for t in tensors)


def test_experts_and_the_rest_are_all_bytes_of_an_mxfp4_file(
    mxfp4_pair: tuple[Path, Path],
) -> None:
    checkpoint = read_checkpoint(mxfp4_pair[0])
    shape = checkpoint.shape
    # 3 x 64 x 32 values of half a byte, a scale for each 32; 128 + 32 biases of 2 bytes
    assert shape.expert_bytes == (3 * 64 * 32 // 2 + 3 * 64 * 32 // 32 + 160 * 2,) * 2
    assert (shape.dtype, checkpoint.compute_dtype) == ("mxfp4", "bfloat16")
    tensors = load_file(mxfp4_pair[0] / "model.safetensors").values()
    assert shape.total_expert_bytes + shape.dense_bytes == sum(t.nbytes for t in tensors)


def test_decoded_weights_outside_the_experts_are_planned_for(fp8_pair: tuple[Path, Path]) -> None:
    quantised, plain = (
        model_facts(path, PlanRequest(vram_bytes=10**7, context_tokens=64)) for path in fp8_pair
    )
    held = load(make_placement(read_checkpoint(fp8_pair[0])), device="cpu", dtype="float32")
    assert quantised.dense_bytes == sum(p.nbytes for p in held.model.parameters())
    assert quantised.dense_bytes == plain.dense_bytes > quantised.shape.dense_bytes


def test_workspace_does_not_follow_how_weights_are_stored(fp8_pair: tuple[Path, Path]) -> None:
    quantised, plain = (workspace_bytes(path, 64, 2) for path in fp8_pair)
    assert quantised == plain


def test_quantised_and_plain_checkpoints_have_different_fingerprints(
    fp8_pair: tuple[Path, Path],
) -> None:
    quantised, plain = (read_checkpoint(path).fingerprint for path in fp8_pair)
    assert quantised != plain


@pytest.mark.parametrize("kind", ["fp8", "mxfp4"])
def test_a_quantised_checkpoint_is_traced_planned_and_run(
    kind: str, fp8_pair: tuple[Path, Path], mxfp4_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    quantised, plain = fp8_pair if kind == "fp8" else mxfp4_pair
    (tmp_path / "text.txt").write_text(TEXT)
    data = (f"d={tmp_path / 'text.txt'}",)
    capture = make_capture(sequence_length=50, dtype="auto")
    traces = [
        trace(TraceRequest(str(model), data, tmp_path / name, capture))
        for model, name in ((quantised, "quantised"), (plain, "plain"))
    ]
    for layer in traces[0].shape.moe_layers:
        first, second = (found.routing(layer, "d").experts.tolist() for found in traces)
        assert first == second
    shape = traces[0].shape
    request = PlanRequest(vram_bytes=10**7, context_tokens=256)
    placement = plan(traces[0], model_facts(quantised, request), request)
    assert {layer.expert_bytes for layer in placement.layers} == set(shape.expert_bytes)
    step = load(placement, device="cpu").forward(IDS, "prefill")
    assert step.logits.isfinite().all()


# Refusals


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "GPTQ"),
        ({"quant_method": "awq", "bits": 4}, "AWQ"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ({"quant_method": "novel"}, "novel"),
        ({"bits": 4}, "a method that it does not name"),
    ],
)
def test_an_unsupported_kind_is_refused_by_name(
    settings: dict[str, object], name: str, tmp_path: Path
) -> None:
    path = save_model(tmp_path / "model")
    set_config(path, quantization_config=settings)
    with pytest.raises(UnsupportedModelError, match=f"quantised with {name}, which") as caught:
        read_checkpoint(path)
    assert "bfloat16, FP8 (block scales) or MXFP4" in caught.value.hint


@pytest.mark.parametrize("size", [[128], "128", [0, 128], [128, 1.5]])
def test_an_impossible_block_size_is_refused(size: object, tmp_path: Path) -> None:
    path = save_model(tmp_path / "model")
    set_config(path, quantization_config={"quant_method": "fp8", "weight_block_size": size})
    with pytest.raises(UnsupportedModelError, match="weight_block_size"):
        read_checkpoint(path)


def test_blocks_without_scales_are_refused(mxfp4_pair: tuple[Path, Path], tmp_path: Path) -> None:
    tensors = load_file(mxfp4_pair[0] / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.down_proj_scales"]
    (tmp_path / "config.json").write_bytes((mxfp4_pair[0] / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match="down_proj_blocks' has no scales"):
        read_checkpoint(tmp_path)


def test_a_quantised_weight_without_scales_is_refused(
    fp8_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    tensors = load_file(fp8_pair[0] / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.3.up_proj.weight_scale_inv"]
    (tmp_path / "config.json").write_bytes((fp8_pair[0] / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"experts\.3\.up_proj.* has no scales"):
        read_checkpoint(tmp_path)


def test_settings_of_the_text_model_count(tmp_path: Path) -> None:
    path = save_model(tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    config["text_config"] = {"quantization_config": {"quant_method": "gptq"}}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="GPTQ"):
        read_checkpoint(path)


def test_the_meaning_of_mxfp4_is_near_the_weight() -> None:
    weight = torch.randn((2, 64, 6), generator=torch.manual_seed(0))
    meaning = quantise_mxfp4(weight)[2]
    # E2M1 steps are at most 2 of 6 .. 8 at the top of a group
    assert ((meaning - weight).abs() <= weight.abs().amax() / 3).all()
