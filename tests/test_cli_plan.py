import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from builders import make_block, make_metadata, write_block
from planning import make_hardware
from tiny import save_model

from moeprof.checkpoint import Checkpoint, kv_cache_bytes, read_checkpoint, workspace_bytes
from moeprof.cli import main
from moeprof.placement import Tier, read_placement, schema
from moeprof.trace.schema import ModelIdentity
from moeprof.trace.writer import TraceWriter

CONTEXT = 16
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path) -> Checkpoint:
    return read_checkpoint(tiny_model)


@pytest.fixture
def trace(tmp_path: Path, checkpoint: Checkpoint) -> Path:
    return write_trace(tmp_path / "trace", checkpoint)


def write_trace(path: Path, checkpoint: Checkpoint) -> Path:
    """Six documents of ten tokens, half of them decoded; expert 3 is in every choice."""
    shape = checkpoint.shape
    model = ModelIdentity("tiny", checkpoint.fingerprint, checkpoint.tokenizer_hash)
    metadata = dataclasses.replace(make_metadata(shape, ("code",)), model=model)
    odds = np.full((shape.num_moe_layers, shape.num_experts), 0.01)
    odds[:, 3] = 1e6
    sequence = np.repeat(np.arange(6), 10).tolist()
    with TraceWriter(path, metadata) as writer:
        write_block(writer, "code", make_block(shape, sequence, decode=5, probabilities=odds))
        writer.finish()
    return path


def fixed_bytes(checkpoint: Checkpoint, context: int = CONTEXT, batch: int = 1) -> int:
    """What a plan must leave room for beside the experts, the device context apart."""
    cache = kv_cache_bytes(checkpoint, context, batch)
    return checkpoint.shape.dense_bytes + cache + workspace_bytes(checkpoint, context, batch)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], trace: Path, checkpoint: Checkpoint) -> Run:
    """Run `moeprof plan` on the trace; exit code, standard output, standard error."""

    def call(vram: int, *options: object, model: object = checkpoint.path) -> tuple[int, str, str]:
        fixed = ["plan", trace, "--model", model, "--vram", vram, "--context", CONTEXT]
        with pytest.raises(SystemExit) as stopped:
            main([str(option) for option in (*fixed, *options)])
        code = stopped.value.code
        assert isinstance(code, int)
        return code, *capsys.readouterr()

    return call


def test_the_budget_holds_exactly_the_experts_that_fit(
    run: Run, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    output = tmp_path / "plans" / "plan.json"
    vram = fixed_bytes(checkpoint) + 5 * checkpoint.shape.expert_bytes[0] + 17
    code, out, err = run(vram, "--device-context", "1000", "-o", output)
    assert code == 0
    placement = read_placement(output)
    budget = placement.budget
    assert budget.experts_available_bytes == vram - fixed_bytes(checkpoint) - 1000
    # 1000 of the bytes of the fifth expert went to the device context.
    assert (placement.tier_of == Tier.VRAM).sum() == 4
    assert (placement.tier_of[:, 3] == Tier.VRAM).all()
    assert placement.model.name == str(checkpoint.path)
    assert err.splitlines() == [
        "device context: 1000 B, as given",
        f"wrote {output}",
        f"wrote {output.with_suffix('.png')}",
    ]
    assert "weights outside the experts" in out
    assert "verdict: worthwhile" in out
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert len(list(output.parent.iterdir())) == 2


def test_json_is_the_manifest_and_nothing_else(
    run: Run, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    output = tmp_path / "plan.json"
    code, out, _ = run(fixed_bytes(checkpoint), "--device-context", 0, "-o", output, "--json")
    assert code == 0
    assert out == output.read_text(encoding="utf-8")
    jsonschema.validate(json.loads(out), schema(), jsonschema.Draft202012Validator)


def test_the_batch_is_paid_for(run: Run, tmp_path: Path, checkpoint: Checkpoint) -> None:
    output = tmp_path / "plan.json"
    assert run(10**6, "-o", output, "--batch", 4)[0] == 0
    budget = read_placement(output).budget
    assert budget.kv_cache_bytes == 4 * kv_cache_bytes(checkpoint, CONTEXT, 1)
    assert (budget.batch_size, budget.context_tokens) == (4, CONTEXT)


def test_a_budget_below_the_rest_is_refused_with_the_breakdown_and_leaves_nothing(
    run: Run, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    output = tmp_path / "plans" / "plan.json"
    code, out, err = run(fixed_bytes(checkpoint) - 1, "--device-context", 0, "-o", output)
    assert (code, out) == (1, "")
    assert "error: vram: " in err
    assert "KV cache 6.0 KiB" in err
    assert "raise --vram to" in err
    assert not output.parent.exists()


def test_nothing_is_overwritten_without_force(
    run: Run, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    output, picture = tmp_path / "plan.json", tmp_path / "plan.png"
    picture.write_bytes(b"mine")
    code, _, err = run(10**6, "-o", output)
    assert code == 1
    assert f"error: {picture}: already exists" in err
    assert picture.read_bytes() == b"mine"
    assert not output.exists()
    assert run(10**6, "-o", output, "--force")[0] == 0
    assert picture.read_bytes() != b"mine"


def test_a_trace_of_another_model_is_refused(run: Run, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", seed=1, num_experts=6)
    code, _, err = run(10**6, "-o", tmp_path / "plan.json", model=other)
    assert code == 1
    assert "is a trace of tiny with fingerprint" in err
    assert f"hint: trace this model: moeprof trace {other}" in err
    assert not (tmp_path / "plan.json").exists()


def write_profile(path: Path, has_batches: bool = False) -> Path:
    """A profile for experts in float32; without times of batches prompts are not priced."""
    profile = json.loads(make_hardware().to_json())
    for tier in profile["tiers"].values():
        tier["expert_time"]["float32"] = tier["expert_time"].pop("bfloat16")
        if has_batches:
            tier["expert_batch_time"] = tier["expert_time"]
    path.write_text(json.dumps(profile), encoding="utf-8")
    return path


def test_the_device_context_of_a_hardware_profile_is_used(run: Run, tmp_path: Path) -> None:
    path = write_profile(tmp_path / "desk.json")
    output = tmp_path / "plan.json"
    code, out, err = run(10**6, "-o", output, "--hardware", path)
    assert code == 0
    assert "device context: 100 B, of hardware profile round numbers" in err
    placement = read_placement(output)
    assert placement.budget.device_context_bytes == 100
    assert placement.hardware is not None
    assert "tokens/s" in out
    assert placement.predicted.prefill is not None
    assert placement.predicted.prefill.tokens_per_s is None
    assert placement.predicted.prefill.prompt_tokens is None


def test_a_speed_of_prompts_says_their_length(run: Run, tmp_path: Path) -> None:
    path = write_profile(tmp_path / "desk.json", has_batches=True)
    output = tmp_path / "plan.json"
    assert run(10**6, "-o", output, "--hardware", path)[0] == 0
    placement = read_placement(output)
    for prediction in (placement.predicted, *(one.predicted for one in placement.baselines)):
        prefill, decode = prediction.prefill, prediction.decode
        assert prefill is not None and decode is not None
        assert prefill.tokens_per_s is not None
        # five of the ten tokens of each document are its prompt
        assert (prefill.prompt_tokens, decode.prompt_tokens) == (5.0, None)


@pytest.mark.parametrize("options", [["--phase", "both"], ["--folds", "1"], ["--batch", "0"]])
def test_a_wrong_option_is_wrong_usage(run: Run, tmp_path: Path, options: list[str]) -> None:
    code, out, _ = run(10**6, "-o", tmp_path / "plan.json", *options)
    assert (code, out) == (2, "")


@pytest.mark.parametrize("vram", ["much", "10 gallons"])
def test_a_size_that_is_none_is_refused(run: Run, tmp_path: Path, vram: str) -> None:
    code, _, err = run(vram, "-o", tmp_path / "plan.json")
    assert code == 1
    assert f"error: size: {vram!r} is not a size" in err


def test_a_context_beyond_the_models_positions_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = read_checkpoint(save_model(tmp_path / "short", max_position_embeddings=24))
    trace, output = write_trace(tmp_path / "trace", checkpoint), tmp_path / "plan.json"
    fixed = ["plan", str(trace), "--model", str(checkpoint.path), "--vram", "1MB", "--force"]
    shown = {}
    for context in (None, 24, 25):
        given = [] if context is None else ["--context", str(context)]
        with pytest.raises(SystemExit) as stopped:
            main([*fixed, "--device-context", "0", "-o", str(output), *given])
        assert not stopped.value.code
        placement = read_placement(output)
        shown[context] = capsys.readouterr().out
        assert placement.budget.context_tokens == (context or 24)
        found = [note for note in placement.notes if "max_position_embeddings" in note]
        assert len(found) == (context == 25)
    assert "the context of 25 tokens is longer than the 24" in " ".join(shown[25].split())
    assert "longer than" not in shown[24] + shown[None]
