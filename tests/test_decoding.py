"""Decoding with a cache of fixed place, our attention, plain routers and compiled layers."""

import pytest
import torch
from architectures import tiny_model
from tiny import make_model
from torch import fx
from transformers import Qwen3MoeConfig
from transformers.integrations.moe import ExpertsInterface

from moeprof.checkpoint.kv_cache import cache_name
from moeprof.errors import CapacityError, UnsupportedModelError
from moeprof.runtime.attention import attention_forward, use_own_attention
from moeprof.runtime.compiled_layers import CompiledLayers
from moeprof.runtime.decode_cache import DecodeCache
from moeprof.runtime.decoding import Decoder
from moeprof.runtime.dense_ops import attend, decode_attention, row_products
from moeprof.runtime.routers import fuse_routers, recognise
from moeprof.runtime.row_linear import MergeProducts, use_row_products

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

PROMPT = [5, 17, 33, 60, 12, 44, 9]
NUM_TOKENS = 14
CPU = torch.device("cpu")


def generated(model):
    ids = torch.tensor([PROMPT])
    output = model.generate(
        ids, max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS, do_sample=False, pad_token_id=0
    )
    return output[0, len(PROMPT) :].tolist()


@torch.no_grad()
def decoded(model, cache, step=None):
    """Greedy tokens with a cache of fixed place, and their logits."""
    cache.start()
    places = torch.arange(len(PROMPT))[None]
    given = {cache_name(model): cache, "use_cache": True}
    output = model(input_ids=torch.tensor([PROMPT]), position_ids=places, **given)
    cache.decode_from(len(PROMPT))
    logits = [output.logits[0, -1]]
    for _ in range(NUM_TOKENS - 1):
        token = logits[-1].argmax().view(1, 1)
        output = (step or model)(
            input_ids=token,
            position_ids=cache.clock.position[None],
            **given,
        )
        logits.append(output.logits[0, -1].clone())
        cache.clock.position.add_(1)
    return [int(row.argmax()) for row in logits], torch.stack(logits)


# Plain; sinks and windows; chunks; compressed keys with other value sizes; recurrent states.
@pytest.mark.parametrize(
    "model_type", ["qwen3_moe", "gpt_oss", "llama4_text", "deepseek_v3", "qwen3_next", "zaya"]
)
def test_tokens_are_those_of_the_unmodified_model(model_type):
    model = tiny_model(model_type)
    expected = generated(model)
    assert use_own_attention(model) is None
    cache = DecodeCache(model.config, 40, CPU)
    assert decoded(model, cache)[0] == expected
    assert decoded(model, cache)[0] == expected, "a second sequence in the same cache"


def test_a_sliding_window_is_a_ring_that_wraps():
    model = tiny_model("gpt_oss")
    model.config.sliding_window = 8
    for layer in model.model.layers:
        if layer.self_attn.sliding_window is not None:
            layer.self_attn.sliding_window = 8
    expected = generated(model)
    use_own_attention(model)
    cache = DecodeCache(model.config, 40, CPU)
    assert decoded(model, cache)[0] == expected
    lengths = sorted(layer.keys.shape[2] for layer in cache.layers)
    assert lengths[0] == 8 < len(PROMPT) + NUM_TOKENS
    assert lengths[-1] == 40


@pytest.mark.parametrize("shared_by", [1, 3])
def test_attention_is_scaled_dot_product_attention(shared_by):
    torch.manual_seed(0)
    query = torch.randn(2, 2 * shared_by, 1, 16)
    keys, values = torch.randn(2, 2, 30, 16), torch.randn(2, 2, 30, 16)
    mask = torch.rand(2, 1, 1, 30) < 0.5
    mask[..., 0] = True
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(
        decode_attention(query, keys, values, mask, None, 0.3, 0.0), expected
    )


def test_sinks_and_capped_scores_by_hand():
    """Two keys with scores 0 and ln 3 and a sink of ln 4: shares 1/8 and 3/8."""
    query = torch.tensor([[[[1.0]]]])
    keys = torch.tensor([[[[0.0], [3.0]]]]).log().nan_to_num(neginf=0.0)
    values = torch.tensor([[[[8.0], [16.0]]]])
    sinks = torch.tensor([4.0]).log()
    assert attend(query, keys, values, None, sinks, 1.0, 0.0).item() == pytest.approx(7.0)
    capped = attend(query, 1e6 * keys, values, None, None, 1.0, 2.0)  # scores 0 and 2
    share = torch.tensor([0.0, 2.0]).softmax(0)
    assert capped.item() == pytest.approx(float(8 * share[0] + 16 * share[1]))


def test_attention_that_hands_on_something_unknown_is_refused():
    states = torch.randn(1, 2, 1, 8)
    with pytest.raises(UnsupportedModelError, match="uses position_bias"):
        attention_forward(torch.nn.Module(), states, states, states, None, position_bias=states)


def test_a_model_without_static_cache_is_refused():
    with pytest.raises(UnsupportedModelError, match="counts tokens on the host"):
        DecodeCache(tiny_model("inkling_text").config, 40, CPU)


@pytest.mark.parametrize(
    ("model_type", "score", "normalized", "correction"),
    [
        ("mixtral", "softmax", True, None),
        ("olmoe", "softmax", False, None),
        ("gpt_oss", "softmax", True, None),
        ("deepseek_v3", "sigmoid", True, "e_score_correction_bias"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_routers_are_recognised(model_type, score, normalized, correction, dtype):
    model = tiny_model(model_type).to(dtype)
    rows = torch.randn(1, 32, dtype=dtype)
    routers = [m for m in model.modules() if type(m).__name__.lower().endswith("router")]
    with torch.no_grad():
        expected = [router(rows) for router in routers]
        assert fuse_routers(model, 8) == len(routers) > 0
        found = [router(rows) for router in routers]
    for router, (logits, weights, ids), own in zip(routers, expected, found, strict=True):
        setting = router.moeprof_router
        assert (setting.score, setting.normalized, setting.correction) == (
            score,
            normalized,
            correction,
        )
        assert dict(zip(ids[0].tolist(), weights[0].tolist(), strict=True)) == pytest.approx(
            dict(zip(own[2][0].tolist(), own[1][0].tolist(), strict=True)), rel=1e-2
        )
        torch.testing.assert_close(logits, own[0])


@pytest.mark.parametrize("model_type", ["phimoe", "gemma4_text"])
def test_other_routers_are_left_alone(model_type):
    assert fuse_routers(tiny_model(model_type), 8) == 0


def test_a_router_with_groups_is_left_alone():
    model = tiny_model("deepseek_v3")
    router = next(m for m in model.modules() if type(m).__name__ == "DeepseekV3TopkRouter")
    assert recognise(router, 8) is not None
    router.num_group, router.topk_group = 4, 1
    assert recognise(router, 8) is None


@torch.library.custom_op("test_decoding::experts", mutates_args=())
def scaled(hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return hidden * weights.sum(-1, keepdim=True)


@scaled.register_fake
def _(hidden, ids, weights):
    return torch.empty_like(hidden)


ExpertsInterface.register(
    "test_decoding", lambda self, *args: torch.ops.test_decoding.experts(*args)
)


@pytest.mark.parametrize(
    ("model_type", "num_kinds"), [("mixtral", 1), ("gpt_oss", 2), ("deepseek_v3", 2)]
)
def test_layers_of_a_kind_share_one_compiled_graph(model_type, num_kinds, tmp_path):
    model = tiny_model(model_type)
    model.set_experts_implementation("test_decoding")
    use_own_attention(model)
    use_row_products(model)
    fuse_routers(model, 8)
    cache = DecodeCache(model.config, 40, CPU)
    expected = decoded(model, cache)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    layers = CompiledLayers(model, cache, tmp_path, backend=backend)

    def step(**kwargs):
        with layers.installed():
            return model(**kwargs)

    found = decoded(model, cache, step)
    assert found[0] == expected[0]
    assert torch.equal(found[1], expected[1]), "the graph is the model's, operation by operation"
    assert len(graphs) == num_kinds < len(cache.layers)
    assert all("forward" not in vars(layer) for layer in model.model.layers)


@pytest.mark.parametrize(("model_type", "num_kinds"), [("mixtral", 1), ("deepseek_v3", 2)])
def test_prompts_of_any_length_share_one_compiled_graph(model_type, num_kinds, tmp_path):
    model = tiny_model(model_type)
    model.set_experts_implementation("test_decoding")
    use_own_attention(model)
    use_row_products(model)
    fuse_routers(model, 8)
    cache = DecodeCache(model.config, 40, CPU)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def logits(length):
        cache.start()
        ids = torch.tensor([[1 + i % 4 for i in range(length)]])
        with torch.no_grad():
            return model(
                input_ids=ids,
                position_ids=torch.arange(length)[None],
                use_cache=True,
                **{cache_name(model): cache},
            ).logits

    torch._dynamo.reset()
    layers = CompiledLayers(model, cache, tmp_path, backend=backend, any_length=True)
    for length in (24, 37, 12):
        expected = logits(length).clone()
        with layers.installed():
            assert torch.equal(logits(length), expected)
        layers.settle()
    assert len(graphs) == num_kinds
    with pytest.raises(torch._dynamo.exc.RecompileError), layers.installed():
        logits(1)


def test_products_with_the_same_row_become_one_operation():
    row = torch.randn(1, 8)
    weights = [torch.randn(n, 8) for n in (3, 4, 5, 6, 7)]
    graph = fx.Graph()
    x, *w = [graph.placeholder(name) for name in "xabcde"]
    outputs = []
    for node, weight in zip(w, weights, strict=True):
        call = graph.call_function(torch.ops.moeprof.row_products.default, (x, [node], [None]))
        call.meta["val"] = [row @ weight.T]
        part = graph.call_function(lambda parts, i: parts[i], (call, 0))
        outputs.append(graph.call_function(torch.neg, (part,)))
    graph.output(tuple(outputs))
    MergeProducts()(graph)
    module = fx.GraphModule(torch.nn.Module(), graph)
    targets = [node.target for node in graph.nodes]
    assert targets.count(torch.ops.moeprof.row_products.default) == 2, "at most four at a time"
    for found, weight in zip(module(row, *weights), weights, strict=True):
        torch.testing.assert_close(found, -(row @ weight.T))
    (product,) = row_products(row, [weights[0]], [torch.ones(3)])
    torch.testing.assert_close(product, row @ weights[0].T + 1)


def test_a_decoder_on_the_processor_gives_the_tokens_of_generate():
    model = make_model()
    assert isinstance(model.config, Qwen3MoeConfig)
    expected = generated(model)
    decoder = Decoder(model, len(PROMPT) + NUM_TOKENS - 1, 8)
    assert not decoder.is_captured
    assert decoder.notes == ()
    for _ in range(2):
        decoder.prefill(PROMPT)
        tokens = [int(decoder.greedy)]
        for i in range(NUM_TOKENS - 1):
            logits = decoder.step(tokens[-1] if i % 2 else None)
            tokens.append(int(decoder.greedy))
            assert int(logits.argmax()) == tokens[-1]
        assert tokens == expected
    with pytest.raises(CapacityError, match=f"planned for {len(PROMPT) + NUM_TOKENS - 1}"):
        decoder.step()


CAPTURED = ["qwen3_moe", "gpt_oss", "mixtral", "deepseek_v3", "gemma4_text", "qwen3_next"]


@pytest.mark.gpu
@pytest.mark.parametrize("model_type", [*CAPTURED, "jamba", "lfm2_moe", "olmoe", "minimax"])
@pytest.mark.parametrize("compiled", [False, True])
def test_captured_steps_give_the_tokens_of_generate(model_type, compiled, tmp_path, monkeypatch):
    monkeypatch.setenv("MOEPROF_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    model = tiny_model(model_type).cuda()
    model.set_experts_implementation("batched_mm")
    ids = torch.tensor([PROMPT], device="cuda")
    output = model.generate(
        ids, max_new_tokens=30, min_new_tokens=30, do_sample=False, pad_token_id=0
    )
    expected = output[0, len(PROMPT) :].tolist()
    decoder = Decoder(model, 40, 8, compiled=compiled)
    assert decoder.is_captured or decoder.notes, "captured, or a sentence that says why not"
    if model_type in CAPTURED:
        assert decoder.is_captured
    for _ in range(2):
        decoder.prefill(PROMPT)
        tokens = [int(decoder.greedy)]
        for _ in range(29):
            decoder.step()
            tokens.append(int(decoder.greedy))
        assert tokens == expected


def test_models_loaded_one_after_the_other_compile_as_the_first_does(tmp_path):
    torch._dynamo.reset()
    models, graphs = [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    for _ in range(10):  # more than the graphs that the compiler keeps of one function
        model = tiny_model("mixtral")
        model.set_experts_implementation("test_decoding")
        use_own_attention(model)
        cache = DecodeCache(model.config, 40, CPU)
        layers = CompiledLayers(model, cache, tmp_path, backend=backend)
        models.append((model, layers))
        with layers.installed():
            cache.start()
            given = {cache_name(model): cache, "use_cache": True}
            with torch.no_grad():
                model(input_ids=torch.tensor([[1]]), position_ids=torch.tensor([[0]]), **given)
    assert len(graphs) == 10
