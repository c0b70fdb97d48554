import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

import moeprof
from moeprof.checkpoint import read_checkpoint
from moeprof.cli import app, main
from moeprof.demo import domains, model_path, text_path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = get_command(app).commands


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_stands_in_the_readme(name: str) -> None:
    text = COMMANDS[name].help
    assert "\b\nExample:\n" in text
    assert f"moeprof {name} " in text.split("Example:")[1]
    assert re.search(rf"moeprof {name}\b", README)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_every_command_parses(name: str) -> None:
    example = COMMANDS[name].help.split("Example:")[1].replace("\\\n", " ")
    arguments = shlex.split(example)
    assert arguments[:2] == ["moeprof", name]
    COMMANDS[name].make_context(name, arguments[2:])


def test_the_tree_in_the_readme_is_the_one_on_disk() -> None:
    block = README.split("## The house")[1].split("```")[1]
    rooms = {word.rstrip("/") for word in re.findall(r"^  (\w+/)", block, re.MULTILINE)}
    tracked = subprocess.run(
        ["git", "ls-files", "moeprof"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert rooms == {path.split("/")[1] for path in tracked if path.count("/") > 1}
    files = {path.split("/")[1] for path in tracked if path.count("/") == 1}
    assert set(re.findall(r"\w+\.py", block)) - {"reference.py"} <= files


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 320


def test_the_sample_trace_is_intact_and_of_the_bundled_model() -> None:
    trace = moeprof.open_trace(ROOT / "traces" / "demo")
    trace.verify()
    assert trace.metadata.complete
    assert list(trace.domains) == domains()
    checkpoint = read_checkpoint(model_path())
    assert trace.metadata.model.fingerprint == checkpoint.fingerprint
    assert trace.metadata.model.tokenizer_hash == checkpoint.tokenizer_hash
    assert trace.shape == checkpoint.shape


def test_the_sample_placement_is_of_the_sample_trace_and_the_bundled_model() -> None:
    placement = moeprof.read_placement(ROOT / "placements" / "demo.json")
    placement.check_model(read_checkpoint(model_path()).fingerprint, "moeprof/demo/model")
    assert placement.trace.digest == moeprof.open_trace(ROOT / "traces" / "demo").digest


def test_the_bundled_data_keep_their_promised_sizes() -> None:
    def size(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    assert size(model_path()) <= 12_000_000
    assert size(text_path()) <= 1_000_000
    assert len(domains()) >= 5
    sources = (text_path() / "SOURCES.md").read_text(encoding="utf-8")
    for domain in domains():
        for document in (text_path() / domain).iterdir():
            assert document.name in sources


@pytest.mark.all
def test_the_demo_walks_the_whole_road(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["demo", "-o", str(tmp_path / "demo")])
    assert stop.value.code == 0
    shown = capsys.readouterr()
    for step in range(1, 7):
        assert f"[{step}/6]" in shown.err
    assert "every assignment went to the expert that the trace says" in shown.err
    trace = moeprof.open_trace(tmp_path / "demo" / "traces" / "demo")
    sample = moeprof.open_trace(ROOT / "traces" / "demo")
    # The prompts are the same everywhere; what is sampled after them may differ between processors.
    assert [(d.name, d.documents, d.tokens[0], d.digest) for d in trace.metadata.domains] == [
        (d.name, d.documents, d.tokens[0], d.digest) for d in sample.metadata.domains
    ]
    assert {p.name for p in (tmp_path / "demo" / "plots").iterdir()} >= {"coverage.png"}
