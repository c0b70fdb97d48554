import io
import math
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import ALL_TYPES, installed
from architectures import tiny_model as tiny_model_of
from builders import make_capture
from placing import make_placement, make_tiers
from rich.console import Console
from tiny import make_model, make_tokenizer, save_model
from transformers import AutoModelForCausalLM, Qwen3MoeForCausalLM

from moeprof.capture.tracer import TraceRequest, trace
from moeprof.checkpoint import Checkpoint, read_checkpoint
from moeprof.checkpoint.kv_cache import cache_name, cache_of
from moeprof.checkpoint.modules import find_moe_layers
from moeprof.checkpoint.skeleton import auto_class, load_config
from moeprof.cli.run_tables import print_report
from moeprof.errors import (
    CapacityError,
    MoeprofError,
    PlacementError,
    TraceError,
    UnsupportedModelError,
)
from moeprof.placement.manifest import Estimate, PhasePrediction, Prediction
from moeprof.placement.tier import Tier
from moeprof.runtime import LoadedModel, Sampling, Session, load, replay, run, select_documents
from moeprof.runtime.meter import Meter
from moeprof.runtime.prompts import Prompts
from moeprof.runtime.sampling import Sampler, TextStream
from moeprof.runtime.stores import SlotTable, allocate_packed_stores
from moeprof.trace import Trace

# Separate and stacked checkpoints, transposed and interleaved layouts, biases, shared experts,
# dense first layers, no gate.
RUN_TYPES = ["deepseek_v3", "gpt_oss", "mixtral", "nemotron_h", "olmoe", "qwen2_moe", "qwen3_moe"]
NOT_RUN_TYPES = {"dbrx", "doge", "jetmoe", "llama4", "llama4_text", "longcat_flash", "step3p7"}
TEXT = "def main(argument):\n    return argument + 1\n" * 4


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path) -> Checkpoint:
    return read_checkpoint(tiny_model)


@pytest.fixture
def loaded(checkpoint: Checkpoint) -> LoadedModel:
    return load(make_placement(checkpoint), checkpoint, device="cpu")


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> AutoModelForCausalLM:
    return AutoModelForCausalLM.from_pretrained(tiny_model, experts_implementation="eager").eval()


@pytest.fixture(scope="module")
def generated_trace(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return make_traced(tiny_model, tmp_path_factory.mktemp("traces"), generate=6, prompt_tokens=20)


@pytest.fixture(scope="module")
def windowed_trace(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return make_traced(tiny_model, tmp_path_factory.mktemp("traces"), sequence_length=50)


def make_traced(model: Path, folder: Path, **capture: object) -> Trace:
    """Documents of one, two and three windows in two domains, traced in float32."""
    for number, domain in enumerate(["a", "b", "b"]):
        (folder / domain).mkdir(exist_ok=True)
        (folder / domain / f"{number}.txt").write_text(TEXT[number : 40 * (number + 1)])
    data = (f"first={folder / 'a'}", f"second={folder / 'b'}")
    return trace(TraceRequest(str(model), data, folder / "trace", make_capture(**capture)))


# Arithmetic


def test_logits_are_those_of_the_unmodified_model_bit_for_bit(
    loaded: LoadedModel, reference: AutoModelForCausalLM
) -> None:
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.equal(loaded.model(ids).logits, reference(ids).logits)


@pytest.mark.parametrize("vram_share", [0.0, 0.3, 1.0])
def test_the_placement_does_not_change_a_bit(
    vram_share: float, checkpoint: Checkpoint, loaded: LoadedModel
) -> None:
    tiers = make_tiers(checkpoint.shape, seed=5, vram_share=vram_share)
    other = load(make_placement(checkpoint, tiers), checkpoint, device="cpu")
    ids = torch.arange(25)[None]
    with torch.inference_mode():
        assert torch.equal(other.model(ids).logits, loaded.model(ids).logits)


def test_greedy_tokens_are_those_of_transformers_generate(
    loaded: LoadedModel, reference: AutoModelForCausalLM
) -> None:
    ids = make_tokenizer()(TEXT)["input_ids"]
    expected = reference.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=20
    )
    generation = Session(loaded).generate(TEXT, Sampling(max_new_tokens=20))
    assert list(generation.token_ids) == expected[0, len(ids) :].tolist()


@pytest.mark.parametrize("model_type", RUN_TYPES)
def test_an_architecture_runs_as_unmodified(model_type: str, tmp_path: Path) -> None:
    check_architecture(model_type, tmp_path)


@pytest.mark.all
@pytest.mark.parametrize("model_type", installed(ALL_TYPES))
def test_every_architecture_runs_as_unmodified_or_is_refused(
    model_type: str, tmp_path: Path
) -> None:
    if model_type not in NOT_RUN_TYPES:
        check_architecture(model_type, tmp_path)
        return
    tiny_model_of(model_type).save_pretrained(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    with pytest.raises(UnsupportedModelError, match="experts interface"):
        load(make_placement(checkpoint), checkpoint, device="cpu")


def check_architecture(model_type: str, path: Path) -> None:
    """Streamed experts equal the merged parameters, and logits of both phases the eager ones."""
    tiny_model_of(model_type).save_pretrained(path)
    checkpoint = read_checkpoint(path)
    whole = auto_class(load_config(path)).from_pretrained(path, dtype=torch.float32).eval()
    whole.set_experts_implementation("eager")
    loaded = load(make_placement(checkpoint), checkpoint, device="cpu", dtype="float32")
    for row, experts in enumerate(find_moe_layers(whole)):
        for expert in range(checkpoint.shape.num_experts):
            check_expert(loaded, row, expert, experts.module)
    ids = list(range(3, 19))
    with torch.inference_mode():
        first = whole(input_ids=torch.tensor([ids]), use_cache=True)
        second = whole(
            input_ids=torch.tensor([[5]]),
            use_cache=True,
            **{cache_name(whole): cache_of(whole, first)},
        )
    prefill = loaded.forward(ids, "prefill")
    decode = loaded.forward([5], "decode", prefill.cache, len(ids))
    # Not bit for bit: only the last position's logits are computed, in another matrix product.
    torch.testing.assert_close(prefill.logits, first.logits[0, -1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decode.logits, second.logits[0, -1], rtol=1e-4, atol=1e-4)


def check_expert(loaded: LoadedModel, row: int, expert: int, module: torch.nn.Module) -> None:
    store = loaded.stores[Tier(int(loaded.table.tier[row, expert]))]
    held = store.expert(row, int(loaded.table.slot[row, expert]))
    assert held
    for name, tensor in held.items():
        merged = getattr(module, name)
        assert torch.equal(tensor, merged[expert])
        assert not torch.equal(tensor, merged[(expert + 1) % len(merged)])


# Stores


def test_each_store_has_exactly_the_bytes_of_its_experts(
    checkpoint: Checkpoint, loaded: LoadedModel
) -> None:
    placement = make_placement(checkpoint)
    for tier in (Tier.VRAM, Tier.RAM):
        assert loaded.stores[tier].num_bytes == placement.expert_bytes_in(tier)


def test_a_run_in_bfloat16_allocates_half_of_what_float32_was_planned(
    checkpoint: Checkpoint,
) -> None:
    loaded = load(make_placement(checkpoint), checkpoint, device="cpu", dtype="bfloat16")
    tier = Session(loaded).report().tiers["vram"]
    assert tier.planned_bytes == 2 * tier.allocated_bytes > 0


def test_the_model_itself_holds_no_expert_weights(
    checkpoint: Checkpoint, loaded: LoadedModel
) -> None:
    held = sum(parameter.nbytes for parameter in loaded.model.parameters())
    assert held == checkpoint.shape.dense_bytes


def test_experts_of_a_tier_are_slices_of_one_buffer_and_tiers_share_none(
    loaded: LoadedModel,
) -> None:
    buffers: dict[Tier, set[int]] = {}
    for tier in (Tier.VRAM, Tier.RAM):
        slots = loaded.table.slots_in(tier)[0]
        experts = [loaded.stores[tier].expert(0, slot) for slot in range(slots)]
        for name in ("gate_up_proj", "down_proj"):
            storages = {expert[name].untyped_storage().data_ptr() for expert in experts}
            assert len(storages) == 1
            buffers[tier] = buffers.get(tier, set()) | storages
    assert not buffers[Tier.VRAM] & buffers[Tier.RAM]


def test_slots_of_a_tier_are_filled_in_the_order_of_its_experts() -> None:
    table = SlotTable.from_tiers(np.array([[0, 1, 0, 1], [1, 1, 1, 0]], np.uint8))
    assert table.slot.tolist() == [[0, 0, 1, 1], [0, 1, 2, 0]]
    assert table.slots_in(Tier.VRAM) == [2, 1]


def test_two_models_loaded_at_once_are_both_right(
    checkpoint: Checkpoint, reference: AutoModelForCausalLM
) -> None:
    found: list[LoadedModel] = []

    def work() -> None:
        found.append(load(make_placement(checkpoint), checkpoint, device="cpu"))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = torch.arange(9)[None]
    with torch.inference_mode():
        expected = reference(ids).logits
        assert [torch.equal(one.model(ids).logits, expected) for one in found] == [True] * 3


def test_loading_leaves_transformers_as_it_was(loaded: LoadedModel, tiny_model: Path) -> None:
    again = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert all(m.module.gate_up_proj.numel() > 0 for m in find_moe_layers(again))


# Refusals


def test_a_placement_of_another_checkpoint_is_refused(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    other = save_model(tmp_path / "other", rms_norm_eps=1e-3)
    with pytest.raises(PlacementError, match="fingerprint"):
        load(make_placement(checkpoint), other)


@pytest.mark.parametrize("edited", ["layer", "experts"])
def test_a_placement_of_other_cells_is_refused(edited: str, checkpoint: Checkpoint) -> None:
    placement = make_placement(checkpoint)
    if edited == "layer":
        model = replace(placement.model, moe_layers=(1, 99))
        layers = (placement.layers[0], replace(placement.layers[1], layer=99))
        found = "8 experts in each of the layers 1,99"
    else:
        model = replace(placement.model, num_experts=7)
        layers = tuple(
            replace(one, tiers=one.tiers[:7], formats=one.formats[:7]) for one in placement.layers
        )
        found = "7 experts in each of the layers 1-2"
    with pytest.raises(PlacementError, match=f"places {found}, but .* has 8 .* layers 1-2$"):
        load(replace(placement, model=model, layers=layers), checkpoint, device="cpu")


@pytest.mark.parametrize("weight_format", ["stored", "q8_0"])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_an_expert_that_is_not_finite_is_named(
    weight_format: str, value: float, tmp_path: Path
) -> None:
    model = make_model()
    model.model.layers[2].mlp.experts.down_proj.data[5, 3, 1] = value
    model.save_pretrained(tmp_path)
    damaged = read_checkpoint(tmp_path)
    given = {"device": "cpu", "weight_format": weight_format}
    with pytest.raises(UnsupportedModelError, match="layer 2, expert 5: weights: a value is not f"):
        load(make_placement(damaged), damaged, **given)


def test_an_expert_that_a_narrower_type_cannot_hold_is_named(tmp_path: Path) -> None:
    model = make_model()
    model.model.layers[1].mlp.experts.down_proj.data[0, 0, 0] = 1e6
    model.save_pretrained(tmp_path)
    large = read_checkpoint(tmp_path)
    assert load(make_placement(large), large, device="cpu").experts.weight_format == "stored"
    with pytest.raises(UnsupportedModelError, match=r"layer 1, expert 0: .* finite in float16"):
        load(make_placement(large), large, device="cpu", dtype="float16")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("can't start new thread"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        OSError(12, "Cannot allocate memory"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_while_loading_is_called_so(
    error: Exception, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Qwen3MoeForCausalLM, "from_pretrained", fail)
    with pytest.raises(CapacityError, match="memory ran out") as caught:
        load(make_placement(checkpoint), checkpoint, device="cpu")
    assert "ulimit -v" in caught.value.hint


def test_a_moved_model_is_asked_for(checkpoint: Checkpoint) -> None:
    placement = make_placement(checkpoint)
    moved = replace(placement, model=replace(placement.model, name="./gone"))
    with pytest.raises(UnsupportedModelError, match=r"\./gone: no such directory") as caught:
        load(moved)
    assert "--model" in caught.value.hint


def test_the_nvme_tier_is_refused(checkpoint: Checkpoint) -> None:
    tiers = make_tiers(checkpoint.shape)
    tiers[0, 0] = Tier.NVME
    with pytest.raises(PlacementError, match="tier nvme"):
        load(make_placement(checkpoint, tiers), checkpoint)


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_refused(device: str, checkpoint: Checkpoint) -> None:
    with pytest.raises(CapacityError, match=f"device '{device}'"):
        load(make_placement(checkpoint), checkpoint, device=device)


def test_an_unknown_dtype_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(UnsupportedModelError, match="dtype 'int3'"):
        load(make_placement(checkpoint), checkpoint, dtype="int3")


def test_a_layer_that_bypasses_the_stores_is_an_error(loaded: LoadedModel) -> None:
    module = find_moe_layers(loaded.model)[1].module
    module.forward = lambda hidden, *_: hidden
    with pytest.raises(UnsupportedModelError, match="layer 2 called its experts 0 times"):
        loaded.forward([1, 2], "prefill")


# Counting


def test_every_assignment_is_counted_in_its_phase(loaded: LoadedModel) -> None:
    step = loaded.forward([3, 4, 5], "prefill")
    loaded.forward([6], "decode", step.cache, 3)
    assert loaded.meter.tokens.tolist() == [3, 1]
    assert loaded.meter.assignments.sum(axis=2).tolist() == [[6, 6], [2, 2]]


def test_hits_and_reads_are_counted_by_hand(checkpoint: Checkpoint) -> None:
    meter = Meter(checkpoint.shape)
    tiers = np.array([[0, 0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 0]], np.uint8)
    for _ in range(2):
        meter.begin("decode", 1)
        meter.record(0, np.array([0, 3, 0, 0, 0, 0, 1, 0]))
        meter.record(1, np.array([0, 0, 0, 0, 0, 0, 0, 4]))
        meter.finish()
    assert meter.hits(tiers)[1].tolist() == [[6, 2, 0], [8, 0, 0]]
    assert meter.reads[1].sum(axis=1).tolist() == [4, 2]
    assert meter.hits(tiers)[0].sum() == 0


def test_report_divides_bytes_by_tokens_and_hits_by_assignments(loaded: LoadedModel) -> None:
    for token_id in (3, 4):
        loaded.forward([token_id], "decode", keep_cache=False)
    report = Session(loaded).report()
    decode = report.phases["decode"]
    # each token reads two experts in each of two layers, of 6144 bytes
    assert sum(decode.bytes_read_per_token.values()) == 4 * 6144
    assert decode.hit_rate == decode.hits["vram"] / 8
    assert sum(decode.hits.values()) == decode.assignments == 8
    assert list(report.phases) == ["decode"]
    assert report.to_document()["phases"]["decode"]["tokens_per_s"] is None


def test_a_predicted_speed_of_prompts_stands_beside_the_length_of_both(
    checkpoint: Checkpoint,
) -> None:
    phase = PhasePrediction(8, 4, 0.5, None, None, None, Estimate(9.0, None, None), 192.0)
    placement = make_placement(checkpoint, predicted=Prediction(phase, None))
    session = Session(load(placement, checkpoint, device="cpu"))
    for prompt in ("five.", "fourteen chars"):
        session.generate(prompt, Sampling(max_new_tokens=2))
    report = session.report()
    prefill, decode = report.phases["prefill"], report.phases["decode"]
    # a token for each character
    assert (prefill.prompt_tokens, prefill.predicted_prompt_tokens) == ((5 + 14) / 2, 192.0)
    assert math.isnan(decode.prompt_tokens) and decode.predicted_prompt_tokens is None
    console = Console(width=120, record=True, file=io.StringIO())
    print_report(report, console)
    rows = {
        line.split("│")[1].strip(): line
        for line in console.export_text().splitlines()[4:]
        if line.startswith("│")
    }
    assert rows["tokens of a prompt m"].split()[-4] == "9.5"
    assert rows["tokens of a prompt p"].split()[-4] == "192.0"


# Generation


def test_generation_stops_at_the_end_token(loaded: LoadedModel) -> None:
    first = Session(loaded).generate(TEXT, Sampling(max_new_tokens=8)).token_ids
    loaded.model.generation_config.eos_token_id = [first[3]]
    generation = Session(loaded).generate(TEXT, Sampling(max_new_tokens=8))
    assert generation.token_ids == first[: first.index(first[3]) + 1]
    assert generation.stopped_by == "eos"


def test_generation_stops_where_the_planned_context_ends(checkpoint: Checkpoint) -> None:
    placement = make_placement(checkpoint)
    short = replace(placement, budget=replace(placement.budget, context_tokens=12))
    session = Session(load(short, checkpoint, device="cpu"))
    generation = session.generate("ten chars.", Sampling(max_new_tokens=50))
    assert (len(generation.token_ids), generation.stopped_by) == (2, "context")
    with pytest.raises(CapacityError, match="prompt: has 14 tokens"):
        session.generate("fourteen chars", Sampling())


def test_no_more_is_generated_than_the_model_was_made_for(tmp_path: Path) -> None:
    short = read_checkpoint(save_model(tmp_path / "short", max_position_embeddings=12))
    planned = make_placement(short)  # for 1024 tokens
    session = Session(load(planned, short, device="cpu"))
    generation = session.generate("ten chars.", Sampling(max_new_tokens=50))
    assert (len(generation.token_ids), generation.stopped_by) == (2, "positions")
    exact = session.generate("ten chars.", Sampling(max_new_tokens=1))
    assert exact.stopped_by == "max_new_tokens"
    with pytest.raises(CapacityError, match="short was made for 12") as caught:
        session.generate("twelve chars", Sampling())
    assert "--context" not in caught.value.hint


def test_no_longer_context_is_advised_than_the_model_was_made_for(tmp_path: Path) -> None:
    short = read_checkpoint(save_model(tmp_path / "short", max_position_embeddings=24))
    prompts = Prompts(short, 12)
    with pytest.raises(CapacityError, match="planned for a context of 12") as caught:
        prompts.text("x" * 20)
    assert caught.value.hint.endswith("--context 24")
    with pytest.raises(CapacityError, match="was made for 24") as caught:
        prompts.text("x" * 24)
    assert "--context" not in caught.value.hint
    # a longer plan would not help where both end together
    assert Prompts(short, 24).room(20) == (4, "positions")
    assert Prompts(short, 23).room(20) == (3, "context")


def test_an_interrupted_generation_ends_with_the_token_it_is_at(loaded: LoadedModel) -> None:
    session = Session(loaded)
    whole = session.generate(TEXT, Sampling(max_new_tokens=12))
    assert not whole.is_interrupted
    pieces: list[str] = []

    def write(piece: str) -> None:
        pieces.append(piece)
        session.interrupt()

    part = session.generate(TEXT, Sampling(max_new_tokens=12), write)
    assert part.is_interrupted
    assert len(part.token_ids) < 12
    assert part.token_ids == whole.token_ids[: len(part.token_ids)]
    assert part.text == "".join(pieces)
    assert session.generate(TEXT, Sampling(max_new_tokens=12)) == whole


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_loaded(
    checkpoint: Checkpoint,
) -> None:
    told: list[str] = []
    placement = make_placement(checkpoint)
    short = replace(placement, budget=replace(placement.budget, context_tokens=14))
    with pytest.raises(CapacityError, match="prompt: has 14 tokens"):
        run(short, "fourteen chars", device="cpu", progress=lambda what, *_: told.append(what))
    assert not told


def test_the_text_is_streamed_in_pieces(loaded: LoadedModel) -> None:
    pieces: list[str] = []
    generation = Session(loaded).generate(TEXT, Sampling(max_new_tokens=12), pieces.append)
    assert len(pieces) > 1
    assert "".join(pieces) == generation.text


def test_run_loads_generates_and_reports(checkpoint: Checkpoint) -> None:
    report = run(
        make_placement(checkpoint), TEXT, device="cpu", sampling=Sampling(max_new_tokens=5)
    )
    assert len(report.token_ids) == 5
    assert report.phases["prefill"].tokens == len(make_tokenizer()(TEXT)["input_ids"])
    # the fifth token is not fed
    assert report.phases["decode"].tokens == 4
    assert report.host_only


def test_a_prompt_without_tokens_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(MoeprofError, match="has no tokens"):
        Session(loaded).generate("", Sampling())


def test_a_conversation_needs_a_chat_template(tmp_path: Path) -> None:
    path = save_model(tmp_path / "plain", chat=False)
    plain = read_checkpoint(path)
    session = Session(load(make_placement(plain), plain, device="cpu"))
    with pytest.raises(UnsupportedModelError, match="no chat template"):
        session.reply([{"role": "user", "content": "hello"}], Sampling())


def test_temperature_zero_takes_the_likeliest_token() -> None:
    assert Sampler(Sampling()).draw(torch.tensor([0.0, 3.0, 2.9])) == 1
    assert Sampler(Sampling(temperature=1e-40)).draw(torch.tensor([0.0, 3.0, 2.9])) == 1


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("logits", [[1.0, torch.nan, 2.0], [1.0, torch.inf], [-torch.inf] * 2])
def test_logits_that_overflowed_are_refused(temperature: float, logits: list[float]) -> None:
    sampler = Sampler(Sampling(temperature=temperature))
    assert sampler.draw(torch.tensor([-torch.inf, 3.0])) == 1
    with pytest.raises(UnsupportedModelError, match="logits: the largest is") as caught:
        sampler.draw(torch.tensor(logits))
    assert "--dtype" in caught.value.hint


def test_top_p_leaves_only_the_likeliest_tokens() -> None:
    logits = torch.tensor([0.45, 0.35, 0.15, 0.05]).log()
    sampler = Sampler(Sampling(temperature=1.0, top_p=0.7))
    assert {sampler.draw(logits) for _ in range(200)} == {0, 1}


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([0.75, 0.25]).log()
    sampler = Sampler(Sampling(temperature=1.0))
    drawn = sum(sampler.draw(logits) for _ in range(2000)) / 2000
    assert drawn == pytest.approx(0.25, abs=0.04)  # four standard errors


def test_the_same_seed_draws_the_same_tokens() -> None:
    logits = torch.zeros(1000)
    first, second = (Sampler(Sampling(temperature=1.0, seed=7)) for _ in range(2))
    assert [first.draw(logits) for _ in range(9)] == [second.draw(logits) for _ in range(9)]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": -1.0}, "temperature must be a number from 0 up, not -1.0"),
        ({"temperature": math.inf}, "temperature must be a number from 0 up, not inf"),
        ({"top_p": 0.0}, "top-p must be a number above 0 and up to 1, not 0.0"),
        ({"top_p": math.nan}, "top-p must be a number above 0 and up to 1, not nan"),
        ({"max_new_tokens": 0}, "tokens to generate must be at least 1, not 0"),
    ],
)
def test_impossible_sampling_is_refused(settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        Sampling(**settings)


def test_a_character_of_several_tokens_is_written_whole() -> None:
    tokenizer = make_tokenizer()
    pieces: list[str] = []
    stream = TextStream(tokenizer, pieces.append)
    for token_id in tokenizer("aé€b")["input_ids"]:
        stream.push(token_id)
    stream.end()
    assert pieces == ["a", "é", "€", "b"]


# Replay


def test_replay_of_windows_hits_what_the_trace_predicts(
    loaded: LoadedModel, windowed_trace: Trace
) -> None:
    selection = select_documents(str(windowed_trace.path))
    report = replay(loaded, selection)
    assert report.replay is not None
    assert report.replay.equal
    assert report.replay.documents == 3
    counts = windowed_trace.cell_counts().counts.sum(axis=0)
    assert np.array_equal(loaded.meter.assignments, counts)
    assert report.replay.measured_hits == {
        "prefill": {
            tier.label: int(counts[0][loaded.table.tier == tier].sum())
            for tier in (Tier.VRAM, Tier.RAM)
        }
    }


def test_replay_of_generated_documents_is_right_in_both_phases(
    loaded: LoadedModel, generated_trace: Trace
) -> None:
    report = replay(loaded, select_documents(str(generated_trace.path)))
    assert report.replay is not None
    assert report.replay.equal
    assert set(report.replay.measured_hits) == {"prefill", "decode"}
    tokens = generated_trace.documents()[["prefill_tokens", "decode_tokens"]].sum()
    assert loaded.meter.tokens.tolist() == tokens.tolist()


def test_replay_on_other_weights_reports_where_hits_differ(
    windowed_trace: Trace, tmp_path: Path
) -> None:
    other = read_checkpoint(save_model(tmp_path / "other", seed=1))
    loaded = load(make_placement(other), other, device="cpu")
    report = replay(loaded, select_documents(str(windowed_trace.path)))
    assert report.replay is not None
    assert not report.replay.equal
    total = sum(abs(d.predicted - d.measured) for d in report.replay.differences)
    assert 0 < total <= 2 * report.replay.moved_assignments
    assert report.to_document()["replay"]["equal"] is False


def test_documents_are_selected_by_domain_and_by_sequence(windowed_trace: Trace) -> None:
    path = str(windowed_trace.path)
    assert select_documents(path).sequences == (0, 1, 2)
    assert select_documents(f"{path}:second").sequences == (1, 2)
    assert select_documents(f"{path}:2,first").sequences == (0, 2)


def test_an_unknown_domain_is_refused(windowed_trace: Trace) -> None:
    with pytest.raises(TraceError, match="no domain or sequence 'third'") as caught:
        select_documents(f"{windowed_trace.path}:third")
    assert "first, second" in caught.value.hint


def test_a_trace_of_another_model_is_refused(windowed_trace: Trace, tmp_path: Path) -> None:
    other = read_checkpoint(save_model(tmp_path / "other", rms_norm_eps=1e-3))
    loaded = load(make_placement(other), other, device="cpu")
    with pytest.raises(TraceError, match="traced on tiny with fingerprint"):
        replay(loaded, select_documents(str(windowed_trace.path)))


@pytest.mark.gpu
def test_tiers_on_a_gpu_give_the_same_routing_and_close_logits(
    checkpoint: Checkpoint, reference: AutoModelForCausalLM
) -> None:
    loaded = load(make_placement(checkpoint), checkpoint, device="cuda")
    assert loaded.stores[Tier.VRAM].device.type == "cuda"
    assert loaded.stores[Tier.RAM].device.type == "cpu"
    ids = list(range(40))
    with torch.inference_mode():
        expected = reference(torch.tensor([ids])).logits[0, -1]
    logits = loaded.forward(ids, "prefill").logits.cpu()
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


def test_only_the_tiers_that_are_allocated_must_fit() -> None:
    tiers = np.array([[Tier.VRAM], [Tier.RAM]], np.uint8)
    table, sizes, host = SlotTable.from_tiers(tiers), (512, 2**50), torch.device("cpu")
    found = allocate_packed_stores(table, sizes, host, [Tier.VRAM])
    assert list(found) == [Tier.VRAM]
    assert found[Tier.VRAM].num_bytes == 512
    with pytest.raises(CapacityError, match="tier ram needs"):
        allocate_packed_stores(table, sizes, host)
