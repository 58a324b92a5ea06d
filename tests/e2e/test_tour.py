"""docs/tour.ipynb against a real service: every cell runs, with trainings of an epoch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import real_services
from tests.tour import run


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("default")  # of the notebook's own libraries
def test_every_cell_of_the_tour_runs(tmp_path: Path) -> None:
    with real_services(tmp_path / "home", tmp_path) as service:
        notebook = run(str(service.http.base_url), tmp_path, EPOCHS=1)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    said = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
    assert any("64 images" in text and "defects: none" in text for text in said)
    for role in ("teacher", "control", "student"):
        assert sum(text.count(f"{role:8} epoch  1  AP") for text in said) == 1
    assert "student.safetensors" in said[-1]
    drawn = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(drawn) == 2
