import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from advising import DENSE, SHAPE, make_machine, make_routed, without_batches
from synthetic import Routing
from test_cli_plan import checkpoint, fixed_bytes, trace  # noqa: F401

from moeprof.checkpoint import Checkpoint
from moeprof.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `moeprof advise`; exit code, standard output, standard error."""

    def call(*options: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["advise", *(str(option) for option in options)])
        code = stopped.value.code
        assert isinstance(code, int)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    path = tmp_path / "machine.json"
    path.write_text(make_machine().to_json(), encoding="utf-8")
    return path


@pytest.fixture
def skewed(tmp_path: Path) -> Path:
    return make_routed(tmp_path, Routing(exponent=1.6)).path


def test_the_verdict_comes_first_then_one_table_then_what_it_rests_on(
    run: Run, skewed: Path, machine: Path
) -> None:
    code, out, err = run(skewed, "--vram", DENSE + 24_000, "--hardware", machine)
    assert code == 0
    lines = [line.rstrip() for line in out.splitlines()]
    assert lines[0].startswith("pin it: keep the 24 busiest of 64 experts in VRAM; replies then")
    order = [
        next(at for at, line in enumerate(lines) if line.lstrip("> ").startswith(start))
        for start in (
            "pin it", "28.3 KiB of VRAM, 23.4 KiB of it for experts", "all experts in RAM",
            "whole layers", "arbitrary experts", "hot set ", "cache ",
            "hot set with cache ", "oracle", "replies: decode; ", "best policies: cache: ",
            "break-even: ", "rests on: ", "missing: ",
        )
    ]  # fmt: skip
    assert order == sorted(order)
    assert len(lines) <= 40
    assert any(line.startswith(" > hot set ") for line in lines)
    assert "device context: 0 B, of hardware profile round numbers" in err


@pytest.mark.parametrize(
    ("documents", "of"), [(12, "documents"), (1, "pieces of the only document")]
)
def test_intervals_are_said_to_be_over_documents_or_pieces_of_one(
    run: Run, tmp_path: Path, documents: int, of: str
) -> None:
    routed = make_routed(tmp_path, Routing(exponent=1.6), documents=documents)
    code, out, _ = run(routed.path, "--vram", DENSE + 24_000)
    assert code == 0
    assert f"±: half of a 95 % interval over {of}, ?" in " ".join(out.split())


def test_an_interval_from_two_tokens_is_said_to_be_too_wide(
    run: Run, tmp_path: Path, machine: Path
) -> None:
    """The oracle gains 175 %, somewhere between -751 and 1,101 %."""
    routed = make_routed(tmp_path, Routing(keep=0.5), documents=1, tokens=(0, 2))
    code, out, _ = run(routed.path, "--vram", DENSE + 8000, "--hardware", machine)
    assert code == 0
    halves = [float(half.replace(",", "")) for half in re.findall(r"± ([\d,.]+) %", out)]
    assert max(halves) < 100
    (oracle,) = (line for line in out.splitlines() if line.strip().startswith("oracle"))
    assert re.search(r"[\d.]+ ± \? +\+[\d.]+ ± \? %", oracle)
    assert "? where it is too wide to say anything" in " ".join(out.split())


def test_json_is_one_document_and_nothing_else(run: Run, skewed: Path, machine: Path) -> None:
    code, out, _ = run(skewed, "--vram", DENSE + 24_000, "--hardware", machine, "--json")
    assert code == 0
    document = json.loads(out)
    assert document["finding"]["answer"] == "pin it"
    assert document["budget"]["experts_available_bytes"] == 24_000


def test_a_checkpoint_pays_for_its_kv_cache(
    run: Run,
    trace: Path,  # noqa: F811
    checkpoint: Checkpoint,  # noqa: F811
) -> None:
    size = checkpoint.shape.expert_bytes[0]
    vram = fixed_bytes(checkpoint) + 5 * size + 17
    options = ("--vram", vram, "--context", 16, "--device-context", 0, "--json")
    code, out, _ = run(trace, "--model", checkpoint.path, *options)
    assert code == 0
    document = json.loads(out)
    assert document["budget"]["experts_available_bytes"] == 5 * size + 17
    (hot_set,) = (one for one in document["strategies"] if one["name"] == "hot_set")
    assert hot_set["slots"] == 5
    assert document["hardware"] is None


def test_the_usual_context_is_no_longer_than_the_models_and_a_longer_one_is_told(
    run: Run,
    trace: Path,  # noqa: F811
    checkpoint: Checkpoint,  # noqa: F811
) -> None:
    limit = checkpoint.max_positions
    assert limit is not None
    usual = ("--model", checkpoint.path, "--vram", "1GB", "--device-context", 0, "--json")
    code, out, err = run(trace, *usual)
    assert (code, "longer than" in err) == (0, False)
    assert json.loads(out)["budget"]["context_tokens"] == min(4096, limit)
    code, out, err = run(trace, *usual, "--context", limit + 1)
    assert code == 0
    assert f"longer than the {limit} that the model was made for" in err
    assert json.loads(out)["budget"]["context_tokens"] == limit + 1


def test_a_sweep_is_tabled_and_drawn(run: Run, skewed: Path, machine: Path, tmp_path: Path) -> None:
    picture = tmp_path / "sweep.png"
    sweep = f"vram={DENSE + 4000}..{DENSE + 64_000}:4"
    options = (skewed, "--vram", DENSE + 24_000, "--hardware", machine, "--sweep", sweep)
    code, out, err = run(*options, "--plot", picture)
    assert code == 0
    assert "The same with other budgets, tokens/s in replies" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"wrote {picture}" in err
    code, _, err = run(*options, "--plot", picture)
    assert code == 1
    assert f"error: {picture}: already exists" in err
    assert run(*options, "--plot", picture, "--force")[0] == 0


def test_a_machine_from_data_sheets_prices_decode_and_says_what_it_is(
    run: Run, skewed: Path
) -> None:
    bought = ("--gpu", "RTX 3090", "--ram", "ddr5-6000x2", "--device-context", 0)
    code, out, err = run(skewed, "--vram", DENSE + 24_000, *bought)
    assert code == 0
    assert "from data sheets, not measured" in " ".join(out.split())
    assert "machine: GeForce RTX 3090, ddr5-6000x2, from data sheets" in err


def test_without_a_budget_all_that_the_machine_has_is_used(
    run: Run, skewed: Path, tmp_path: Path
) -> None:
    small = make_machine()
    tiers = dict(small.tiers)
    tiers["vram"] = dataclasses.replace(tiers["vram"], capacity_bytes=DENSE + 24_000)
    path = tmp_path / "small.json"
    path.write_text(dataclasses.replace(small, tiers=tiers).to_json(), encoding="utf-8")
    code, out, _ = run(skewed, "--hardware", path, "--json")
    assert code == 0
    assert json.loads(out)["budget"]["total_bytes"] == DENSE + 24_000


def test_policies_are_those_asked_for(run: Run, skewed: Path, machine: Path) -> None:
    given = ("--policy", "lru", "--policy", "lfu:decay=0.9+pinned:share=0.5")
    options = ("--vram", DENSE + 24_000, "--hardware", machine, *given, "--json")
    code, out, _ = run(skewed, *options)
    assert code == 0
    found = {one["name"]: one["policy"] for one in json.loads(out)["strategies"]}
    assert found["cache"] == "lru"
    assert found["hot_set_and_cache"] == "lfu:decay=0.9+pinned:share=0.5"


def test_without_times_of_batches_prompts_have_hit_rates_only(
    run: Run, skewed: Path, tmp_path: Path
) -> None:
    path = tmp_path / "plain.json"
    path.write_text(without_batches(make_machine()).to_json(), encoding="utf-8")
    code, out, _ = run(skewed, "--vram", DENSE + 24_000, "--hardware", path)
    assert code == 0
    assert "over layers" in out
    assert "missing: prefill tokens/s: the machine's profile has no times of many tokens." in out


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "--vram 24GB"),
        (("--vram", "much"), 1, "error: size: 'much' is not a size"),
        (("--vram", "1kB"), 1, "error: vram: "),
        (("--vram", "1MB", "--sweep", "1GB..2GB"), 1, "error: sweep: '1GB..2GB' is no range"),
        (("--vram", "1MB", "--plot", "x.png"), 2, "--sweep"),
        (("--vram", "1MB", "--policy", "mru"), 1, "there is no policy 'mru'"),
        (("--vram", "1MB", "--gpu", "RTX 3090"), 1, "needs both --gpu and --ram"),
        (("--vram", "1MB", "--format", "q5_1"), 2, "'q5_1' is not one of"),
        (("--vram", "1MB", "--dense-format", "q8_0"), 2, "name it with --model"),
        (("--vram", "1MB", "--model", "nowhere/at-all-0"), 1, "error: "),
    ],
)
def test_wrong_input_is_refused_with_what_to_do(
    run: Run, skewed: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    found, out, err = run(skewed, *options)
    assert (found, out) == (code, "")
    assert message in err


def test_more_vram_than_the_machine_has_is_refused_but_swept(
    run: Run, skewed: Path, tmp_path: Path
) -> None:
    machine = make_machine()
    tiers = dict(machine.tiers)
    tiers["vram"] = dataclasses.replace(tiers["vram"], capacity_bytes=DENSE + 24_000)
    path = tmp_path / "small.json"
    path.write_text(dataclasses.replace(machine, tiers=tiers).to_json(), encoding="utf-8")
    code, _, err = run(skewed, "--vram", DENSE + 30_000, "--hardware", path)
    assert code == 1
    assert "error: vram: budget is 34.2 KiB, round numbers has 28.3 KiB" in err
    sweep = f"vram={DENSE + 8000}..{DENSE + SHAPE.total_expert_bytes}:3"
    plot = tmp_path / "sweep.png"
    options = ("--hardware", path, "--sweep", sweep, "--plot", plot, "--json")
    code, out, _ = run(skewed, *options)
    assert code == 0
    assert len(json.loads(out)["sweep"]) == 3
