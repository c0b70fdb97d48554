"""What only a CUDA device shows; on other machines these tests are skipped."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from placing import make_placement
from test_tracer import TEXTS, request
from transformers import AutoModelForCausalLM, AutoTokenizer

from moeprof.capture import RoutingTap, trace
from moeprof.checkpoint import read_checkpoint
from moeprof.demo import model_path, text_path
from moeprof.placement import Tier
from moeprof.runtime import Sampling, Session, load, replay, select_documents

pytestmark = pytest.mark.gpu


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    return folder


def count_synchronisations(action) -> int:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def test_the_tap_adds_no_synchronisation_and_changes_no_bit() -> None:
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.bfloat16).cuda().eval()
    token_ids = torch.arange(512, device="cuda").reshape(4, 128)
    outputs = []

    def forward() -> None:
        with torch.inference_mode():
            outputs.append(model(token_ids).logits)

    forward()
    count_synchronisations(forward)
    plain = count_synchronisations(forward)
    with RoutingTap(model) as tap:
        forward()
        tap.take()
        tapped = count_synchronisations(forward)
        taken = []
        take = count_synchronisations(lambda: taken.append(tap.take()))
    assert tapped == plain
    assert take == 0, "stacking stays on the device; the copy to the host is one per forward"
    assert taken[0].ids.is_cuda
    assert all(torch.equal(outputs[0], other) for other in outputs[1:]), "same bits with the tap on"


@pytest.mark.parametrize("generate", [0, 6])
def test_a_trace_on_cuda_equals_the_one_on_the_processor(
    tiny_model, folder, tmp_path, generate
) -> None:
    options = {"generate": generate}
    on_host = trace(request(tiny_model, f"d={folder}", tmp_path / "a", **options))
    on_device = trace(request(tiny_model, f"d={folder}", tmp_path / "b", device="cuda", **options))
    for layer in on_host.shape.moe_layers:
        host, device = on_host.routing(layer), on_device.routing(layer)
        np.testing.assert_array_equal(host.token_id, device.token_id)
        np.testing.assert_array_equal(np.sort(host.experts), np.sort(device.experts))


@pytest.mark.parametrize("vram_share", [0.0, 0.5, 1.0])
def test_split_experts_give_the_tokens_of_the_unmodified_model(vram_share) -> None:
    checkpoint = read_checkpoint(model_path())
    rng = np.random.default_rng(3)
    size = (checkpoint.shape.num_moe_layers, checkpoint.shape.num_experts)
    tiers = np.where(rng.random(size) < vram_share, Tier.VRAM, Tier.RAM).astype(np.uint8)
    session = Session(
        load(make_placement(checkpoint, tiers, spare_bytes=2**26), dtype="float32", device="cuda")
    )
    prompt = "def main(arguments):\n    "
    found = session.generate(prompt, Sampling(max_new_tokens=48)).token_ids
    model = AutoModelForCausalLM.from_pretrained(
        model_path(), dtype=torch.float32, experts_implementation="eager"
    ).cuda()
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    ids = torch.tensor([tokenizer(prompt)["input_ids"]], device="cuda")
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=48, do_sample=False
    )
    assert list(found) == expected[0, ids.shape[1] :].tolist()


def test_stores_really_live_in_their_tiers() -> None:
    checkpoint = read_checkpoint(model_path())
    before = torch.cuda.memory_allocated()
    loaded = load(make_placement(checkpoint), dtype="bfloat16", device="cuda")
    used = torch.cuda.memory_allocated() - before
    budget = loaded.placement.budget
    expected = budget.dense_bytes + budget.experts_used_bytes
    assert expected <= used <= 1.1 * expected + 2**20
    assert all(p.is_cuda for p in loaded.model.parameters())


def test_replay_on_cuda_hits_exactly_what_the_trace_predicts(tmp_path) -> None:
    data = f"python={text_path() / 'python'}"
    options = {"device": "cuda", "sequence_length": 256, "max_tokens": 2000, "batch_size": 1}
    trace(request(model_path(), data, tmp_path / "t", **options))
    loaded = load(
        make_placement(read_checkpoint(model_path())),
        dtype="float32",
        device="cuda",
        within_budget=False,
    )
    report = replay(loaded, select_documents(str(tmp_path / "t")))
    assert report.replay is not None
    assert report.replay.equal
