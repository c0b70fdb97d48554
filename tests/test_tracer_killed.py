import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from moeprof.trace import Trace, open_trace

# Forks a process per command, so that the imports are paid for once; a killed process is a real
# one that runs the real command.
FORKER = """
import json, os, sys
import moeprof.capture.tracer, transformers.models.qwen3_moe.modeling_qwen3_moe
from moeprof.cli import main
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            main(json.loads(line))
        except SystemExit as stop:
            os._exit(stop.code or 0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forker:
    """Runs moeprof commands one at a time in processes that can be killed."""

    def __init__(self, log: Path) -> None:
        self.log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", FORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        assert self._line() == "ready", log.read_text()

    def run(self, arguments: list[str], when: Callable[[], None] | None = None) -> int:
        """Exit code of the command; negative is the signal that ended it.

        Args:
            arguments: of the command.
            when: returns when the process is to be killed; None to let it finish.
        """
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        child = int(self._line())
        if when is not None:
            when()
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return int(self._line())

    def _line(self) -> str:
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture
def forker(tmp_path: Path) -> Iterator[Forker]:
    made = Forker(tmp_path / "log")
    yield made
    made.close()


def in_order(trace: Trace) -> pd.DataFrame:
    rows = trace.rows().sort_values(["layer", "sequence", "position"], ignore_index=True)
    rows["domain"] = rows["domain"].astype(str)
    return rows


def num_tokens(path: Path) -> int:
    if not (path / "trace.json").exists():
        return 0
    return sum(sum(domain.tokens) for domain in open_trace(path).metadata.domains)


@pytest.mark.parametrize("generate", [pytest.param(0, marks=pytest.mark.all), 3])
def test_a_trace_killed_ten_times_resumes_without_a_token_lost_or_repeated(
    tiny_model, tmp_path, forker, generate
) -> None:
    rng = random.Random(generate)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]
    for domain in ("a", "b"):
        (tmp_path / domain).mkdir()
        for index in range(60):
            text = " ".join(rng.choices(words, k=rng.randrange(20, 90)))
            (tmp_path / domain / f"{index:03d}.txt").write_text(text)
    command = ["trace", str(tiny_model), f"a={tmp_path}/a", f"b={tmp_path}/b"]
    command += ["--sequence-length", "64", "--batch-size", "2", "--dtype", "float32"]
    command += ["--generate", str(generate), "--commit-seconds", "0.02", "--temperature", "1"]
    begun = time.monotonic()
    assert forker.run([*command, "-o", str(tmp_path / "whole")]) == 0, forker.log.read_text()
    duration = time.monotonic() - begun
    output = tmp_path / "killed"
    killed, progress = 0, []
    for attempt in range(10):

        def some_time(attempt: int = attempt) -> None:
            """Half of the kills come at any moment, half shortly after rows reached the disk."""
            before = num_tokens(output)
            limit = time.monotonic() + duration
            while attempt % 2 and num_tokens(output) == before and time.monotonic() < limit:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.1) * duration)

        code = forker.run([*command, "-o", str(output), "--resume"], some_time)
        killed += code == -signal.SIGKILL
        assert code == -signal.SIGKILL or open_trace(output).metadata.complete
        if (output / "trace.json").exists():
            open_trace(output).tally()
            progress.append(num_tokens(output))
    assert forker.run([*command, "-o", str(output), "--resume"]) == 0, forker.log.read_text()
    assert progress == sorted(progress)
    assert killed >= 3
    whole, pieces = open_trace(tmp_path / "whole"), open_trace(output)
    assert len(pieces.metadata.parts) > 3
    pd.testing.assert_frame_equal(in_order(whole), in_order(pieces))
    pd.testing.assert_frame_equal(whole.counts(), pieces.counts())
    pieces.verify()
