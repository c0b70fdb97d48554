import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from architectures import ALL_TYPES, installed
from architectures import tiny_model as tiny_model_of
from safetensors.torch import load_file, save_file
from tiny import save_model
from transformers import AutoModelForCausalLM, PretrainedConfig, Qwen3MoeConfig, Qwen3VLMoeConfig

from moeprof.checkpoint import (
    kv_cache_bytes,
    read_checkpoint,
    resolve_model,
    workspace_bytes,
)
from moeprof.checkpoint.facts import usual_context
from moeprof.checkpoint.headers import read_header, read_headers
from moeprof.checkpoint.kv_cache import cache_of
from moeprof.checkpoint.memory import _tensors
from moeprof.checkpoint.skeleton import max_positions
from moeprof.demo import model_path
from moeprof.errors import CapacityError, UnsupportedModelError

SEPARATE_AND_STACKED = ["deepseek_v3", "gpt_oss", "mixtral", "olmoe", "qwen2_moe", "phimoe"]


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_shape_of_the_tiny_model_is_that_of_its_config(tiny_model: Path) -> None:
    shape = read_checkpoint(tiny_model).shape
    assert shape.model_type == "qwen3_moe"
    assert (shape.num_layers, shape.moe_layers) == (3, (1, 2))
    assert (shape.num_experts, shape.top_k, shape.hidden_size, shape.vocab_size) == (8, 2, 32, 300)
    # gate, up and down projections of 32 x 16 elements of 4 bytes
    assert shape.expert_bytes == (3 * 32 * 16 * 4,) * 2
    assert shape.dtype == "float32"


def test_experts_and_the_rest_are_all_bytes_of_the_file(tiny_model: Path) -> None:
    shape = read_checkpoint(tiny_model).shape
    stored = load_file(tiny_model / "model.safetensors")
    total = sum(tensor.nbytes for tensor in stored.values())
    assert shape.total_expert_bytes + shape.dense_bytes == total


@pytest.mark.parametrize("model_type", SEPARATE_AND_STACKED)
def test_bytes_and_cache_of_an_architecture_equal_those_of_the_loaded_model(
    model_type: str, tmp_path: Path
) -> None:
    check_architecture(model_type, tmp_path)


@pytest.mark.all
@pytest.mark.parametrize("model_type", installed(ALL_TYPES))
def test_bytes_and_cache_of_every_architecture_equal_those_of_the_loaded_model(
    model_type: str, tmp_path: Path
) -> None:
    if model_type == "jetmoe":
        pytest.skip("its router needs values on the host, so its cache cannot be measured")
    check_architecture(model_type, tmp_path)


def check_architecture(model_type: str, path: Path) -> None:
    loaded = tiny_model_of(model_type)
    loaded.save_pretrained(path)
    checkpoint = read_checkpoint(path)
    shape = checkpoint.shape
    stored = sum(entry.num_bytes for entry in checkpoint.tensors)
    assert shape.total_expert_bytes + shape.dense_bytes == stored
    with torch.inference_mode():
        output = loaded(input_ids=torch.zeros((2, 11), dtype=torch.int64), use_cache=True)
    real = sum(tensor.nbytes for tensor in _tensors(cache_of(loaded, output), set()))
    assert kv_cache_bytes(checkpoint, 11, 2) == real


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "default"}, 40960),
        # the positions of training, times the factor
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        # the config's own number holds the scaling already
        ({"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 8192}, 40960),
        ({"rope_type": "linear", "factor": 2.0}, 81920),
        ({"full_attention": {"rope_type": "linear", "factor": 2.0}}, 81920),
        ({"rope_type": "linear", "factor": float("inf")}, 40960),
        (None, 40960),
    ],
)
def test_positions_reach_as_far_as_scaled_embeddings(rope: object, expected: int) -> None:
    config = Qwen3MoeConfig(max_position_embeddings=40960)
    config.rope_parameters = rope
    assert max_positions(config) == expected


@pytest.mark.parametrize("limit", [None, 0, "many"])
def test_positions_that_no_config_says_are_unknown(limit: object) -> None:
    config = Qwen3MoeConfig()
    config.__dict__["max_position_embeddings"] = limit
    assert max_positions(config) is None
    assert max_positions(PretrainedConfig()) is None


def test_positions_of_a_composite_model_are_those_of_its_text() -> None:
    config = Qwen3VLMoeConfig(text_config={"max_position_embeddings": 77})
    assert max_positions(config) == 77


def test_the_usual_context_is_no_longer_than_the_models_own(tiny_model: Path) -> None:
    assert usual_context(tiny_model) == 4096
    assert usual_context(model_path()) == read_checkpoint(model_path()).max_positions == 2048


def test_a_router_that_ignores_the_config_decides_the_top_k(tmp_path: Path) -> None:
    phimoe = tiny_model_of("phimoe")
    phimoe.config.num_experts_per_tok = 4
    phimoe.save_pretrained(tmp_path)
    assert read_checkpoint(tmp_path).shape.top_k == 2


def test_cache_of_full_attention_is_keys_and_values_of_every_token(tiny_model: Path) -> None:
    # 3 layers, keys and values, 2 heads of 8, 4 bytes
    assert kv_cache_bytes(tiny_model, 100, 3) == 3 * 2 * 2 * 8 * 4 * 100 * 3


def test_cache_in_bfloat16_is_half_of_that_in_float32(tiny_model: Path) -> None:
    half = kv_cache_bytes(tiny_model, 64, 1, torch.bfloat16)
    assert 2 * half == kv_cache_bytes(tiny_model, 64, 1)


def test_a_cache_for_no_tokens_is_refused(tiny_model: Path) -> None:
    with pytest.raises(CapacityError, match="must be at least 1"):
        kv_cache_bytes(tiny_model, 0, 1)


def test_workspace_is_the_documented_formula(tiny_model: Path) -> None:
    # 10 tokens of 4 bytes; hidden 32, top-2, expert width 16, vocabulary 300, batch 2
    layer = 10 * 4 * (10 * 32 + 2 * 32 + 2 * 32 + 3 * 16)
    logits = 2 * 300 * 4 * 3
    assert workspace_bytes(tiny_model, 5, 2) == layer + logits


def test_resharding_keeps_the_fingerprint(tiny_model: Path, tmp_path: Path) -> None:
    whole = AutoModelForCausalLM.from_pretrained(tiny_model)
    whole.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert read_checkpoint(tmp_path).fingerprint == read_checkpoint(tiny_model).fingerprint


def test_other_weights_of_the_same_model_keep_the_fingerprint(
    tiny_model: Path, tmp_path: Path
) -> None:
    other = save_model(tmp_path / "other", seed=1)
    assert read_checkpoint(other).fingerprint == read_checkpoint(tiny_model).fingerprint


@pytest.mark.parametrize("change", [{"num_experts": 6}, {"rms_norm_eps": 1e-3}])
def test_another_config_changes_the_fingerprint(
    change: dict[str, object], tiny_model: Path, tmp_path: Path
) -> None:
    other = save_model(tmp_path / "other", **change)
    assert read_checkpoint(other).fingerprint != read_checkpoint(tiny_model).fingerprint


def test_another_tokenizer_changes_only_the_tokenizer_hash(model: Path) -> None:
    before = read_checkpoint(model)
    with (model / "tokenizer.json").open("a", encoding="utf-8") as file:
        file.write(" ")
    after = read_checkpoint(model)
    assert after.tokenizer_hash != before.tokenizer_hash
    assert after.fingerprint == before.fingerprint


def test_headers_list_what_safetensors_reads(tiny_model: Path) -> None:
    stored = load_file(tiny_model / "model.safetensors")
    entries = {entry.name: entry for entry in read_headers(tiny_model)}
    assert entries.keys() == stored.keys()
    for name, tensor in stored.items():
        assert entries[name].shape == tuple(tensor.shape)
        assert entries[name].num_bytes == tensor.nbytes


def rewrite_config(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def truncate(path: Path, size: int) -> None:
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[:size])


def drop_expert(path: Path) -> None:
    stored = load_file(path / "model.safetensors")
    del stored["model.layers.1.mlp.experts.7.up_proj.weight"]
    save_file(stored, path / "model.safetensors", {"format": "pt"})


def drop_experts_of_a_layer(path: Path) -> None:
    stored = load_file(path / "model.safetensors")
    kept = {name: value for name, value in stored.items() if "layers.1.mlp.experts" not in name}
    save_file(kept, path / "model.safetensors", {"format": "pt"})


def damage_header(path: Path) -> None:
    content = bytearray((path / "model.safetensors").read_bytes())
    content[8:12] = b"\xff\xff\xff\xff"
    (path / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "config.json").unlink(), "no config.json in this directory"),
        (lambda p: (p / "config.json").write_text("{"), "not readable as JSON"),
        (lambda p: (p / "config.json").write_text("[]"), "not a JSON object"),
        (lambda p: (p / "model.safetensors").unlink(), "no model.safetensors and no"),
        (lambda p: truncate(p, 5), "truncated inside its header"),
        (lambda p: truncate(p, 200), "truncated inside its header"),
        (lambda p: truncate(p, 60_000), "truncated, tensor"),
        (damage_header, "safetensors header is not JSON"),
        (drop_expert, "layer 1 has 7 experts in the checkpoint"),
        (drop_experts_of_a_layer, "layer 1: the checkpoint has no tensors"),
        (lambda p: rewrite_config(p, model_type="nonesuch"), "transformers cannot read its config"),
        (lambda p: rewrite_config(p, model_type="t5"), "not a language model"),
        (
            lambda p: (p / "model.safetensors.index.json").write_text("{}"),
            "not an index of safetensors files",
        ),
        (
            lambda p: (p / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "gone.safetensors"}}'
            ),
            "gone.safetensors: cannot be read",
        ),
        (
            lambda p: (p / "model.safetensors.index.json").write_text(
                '{"weight_map": {"absent.weight": "model.safetensors"}}'
            ),
            "1 tensors are in no file",
        ),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(
    damage: Callable[[Path], object], message: str, model: Path
) -> None:
    damage(model)
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        read_checkpoint(model)
    assert "\n" not in str(caught.value)


def test_a_model_without_moe_layers_is_refused(tmp_path: Path) -> None:
    dense = save_model(tmp_path / "dense", mlp_only_layers=[0, 1, 2])
    with pytest.raises(UnsupportedModelError, match="no MoE layer"):
        read_checkpoint(dense)


def test_a_missing_directory_is_refused_without_asking_the_hub() -> None:
    with pytest.raises(UnsupportedModelError, match="no such directory") as caught:
        resolve_model("./no/such/model")
    assert "hub id" in caught.value.hint


def test_a_file_is_not_a_model(tiny_model: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="a file, expected a directory"):
        resolve_model(tiny_model / "config.json")


def test_a_hub_model_without_connection_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnsupportedModelError, match="not available from the hub") as caught:
        resolve_model("nobody-at-all/no-such-model")
    assert "\n" not in str(caught.value)


def test_a_tensor_of_an_impossible_size_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 20]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(20))
    with pytest.raises(UnsupportedModelError, match="has 20 bytes, expected 24"):
        read_header(path)
