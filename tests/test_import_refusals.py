"""What `moeprof import` refuses, in one sentence and with a remedy, and what it leaves behind."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import foreign
import pytest
from foreign import NUM_EXPERTS, TOP_K, make_routing

from moeprof.errors import TraceError
from moeprof.interop import Facts, import_trace
from moeprof.trace import open_trace
from moeprof.trace.writer import TraceWriter

ROUTING = make_routing(4)
KNOWN = Facts(num_experts=NUM_EXPERTS, top_k=TOP_K, expert_bytes=1, phase="decode")


def refused(name: str, files, folder: Path, facts: Facts = KNOWN) -> TraceError:
    """The error of an import that must fail with a remedy and leave nothing."""
    with pytest.raises(TraceError) as failure:
        import_trace(name, files, folder / "trace", facts)
    assert failure.value.hint
    assert not [path for path in folder.iterdir() if "trace" in path.name]
    return failure.value


def good(folder: Path) -> Path:
    return foreign.tok_layers(folder / "good.jsonl", ROUTING)


def written_csv(path: Path, rows: str, header: str = "") -> Path:
    path.write_text(f"# route_trace v1\n{header}turn,phase,step,layer,slot,expert,weight\n{rows}")
    return path


def test_what_says_more_is_not_read_as_counts(tmp_path: Path) -> None:
    file = written_csv(tmp_path / "a.csv", "0,1,0,1,0,2,0.5\n")
    error = refused("layer-expert-csv", [file], tmp_path)
    assert "a route_trace v1 file" in str(error)
    assert "moeprof import route-trace" in error.hint


def test_uneven_layers_of_a_line_are_told_apart_from_lines_that_differ(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"tok": 0, "layers": [[1, 2], [3]]}\n')
    error = refused("tok-layers", [file], tmp_path)
    assert str(error).endswith("line 1: its layers have from 1 to 2 ids, expected as many in each")
    file.write_text('{"tok": 0, "layers": [[1], [3]]}\n{"tok": 1, "layers": [[1, 2], [3, 0]]}\n')
    error = refused("tok-layers", [file], tmp_path)
    assert str(error).endswith("line 2: 2 layers of 2 ids, the line before has 2 of 1")


# Writing.


def test_a_full_disk_is_told_of_the_output_and_not_of_a_resume(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("moeprof.trace.writer.write_rows", full)
    error = refused("tok-layers", [good(tmp_path)], tmp_path)
    assert str(error) == (
        f"{tmp_path / 'trace'}: cannot write (No space left on device); nothing was imported"
    )
    assert "--resume" not in error.hint


def test_a_link_as_output_keeps_pointing_at_the_trace(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real" / "trace")
    for _ in range(2):
        import_trace("tok-layers", [good(tmp_path)], link, KNOWN, force=True)
    assert link.is_symlink()
    assert open_trace(tmp_path / "real" / "trace").digest == open_trace(link).digest
    assert sorted(path.name for path in tmp_path.rglob("*") if path.name.startswith(".")) == []


def test_two_imports_at_once_do_not_share_their_unfinished_files(
    tmp_path: Path, monkeypatch
) -> None:
    output, file = tmp_path / "trace", good(tmp_path)
    finish = TraceWriter.finish
    inner = []

    def finish_after_another(writer: TraceWriter):
        if not inner:
            inner.append(True)
            import_trace("tok-layers", [file], output, KNOWN)
        return finish(writer)

    monkeypatch.setattr(TraceWriter, "finish", finish_after_another)
    with pytest.raises(TraceError, match="already exists"):
        import_trace("tok-layers", [file], output, KNOWN)
    open_trace(output).verify()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.jsonl", "trace"]


# Tokens that are not there.


def test_a_limit_that_is_used_up_leaves_out_further_files(tmp_path: Path) -> None:
    files = [good(tmp_path), foreign.tok_layers(tmp_path / "more.jsonl", ROUTING)]
    facts = Facts(num_experts=NUM_EXPERTS, max_tokens=4)
    trace = import_trace("tok-layers", files, tmp_path / "trace", facts)
    assert trace.documents()["name"].tolist() == ["good.jsonl"]


@pytest.mark.parametrize("text", ["[]", '{"choices": []}'])
def test_responses_without_choices_hold_no_tokens(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert "holds no tokens" in str(refused("vllm", [tmp_path / "a.json"], tmp_path))


# Files that were cut.


def cut_route_trace(folder: Path, lines: int) -> Path:
    """Five tokens of prompt and four decoded; the last `lines` lines are gone."""
    whole = foreign.route_trace(folder / "whole.csv", make_routing(5), make_routing(4))
    path = folder / "cut.csv"
    path.write_text("".join(whole.read_text().splitlines(keepends=True)[:-lines]))
    return path


def test_a_cut_step_is_left_out_only_when_asked(tmp_path: Path) -> None:
    """Line 53 would be the last, slot 1 of layer 3 of step 8; two of six lines of it are gone."""
    file = cut_route_trace(tmp_path, 2)
    error = refused("route-trace", [file], tmp_path, Facts())
    assert str(error) == (
        f"{file}: line 51: turn 0, step 8 has rows in 2 of 3 layers: the file is cut, or has lost "
        "lines"
    )
    assert error.hint == "record the file anew, or take the tokens before it: --max-tokens 8"
    trace = import_trace("route-trace", [file], tmp_path / "trace", Facts(max_tokens=8))
    assert trace.metadata.domains[0].tokens == (5, 3)
    trace.verify()


def test_the_whole_tokens_of_files_before_are_counted(tmp_path: Path) -> None:
    whole = foreign.route_trace(tmp_path / "first.csv", make_routing(5), make_routing(4))
    files = [whole, cut_route_trace(tmp_path, 1)]
    error = refused("route-trace", files, tmp_path, Facts())
    assert error.hint.endswith("--max-tokens 17"), "nine tokens of the first, eight of the second"
    trace = import_trace("route-trace", files, tmp_path / "trace", Facts(max_tokens=17))
    assert trace.metadata.domains[0].tokens == (10, 7)


def test_a_cut_between_steps_cannot_be_told_and_is_taken(tmp_path: Path) -> None:
    file = cut_route_trace(tmp_path, 6)
    trace = import_trace("route-trace", [file], tmp_path / "trace", Facts())
    assert trace.metadata.domains[0].tokens == (5, 3)


def test_layers_that_never_ran_must_be_said_to_have_none(tmp_path: Path) -> None:
    """As the prediction head of some models: its experts are listed, and are not run."""
    whole = foreign.route_trace(tmp_path / "a.csv", make_routing(5), make_routing(4))
    listed = "# layer=4 expert_bytes=500 dense_bytes=0\nturn,"
    whole.write_text(whole.read_text().replace("turn,", listed, 1))
    error = refused("route-trace", [whole], tmp_path, Facts())
    assert "has experts, but no rows of layer 4" in str(error)
    assert error.hint.endswith("--moe-layers 1-3")
    facts = Facts(moe_layers=(1, 2, 3))
    trace = import_trace("route-trace", [whole], tmp_path / "trace", facts)
    assert trace.shape.moe_layers == (1, 2, 3)


def test_a_cut_topk_csv_is_left_out_only_when_asked(tmp_path: Path) -> None:
    whole = foreign.moe_trace(tmp_path / "whole.csv", make_routing(5), make_routing(4))
    file = tmp_path / "cut.csv"
    file.write_text("".join(whole.read_text().splitlines(keepends=True)[:-1]))
    error = refused("topk-csv", [file], tmp_path)
    assert "line 22: position 3 has rows in 2 of 3 layers: the file is cut" in str(error)
    assert error.hint.endswith("--max-tokens 8")
    facts = Facts(num_experts=NUM_EXPERTS, max_tokens=8)
    trace = import_trace("topk-csv", [file], tmp_path / "trace", facts)
    assert trace.metadata.domains[0].tokens == (5, 3)


# Numbers that fit nowhere.


def test_some_unknown_weights_leave_all_out_and_are_told(tmp_path: Path) -> None:
    """The prompt's 22 lines have weights, the 24 decoded ones have nan."""
    file = foreign.route_trace(tmp_path / "a.csv", make_routing(5), make_routing(4))
    notes: list[str] = []
    trace = import_trace("route-trace", [file], tmp_path / "trace", Facts(), tell=notes.append)
    assert f"{file}: 24 of 46 weights are nan, so all are left out" in notes
    assert "weights" in trace.metadata.missing


def test_counts_of_several_files_together_must_be_exact(tmp_path: Path) -> None:
    """2^52 in each of two files is the most, one more assignment is too many."""
    files = []
    for name, more in (("a", 0), ("b", 2)):
        files.append(tmp_path / f"{name}.csv")
        files[-1].write_text(f"layer,expert,count\n0,0,{2**51}\n0,1,{2**51}\n0,2,{more}\n")
    facts = Facts(num_experts=NUM_EXPERTS, top_k=TOP_K, phase="decode")
    error = refused("layer-expert-csv", files, tmp_path, facts)
    assert str(error) == "b.csv: counts add up to 9.007e+15, expected at most 9007199254740992"


def test_more_cells_than_any_model_has_are_refused_before_they_take_memory(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("layer,expert\n" + "".join(f"{layer},0\n" for layer in range(17)))
    facts = Facts(num_experts=65_535, top_k=1)
    error = refused("layer-expert-csv", [file], tmp_path, facts)
    assert str(error) == (
        "a.csv: 17 layers of 65535 experts, expected at most 1048576 experts in all"
    )


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"expert_bytes": 0}, "good.jsonl: an expert of 0 bytes, expected at least 1"),
        ({"expert_bytes": 2**60}, "good.jsonl: a model of 27670116110564327424 bytes"),
        ({"moe_layers": (0, 1, 65_535)}, "good.jsonl: layer 65535, expected 0 to 65534"),
        ({"num_experts": 70_000}, "good.jsonl: 70000 experts of a layer, expected 1 to 65535"),
    ],
)
def test_facts_that_no_trace_holds_are_refused(tmp_path: Path, facts, message: str) -> None:
    given = {"num_experts": NUM_EXPERTS} | facts
    assert message in str(refused("tok-layers", [good(tmp_path)], tmp_path, Facts(**given)))


def test_a_file_named_twice_would_count_twice(tmp_path: Path) -> None:
    file = good(tmp_path)
    (tmp_path / "link.jsonl").symlink_to(file)
    error = refused("tok-layers", [file, tmp_path / "link.jsonl"], tmp_path)
    assert "link.jsonl: is named twice" in str(error)


# Files as other systems write them.


@pytest.mark.parametrize("name", ["route-trace", "tok-layers", "topk-csv", "layer-expert-csv"])
@pytest.mark.parametrize("written", ["\ufeff{}", "{}\r\n"], ids=["mark", "carriage returns"])
def test_marks_and_line_ends_of_other_systems_change_nothing(
    tmp_path: Path, name: str, written: str
) -> None:
    counts = "".join(f"{layer},{expert},2\n" for layer in (1, 2) for expert in range(NUM_EXPERTS))
    text = {
        "route-trace": lambda path: foreign.route_trace(path, ROUTING, ROUTING).read_text(),
        "tok-layers": lambda path: foreign.tok_layers(path, ROUTING).read_text(),
        "topk-csv": lambda path: foreign.moe_trace(path, ROUTING, ROUTING).read_text(),
        "layer-expert-csv": lambda path: f"layer,expert,count\n{counts}",
    }[name](tmp_path / "source")
    end = "\r\n" if written.endswith("\r\n") else "\n"
    plain, other = tmp_path / "a" / "file", tmp_path / "b" / "file"
    for path in (plain, other):
        path.parent.mkdir()
    plain.write_text(text, newline="")
    other.write_text(written.removesuffix("\r\n").format(text.replace("\n", end)), newline="")
    facts = Facts(num_experts=None if name == "route-trace" else NUM_EXPERTS, top_k=TOP_K)
    traces = [import_trace(name, [path], path.parent / "trace", facts) for path in (plain, other)]
    assert traces[0].digest == traces[1].digest


def test_a_name_that_is_no_text_is_kept_as_far_as_it_is(tmp_path: Path) -> None:
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl"))
    good(tmp_path).rename(file)
    trace = import_trace("tok-layers", [file], tmp_path / "trace", KNOWN)
    assert trace.metadata.origin.files == ("caf?.jsonl",)
    assert open_trace(tmp_path / "trace").documents()["name"].tolist() == ["caf?.jsonl"]


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = good(tmp_path).read_bytes()
    with ThreadPoolExecutor() as pool:
        pool.submit(pipe.write_bytes, text)
        trace = import_trace("tok-layers", [pipe], tmp_path / "trace", KNOWN)
    assert trace.metadata.domains[0].tokens == (0, 4)


def test_what_cannot_be_read_is_told_with_its_own_remedy(tmp_path: Path, monkeypatch) -> None:
    error = refused("tok-layers", [tmp_path], tmp_path)
    assert str(error) == f"{tmp_path}: cannot be read (Is a directory)"
    assert error.hint == "name the files in the folder"

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    file = good(tmp_path)
    monkeypatch.setattr(Path, "open", denied)
    assert "chmod" in refused("tok-layers", [file], tmp_path).hint


# Outputs.


@pytest.mark.parametrize("output", ["file/trace", "n" * 300, "loop/trace"])
def test_outputs_that_cannot_be_are_told_and_leave_nothing(tmp_path: Path, output: str) -> None:
    file = good(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(TraceError, match=r"cannot write \(.+\); nothing was imported") as failure:
        import_trace("tok-layers", [file], tmp_path / output, KNOWN)
    assert failure.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_folders_made_for_an_output_that_fails_are_taken_away(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = good(tmp_path)
    (tmp_path / "old").mkdir()
    monkeypatch.setattr("moeprof.trace.writer.write_rows", full)
    with pytest.raises(TraceError, match="No space left"):
        import_trace("tok-layers", [file], tmp_path / "old" / "new" / "newer" / "trace", KNOWN)
    assert not list((tmp_path / "old").iterdir())


def test_a_trace_stays_when_its_replacement_is_interrupted(tmp_path: Path, monkeypatch) -> None:
    output, file = tmp_path / "trace", good(tmp_path)
    first = import_trace("tok-layers", [file], output, KNOWN)
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_trace("tok-layers", [file], output, Facts(num_experts=64), force=True)
    assert open_trace(output).digest == first.digest
    open_trace(output).verify()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.jsonl", "trace"]


def test_notes_are_told_of_a_trace_that_is_there(tmp_path: Path) -> None:
    notes: list[str] = []
    (tmp_path / "trace").write_text("not a folder")
    with pytest.raises(TraceError):
        import_trace(
            "tok-layers", [good(tmp_path)], tmp_path / "trace" / "x", Facts(num_experts=8),
            tell=notes.append,
        )  # fmt: skip
    assert notes == []
