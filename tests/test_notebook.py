"""The notebook of the docs runs, and shows what it says."""

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


def types_of_output(notebook: Any) -> list[set[str]]:
    """The types of the results and pictures below each cell of code, without texts."""
    return [
        {one for output in cell.outputs for one in output.get("data", {}) if one != "image/jpeg"}
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_the_notebook_runs_and_its_pictures_are_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Slow: it starts a kernel, which imports torch and trains for an epoch.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    stored = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    types = types_of_output(stored)
    assert sum("image/png" in one for one in types) == 2
    assert sum("text/html" in one for one in types) == 1
    cell = next(cell for cell in stored.cells if '"epochs": 12' in cell.source)
    cell.source = cell.source.replace('"epochs": 12', '"epochs": 1, "num_workers": 0')
    NotebookClient(stored, timeout=120, kernel_name="python3").execute()
    assert types_of_output(stored) == types
