import io
import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from moeprof.capture.corpora import open_corpus
from moeprof.errors import TraceError


def contents(data: list[str], text_column: str = "text") -> dict[str, list]:
    corpus = open_corpus(data, text_column)
    return {domain.name: [d.content for d in domain.documents()] for domain in corpus}


def test_a_folder_gives_one_document_per_text_file_in_order(tmp_path: Path) -> None:
    for name, text in {"b.py": "two", "a.md": "one", "c/d.cs": "three"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden.txt").write_text("no")
    assert contents([f"code={tmp_path}"]) == {"code": ["one", "two", "three"]}


def test_what_is_read_is_what_was_checked(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("checked")
    (domain,) = open_corpus([str(tmp_path)], "text")
    (tmp_path / "a.txt").write_bytes(b"\xff, and came later")
    assert [document.content for document in domain.documents()] == ["checked"]


def test_a_domain_is_named_after_its_source_unless_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "my notes.txt").write_text("x")
    assert list(contents([str(tmp_path / "my notes.txt")])) == ["my-notes"]
    assert list(contents([f"prose={tmp_path}/*.txt"])) == ["prose"]


def test_sources_of_one_domain_are_joined(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    assert contents([f"x={tmp_path}/b.txt", f"x={tmp_path}/a.txt"]) == {"x": ["b", "a"]}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_tables_give_one_document_per_row(tmp_path: Path, suffix: str) -> None:
    frame = pd.DataFrame({"id": [1, 2], "body": ["first, with comma", 'second "line"\nmore']})
    path = tmp_path / f"table{suffix}"
    if suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    assert contents([f"t={path}"], "body") == {"t": frame["body"].tolist()}
    with pytest.raises(TraceError, match=r"no column 'text', it has id, body") as failure:
        contents([f"t={path}"])
    assert "--text-column" in failure.value.hint


def test_conversations_are_found_by_their_column(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    assert contents([f"chat={tmp_path}/chat.jsonl"]) == {"chat": [messages]}


def test_a_local_data_set_is_streamed_through_the_hub_reader(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert contents([f"hub:{folder}"]) == {"data": ["one", "two"]}
    with pytest.raises(TraceError, match="cannot be opened"):
        contents([f"hub:{folder}::validation"])


def test_standard_input_is_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO("größe".encode()))
    monkeypatch.setattr(sys, "stdin", stream)
    assert contents(["-"]) == {"stdin": ["größe"]}
    with pytest.raises(TraceError, match="only once"):
        open_corpus(["a=-", "b=-"], "text")


def test_text_that_is_not_utf8_is_refused_before_anything_is_traced(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes("größe".encode("latin1"))
    with pytest.raises(TraceError, match=r"b\.txt: not UTF-8 text, byte 2 is 0xf6") as failure:
        open_corpus([str(tmp_path)], "text")
    assert "iconv" in failure.value.hint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", b"", "holds no rows"),
        ("bad.jsonl", b'{"text": "a"}\n{"text"', "bad.jsonl:2: not JSON"),
        ("list.jsonl", b"[1]\n", "list, expected an object"),
        ("number.jsonl", b'{"text": 5}\n', "column 'text' holds int"),
        ("null.jsonl", b'{"text": null}\n', "column 'text' holds NoneType"),
        ("latin.csv", b"text\n\xf6\n", "not a CSV file in UTF-8"),
        ("fake.parquet", b"PAR1 nothing", "not a readable Parquet file"),
    ],
)
def test_damaged_tables_are_refused(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TraceError, match=message):
        contents([str(tmp_path / name)])


def test_missing_and_empty_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no such file or folder"):
        open_corpus([str(tmp_path / "nowhere")], "text")
    with pytest.raises(TraceError, match="holds no text files"):
        open_corpus([str(tmp_path)], "text")
    with pytest.raises(TraceError, match="no file matches"):
        open_corpus([f"{tmp_path}/*.txt"], "text")
