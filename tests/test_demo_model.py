"""The promises that are made of the bundled model itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from placing import make_placement, make_tiers
from transformers import AutoModelForCausalLM, AutoTokenizer

from moeprof import read_placement
from moeprof.checkpoint import read_checkpoint
from moeprof.demo import domains, model_path, text_path
from moeprof.runtime import Sampling, Session, load, replay, select_documents

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ["def read_config(path):\n", "static int ", "Die Datei "]


@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_tokens_equal_those_of_the_unmodified_model(seed: int) -> None:
    checkpoint = read_checkpoint(model_path())
    tiers = make_tiers(checkpoint.shape, seed, vram_share=0.3 + 0.4 * seed)
    session = Session(load(make_placement(checkpoint, tiers), dtype="float32", device="cpu"))
    model = AutoModelForCausalLM.from_pretrained(
        model_path(), dtype=torch.float32, experts_implementation="eager"
    )
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False
        )
        found = session.generate(prompt, Sampling(max_new_tokens=40)).token_ids
        assert list(found) == expected[0, ids.shape[1] :].tolist()


def test_the_sample_placement_replays_the_sample_trace_to_the_hit() -> None:
    loaded = load(read_placement(ROOT / "placements" / "demo.json"), model_path(), dtype="float32")
    report = replay(loaded, select_documents(f"{ROOT}/traces/demo:0,40,131"))
    assert report.replay is not None
    assert report.replay.equal


def test_every_bundled_text_survives_the_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    lengths = []
    for domain in domains():
        for path in sorted((text_path() / domain).iterdir()):
            text = path.read_text(encoding="utf-8")
            ids = tokenizer(text)["input_ids"]
            lengths.append(len(ids))
            assert tokenizer.decode(ids) == text
    assert np.min(lengths) > 512


def test_the_model_predicts_each_domain_far_better_than_chance() -> None:
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    for domain in domains():
        text = next(iter(sorted((text_path() / domain).iterdir()))).read_text(encoding="utf-8")
        ids = torch.tensor([tokenizer(text)["input_ids"][:512]])
        with torch.inference_mode():
            loss = model(ids, labels=ids).loss.item()
        assert loss < 0.5 * np.log(model.config.vocab_size), domain
