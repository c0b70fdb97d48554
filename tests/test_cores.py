import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from placing import make_placement

from moeprof.checkpoint import read_checkpoint
from moeprof.cli import main
from moeprof.errors import CapacityError
from moeprof.native import Workers
from moeprof.native.cores import Seats, physical_cores, seats
from moeprof.placement import write_placement
from moeprof.runtime import load

ALLOWED = os.sched_getaffinity(0)
TWO_CORES = [[0, 2], [1, 3]]  # each with a second processor


@pytest.fixture
def affinity() -> Iterator[set[int]]:
    """Where the thread of a test may run, given back at its end."""
    yield ALLOWED
    os.sched_setaffinity(0, ALLOWED)


def test_one_processor_of_each_physical_core_is_chosen(tmp_path: Path) -> None:
    for processor, siblings in ((0, "0,2"), (1, "1,3"), (2, "0,2"), (3, "1,3")):
        folder = tmp_path / f"cpu{processor}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    assert physical_cores({0, 1, 2, 3}, tmp_path) == [0, 1]
    assert physical_cores({2, 3, 9}, tmp_path) == [2, 3, 9]
    assert physical_cores() == sorted(set(physical_cores()) & ALLOWED)


@pytest.mark.parametrize(
    ("num_threads", "pinned", "crowded"),
    [
        (None, [0, 1], [3]),
        (1, [0], []),
        (2, [0, 1], [3]),
        (3, [0, 1, 2], [3]),
        (4, [0, 1, 2, 3], []),
    ],
)
def test_every_worker_has_a_processor_and_cores_are_shared_last(
    num_threads: int | None, pinned: list[int], crowded: list[int]
) -> None:
    assert Seats.of(num_threads, TWO_CORES) == Seats(pinned, crowded)


@pytest.mark.parametrize("num_threads", [-1, 0, 5, 1025])
def test_workers_that_would_share_a_processor_are_refused(num_threads: int) -> None:
    with pytest.raises(
        CapacityError, match=f"threads: {num_threads}, expected .* most 4,"
    ) as caught:
        Seats.of(num_threads, TWO_CORES)
    assert "lower --threads to 4" in caught.value.hint


def test_a_device_leaves_one_core_to_the_thread_that_waits_for_it() -> None:
    cores = physical_cores()
    expected = cores[:-1] if len(cores) > 1 else cores
    assert seats(None, leaves_one=True).pinned == expected


def test_too_many_threads_are_a_sentence_before_anything_is_loaded(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = read_checkpoint(tiny_model)
    placement = make_placement(checkpoint)
    too_many = len(ALLOWED) + 1
    told: list[str] = []
    with pytest.raises(CapacityError, match=f"threads: {too_many}, expected at least 1"):
        load(
            placement,
            checkpoint,
            device="cpu",
            num_threads=too_many,
            progress=lambda what, done, total: told.append(what),
        )
    assert not told
    write_placement(placement, tmp_path / "plan.json")
    given = ["-p", str(tmp_path / "plan.json"), "--device", "cpu", "--threads", str(too_many)]
    for command in (["run", "--prompt", "a"], ["bench"]):
        with pytest.raises(SystemExit) as stopped:
            main([*command, *given])
        assert stopped.value.code == 1
        assert f"hint: lower --threads to {len(ALLOWED)}" in capsys.readouterr().err


@pytest.mark.skipif(len(ALLOWED) < 2, reason="one processor")
def test_the_caller_leaves_the_processor_of_another_worker_and_is_not_pinned(
    affinity: set[int],
) -> None:
    first, second = sorted(affinity)[:2]
    workers = Workers(2, [first, second])
    os.sched_setaffinity(0, {second})
    os.sched_setaffinity(0, affinity)
    caller, other = workers.processors()
    assert (caller != second, other) == (True, second)
    assert os.sched_getaffinity(0) == affinity
    started: list[set[int]] = []
    thread = threading.Thread(target=lambda: started.append(os.sched_getaffinity(0)))
    thread.start()
    thread.join()
    assert started == [affinity]


@pytest.mark.skipif(len(ALLOWED) < 2, reason="one processor")
def test_the_caller_leaves_crowded_processors(affinity: set[int]) -> None:
    first, second = sorted(affinity)[:2]
    workers = Workers(1, [first], crowded=[second])
    os.sched_setaffinity(0, {second})
    os.sched_setaffinity(0, affinity)
    assert workers.processors() != [second]


@pytest.mark.skipif(len(ALLOWED) < 2, reason="one processor")
def test_a_caller_that_may_run_nowhere_else_stays(affinity: set[int]) -> None:
    first, second = sorted(affinity)[:2]
    os.sched_setaffinity(0, {second})
    assert Workers(2, [first, second]).processors() == [second, second]
    assert os.sched_getaffinity(0) == {second}
