import json
from importlib import resources
from pathlib import Path

import pytest

from moeprof.cli import main
from moeprof.errors import CapacityError
from moeprof.hardware import catalogue_profile, parse_hardware
from moeprof.hardware.catalogue import (
    RUN_FORMATS,
    STORED_FORMATS,
    UNSTATED_BYTES,
    factor,
    find_gpu,
    find_ram,
    gpus,
)

FILES = resources.files("moeprof.hardware.catalogue")


def document(name: str) -> dict:
    return json.loads((FILES / name).read_text())


ENTRIES = [
    entry
    for name, lists in {
        "gpus.json": ["gpus"],
        "memory.json": ["kinds", "platforms"],
        "drives.json": ["drives"],
        "factors.json": ["pcie_lane_bytes_per_s"],
    }.items()
    for part in lists
    for entry in document(name)[part]
]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(next(iter(entry.values()))))
def test_every_figure_has_a_source_with_an_address(entry: dict) -> None:
    assert len(entry["source"]) > 5
    assert entry["url"].startswith("https://")


def test_every_factor_says_where_it_was_measured() -> None:
    for entry in document("factors.json")["factors"]:
        assert set(entry) == {"name", "value", "unit", "origin"}
        assert len(entry["origin"]) > 30
        if entry["name"].endswith("_share") or "_share_" in entry["name"]:
            assert 0 < entry["value"] <= 1


@pytest.mark.parametrize("card", gpus(), ids=lambda card: card.name)
def test_the_bandwidth_of_a_card_is_its_bus_times_its_data_rate(card) -> None:
    if card.gbit_per_s_per_pin is not None:
        product = card.bus_bits * card.gbit_per_s_per_pin / 8
        assert card.bandwidth_gb_per_s == pytest.approx(product, rel=0.005)
    assert card.memory_gib in range(8, 289)
    assert card.pcie_lanes in (8, 16)


def test_names_are_unique_and_all_found() -> None:
    names = [card.name for card in gpus()]
    assert len(set(names)) == len(names)
    for card in gpus():
        assert find_gpu(card.name) is card


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("RTX 3090", "GeForce RTX 3090"),
        ("nvidia geforce rtx-3090", "GeForce RTX 3090"),
        ("3090", "GeForce RTX 3090"),
        ("3090 Ti", "GeForce RTX 3090 Ti"),
        ("rtx 3060", "GeForce RTX 3060 12GB"),
        ("RTX 4060 Ti 16 GB", "GeForce RTX 4060 Ti 16GB"),
        ("a6000", "RTX A6000"),
        ("RTX PRO 6000", "RTX PRO 6000 Blackwell"),
        ("NVIDIA H200", "H200"),
        ("7900xtx", "Radeon RX 7900 XTX"),
        ("Arc A770", "Arc A770 16GB"),
    ],
)
def test_names_are_matched_leniently(written: str, meant: str) -> None:
    assert find_gpu(written).name == meant


@pytest.mark.parametrize(
    ("written", "message", "hint"),
    [
        ("RTX 3080", "may be several cards", "GeForce RTX 3080 10GB, GeForce RTX 3080 12GB"),
        ("H100", "may be several cards", "H100 PCIe, H100 SXM"),
        ("RTX 4090 Ti", "is not in the catalogue", "GeForce RTX 4070 Ti"),
        ("abacus", "is not in the catalogue", "it has GeForce"),
        ("", "is not in the catalogue", "it has GeForce"),
    ],
)
def test_unknown_cards_are_refused_with_the_closest(written: str, message: str, hint: str) -> None:
    with pytest.raises(CapacityError, match=message) as failure:
        find_gpu(written)
    assert hint in failure.value.hint


@pytest.mark.parametrize(
    ("written", "gigabytes_per_s"),
    [("ddr5-6000x2", 96), ("DDR4-3200 x8", 204.8), ("ddr4-3200x1", 25.6), ("epyc-9004", 460.8)],
)
def test_memory_bandwidth_is_rate_times_width_times_channels(written, gigabytes_per_s) -> None:
    ram = find_ram(written)
    assert ram.bytes_per_s == pytest.approx(gigabytes_per_s * 1e9)
    assert ram.capacity_bytes == UNSTATED_BYTES
    assert find_ram(f"{written}:64GiB").capacity_bytes == 64 * 2**30


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("ddr6-6000x2", "ddr6 is not in the catalogue, which has ddr4, ddr5"),
        ("ddr5-600x2", "ddr5 runs at 3200 to 9600 MT/s"),
        ("ddr5-6000x0", "on 1 to 24 channels"),
        ("ddr5-6000", "'ddr5-6000' is not in the catalogue"),
        ("", "'' is not in the catalogue"),
        ("ddr5-6000x2:much", "'much' is not a size"),
    ],
)
def test_unknown_memory_is_refused(written: str, message: str) -> None:
    with pytest.raises(CapacityError, match=message):
        find_ram(written)


def test_a_profile_is_the_data_sheets_times_the_factors() -> None:
    profile = catalogue_profile("RTX 3090", "ddr5-6000x2:64GB", "gen4")
    assert profile.source == "data-sheet"
    assert parse_hardware(profile.to_json(), "text") == profile
    vram, ram, nvme = (profile.tiers[name] for name in ("vram", "ram", "nvme"))
    assert vram.capacity_bytes == 24 * 2**30
    assert vram.read_bytes_per_s == pytest.approx(936e9 * factor("vram_read_share"))
    assert ram.capacity_bytes == 64 * 10**9
    assert ram.read_bytes_per_s == pytest.approx(96e9 * factor("ram_read_share"))
    assert nvme.read_bytes_per_s == pytest.approx(7450e6 * factor("nvme_read_share"))
    # PCIe 4.0 x16: 16 lanes of 16 GT/s, 128 of 130 bits, 8 bits to the byte.
    link = 16 * 16e9 * 128 / 130 / 8
    assert profile.links["ram-vram"].bytes_per_s == pytest.approx(link * factor("pcie_share"))
    for tier in (vram, ram):
        assert set(tier.expert_time) >= {*RUN_FORMATS, *STORED_FORMATS}
        for time in tier.expert_time.values():
            assert 1 / time.s_per_byte <= tier.read_bytes_per_s


def test_the_measured_machine_comes_out_as_measured() -> None:
    """A layer of eight experts on an H200: README, Measured; the line fits within 5 %."""
    time = catalogue_profile("H200", "xeon-4").tiers["vram"].expert_time["bf16"]
    weights = 3 * 2048 * 768
    measured = {"q8_0": (34 / 32, 22.7e-6), "q4_0": (18 / 32, 18.8e-6), "bf16": (2, 34.0e-6)}
    for bytes_per_weight, seconds in measured.values():
        assert 8 * time(weights * bytes_per_weight) == pytest.approx(seconds, rel=0.05)


def test_faster_parts_make_faster_machines() -> None:
    slow, fast = catalogue_profile("3060", "ddr4-3200x2"), catalogue_profile("5090", "ddr5-6000x2")
    for tier in ("vram", "ram"):
        for weight_format in RUN_FORMATS:
            times = [one.expert_time(tier, weight_format)(10**7) for one in (slow, fast)]
            assert times[0] > times[1]
    ordered = sorted(gpus(), key=lambda card: card.bandwidth_gb_per_s)
    reads = [
        catalogue_profile(card.name, "ddr5-6000x2").tiers["vram"].read_bytes_per_s
        for card in ordered
    ]
    assert reads == sorted(reads)
    drives = [catalogue_profile("3090", "ddr5-6000x2", name) for name in ("gen3", "gen4", "gen5")]
    speeds = [one.tiers["nvme"].read_bytes_per_s for one in drives]
    assert speeds == sorted(speeds)
    # A drive cannot be faster than four lanes of its generation.
    for generation, speed in zip((3, 4, 5), speeds, strict=True):
        lanes = catalogue_profile("5090", "ddr5-6000x2", host=f"pcie{generation}x4")
        assert speed <= lanes.links["ram-vram"].bytes_per_s / factor("pcie_share")


def test_the_link_is_the_slower_of_card_slot_and_platform() -> None:
    def link(*arguments: str | None) -> float:
        return catalogue_profile(*arguments).links["ram-vram"].bytes_per_s

    best = link("5090", "ddr5-6000x2")
    assert link("5090", "epyc-7003") == pytest.approx(best / 2)
    assert link("5090", "ddr5-6000x2", None, "pcie3") == pytest.approx(best / 4)
    assert link("5090", "ddr5-6000x2", None, "PCIe 4.0 x8".replace(".0", "")) == best / 4
    assert link("3090", "ddr5-6000x2", None, "pcie5") == link("3090", "ddr5-6000x2")
    with pytest.raises(CapacityError, match="'pcie9' is no slot"):
        link("5090", "ddr5-6000x2", None, "pcie9")
    with pytest.raises(CapacityError, match="nvme: 'gen6' is not in the catalogue"):
        link("5090", "ddr5-6000x2", "gen6")


def plan_arguments(output: Path) -> list[str]:
    return [
        "plan", "traces/demo", "--model", "moeprof/demo/model", "--vram", "6MB",
        "--context", "64", "--device-context", "0", "-o", str(output),
    ]  # fmt: skip


def test_plan_prices_a_machine_from_data_sheets(tmp_path: Path, capsys) -> None:
    output = tmp_path / "plan.json"
    with pytest.raises(SystemExit) as stop:
        main([*plan_arguments(output), "--gpu", "rtx 3090", "--ram", "ddr5-6000x2"])
    assert stop.value.code == 0
    assert (
        "GeForce RTX 3090, ddr5-6000x2, from data sheets, not measured" in capsys.readouterr().err
    )
    placement = json.loads(output.read_text())
    assert placement["hardware"]["source"] == "data-sheet"
    assert placement["predicted"]["decode"]["tokens_per_s"]["value"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu", "rtx 3090"], "needs both --gpu and --ram\nhint: add --ram"),
        (["--ram", "ddr5-6000x2"], "needs both --gpu and --ram\nhint: add --gpu"),
        (["--nvme", "gen4"], "needs both --gpu and --ram"),
        (["--hardware", "a.json", "--gpu", "rtx 3090"], "names a whole machine"),
        (["--gpu", "rtx 9999", "--ram", "ddr5-6000x2"], "'rtx 9999' is not in the catalogue"),
    ],
)
def test_half_a_machine_is_refused(tmp_path: Path, capsys, options, message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*plan_arguments(tmp_path / "plan.json"), *options])
    assert stop.value.code == 1
    assert message in capsys.readouterr().err


def test_prompts_cost_two_operations_a_weight_and_token() -> None:
    profile = catalogue_profile("RTX 3090", "ddr5-6000x2")
    # 3 x 2048 x 768 weights in q8_0, 34 bytes for 32 of them
    num_bytes, num_flops = 3 * 2048 * 768 * 34 // 32, 2 * 3 * 2048 * 768
    rates = {
        "vram": 35.6e12 * factor("vram_prefill_share"),
        "ram": factor("host_cores") * factor("ram_core_flops_q8_0"),
    }
    for tier, rate in rates.items():
        time = profile.batch_time(tier, "q8_0")
        assert time is not None
        thousand = time(num_bytes, 1000) - time(num_bytes)
        assert thousand == pytest.approx(1000 * num_flops / rate)
        assert time(num_bytes) == profile.expert_time(tier, "q8_0")(num_bytes)


def test_prompts_are_not_priced_on_cards_that_no_kernel_runs_on() -> None:
    profile = catalogue_profile("RX 7900 XTX", "ddr5-6000x2")
    assert profile.batch_time("vram", "q8_0") is None
    assert profile.dense_batch_time is None
