"""The notebook in examples/ runs from top to bottom, and shows tables and the report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"
_MISSING = "it comes with the extra `dev`"


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The cells of code with their outputs, run by a kernel of this Python."""
    for package in ("nbclient", "ipykernel", "plotly", "jinja2"):
        pytest.importorskip(package, reason=_MISSING)
    import nbformat
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    class ThisPython(AsyncKernelManager):
        """Starts a kernel that needs no installed kernel specification."""

        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"])

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    NotebookClient(notebook, timeout=240, kernel_manager_class=ThisPython, resources=where).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pages(cells: list[Any]) -> list[str]:
    """What the cells show as HTML."""
    return [out["data"]["text/html"] for cell in cells for out in cell.outputs if "text/html" in out.get("data", {})]


def test_the_notebook_is_stored_without_outputs() -> None:
    nbformat = pytest.importorskip("nbformat", reason=_MISSING)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")


def test_what_it_shows_is_tables_the_report_and_the_cause(cells: list[Any]) -> None:
    shown = pages(cells)
    assert len(shown) == 7
    assert sum("srcdoc" in page for page in shown) == 1
    for page in (shown[0], shown[1], shown[3]):  # the preflight, the monitor, its causes
        assert "saturating activation" in page
    assert "vanishing" in shown[2]
    assert "No finding." in shown[-1] or "No fault found so far." in shown[-1]  # of the loop with ReLU


def test_nothing_is_a_raw_repr(cells: list[Any]) -> None:
    assert not [page[:200] for page in pages(cells) if "Snapshot(" in page or "array(" in page]
