"""Tiny random models of every Mixture-of-Experts language model type in transformers.

All are float32, seeded and built from a config alone; router biases are never zero, so that a
selection by biased scores differs from one by plain logits.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassClassValidationError
from packaging.version import Version
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

SHORT_SELECTION = [
    "dbrx",
    "deepseek_v3",
    "doge",
    "gpt_oss",
    "jetmoe",
    "llama4_text",
    "longcat_flash",
    "mixtral",
    "olmoe",
    "qwen3_moe",
    "zaya",
]

# Causal language models, then the image and audio models whose text part is one.
# fmt: off
ALL_TYPES = [
    "afmoe", "aria_text", "axk1", "axk2", "bailing_hybrid", "beam", "cohere2_moe", "dbrx",
    "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "doge", "dots1", "dots3_note",
    "dots3_note_text", "ernie4_5_moe", "exaone_moe", "flex_olmo", "flint", "gemma4",
    "gemma4_text", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "gpt_oss", "granitemoe",
    "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "hunyuan_v1_moe", "hy_v3",
    "hy_v4", "inkling2_text", "inkling_text", "jamba", "jetmoe", "kimi_linear", "kolibri1",
    "laguna", "lfm2_moe", "llama4", "llama4_text", "longcat_flash", "mellum", "mimo_v2_flash",
    "minimax", "minimax_m2", "minimax_m3_vl_text", "mixtral", "nemotron_h", "olmoe", "phimoe",
    "qwen2_moe", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_moe", "qwen3_next", "qwen4_exp",
    "qwen4_exp_text", "solar_open", "zaya", "aria", "deepseek_ocr2", "glm4v_moe", "glm5_next",
    "inkling2", "kimi_k25", "minimax_m3_vl", "mistral4", "mistral_large4", "muse_spark",
    "nemotron_h_omni", "qwen3_omni_moe_thinker", "qwen3_vl_moe", "step3p7", "unlimited_ocr",
    # Since transformers 5.24.
    "hy_v4_vl", "lara_mini", "sarvam_mla", "sarvam_moe",
]
# fmt: on

# Built by the tests, and refused by the tap with a sentence.
REFUSED_TYPES = {
    "diffusion_gemma": "denoises blocks with two sets of experts, so it is not autoregressive",
    "ernie4_5_vl_moe": "has two sets of experts in a layer, for text and for images",
}

# The same once they run: some layers are passed through several times for each token.
LOOPED_TYPES = ["inkling2_loop", "inkling2_loop_text"]

NOT_BUILT_TYPES = {
    "gemma4_assistant": "drafts from the key-value states of its target, so it cannot run alone",
    "inkling_mm_model": "its vision tower needs scipy; inkling_text is its language model",
}

IS_CURRENT = Version(transformers.__version__) >= Version("5.24")

# In 5.17 doge and diffusion_gemma cannot run, and aria computes its experts without a module.
_ONLY_CURRENT = {"aria", "aria_text", "diffusion_gemma", "doge"}

VOCABULARY = 96
NUM_EXPERTS = 8

# Every field that a config knows by one of these names gets this value.
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "intermediate_size_mlp": 48,
    "dense_intermediate_size": 48,
    "moe_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "shared_experts_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "share_expert_dim": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "num_experts": NUM_EXPERTS,
    "num_local_experts": NUM_EXPERTS,
    "n_routed_experts": NUM_EXPERTS,
    "moe_num_experts": NUM_EXPERTS,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_n_heads": 2,
    "index_head_dim": 16,
    # More than any sequence here: zero index scores tie, and ties fall otherwise in a padded batch.
    "index_topk": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "rel_extent": 16,
    "o_groups": 2,
    "o_lora_rank": 8,
    "hc_mult": 2,
    "router_hidden_size": 16,
    "ssm_state_size": 8,
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "mamba_n_heads": 4,
    "mamba_d_state": 8,
    "mamba_dt_rank": 8,
    "chunk_size": 16,
    "mamba_chunk_size": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "depth": 1,
    "num_heads": 2,
    "image_size": 28,
    "out_hidden_size": 32,
    "projection_intermediate_size": 16,
    "text_hidden_size": 32,
    "num_position_embeddings": 16,
    "vocab_size": 16,
    "deepstack_visual_indexes": [0],
    "max_position_embeddings": 16,
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "output_dim": 32,
    "downsample_hidden_size": 8,
}
_MLA = {"num_key_value_heads": 4}
_SPECIAL: dict[str, dict[str, Any]] = {
    "axk1": _MLA,
    "axk2": _MLA,
    "bailing_hybrid": _MLA | {"layer_group_size": 2},
    "beam": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "dbrx": {
        "d_model": 32,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": NUM_EXPERTS, "moe_top_k": 3},
    },
    "deepseek_v2": _MLA,
    "deepseek_v3": _MLA,
    "deepseek_v32": _MLA,
    "deepseek_v4": {"num_key_value_heads": 1, "head_dim": 16, "num_hash_layers": 2},
    "doge": {"is_moe": True, "num_experts": 9},
    "dots3_note_audio_encoder": {"adapter_input_size": 16, "adapter_out_dim": 32},
    "dots3_note_vision_encoder": {
        "per_layer_config": {},
        "adapter_in_dim": 16,
        "adapter_out_dim": 32,
    },
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "dots3_note_text": _MLA | {"layer_types": ["full_attention"] * 4},
    "gemma4_text": {
        "enable_moe_block": True,
        "global_head_dim": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
    },
    "ernie4_5_vl_moe_text": {
        "moe_intermediate_size": [24, 16],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [1, 1, 2],
        },
    },
    "glm4_moe_lite": _MLA,
    "glm4v_moe_text": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [1, 1, 0],
        }
    },
    "glm5_next_text": _MLA
    | {
        "qk_rope_head_dim": 0,
        "head_dim": 0,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    },
    "glm_moe_dsa": _MLA,
    "granitemoehybrid": {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "mamba_d_head": 16,
    },
    "hy_v4_vl_text": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [1, 1, 2],
        },
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "jetmoe": {"kv_channels": 8},
    "kimi_linear": _MLA | {"layer_types": ["linear_attention", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": _MLA
    | {"num_layers": 2, "zero_expert_num": 4, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 24},
    "llama4_text": {"interleave_moe_layer_step": 2},
    "mistral4": _MLA | {"head_dim": 16},
    "mistral_large4_text": _MLA,
    "muse_spark": {"projector_hidden_size": 16, "out_hidden_size": 32},
    "muse_spark_text": {"moe_hidden_size": 24},
    "muse_spark_audio": {
        "patch_sizes": [16],
        "hidden_sizes": [8],
        "depths": [1],
    },
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
        "use_mamba_kernels": False,
        "n_groups": 2,
    },
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 90},
    "sarvam_mla": _MLA,
    "inkling2_text": {"unpadded_vocab_size": VOCABULARY},
    "inkling2_loop_text": {
        "n_layers_per_attn_res_block": 1,
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 3,
    },
    "step3p5": {
        "sliding_window": 8,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    },
    "radio": {"video_temporal_patch_size": 2, "max_img_size": 32},
    "nemotron_h_omni": {"vision_hidden_size": 16, "projector_hidden_size": 16},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "hc_lowrank": 8,
    },
    "zaya": {"num_experts_per_tok": 1},
}

# Two threads wait longer for each other than these models compute.
torch.set_num_threads(1)

_EXPERT_FIELD = re.compile(r"expert|moe")
_ROUTER_BIAS = re.compile(r"(score_correction_bias|expert_bias|balancing_biases|router.*bias)$")


def installed(model_types: list[str]) -> list[str]:
    """Those of the types that the installed transformers knows and can run."""
    known = [model_type for model_type in model_types if model_type in CONFIG_MAPPING]
    return [name for name in known if IS_CURRENT or name not in _ONLY_CURRENT]


def types_with_experts() -> set[str]:
    """Types of language model in transformers whose config has a field about experts."""
    configs = {*MODEL_FOR_CAUSAL_LM_MAPPING, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING}
    return {
        config.model_type for config in configs if any(map(_EXPERT_FIELD.search, _names(config)))
    }


def _names(config_class: type[PreTrainedConfig]) -> Iterator[str]:
    """Field names of a config and of those inside it."""
    try:
        pending = [config_class().to_dict()]
    except StrictDataclassClassValidationError:
        yield "no default, so experts cannot be ruled out"
        return
    while pending:
        fields = pending.pop()
        yield from map(str, fields)
        pending += [value for value in fields.values() if isinstance(value, dict)]


def tiny_config(model_type: str) -> PreTrainedConfig:
    """A config of the type with a few narrow layers and eight experts."""
    return CONFIG_MAPPING[model_type](**_fields(CONFIG_MAPPING[model_type], _TEXT))


def tiny_model(model_type: str) -> PreTrainedModel:
    """A random float32 model of the type in evaluation mode, the same at every call."""
    config = tiny_config(model_type)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in _from_config(config).parameters())
    if size > 8_000_000:
        raise ValueError(f"{model_type}: {size} parameters are not tiny")
    torch.manual_seed(0)
    model = _from_config(config).float().eval()
    randomize(model)
    model.generation_config.eos_token_id = None
    return model


def randomize(model: nn.Module) -> None:
    """Weights wide enough that every layer routes unevenly, router biases included."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("tid2eid"):  # deepseek_v4 routes its first layers by token id
                order = torch.rand((tensor.shape[0], NUM_EXPERTS), generator=generator).argsort(1)
                tensor.copy_(order[:, : tensor.shape[1]])
            elif (scale := _scale(name, tensor)) > 0:
                tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
            if name.endswith("balancing_biases"):
                tensor[-1] = 0.5  # zaya's choice of no expert, rare otherwise


def _scale(name: str, tensor: torch.Tensor) -> float:
    """Standard deviation of a tensor's values; 0 where the model's own ones stay."""
    if _ROUTER_BIAS.search(name):
        return 0.05
    if tensor.dim() < 2 or not tensor.is_floating_point() or "rotary" in name:
        return 0.0
    return 1.0 if "router_mlp" in name else 0.4  # zaya's deep router flattens its logits


def _fields(config_class: type[PreTrainedConfig], values: dict[str, Any]) -> dict[str, Any]:
    known = {**config_class().to_dict(), **config_class.attribute_map}
    fields = {name: value for name, value in values.items() if name in known}
    for name, sub_class in config_class.sub_configs.items():
        if isinstance(known.get(name), dict) and issubclass(sub_class, PreTrainedConfig):
            fields[name] = _fields(sub_class, _TEXT if name == "text_config" else _TOWER)
        elif isinstance(known.get(name), dict):  # AutoConfig: the dict says which
            kind = known[name]["model_type"]
            sub_fields = _fields(CONFIG_MAPPING[kind], _TEXT if name == "text_config" else _TOWER)
            fields[name] = {**sub_fields, "model_type": kind}
    return fields | _SPECIAL.get(config_class.model_type, {})


def _from_config(config: PreTrainedConfig) -> PreTrainedModel:
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM.from_config(config)
    return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config)
