"""The routing tap: what it records on eleven unlike architectures, and what it refuses."""

import pytest
import torch
from architectures import SHORT_SELECTION, installed, tiny_model
from routing_checks import check_architecture, padded_batch, record
from transformers import LlamaConfig, LlamaForCausalLM, SwitchTransformersConfig
from transformers import SwitchTransformersForConditionalGeneration as SwitchTransformers
from transformers.integrations.mxfp4 import Mxfp4GptOssExperts

from moeprof.capture.routing import RoutingTap, moe_shape
from moeprof.checkpoint.modules import layer_index
from moeprof.errors import UnsupportedModelError
from moeprof.native import NO_EXPERT

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

TOKENS = torch.tensor([[5, 6, 7, 8]])


@pytest.mark.parametrize("model_type", installed(SHORT_SELECTION))
def test_recorded_routing_is_what_the_model_used(model_type):
    check_architecture(model_type)


@pytest.mark.parametrize("model_type", ["zaya", "longcat_flash"])
def test_a_slot_without_an_expert_is_marked(model_type):
    model = tiny_model(model_type)
    ids, mask = padded_batch()
    tap, (routed,), _ = record(model, lambda: model(input_ids=ids, attention_mask=mask))
    chosen = routed.ids[routed.ids != NO_EXPERT]
    assert 0 < chosen.numel() < routed.ids.numel()
    assert int(chosen.max()) < tap.num_experts


def test_layers_are_checkpoint_indices_and_dense_layers_are_absent():
    assert moe_shape(tiny_model("deepseek_v3")) == ((1, 2, 3), 8)
    assert moe_shape(tiny_model("llama4_text")) == ((1, 3), 8)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp.experts", 3),
        ("model.language_model.layers.12.mlp.experts", 12),
        ("transformer.blocks.0.ffn.experts", 0),
        ("layers.7.experts", 7),
        ("model.vision_tower.blocks.2.mlp.experts", None),
        ("audio_tower.layers.1.mlp.experts", None),
        ("model.embed_tokens", None),
    ],
)
def test_the_layer_is_read_from_the_name_of_a_text_module(name, layer):
    assert layer_index(name) == layer


def test_top_k_is_known_after_the_first_forward():
    model = tiny_model("dbrx")
    with RoutingTap(model) as tap, torch.no_grad():
        with pytest.raises(ValueError, match="first take"):
            _ = tap.top_k
        model(TOKENS)
        routed = tap.take()
    assert tap.top_k == 3
    assert routed.ids.shape == routed.weights.shape == (4, 4, 3)
    assert routed.ids.dtype == torch.int64
    assert routed.weights.dtype == torch.float32


def test_weights_are_float32_for_a_bfloat16_model():
    model = tiny_model("mixtral").bfloat16()
    _, (routed,), _ = record(model, lambda: model(TOKENS))
    assert routed.weights.dtype == torch.float32
    assert routed.weights.sum(-1).sub(1).abs().max() < 0.01


def test_no_hook_is_left_behind():
    model = tiny_model("jetmoe")
    record(model, lambda: model(TOKENS))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_forward_must_be_taken_before_the_next():
    model = tiny_model("qwen3_moe")
    with RoutingTap(model) as tap, torch.no_grad():
        with pytest.raises(ValueError, match="needs a forward"):
            tap.take()
        model(TOKENS)
        with pytest.raises(ValueError, match="after each forward"):
            model(TOKENS)
        tap.take()
        model(TOKENS)
        tap.take()


def test_a_dense_model_is_refused():
    config = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    with pytest.raises(UnsupportedModelError, match="no MoE layer") as refusal:
        moe_shape(LlamaForCausalLM(config))
    assert refusal.value.hint


def test_an_encoder_decoder_is_refused():
    config = SwitchTransformersConfig(
        d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, vocab_size=16, num_experts=2
    )
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        moe_shape(SwitchTransformers(config))


def test_fused_kernels_are_refused():
    model = tiny_model("mixtral")
    model._use_kernels = True
    with pytest.raises(UnsupportedModelError, match="use_kernels"):
        RoutingTap(model)


def test_a_silent_layer_is_named():
    model = tiny_model("qwen3_moe")
    model.model.layers[2].mlp.forward = lambda hidden: hidden
    with RoutingTap(model) as tap, torch.no_grad():
        model(TOKENS)
        with pytest.raises(
            UnsupportedModelError, match=r"1 of 4 .* model\.layers\.2\.mlp\.experts"
        ):
            tap.take()


def test_a_layer_that_runs_twice_is_named():
    model = tiny_model("mixtral")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    twice = pytest.raises(UnsupportedModelError, match=r"layers\.0\.mlp\.experts ran twice")
    with RoutingTap(model), torch.no_grad(), twice:
        model(TOKENS)


def test_layers_with_another_top_k_are_named():
    model = tiny_model("qwen3_moe")
    model.model.layers[1].mlp.gate.top_k = 1
    with RoutingTap(model) as tap, torch.no_grad():
        model(TOKENS)
        with pytest.raises(UnsupportedModelError, match=r"layers\.1.* 4 tokens to 1 experts each"):
            tap.take()


def test_layers_of_another_size_are_named():
    model = tiny_model("qwen3_moe")
    model.model.layers[3].mlp.experts.num_experts = 7
    with pytest.raises(UnsupportedModelError, match="layer 3 has 7 experts, layer 2 has 8"):
        RoutingTap(model)


def test_native_mxfp4_experts_are_called_the_ordinary_way_or_refused():
    model = tiny_model("gpt_oss")
    experts = [Mxfp4GptOssExperts(model.config) for _ in model.model.layers]
    for layer, module in zip(model.model.layers, experts, strict=True):
        layer.mlp.experts = module
    if not hasattr(Mxfp4GptOssExperts, "forward_routed"):  # transformers before 5.23
        with pytest.raises(UnsupportedModelError, match="MXFP4") as refusal:
            RoutingTap(model)
        assert "dequantize=True" in refusal.value.hint
        return
    with RoutingTap(model):
        assert all(module._is_hooked for module in experts)
    assert not any(module._is_hooked for module in experts)
