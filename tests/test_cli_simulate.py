import json

import pytest
from builders import make_block, make_shape, make_trace
from planning import make_hardware
from replaying import make_routed

from moeprof.cli import main

SHAPE = make_shape(moe_layers=(0, 1), num_experts=8, top_k=2, expert_bytes=1000)


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    blocks = {
        "code": make_block(SHAPE, [0] * 30 + [1] * 30, decode=10),
        "prose": make_block(SHAPE, [2] * 30 + [3] * 30, decode=10, seed=1),
    }
    return str(make_trace(tmp_path_factory.mktemp("traces") / "made", blocks, SHAPE).path)


def run(*arguments):
    with pytest.raises(SystemExit) as left:
        main(["simulate", *map(str, arguments)])
    return left.value.code


def rows_of(capsys, *arguments):
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)["rows"]


def test_policies_and_budgets_are_named_in_every_way(trace, capsys):
    rows = rows_of(capsys, trace, "--policy", "lru", "belady", "--budget", "4000,25%,8kB")
    pairs = {(row["policy"], row["budget_bytes"]) for row in rows}
    assert pairs == {(name, size) for name in ("lru", "belady") for size in (4000, 8000)}
    rows = rows_of(capsys, trace, "--policy", "lfu,lfru", "static", "--slots", "1,3")
    assert [row["policy"] for row in rows][::4] == ["lfu", "lfru", "static"]
    assert {row["budget_bytes"] for row in rows} == {2000, 6000}
    rows = rows_of(capsys, trace, "--policy", "lru", "--policy", "lru", "--budget", "50%")
    assert [row["phase"] for row in rows] == ["prefill", "decode"]


def test_without_a_terminal_tables_are_plain_text(trace, capsys):
    assert run(trace, "--budget", "25%,50%", "--policy", "lru:scope=layer", "optimum") == 0
    written = capsys.readouterr()
    assert written.out.startswith("prefill: hit rate in percent")
    assert "scope=layer" in written.out
    assert "note: 4 documents; the cache goes on across documents" in written.out
    assert "\x1b" not in written.out


def test_a_machine_gives_tokens_per_second(trace, tmp_path, capsys):
    profile = tmp_path / "machine.json"
    profile.write_text(make_hardware().to_json(), encoding="utf-8")
    rows = rows_of(capsys, trace, "--policy", "lru", "--budget", "50%", "--hardware", profile)
    assert {row["phase"]: row["tokens_per_s"] is not None for row in rows}["decode"]
    bought = ("--gpu", "RTX 3090", "--ram", "ddr5-6000x2", "--format", "q8_0")
    rows = rows_of(capsys, trace, "--policy", "lru", "--budget", "50%", *bought)
    assert rows[1]["tokens_per_s"] > 0
    # 500 values are 16 blocks of 34 bytes.
    assert rows[1]["budget_bytes"] == 16 * 34 * 16 // 2


def test_options_reach_the_replay(trace, capsys):
    usual = ("--policy", "lru", "--budget", "75%")
    on = rows_of(capsys, trace, *usual)[0]["hit_rate"]
    assert on > 0
    assert rows_of(capsys, trace, *usual, "--restart")[0]["hit_rate"] == 0
    tokens = [row["tokens"] for row in rows_of(capsys, trace, *usual, "--domain", "code")]
    assert tokens == [40, 20]
    static = ("--policy", "static", "--budget", "25%")
    held_out = rows_of(capsys, trace, *static)[1]["hit_rate"]
    assert rows_of(capsys, trace, *static, "--all-documents")[1]["hit_rate"] > held_out


def test_the_plot_is_written_with_the_optimum_and_not_over_another(trace, tmp_path, capsys):
    picture = tmp_path / "new" / "policies.png"
    arguments = (trace, "--policy", "lru", "--budget", "25%,50%", "--plot", picture)
    assert run(*arguments, "--json") == 0
    written = capsys.readouterr()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"wrote {picture}" in written.err
    assert {row["policy"] for row in json.loads(written.out)["rows"]} == {"lru", "optimum"}
    assert run(*arguments) == 1
    assert "already exists" in capsys.readouterr().err
    assert run(*arguments, "--force") == 0


def test_a_policy_of_the_user_is_replayed_beside_others(trace, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(
        "class First:\n"
        "    def __init__(self, facts):\n        self.facts = facts\n"
        "    def touch(self, cell, batch):\n        print('seen')\n"
        "    def admit(self, cell):\n        return True\n"
        "    def victim(self, candidates):\n        return candidates[0]\n",
        encoding="utf-8",
    )
    own = f"{file}:First"
    # What it prints does not get between the rows.
    rows = rows_of(capsys, trace, "--policy", "lru", "--policy-file", own, "--budget", "50%")
    assert [row["policy"] for row in rows] == ["lru", "lru", own, own]
    file.write_text(file.read_text().replace("candidates[0]", "candidates[0] / 0"))
    assert run(trace, "--policy-file", own, "--budget", "50%") == 1
    written = capsys.readouterr()
    assert f"\nerror: policy {own}: victim " in written.err
    assert "hint: " in written.err


def test_the_cliff_is_a_warning_on_standard_error(trace, capsys):
    assert run(trace, "--policy", "lru", "--budget", "10%", "--json") == 0
    written = capsys.readouterr()
    assert "warning: lru, decode: hits" in written.err
    assert json.loads(written.out)["warnings"]


def test_one_document_is_replayed_without_holding_out_what_learns_nothing(tmp_path, capsys):
    made = make_routed(tmp_path / "t", SHAPE, {"a": [[("d", [[1, 2], [3, 4]])] * 4]})
    rows = rows_of(capsys, made.path, "--budget", "50%")
    assert [row["policy"] for row in rows] == ["lru", "lfu", "lfru", "belady", "optimum"]
    assert run(made.path, "--policy", "static") == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert "one document has tokens to learn from, two are needed" in written.err
    assert "--all-documents" in written.err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--policy", "fifo"], "there is no policy 'fifo'"),
        (["--budget", "lots"], "'lots' is not a size"),
        (["--budget", "x%"], "'x%' is no share of all experts"),
        (["--budget", "120%"], "'120%' is no share"),
        (["--slots", "9"], "'9' is no number of experts from 1 to 8"),
        (["--domain", "code2"], "no domain 'code2'"),
        (["--gpu", "RTX 3090"], "needs both --gpu and --ram"),
        (["--policy-file", "no.py:Mine"], "no such file"),
    ],
)
def test_what_cannot_be_done_is_an_error_with_its_remedy(trace, capsys, arguments, error):
    assert run(trace, *arguments) == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert error in written.err
    assert "\nhint: " in written.err


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["--phase", "both"], "'both'"),
        (["--folds", "1"], "--folds"),
        (["--bugdet", "1"], "--bugdet"),
        (["--format", "q3"], "'q3' is not one of"),
        (["--budget", ""], "--budget"),
        (["--budget", ","], "--budget"),
        (["--budget", "10%,,25%"], "--budget"),
        (["--slots", ""], "--slots"),
        (["--policy", ""], "--policy"),
        (["--policy", "lru,"], "--policy"),
        ([""], "--policy"),
    ],
)
def test_wrong_usage_exits_with_two(trace, capsys, wrong, named):
    assert run(trace, *wrong) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert named in written.err


def test_what_is_named_twice_stands_once(trace, capsys):
    twice = ("--policy", "lru", "lru", "lru:scope=global", "--budget", "50%, 50%", "--slots", "4")
    rows = rows_of(capsys, trace, *twice)
    assert [(row["policy"], row["budget_bytes"], row["phase"]) for row in rows] == [
        ("lru", 8000, "prefill"),
        ("lru", 8000, "decode"),
    ]


def test_rooms_that_hold_nothing_or_everything_are_named(trace, capsys):
    """16 experts of 1000 bytes, all of them used in the 60 tokens."""
    sizes = ("--budget", "999,16kB,1000TB", "--policy", "static", "lru")
    rows = rows_of(capsys, trace, *sizes, "--all-documents")
    of = {(row["policy"], row["budget_bytes"], row["phase"]): row for row in rows}
    for phase in ("prefill", "decode"):
        nothing, all_of_it, more = (of["static", size, phase] for size in (999, 16_000, 10**15))
        assert (nothing["hit_rate"], nothing["floor"]) == (0, 0)
        for row in (all_of_it, more):
            assert (row["hit_rate"], row["floor"], row["budget_share"]) == (1, 1, 1)
    missed = {phase: of["lru", 10**15, phase]["bytes_read"] for phase in ("prefill", "decode")}
    assert sum(missed.values()) == 16_000
    assert run(trace, *sizes, "--all-documents") == 0
    written = capsys.readouterr()
    shown = " ".join(written.out.split())
    assert "note: no expert fits into 999 B: the smallest has 1000 B" in shown
    assert "note: all experts fit into 15.6 KiB, 909.5 TiB: a cache that begins empty" in shown
    assert "warning: lru" not in written.err
