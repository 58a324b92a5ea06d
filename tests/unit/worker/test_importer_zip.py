"""The importer's process, given an upload."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fgd
from fgd.data import archive
from fgd.data.index import Report
from tests.unit.data.test_yolo import Yolo
from worker import importer

ROOT = Path(fgd.__path__[0]).parent


def zipped(folder: Path, target: Path, below: str = "") -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                made.write(path, f"{below}{path.relative_to(folder)}")
    return target


def run(source: Path, out: Path, *options: str) -> int:
    command = [sys.executable, "-m", "worker.importer", str(source), str(out), *options]
    return subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=60).returncode


def report_of(out: Path) -> Report:
    return Report.model_validate_json((out / "report.json").read_bytes())


@pytest.fixture
def yolo(tmp_path: Path) -> Yolo:
    made = Yolo(tmp_path / "yolo")
    made.read()
    (made.root / "LICENSE").write_text("do what you like")
    return made


@pytest.mark.parametrize("below", ["", "export/"])
def test_a_zip_becomes_what_its_folder_becomes(yolo: Yolo, tmp_path: Path, below: str) -> None:
    upload = zipped(yolo.root, tmp_path / "set.zip", below)
    assert run(yolo.root, tmp_path / "from_folder") == 0
    assert run(upload, tmp_path / "from_zip") == 0
    made = [
        archive.unpack(tmp_path / name / "archive.tar", tmp_path / f"{name}.d") for name in ("from_folder", "from_zip")
    ]
    assert (made[0] / "index.json").read_bytes() == (made[1] / "index.json").read_bytes()
    report = report_of(tmp_path / "from_zip")
    assert (report.format, report.defect_counts) == ("yolo", {"members_skipped": 1})
    assert "LICENSE" in report.defects[0].message
    assert not (tmp_path / "from_zip/unzipped").exists()


def test_a_hostile_zip_is_refused_in_words_and_leaves_nothing(yolo: Yolo, tmp_path: Path) -> None:
    upload = zipped(yolo.root, tmp_path / "evil.zip")
    with zipfile.ZipFile(upload, "a") as made:
        made.writestr("../evil.txt", "x")
    out = tmp_path / "work/out"
    assert run(upload, out) == importer.NOTHING_THERE
    assert "'../evil.txt' has .. in its name" in (out / "error.txt").read_text()
    assert [path.name for path in out.iterdir()] == ["error.txt"]
    assert not list(tmp_path.rglob("evil.txt"))


def test_a_zip_without_a_data_set_is_refused_without_naming_a_folder_of_ours(tmp_path: Path) -> None:
    upload = tmp_path / "empty.zip"
    with zipfile.ZipFile(upload, "w") as made:
        made.writestr("notes.txt", "nothing here")
    assert run(upload, tmp_path / "out") == importer.NOTHING_THERE
    error = (tmp_path / "out/error.txt").read_text()
    assert error.startswith("the zip: no data set found")
    assert str(tmp_path) not in error


def test_format_and_split_are_as_asked(yolo: Yolo, tmp_path: Path) -> None:
    assert run(yolo.root, tmp_path / "out", "--format", "coco") == importer.NOTHING_THERE
    assert "no COCO annotations" in (tmp_path / "out/error.txt").read_text()
    del yolo.plan["val"]
    for n in range(8):
        yolo.add("train", f"p{n // 2}_{n}", f"{n % 2} 0.5 0.5 0.2 0.2\n")
    yolo.read()
    assert run(yolo.root, tmp_path / "out2", "--val-fraction", "0.4", "--group-by", "prefix") == 0
    carved = report_of(tmp_path / "out2").carved
    assert carved is not None
    assert (carved.val_fraction, carved.group_by, carved.images, carved.groups) == (0.4, "prefix", 5, 6)
