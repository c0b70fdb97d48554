"""Linear layers outside the experts in `q8_0`: which ones, what they compute, how they are run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_cases import make_rows
from placing import make_placement, make_tiers
from torch import fx, nn
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from moeprof.checkpoint import Checkpoint, read_checkpoint
from moeprof.checkpoint.dense_layers import quantizable_linears
from moeprof.checkpoint.facts import model_facts
from moeprof.checkpoint.modules import find_moe_layers
from moeprof.cli import main
from moeprof.demo import model_path
from moeprof.errors import CapacityError, UnsupportedModelError
from moeprof.native import Workers
from moeprof.native.reference import dequantize, project, quantize
from moeprof.placement import Budget
from moeprof.plan import PlanRequest
from moeprof.runtime import LoadedModel, load
from moeprof.runtime.dense_ops import q8_row_products, q8_values
from moeprof.runtime.q8_linear import DeviceQ8Linear, HostQ8Linear, packed_bytes, quantize_dense
from moeprof.runtime.row_linear import MergeProducts
from moeprof.runtime.vram import check_dense

CPU = torch.device("cpu")
PROMPT = [5, 17, 33, 60, 12, 44, 9, 300, 2, 1111, 70]
TRACE = str(Path(__file__).parent.parent / "traces" / "demo")


@pytest.fixture(scope="module")
def bundled() -> Checkpoint:
    return read_checkpoint(model_path())


def make_linear(seed: int, out: int, inside: int, dtype: torch.dtype, bias: bool) -> nn.Linear:
    linear = nn.Linear(inside, out, bias=bias, dtype=dtype)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(make_rows(seed, out, inside)) * 0.1)
    return linear.requires_grad_(False)


def on_host(linear: nn.Linear) -> HostQ8Linear:
    memory = torch.zeros(packed_bytes(linear) + 64, dtype=torch.uint8)
    memory = memory[-memory.data_ptr() % 64 :][: packed_bytes(linear)]
    return HostQ8Linear(linear, memory, Workers(2), "layer")


def stored(linear: nn.Linear) -> np.ndarray:
    return quantize(linear.weight.detach().float().numpy(), "q8_0")


def make_qwen2(tied: bool) -> Qwen2MoeForCausalLM:
    """Every size a multiple of 32, the router's too; the first layer is dense."""
    config = Qwen2MoeConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_experts=32,
        num_experts_per_tok=2,
        mlp_only_layers=[0],
        tie_word_embeddings=tied,
    )
    return Qwen2MoeForCausalLM(config).eval()


@pytest.mark.parametrize("tied", [False, True])
def test_networks_and_the_models_own_output_are_turned_and_what_decides_is_not(tied: bool) -> None:
    model = make_qwen2(tied)
    attention = [f"self_attn.{name}_proj" for name in "qkvo"]
    network = [f"{name}_proj" for name in ("gate", "up", "down")]
    expected = {f"model.layers.{layer}.{name}" for layer in (0, 1) for name in attention}
    expected |= {f"model.layers.0.mlp.{name}" for name in network}
    expected |= {f"model.layers.1.mlp.shared_expert.{name}" for name in network}
    expected |= set() if tied else {"lm_head"}
    found = quantizable_linears(model, find_moe_layers(model))
    assert set(found) == expected


def test_a_router_that_is_a_linear_layer_is_left_alone() -> None:
    model = make_qwen2(False)
    (experts,) = find_moe_layers(model)
    block = model.get_submodule(experts.name.rpartition(".")[0])
    block.gate = nn.Linear(64, 32, bias=False)
    block.other = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 32))
    names = quantizable_linears(model, [experts])
    assert not [name for name in names if name.endswith(".mlp.gate") or "other" in name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_on_the_host_a_layer_gives_the_bits_of_the_definition(
    dtype: torch.dtype, bias: bool
) -> None:
    linear = make_linear(1, 96, 64, dtype, bias)
    layer = on_host(linear)
    for shape in ((1, 1), (3, 1), (2, 9)):
        rows = torch.from_numpy(make_rows(2, *shape, 64)).to(dtype)
        sums = project(stored(linear), rows.float().reshape(-1, 64).numpy(), "q8_0")
        if bias:
            sums = sums + linear.bias.float().numpy()
        found = layer(rows)
        assert torch.equal(found, torch.from_numpy(sums).to(dtype).view(*shape, 96))
    assert layer(torch.zeros((0, 64), dtype=dtype)).shape == (0, 96)
    exact = torch.from_numpy(dequantize(stored(linear), "q8_0"))
    assert torch.equal(layer.weight, exact.to(dtype))


@pytest.mark.parametrize("bias", [False, True])
def test_a_devices_layer_holds_what_was_quantised_and_multiplies_one_row_and_many(
    bias: bool,
) -> None:
    linear = make_linear(1, 160, 96, torch.bfloat16, bias)
    layer = DeviceQ8Linear(linear, Workers(2))
    exact = torch.from_numpy(dequantize(stored(linear), "q8_0"))
    assert torch.equal(q8_values(layer.quants, layer.scales), exact)
    assert torch.equal(layer.weight, exact.bfloat16())
    for shape in ((1, 1), (2, 5)):
        rows = torch.from_numpy(make_rows(2, *shape, 96)).bfloat16()
        expected = rows.double() @ exact.double().T
        expected = expected + linear.bias.double() if bias else expected
        # of weights, where many rows are multiplied, and of the result
        room = 2**-8 * (expected.abs() + 2 * rows.double().abs() @ exact.double().abs().T)
        assert ((layer(rows).double() - expected).abs() <= room).all()


def test_many_rows_are_multiplied_with_a_part_of_the_weights_at_a_time() -> None:
    num_rows = 2**17 + 32  # of 32 values: one part and a little
    linear = make_linear(1, num_rows, 32, torch.float32, bias=True)
    layer = DeviceQ8Linear(linear, Workers(2))
    rows = torch.from_numpy(make_rows(2, 2, 32))
    expected = nn.functional.linear(rows, layer.weight, linear.bias)
    torch.testing.assert_close(layer(rows), expected)


def test_weights_that_the_format_cannot_hold_are_refused_by_name() -> None:
    model = make_qwen2(False)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[3, 5] = torch.nan
    with pytest.raises(UnsupportedModelError) as caught:
        quantize_dense(model, find_moe_layers(model), CPU, Workers(1))
    assert "model.layers.1.self_attn.o_proj: cannot be kept in q8_0" in str(caught.value)
    assert "--dense-format stored" in caught.value.hint


def loaded_in(bundled: Checkpoint, seed: int, dense_format: str = "q8_0") -> LoadedModel:
    tiers = make_tiers(bundled.shape, seed, vram_share=0.1 + 0.2 * seed)
    return load(
        make_placement(bundled, tiers),
        bundled,
        device="cpu",
        weight_format="q8_0",
        dense_format=dense_format,
    )


def test_no_placement_changes_a_bit(bundled: Checkpoint) -> None:
    logits = []
    for seed in range(4):
        loaded = loaded_in(bundled, seed)
        step = loaded.forward(PROMPT, "prefill")
        logits.append([step.logits, loaded.forward([7], "decode", step.cache, len(PROMPT)).logits])
    assert all(torch.isfinite(row).all() for row in logits[0])
    for other in logits[1:]:
        assert all(torch.equal(*pair) for pair in zip(other, logits[0], strict=True))


def test_a_loaded_model_computes_its_layers_by_the_definition(bundled: Checkpoint) -> None:
    plain = loaded_in(bundled, 0, "stored").model
    loaded = loaded_in(bundled, 0)
    checked = []

    def check(name: str, layer: HostQ8Linear, given: torch.Tensor, output: torch.Tensor) -> None:
        own = plain.get_submodule(name)
        rows = given.float().reshape(-1, layer.in_features).numpy()
        sums = torch.from_numpy(project(stored(own), rows, "q8_0")).to(given.dtype)
        assert torch.equal(output.reshape(sums.shape), sums)
        checked.append(name)

    for name, module in loaded.model.named_modules():
        if isinstance(module, HostQ8Linear):
            module.register_forward_hook(
                lambda layer, given, output, name=name: check(name, layer, given[0], output)
            )
    loaded.forward(PROMPT, "prefill")
    assert len(checked) == 6 * 4  # queries, keys, values and output of six layers


def test_a_plan_counts_the_bytes_that_the_format_takes(bundled: Checkpoint) -> None:
    facts = {
        name: model_facts(model_path(), PlanRequest(vram_bytes=10**7, dense_format=name))
        for name in ("stored", "q8_0")
    }
    # six layers: queries and output 128 x 128, keys and values 64 x 128
    weights = 6 * (2 * 128 * 128 + 2 * 64 * 128)
    saved = weights * 2 - weights // 32 * 34
    assert facts["stored"].dense_bytes - facts["q8_0"].dense_bytes == saved
    assert facts["q8_0"].workspace_bytes - facts["stored"].workspace_bytes == 8 * 128 * 128
    model = loaded_in(bundled, 0, "stored").model
    turned = {
        name: DeviceQ8Linear(linear, Workers(1))
        for name, linear in quantizable_linears(model, find_moe_layers(model)).items()
    }
    for name, layer in turned.items():
        model.set_submodule(name, layer)
    assert sum(p.nbytes for p in model.parameters()) == facts["q8_0"].dense_bytes


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return int(stopped.value.code or 0)


def test_from_plan_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "plan.json")
    given = ["plan", TRACE, "--model", str(model_path()), "--vram", "10MB", "--context", "256"]
    given += ["--device-context", "0", "--format", "q8_0", "-o", path]
    assert call(*given, "--dense-format", "q4_0") == 2
    assert "'q4_0' is not one of stored, q8_0" in capsys.readouterr().err
    assert call(*given, "--dense-format", "q8_0") == 0
    assert json.loads(Path(path).read_text())["dense_format"] == "q8_0"
    run = ["run", "-p", path, "--device", "cpu", "--prompt", "def", "--max-new-tokens", "3"]
    assert call(*run, "--dense-format", "q4_0") == 1
    assert "dense format 'q4_0': not supported" in capsys.readouterr().err
    for chosen in ([], ["--dense-format", "q8_0"]):
        assert call(*run, *chosen, "--json") == 0
        assert json.loads(capsys.readouterr().out)["dense_format"] == "q8_0"
    assert call(*run, "--dense-format", "stored", "--json") == 0
    assert json.loads(capsys.readouterr().out)["dense_format"] == "stored"
    assert call(*run) == 0
    assert "linear layers" in capsys.readouterr().err
    bench = ["bench", "-p", path, "--device", "cpu", "--rounds", "1", "--prompt-tokens", "4"]
    assert call(*bench, "--decode-tokens", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["dense_format"] == "q8_0"


def test_unplanned_weights_outside_the_experts_must_fit_what_the_plan_leaves() -> None:
    budget = Budget(1000, 300, 100, 50, 40, 510, 500, 256, 1)
    check_dense(budget, 310)
    with pytest.raises(CapacityError, match="take 311 B, the plan has 300 B") as caught:
        check_dense(budget, 311)
    assert "without --dense-format" in caught.value.hint


def test_products_with_the_same_row_become_one_operation_of_their_own_kind() -> None:
    layers = [
        DeviceQ8Linear(make_linear(i, 32, 32, torch.float32, False), Workers(1)) for i in (1, 2)
    ]
    plain = torch.randn(4, 32)
    row = torch.randn(1, 32)
    graph = fx.Graph()
    x, w, *parts = [graph.placeholder(name) for name in "xwabcd"]
    q8, own = torch.ops.moeprof.q8_row_products.default, torch.ops.moeprof.row_products.default
    calls = [
        graph.call_function(q8, (x, [parts[0]], [parts[1]], [None])),
        graph.call_function(own, (x, [w], [None])),
        graph.call_function(q8, (x, [parts[2]], [parts[3]], [None])),
    ]
    outputs = []
    for node in calls:
        node.meta["val"] = [row]
        part = graph.call_function(lambda found, i: found[i], (node, 0))
        outputs.append(graph.call_function(torch.neg, (part,)))
    graph.output(tuple(outputs))
    MergeProducts()(graph)
    targets = [node.target for node in graph.nodes]
    assert targets.count(q8) == targets.count(own) == 1
    given = [tensor for layer in layers for tensor in (layer.quants, layer.scales)]
    found = fx.GraphModule(nn.Module(), graph)(row, plain, *given)
    singly = [q8_row_products(row, [q], [s], [None])[0] for q, s in (given[:2], given[2:])]
    for output, expected in zip(found, (singly[0], row @ plain.T, singly[1]), strict=True):
        torch.testing.assert_close(output, -expected)
