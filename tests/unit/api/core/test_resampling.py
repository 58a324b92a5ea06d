"""What is worked out of detections: once for each file, also over a restart of the server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from api.core.resampling import Resampler
from api.core.store.local import LocalStore
from fgd.evaluated import SplitFigures
from fgd.statistics import detections
from fgd.statistics.detections import SplitDetections


def known(resampler: Resampler, digest: str) -> SplitFigures | str:
    until = time.monotonic() + 120
    while not (found := resampler.figures([digest], "val")):
        assert time.monotonic() < until
        time.sleep(0.02)
    return found[digest]


def split() -> SplitDetections:
    box = (10.0, 10.0, 50.0, 50.0)
    arrays: dict[str, Any] = {
        "image_id": [0], "size": [(100, 100)], "truth_image": [0], "truth_box": [box], "truth_label": [1],
        "truth_crowd": [False], "found_image": [0], "found_box": [box], "found_label": [1], "found_score": [0.9],
    }  # fmt: skip
    return SplitDetections.of(("cat",), ("0.png",), **arrays)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "blobs")


def test_what_was_worked_out_is_there_after_a_restart_and_a_damaged_file_is_worked_out_again(
    store: LocalStore, tmp_path: Path
) -> None:
    detections.write(tmp_path / "detections.npz", {"val": split()})
    digest = store.put_file(tmp_path / "detections.npz").digest
    folder = tmp_path / "figures"
    with Resampler(store, folder) as first:
        found = known(first, digest)
    assert isinstance(found, SplitFigures)
    assert found.ap == pytest.approx(100.0)
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes().replace(b'"images":1,', b'"images":7,'))

    with Resampler(store, folder) as second:
        again = known(second, digest)
    file.write_bytes(b"{")
    with Resampler(store, folder) as third:
        repaired = known(third, digest)

    assert again == found.model_copy(update={"images": 7})  # so it was the file
    assert repaired == found
    assert [each.name for each in folder.iterdir()] == [file.name]


def test_where_nothing_can_be_kept_it_is_worked_out_all_the_same(store: LocalStore, tmp_path: Path) -> None:
    detections.write(tmp_path / "detections.npz", {"val": split()})
    digest = store.put_file(tmp_path / "detections.npz").digest
    (tmp_path / "figures").write_text("a file is in the way")

    with Resampler(store, tmp_path / "figures") as resampler:
        assert isinstance(known(resampler, digest), SplitFigures)
