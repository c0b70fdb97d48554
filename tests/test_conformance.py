"""Replays and imports against what other projects found on the same real traces."""

import csv
import json
from pathlib import Path

import pytest

from moeprof.cli import main

TRACES = Path(__file__).resolve().parents[2] / "shared" / "traces"
QWEN3 = TRACES / "qwen3-30b-a3b.route_trace_v1.csv.gz"
BUDGETS_MIB = (250, 500, 750, 1000, 1500, 2000, 2500, 3000, 4000, 6000, 8000)

pytestmark = pytest.mark.skipif(not TRACES.is_dir(), reason="../shared/traces is not here")


@pytest.fixture(scope="module")
def published():
    """Hit rates in percent of decode batches and MiB read, by policy and budget in MiB."""
    path = TRACES / "qwen3-30b-a3b.cache-replay.csv"
    with path.open(encoding="utf-8", newline="") as stream:
        return {
            (row["policy"], int(row["budget_mib"])): (
                float(row["hit_pct_decode"]),
                float(row["read_mib"]),
            )
            for row in csv.DictReader(stream)
        }


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """The rows of `moeprof simulate --json`, by policy, budget in MiB and phase."""
    trace = str(tmp_path_factory.mktemp("traces") / "q")
    run("import", "route-trace", str(QWEN3), "-o", trace)
    budgets = ",".join(f"{budget}MiB" for budget in BUDGETS_MIB)
    policies = ["--policy", "lru", "belady", "lfu:decay=1"]
    output = run("simulate", trace, *policies, "--budget", budgets, "--json")
    rows = json.loads(output)["rows"]
    return {(row["policy"], row["budget_bytes"] >> 20, row["phase"]): row for row in rows}


def run(*arguments):
    import contextlib
    import io

    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as left:
        main(list(arguments))
    assert left.value.code == 0
    return output.getvalue()


@pytest.mark.parametrize("budget", BUDGETS_MIB)
@pytest.mark.parametrize(
    ("policy", "theirs"), [("lru", "lru"), ("belady", "belady"), ("lfu:decay=1", "lfu")]
)
def test_the_qwen3_trace_gives_the_published_hit_rates(
    simulated, published, policy, theirs, budget
):
    decode = simulated[policy, budget, "decode"]
    prefill = simulated[policy, budget, "prefill"]
    hit_rate, read_mib = published[theirs, budget]
    assert abs(100 * decode["hit_rate"] - hit_rate) < 0.1
    # Their rates are rounded to a thousandth; the bytes read follow from the same misses.
    read = (decode["bytes_read"] + prefill["bytes_read"]) / 2**20
    assert read == pytest.approx(read_mib, rel=2e-3)
