"""What a report keeps of what strangers wrote."""

from __future__ import annotations

from fgd.data.index import Index
from fgd.data.report import MAX_MESSAGE, Defects
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
