"""What `moeprof import` refuses, in one sentence and with a remedy, and what it leaves behind."""

import errno
import os
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
