"""docs/tour.ipynb, and how it is run.

python -m tests.tour --epochs 8     runs it against a service of its own, and writes what came out into it
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

TOUR = Path(__file__).resolve().parents[1] / "docs" / "tour.ipynb"
CELL_S = 900
"""For a cell that trains, on a busy host."""


def run(url: str, folder: Path, **parameters: object) -> Any:
    """The notebook with its outputs. parameters: what replaces the values of its first cell. folder: where it runs."""
    notebook = nbformat.read(TOUR, as_version=4)
    (first,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    shown = first.source
    values = {"URL": url, **parameters}
    assert all(f"{name} = " in shown for name in values)
    first.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=CELL_S, kernel_name="python3", coalesce_streams=True, resources=where).execute()
    first.source = shown
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    epochs = parser.parse_args().epochs
    from tests.e2e.conftest import real_services

    with tempfile.TemporaryDirectory() as folder:
        with real_services(Path(folder) / "home", Path(folder)) as service:
            notebook = run(str(service.http.base_url), Path(folder), EPOCHS=epochs)
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times, which differ each time
    nbformat.write(notebook, TOUR)


if __name__ == "__main__":
    main()
