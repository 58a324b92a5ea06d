"""Small real sets, as people publish them: read from the folder and from its zip, and trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fgd.data import archive, formats, zips
from fgd.data.index import Index
from fgd.events import Evaluated, Finished
from fgd.spec import JobSpec

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("name", "format"), [("bccd", "voc"), ("facemask", "coco"), ("rbc", "coco"), ("pear", "yolo")])
def test_a_real_set_is_the_same_from_folder_and_zip_and_trains(
    shared_data: Path,
    tmp_path: Path,
    train: Callable[..., Any],
    make_spec: Callable[..., JobSpec],
    name: str,
    format: str,
) -> None:
    zips.pack(shared_data / name, tmp_path / "set.zip")
    zips.unpack(tmp_path / "set.zip", tmp_path / "unzipped")
    index, report, _ = formats.read(shared_data / name, verify="headers")
    again, _, sources = formats.read(tmp_path / "unzipped", verify="headers")
    assert again == index
    assert (report.ok, report.format) == (True, format)

    few: dict[Any, Any] = {split: images[: 8 if split == "train" else 4] for split, images in index.splits.items()}
    archive.pack(Index(classes=index.classes, splits=few), sources, tmp_path / "few.tar")
    folder = archive.unpack(tmp_path / "few.tar", tmp_path / "few")
    run = train(make_spec(dataset={"path": str(folder)}, schedule={"epochs": 1}))
    assert run.of(Finished)[0].step == 2
    assert {scored.split for scored in run.of(Evaluated)} == set(few) - {"train"}
