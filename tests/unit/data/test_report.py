"""What a report keeps of what strangers wrote."""

from __future__ import annotations

from fgd.data.index import Image, Index
from fgd.data.report import MAX_MESSAGE, Defects, count
from fgd.text.cut import MAX_FILE


def test_names_and_messages_of_any_length_are_cut_and_counted() -> None:
    defects = Defects()
    for n in range(3):
        defects.add("image_missing", f"{n}{'x' * 100_000}", "y" * 100_000, "dropped_image")
    report = defects.report("coco", Index(classes=(), splits={}))
    assert report.defect_counts == {"image_missing": 3}
    assert [defect.file[:2] for defect in report.defects] == ["0x", "1x", "2x"]
    assert {len(defect.file) for defect in report.defects} == {MAX_FILE}
    assert {len(defect.message) for defect in report.defects} == {MAX_MESSAGE}
    assert all(defect.file.endswith("x...") for defect in report.defects)


def test_a_defect_of_an_image_that_was_left_out_has_no_place_and_a_box_that_is_nowhere_none() -> None:
    defects = Defects()
    for file, box in (("a.png", (0.0, 1.0, 1e9, 2.0)), ("b.png", (0.0, float("nan"), 1.0, 2.0)), ("a.png", None)):
        defects.add("box_outside", file, "out", "dropped_box", box=box)
    found = defects.report("coco", Index(classes=(), splits={}), places={"a.png": ("val", 4)}).defects
    assert [(each.split, each.n) for each in found] == [("val", 4), (None, None), ("val", 4)]
    assert [each.box for each in found] == [(0.0, 1.0, 1e9, 2.0), None, None]


def test_boxes_are_counted_by_the_power_of_two_that_their_side_reaches() -> None:
    sides = (0.25, 1, 1.99, 2, 16, 31.9, 32)
    boxes = tuple((0.0, 0.0, side / 2, side * 2) for side in sides)
    image = Image(
        id=1, file="a.png", name="a.png", width=64, height=64, boxes=boxes, labels=(1,) * 7, crowd=(False,) * 7
    )

    assert count([image], ["cell"]).box_sides == (3, 1, 0, 0, 2, 1)
    assert count([], ["cell"]).box_sides == ()
