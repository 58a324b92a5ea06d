"""A data format costs what docs/extending.md says: the code that stands there is put into a copy of the packages, and
nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from fgd.data.formats import read
from fgd.data.index import Index, Report
from fgd.errors import DatasetError
from tests.unit.breadth.copied import Copy, listed, with_format

BOXES = {
    "train/a.png": ("cat", 1, 2, 20, 22),
    "train/b.png": ("dog", 5, 5, 30, 25),
    "val/c.png": ("cat", 0, 0, 40, 30),
    "val/d.png": ("dog", 3, 4, 9, 14),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return with_format(tmp_path_factory.mktemp("copy"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    for seed, file in enumerate(BOXES):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Pillow.fromarray(pixels).save(root / file)
    faults = [("train/none.png", "cat", 1, 1, 9, 9), ("train/a.png", "cat", 1, "x", 9, 9)]
    lines = ["\t".join(map(str, line)) for line in (*((file, *box) for file, box in BOXES.items()), *faults)]
    (root / "boxes.tsv").write_text("\n".join(lines))
    return root


def imported(copy: Copy, source: Path, out: Path, *options: str) -> tuple[Index, Report]:
    done = copy.run("-m", "worker.importer", str(source), str(out), *options)
    assert done.returncode == 0, done.stderr
    index, report = (out / "index.json").read_bytes(), (out / "report.json").read_bytes()
    return Index.model_validate_json(index), Report.model_validate_json(report)


def test_the_docs_list_every_file_that_was_touched(copy: Copy) -> None:
    assert listed("A data format") == copy.edited


def test_a_folder_of_it_is_found_by_content_and_imported(copy: Copy, folder: Path, tmp_path: Path) -> None:
    index, report = imported(copy, folder, tmp_path / "out")
    assert report.format == "tsv"
    assert report.ok
    assert report.classes == ("cat", "dog")
    assert report.defect_counts == {"box_not_finite": 1, "image_missing": 1}
    assert {split: [image.boxes for image in images] for split, images in index.splits.items()} == {
        "train": [((1, 2, 20, 22),), ((5, 5, 30, 25),)],
        "val": [((0, 0, 40, 30),), ((3, 4, 9, 14),)],
    }
    assert imported(copy, folder, tmp_path / "asked", "--format", "tsv") == (index, report)


def test_a_zip_of_it_keeps_its_table(copy: Copy, folder: Path, tmp_path: Path) -> None:
    pack = "import sys; from pathlib import Path; from fgd.data import zips; zips.pack(*map(Path, sys.argv[1:]))"
    assert copy.run("-c", pack, str(folder), str(tmp_path / "set.zip")).returncode == 0
    assert imported(copy, tmp_path / "set.zip", tmp_path / "zipped") == imported(copy, folder, tmp_path / "plain")


OFFERED = """
import json
from api.catalogue import catalogue
from api.core.request_bodies import SubmitDataset
from fgd.cli import hub

SubmitDataset(name="n", format="tsv")
entry = next(entry for entry in catalogue()[0].formats if entry.kind == "tsv")
print(json.dumps([entry.summary, catalogue()[0].dataset["properties"]["format"]["enum"], hub.WANTED]))
"""


def test_requests_catalogue_command_line_and_hub_offer_it(copy: Copy) -> None:
    summary, choices, wanted = copy.answer(OFFERED)
    assert summary.startswith("A table: boxes.tsv")
    assert "tsv" in choices
    assert "*.tsv" in wanted
    refused = copy.run("-m", "fgd.cli", "dataset", "add", "n", "folder", "--format", "none")
    assert refused.returncode == 2
    assert "'tsv'" in refused.stderr


def test_without_the_edits_nobody_knows_it(folder: Path) -> None:
    """Else the tests above would say nothing."""
    with pytest.raises(DatasetError, match="no data set found"):
        read(folder)
