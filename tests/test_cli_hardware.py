import json
from pathlib import Path

import pytest
from tiny import save_model

from moeprof.cli import main
from moeprof.cli.hardware import expert_lines
from moeprof.demo import model_path
from moeprof.hardware import TierProfile, Time, read_hardware
from moeprof.native import expert_bytes
from moeprof.placement import read_placement
from moeprof.runtime.measurement import measure_hardware


def test_the_measured_profile_is_a_valid_one(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "machine.json"
    with pytest.raises(SystemExit) as stopped:
        main(["hardware", str(tiny_model), "-o", str(path), "--device", "cpu", "--name", "here"])
    assert not stopped.value.code
    profile = read_hardware(path)
    assert (profile.name, profile.source) == ("here", "measured")
    assert not profile.tiers_overlap
    assert profile.links == {}
    for tier in profile.tiers.values():
        time = tier.expert_time["float32"]
        assert time(6144) >= 6144 * time.s_per_byte > 0
        batch = tier.expert_batch_time["float32"]
        assert batch(6144, 8) >= batch(6144) >= 6144 * batch.s_per_byte > 0
    assert profile.dense_batch_time is not None
    assert profile.dense_batch_time(0, 8) > 0
    err = capsys.readouterr().err
    assert f"wrote {path}" in err
    assert "note: no CUDA device is used: both tiers live in host memory" in err


def test_a_profile_in_another_type_keeps_the_checkpoints_format(tmp_path: Path) -> None:
    path = save_model(tmp_path / "one", num_experts_per_tok=1)
    profile = measure_hardware(path, device="cpu", dtype="bfloat16")
    assert list(profile.tiers["ram"].expert_time) == ["float32"]
    assert profile.dense_time(0) > 0


def test_formats_that_take_the_same_share_a_line() -> None:
    read, slow = Time(0.0, 1e-6 / 2**20), Time(2e-6, 1e-6 / 2**20, 3e-6)
    token = {"bfloat16": read, "q8_0": read, "q4_0": slow}
    batch = {"bfloat16": slow, "q8_0": slow, "q4_0": slow}
    assert expert_lines(TierProfile(1, 1.0, token, batch)) == [
        "bfloat16, q8_0 one expert: 0.0 µs + 1.0 µs per MiB; "
        "of a batch: 2.0 µs + 1.0 µs per MiB + 3.0 µs per token",
        "q4_0     one expert: 2.0 µs + 1.0 µs per MiB; "
        "of a batch: 2.0 µs + 1.0 µs per MiB + 3.0 µs per token",
    ]


def test_a_profile_is_not_replaced_without_force(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "machine.json"
    path.write_text("{}")
    with pytest.raises(SystemExit) as stopped:
        main(["hardware", str(tiny_model), "-o", str(path)])
    assert stopped.value.code == 1
    assert "--force" in capsys.readouterr().err
    assert path.read_text() == "{}"


def test_a_profile_that_cannot_be_written_is_shown(
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    path = tmp_path / "machine.json"
    with pytest.raises(SystemExit) as stopped:
        main(["hardware", str(tiny_model), "-o", str(path), "--device", "cpu", "--json"])
    out, err = capsys.readouterr()
    assert stopped.value.code == 1
    assert set(json.loads(out)["tiers"]) == {"vram", "ram"}
    assert "machine    " in err and "No space left on device" in err and "wrote" not in err


def test_an_unknown_format_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["hardware", "./gone", "-o", str(tmp_path / "m.json"), "--format", "q9"])
    assert stopped.value.code == 2
    assert "'q9' is not one of q8_0, q4_0, bf16" in " ".join(capsys.readouterr().err.split())


def test_json_is_the_profile_on_stdout(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "machine.json"
    with pytest.raises(SystemExit):
        main(["hardware", str(tiny_model), "-o", str(path), "--device", "cpu", "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_text())


def test_a_plan_for_a_format_is_priced_by_a_profile_that_timed_it(tmp_path: Path) -> None:
    machine, placement = tmp_path / "machine.json", tmp_path / "plan.json"
    model, trace = str(model_path()), str(Path(__file__).parent.parent / "traces" / "demo")
    plan = ["plan", trace, "--model", model, "--vram", "6MB", "--context", "256"]
    plan += ["--device-context", "0", "--format", "q8_0", "--hardware", str(machine)]
    for command in (
        ["hardware", model, "-o", str(machine), "--device", "cpu", "--format", "q8_0"],
        [*plan, "-o", str(placement)],
    ):
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert not stopped.value.code
    ram = read_hardware(machine).tiers["ram"]
    assert set(ram.expert_time) == set(ram.expert_batch_time) == {"bfloat16", "q8_0"}
    found = read_placement(placement)
    assert found.planned_formats == {"q8_0"}
    config = json.loads((model_path() / "config.json").read_text())
    sizes = config["hidden_size"], config["moe_intermediate_size"]
    assert found.layers[0].expert_bytes == expert_bytes(*sizes, "q8_0", False)
    assert found.predicted.decode is not None
    assert found.predicted.decode.tokens_per_s is not None
