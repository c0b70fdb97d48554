import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def code_lines(notebook):
    lines = [line for cell in code_cells(notebook) for line in cell.source.splitlines()]
    return [line for line in lines if line.strip()]


def text_of(cell):
    """Standard output, and results as plain text; not the pictures, nor their sizes."""
    printed = [out.text for out in cell.outputs if out.get("name") == "stdout"]
    shown = [out.data["text/plain"] for out in cell.outputs if "data" in out]
    return "".join(printed), shown


def images_of(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]


def test_there_is_a_notebook():
    assert NOTEBOOKS


@pytest.mark.all
def test_a_fresh_run_shows_what_is_committed(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # no start-up files of the user
    fresh = nbformat.from_dict(notebook)
    for cell in code_cells(fresh):
        cell.outputs = []
    resources = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(fresh, timeout=300, kernel_name="python3", resources=resources).execute()
    for committed, again in zip(code_cells(notebook), code_cells(fresh), strict=True):
        assert text_of(again) == text_of(committed), committed.source
    assert len(images_of(fresh)) == len(images_of(notebook))


def test_figures_are_committed_and_the_file_stays_small(notebook, path):
    assert len(images_of(notebook)) >= 3
    assert path.stat().st_size < 500 * 1024


def test_it_was_committed_after_one_run_from_top_to_bottom(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_outputs_have_no_errors_no_warnings_and_no_paths_of_a_machine(notebook):
    for cell in code_cells(notebook):
        assert not cell.metadata  # when it ran, and for how long
        assert all(output.output_type != "error" for output in cell.outputs)
        assert all(output.get("name") != "stderr" for output in cell.outputs)
        printed, shown = text_of(cell)
        assert not re.search(r"(?<![\w.])/\w+/", "\n".join([printed, *shown]))


def test_it_has_under_150_lines_of_code(notebook):
    assert 0 < len(code_lines(notebook)) < 150


def test_no_function_is_longer_than_five_lines(notebook):
    for cell in code_cells(notebook):
        plain = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
        for node in ast.walk(ast.parse(plain)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 5, node.name
