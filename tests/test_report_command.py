import re
from pathlib import Path

import pytest
from advising import SHAPE
from paging import ROOT, charts_of, run
from synthetic import make_trace
from test_origin import counts_trace, rows_trace


def test_a_trace_of_counts_alone_has_a_page_that_says_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = counts_trace(tmp_path / "trace")
    path = tmp_path / "report.html"
    assert run(trace.path, "-o", path, "--resamples", 2) == 0
    page = path.read_text(encoding="utf-8")
    assert "A cache cannot be replayed: it was imported from imatrix" in page
    assert "Imported from imatrix (a.gguf), which does not say: which experts" in page
    assert str(tmp_path) not in page


def test_the_command_writes_one_file_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pages" / "report.html"
    assert run("traces/demo", "-o", path, "--resamples", 2) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", f"wrote {path}\n")
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]


def test_a_budget_and_a_machine_give_a_verdict_in_tokens_per_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.html"
    machine = ("--gpu", "RTX 3090", "--ram", "ddr5-6000x2", "--device-context", 0)
    model = ("--model", ROOT / "moeprof" / "demo" / "model", "--vram", "10MB", "--context", 512)
    assert run("traces/demo", *model, *machine, "-o", path, "--resamples", 2) == 0
    page = path.read_text(encoding="utf-8")
    verdict_of_page = page[page.index('id="verdict"') : page.index("<nav")]
    assert "at 9.5\u00a0MiB of VRAM" in verdict_of_page
    assert "tokens/s in decode" in verdict_of_page
    charts = charts_of(page)
    assert charts["sweep"]["mark"]["x"] == 10_000_000
    assert 10_000_000 in charts["sweep"]["panels"][0]["x"]
    assert {"policies", "policies-speed"} <= set(charts)
    assert "RTX 3090" in page
    assert "error" not in capsys.readouterr().err


def test_nothing_is_overwritten_without_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.html"
    path.write_text("mine", encoding="utf-8")
    assert run("traces/demo", "-o", path) == 1
    assert f"error: {path}: already exists" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == "mine"
    assert run("traces/demo", "-o", path, "--resamples", 2, "--force") == 0
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("trace", "options", "message"),
    [
        ("traces/nothing", (), "not a trace"),
        ("traces/demo", ("--plan", "nothing.json"), "nothing.json: no such file"),
        ("traces/demo", ("--vram", "much"), "'much' is not a size"),
        ("traces/demo", ("--vram", "1KB"), "needed before the first expert"),
        ("traces/demo", ("--gpu", "RTX 3090"), "needs both --gpu and --ram"),
    ],
)
def test_wrong_input_is_refused_and_leaves_nothing(
    trace: str,
    options: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "report.html"
    assert run(trace, "-o", path, *options) == 1
    assert message in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--model", "some/model"), "--model needs a budget"),
        (("--format", "q3_k"), "'q3_k' is not one of"),
        (("--sweep", "vram=1MB..9MB"), "--sweep: asks about a budget"),
        (("--context", "100"), "--context: asks about a budget"),
        (("--plan", "placements/demo.json", "--device-context", "0"), "asks about a budget"),
    ],
)
def test_wrong_usage_is_told_from_failure(
    options: tuple[str, ...], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.html"
    assert run("traces/demo", "-o", path, *options) == 2
    assert named in capsys.readouterr().err
    assert not path.exists()


def test_ram_that_is_too_small_for_caches_leaves_the_section_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All 9 MiB of experts do not fit into 7 MB; those that VRAM does not hold do."""
    path = tmp_path / "report.html"
    machine = ("--gpu", "RTX 3090", "--ram", "ddr5-6000x2:7MB", "--device-context", 0)
    options = ("--vram", "7MB", "--sweep", "vram=7MB..8MB:2", "--resamples", 2)
    assert run("traces/demo", *machine, *options, "-o", path) == 0, capsys.readouterr().err
    page = path.read_text(encoding="utf-8")
    assert "Ram: the experts that it has to hold take " in page


def test_the_page_of_one_token_speaks_of_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its two experts of each layer are among the busiest three, which are 20 % of sixteen."""
    trace = make_trace(tmp_path / "one", documents=1, tokens=(0, 1), shape=SHAPE)
    path = tmp_path / "report.html"
    assert run(trace.path, "-o", path, "--resamples", 2) == 0
    page = path.read_text(encoding="utf-8")
    assert "rests on 1 document with 1 token of 1 kind of text." in page
    assert "20\u00a0% of any layer&#39;s experts serve 100\u00a0% of its choices." in page


def test_a_folder_is_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("traces/demo", "-o", tmp_path) == 1
    assert "is a folder" in capsys.readouterr().err


def test_sizes_that_a_trace_does_not_say_are_not_made_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight experts of 1000 bytes, where the trace says so."""
    pages = {}
    for name, missing in (("told", ()), ("untold", ("expert_bytes", "dense_bytes"))):
        trace = rows_trace(tmp_path / name, missing)
        path = tmp_path / f"{name}.html"
        assert run(trace.path, "-o", path, "--resamples", 2) == 0, capsys.readouterr().err
        pages[name] = path.read_text(encoding="utf-8").replace("\u00a0", " ")
    told, untold = (pages[name].split("<script")[0] for name in ("told", "untold"))
    assert "2 chosen per token, 7.8 KiB of experts" in told
    assert "2 chosen per token, experts of unknown size" in untold
    assert "8, of unknown size" in untold
    assert "at least 4.9 KiB" in untold
    sizes = re.findall(r"[\d.]+ (?:[KMG]i)?B\b", untold[untold.index("<main>") :])
    assert sizes == ["4.9 KiB"]
    axes = {name: charts_of(page)["policies"]["x"]["name"] for name, page in pages.items()}
    assert axes == {
        "told": "share of 7.8 KiB of experts in VRAM",
        "untold": "share of experts in VRAM",
    }
