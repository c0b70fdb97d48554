import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from placing import make_placement
from tiny import save_model

from moeprof.checkpoint import Checkpoint, read_checkpoint
from moeprof.checkpoint.conversion import ParameterSource
from moeprof.errors import CapacityError, MoeprofError, UnsupportedModelError
from moeprof.placement.tier import Tier
from moeprof.runtime import LoadedModel, load
from moeprof.runtime.kept_stores import KeptStore
from moeprof.runtime.vram import compare_vram

SIZES = (96, 160)  # bytes of an expert of each layer; any will do
NUM_EXPERTS = 8


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path) -> Checkpoint:
    return read_checkpoint(tiny_model)


OPENED = ExitStack()


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close every store of a test at its end."""
    with OPENED:
        yield


def opened(directory: Path, checkpoint: Checkpoint, **changes: object) -> KeptStore:
    settings = {"weight_format": "q8_0", "expert_bytes": SIZES} | changes
    return OPENED.enter_context(KeptStore.open_or_create(directory, checkpoint, **settings))


def content(row: int, expert: int) -> np.ndarray:
    return np.random.default_rng([row, expert]).integers(0, 256, SIZES[row], np.uint8)


def fill(store: KeptStore) -> KeptStore:
    for row in (1, 0):
        for expert in reversed(range(NUM_EXPERTS)):
            store.put(row, expert, content(row, expert))
    store.finish()
    return store


def check_whole(store: KeptStore) -> None:
    assert store.is_whole
    for row in range(2):
        for expert in range(NUM_EXPERTS):
            assert store.has(row, expert)
            assert np.array_equal(store.expert(row, expert), content(row, expert))


def test_what_was_put_is_read_back_by_the_next_one(checkpoint: Checkpoint, tmp_path: Path) -> None:
    first = opened(tmp_path / "kept", checkpoint)
    assert not first.has(0, 0)
    check_whole(fill(first))
    second = opened(tmp_path / "kept", checkpoint)
    check_whole(second)
    assert second.note is None
    # the file of a layer is its experts in ascending order, and nothing else
    file = (second.path / "layer-00001.bin").read_bytes()
    assert file == b"".join(content(1, expert).tobytes() for expert in range(NUM_EXPERTS))


def test_views_cannot_be_written(checkpoint: Checkpoint, tmp_path: Path) -> None:
    store = fill(opened(tmp_path, checkpoint))
    with pytest.raises(ValueError, match="read-only"):
        store.expert(0, 0)[0] = 1


def test_experts_that_are_not_there_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    store = opened(tmp_path, checkpoint)
    with pytest.raises(IndexError, match="no expert 0 in row 0"):
        store.expert(0, 0)
    with pytest.raises(ValueError, match="expected 96 bytes, got 95"):
        store.put(0, 0, np.zeros(95, np.uint8))
    store.put(0, 0, np.zeros(96, np.uint8))
    with pytest.raises(ValueError, match="15 experts were not put"):
        store.finish()
    with pytest.raises(ValueError, match="is whole already"):
        fill(opened(tmp_path, checkpoint)).put(0, 0, np.zeros(96, np.uint8))


def test_an_interrupted_store_is_not_taken_for_whole(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt), opened(tmp_path, checkpoint) as store:
        store.put(0, 0, content(0, 0))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    assert not opened(tmp_path, checkpoint).is_whole


KILLED = """
import os, sys
sys.path[:0] = {path!r}
from pathlib import Path
from test_kept_stores import content, opened
from moeprof.checkpoint import read_checkpoint
store = opened(Path({kept!r}), read_checkpoint({model!r}))
for row in range(2):
    for expert in range(8):
        store.put(row, expert, content(row, expert))
        if (row, expert) == (1, 6):
            os.kill(os.getpid(), 9)
"""


def test_a_killed_process_leaves_nothing_behind_that_counts(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    script = KILLED.format(
        path=[str(Path(__file__).parent)], kept=str(tmp_path), model=str(checkpoint.path)
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr.decode()
    assert len(list(tmp_path.iterdir())) == 1
    store = opened(tmp_path, checkpoint)
    assert not store.is_whole
    fill(store)
    assert [path.name for path in tmp_path.iterdir()] == [store.path.name]


@pytest.mark.parametrize("has_files", [False, True])
def test_what_was_left_behind_without_a_lock_is_removed(
    has_files: bool, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    left = tmp_path / ".unfinished-abc"
    left.mkdir()
    if has_files:
        (left / "layer-00000.bin").write_bytes(b"x" * 100)
    store = opened(tmp_path, checkpoint)
    assert not left.exists()
    fill(store)
    assert [path.name for path in tmp_path.iterdir()] == [store.path.name]
    assert sorted(path.name for path in store.path.iterdir()) == [
        "layer-00000.bin",
        "layer-00001.bin",
        "store.json",
    ]


def test_a_store_that_another_process_builds_is_left_alone(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    first = opened(tmp_path, checkpoint)
    first.put(0, 0, content(0, 0))
    opened(tmp_path, checkpoint, weight_format="q4_0")
    assert len(list(tmp_path.iterdir())) == 2
    check_whole(fill(first))


@pytest.mark.parametrize("is_late", [False, True])
def test_a_builder_whose_first_step_is_taken_for_remains_begins_again(
    is_late: bool, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    mkdtemp, flock = tempfile.mkdtemp, fcntl.flock

    def make(**options: object) -> str:
        made.append(mkdtemp(**options))
        if len(made) == 1 and not is_late:
            Path(made[0]).rmdir()
        return made[-1]

    def lock(*arguments: object) -> None:
        if len(made) == 1 and is_late:
            shutil.rmtree(made[0])
        flock(*arguments)

    monkeypatch.setattr(tempfile, "mkdtemp", make)
    monkeypatch.setattr(fcntl, "flock", lock)
    store = opened(tmp_path, checkpoint)
    assert len(made) == 2
    check_whole(fill(store))


def test_two_that_build_at_once_both_end_with_a_whole_store(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    first, second = (opened(tmp_path, checkpoint) for _ in range(2))
    fill(first)
    fill(second)
    check_whole(first)
    check_whole(second)
    check_whole(opened(tmp_path, checkpoint))
    assert [path.name for path in tmp_path.iterdir()] == [first.path.name]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda p: flip(p / "layer-00000.bin"), "layer-00000.bin is damaged"),
        (lambda p: flip(p / "layer-00001.bin"), "layer-00001.bin is damaged"),
        (lambda p: os.truncate(p / "layer-00001.bin", 100), "missing or has another size"),
        (lambda p: (p / "layer-00001.bin").unlink(), "missing or has another size"),
        (lambda p: (p / "store.json").unlink(), "manifest cannot be read"),
        (lambda p: (p / "store.json").write_text("{"), "manifest cannot be read"),
        (lambda p: (p / "store.json").write_text('{"checksums": []}'), "another checkpoint"),
    ],
)
def test_a_damaged_store_is_made_again_and_says_so(
    damage: object, line: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    damage(fill(opened(tmp_path, checkpoint)).path)
    store = opened(tmp_path, checkpoint)
    assert store.note is not None
    assert line in store.note
    assert "it is made again" in store.note
    check_whole(fill(store))
    again = opened(tmp_path, checkpoint)
    check_whole(again)
    assert again.note is None


def test_a_store_of_another_format_or_size_is_another_store(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    fill(opened(tmp_path, checkpoint))
    assert not opened(tmp_path, checkpoint, weight_format="q4_0").is_whole
    assert not opened(tmp_path, checkpoint, expert_bytes=(96, 161)).is_whole
    assert opened(tmp_path, checkpoint).is_whole


def test_changed_weights_of_the_same_fingerprint_make_another_store(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint.path, copy)
    kept = tmp_path / "kept"
    fill(opened(kept, read_checkpoint(copy)))
    assert opened(kept, read_checkpoint(copy)).is_whole
    facts = (copy / "model.safetensors").stat()
    other = save_model(tmp_path / "other", seed=1)
    shutil.copy(other / "model.safetensors", copy / "model.safetensors")
    # even with the size and the time of the file as they were
    os.utime(copy / "model.safetensors", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert read_checkpoint(copy).fingerprint == checkpoint.fingerprint
    assert not opened(kept, read_checkpoint(copy)).is_whole


def test_a_full_disk_is_a_sentence(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2047))
    with pytest.raises(CapacityError, match=r"need 2\.0 KiB") as caught:
        opened(tmp_path, checkpoint)
    assert "--store" in caught.value.hint
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2048))
    store = opened(tmp_path, checkpoint)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(CapacityError, match="the disk is full"), store:
        store.put(0, 0, content(0, 0))
    assert list(tmp_path.iterdir()) == []


def test_a_limit_on_the_size_of_files_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (NUM_EXPERTS * SIZES[0] - 1, before[1]))
    try:
        with pytest.raises(CapacityError, match="larger than this process") as caught:
            opened(tmp_path, checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "ulimit -f" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_a_sentence(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(MoeprofError, match="a file, expected a directory") as caught:
            opened(place, checkpoint)
        assert "--store" in caught.value.hint


def packed_bytes(loaded: LoadedModel) -> bytes:
    shape = loaded.checkpoint.shape
    cells = [(row, e) for row in range(shape.num_moe_layers) for e in range(shape.num_experts)]
    return b"".join(loaded.experts.packed(*cell).tobytes() for cell in cells)


@pytest.mark.parametrize("weight_format", ["q8_0", "q4_0", "bf16"])
def test_a_run_from_a_kept_store_is_the_same_to_the_bit(
    weight_format: str,
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[str] = []
    options = {"device": "cpu", "weight_format": weight_format}
    plain = load(make_placement(checkpoint), checkpoint, **options)
    kept = {**options, "store": tmp_path / "kept", "tell": lines.append}
    first = load(make_placement(checkpoint), checkpoint, **kept)
    monkeypatch.delattr(ParameterSource, "read_expert")  # no expert is converted again
    other_tiers = np.full((2, NUM_EXPERTS), Tier.RAM, np.uint8)
    second = load(make_placement(checkpoint, other_tiers), checkpoint, **kept)
    assert [("were kept there" in line, "read from" in line) for line in lines] == [
        (True, False),
        (False, True),
    ]
    assert packed_bytes(first) == packed_bytes(second) == packed_bytes(plain)
    ids = list(range(20))
    logits = [model.forward(ids, "prefill").logits for model in (plain, first, second)]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def test_keeping_is_told_of_only_once_it_is_done(checkpoint: Checkpoint, tmp_path: Path) -> None:
    lines: list[str] = []
    halfway = checkpoint.shape.total_expert_bytes // 2

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "experts" and done > halfway:
            raise KeyboardInterrupt

    given = {"device": "cpu", "weight_format": "q8_0", "store": tmp_path, "tell": lines.append}
    with pytest.raises(KeyboardInterrupt):
        load(make_placement(checkpoint), checkpoint, **given, progress=interrupt)
    assert lines == [] and list(tmp_path.iterdir()) == []
    load(make_placement(checkpoint), checkpoint, **given)
    assert [line.partition(": ")[2] for line in lines] == [
        "experts were kept there for the next start"
    ]


def test_the_manifest_is_what_a_start_goes_by(checkpoint: Checkpoint, tmp_path: Path) -> None:
    store = fill(opened(tmp_path, checkpoint))
    manifest = json.loads((store.path / "store.json").read_text())
    assert manifest["fingerprint"] == checkpoint.fingerprint
    assert manifest["expert_bytes"] == list(SIZES)
    assert [len(layer) for layer in manifest["checksums"]] == [NUM_EXPERTS] * 2


def test_format_stored_has_nothing_to_keep(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="keeps packed experts"):
        load(
            make_placement(checkpoint),
            checkpoint,
            device="cpu",
            weight_format="stored",
            store=tmp_path,
        )


# Progress and VRAM


def test_reading_is_told_of_to_the_last_byte(checkpoint: Checkpoint) -> None:
    told: dict[str, list[tuple[int, int]]] = {}
    load(
        make_placement(checkpoint),
        checkpoint,
        device="cpu",
        progress=lambda what, done, total: told.setdefault(what, []).append((done, total)),
    )
    shape = checkpoint.shape
    assert list(told) == ["weights outside the experts", "experts"]
    totals = (shape.dense_bytes, shape.total_expert_bytes)
    for steps, total in zip(told.values(), totals, strict=True):
        assert [step[0] for step in steps] == sorted({step[0] for step in steps})
        assert steps[-1] == (total, total)
    assert len(told["experts"]) == shape.num_cells


def test_a_load_within_its_plan_is_reported(checkpoint: Checkpoint) -> None:
    budget = replace(
        make_placement(checkpoint).budget,
        total_bytes=1000,
        dense_bytes=300,
        experts_used_bytes=200,
        kv_cache_bytes=100,
        workspace_bytes=50,
        device_context_bytes=40,
    )
    report = compare_vram(budget, loaded_bytes=810, free_bytes=150, num_allocations=0)
    assert (report.planned_bytes, report.loaded_bytes, report.needed_bytes) == (500, 810, 1000)
    with pytest.raises(CapacityError, match="the run needs"):
        compare_vram(budget, loaded_bytes=811, free_bytes=150, num_allocations=0)
    # rounding of the allocator is no overrun
    assert compare_vram(budget, 810 + 512, 150, num_allocations=1).needed_bytes == 1512
    with pytest.raises(CapacityError, match="are free on the card"):
        compare_vram(budget, loaded_bytes=500, free_bytes=149, num_allocations=0)


def test_without_a_card_there_is_nothing_to_compare(checkpoint: Checkpoint) -> None:
    assert load(make_placement(checkpoint), checkpoint, device="cpu").vram is None
