"""The file of detections: what is written is read, equal contents are equal bytes, and damage is reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fgd.statistics import detections
from fgd.statistics.detections import DetectionsUnreadable, SplitDetections, joined
from tests.unit.statistics.scenes import random_scene, split

ARRAYS = (
    "image_id", "size", "truth_image", "truth_box", "truth_label", "truth_crowd",
    "found_image", "found_box", "found_score", "found_label",
)  # fmt: skip


def same(one: SplitDetections, other: SplitDetections) -> bool:
    told = (one.classes, one.names) == (other.classes, other.names)
    return told and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ARRAYS)


def test_what_is_written_is_read_and_the_bytes_repeat(tmp_path: Path) -> None:
    splits = {"val": random_scene(1), "test": random_scene(2, images=3, first_id=100)}
    detections.write(tmp_path / "one.npz", splits)
    detections.write(tmp_path / "two.npz", splits)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    read = detections.read(tmp_path / "one.npz")
    assert list(read) == ["val", "test"]
    assert all(same(read[name], told) for name, told in splits.items())


def test_an_empty_split_and_odd_names_are_kept(tmp_path: Path) -> None:
    nothing = split([], [], images=0)
    named = SplitDetections.of(
        ("größe", "\udcff"),
        ("ein bild\n.png",),
        image_id=[7],
        size=[(1, 1)],
        **{name: [] for name in ARRAYS if name not in ("image_id", "size")},
    )
    detections.write(tmp_path / "a.npz", {"val": nothing})
    detections.write(tmp_path / "b.npz", {"test": named})
    assert len(detections.read(tmp_path / "a.npz")["val"]) == 0
    assert same(detections.read(tmp_path / "b.npz")["test"], named)


def test_any_numpy_reads_it_without_us(tmp_path: Path) -> None:
    told = random_scene(3)
    detections.write(tmp_path / "d.npz", {"val": told})
    with np.load(tmp_path / "d.npz") as file:
        assert np.array_equal(file["val/found_box"], told.found_box)
        assert b"fgd-detections/1" in file["about"].tobytes()


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "another", "future"])
def test_damage_is_reported_with_the_files_name(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "detections.npz"
    detections.write(file, {"val": random_scene(4)})
    whole = file.read_bytes()
    if damage == "another":
        np.savez(file, about=np.zeros(3, np.uint8))
    elif damage == "future":
        np.savez(file, about=np.frombuffer(b'{"format": "fgd-detections/9"}', np.uint8))
    else:
        file.write_bytes({"empty": b"", "text": b"no zip", "cut": whole[: len(whole) // 2]}[damage])
    with pytest.raises(DetectionsUnreadable, match=r"detections\.npz: not the detections"):
        detections.read(file)


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        detections.read(tmp_path / "detections.npz")


def test_joined_splits_keep_each_image_with_its_boxes() -> None:
    """Images are in order of their ids, wherever they come from."""
    later = split([(0, (0, 0, 9, 9), 1)], [(0, (0, 0, 9, 8), 1, 0.5)], first_id=20)
    sooner = split([(1, (1, 1, 5, 5), 1)], [(0, (2, 2, 3, 3), 1, 0.25)], images=2, first_id=3)
    both = joined([later, sooner])
    assert both.image_id.tolist() == [3, 4, 20]
    assert both.names == ("3.png", "4.png", "20.png")
    assert both.truth_image.tolist() == [2, 1]
    assert both.found_image.tolist() == [2, 0]


def test_splits_that_share_an_image_or_differ_in_classes_are_not_joined() -> None:
    with pytest.raises(ValueError, match="common image"):
        joined([split([], []), split([], [])])
    with pytest.raises(ValueError, match="classes differ"):
        joined([split([], []), split([], [], classes=2, first_id=9)])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"found_image": [1]}, "found_image names an image"),
        ({"found_label": [0]}, "found_label names a class"),
        ({"found_score": []}, "found_score has not one entry"),
        ({"size": []}, "size has 0 entries for 1 images"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, object], why: str) -> None:
    whole = {
        "image_id": [1],
        "size": [(9, 9)],
        "found_image": [0],
        "found_box": [(0, 0, 1, 1)],
        "found_score": [0.5],
        "found_label": [1],
    } | {f"truth_{name}": [] for name in ("image", "box", "label", "crowd")}
    with pytest.raises(ValueError, match=why):
        SplitDetections.of(("a",), ("a.png",), **whole | change)
