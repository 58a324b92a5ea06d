"""The importer as the process that it is."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import fgd
from fgd.data import archive
from fgd.data.index import Index, Report
from worker import importer, limits
from worker.dataset_import import refusal
from worker.leased_child import ChildBroken
from worker.reader_ending import Rejected

ROOT = Path(fgd.__path__[0]).parent
Folder = tuple[Path, Path]


def run(folder: Path, out: Path, *program: str) -> int:
    out.mkdir(exist_ok=True)
    command = [sys.executable, *(program or ("-m", "worker.importer")), str(folder), str(out)]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=60)
    (out / "tail.txt").write_bytes(done.stderr)
    return done.returncode


def coco(root: Path, boxes: list[list[float]]) -> Path:
    from PIL import Image as Picture

    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / split).mkdir()
        Picture.new("RGB", (64, 48), (len(split), 9, 9)).save(root / split / "a.png")
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
            "annotations": [
                {"id": n, "image_id": 1, "category_id": 1, "bbox": box, "area": 1, "iscrowd": 0}
                for n, box in enumerate(boxes)
            ],
            "categories": [{"id": 1, "name": "thing"}],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def test_good_folder_becomes_an_archive_with_its_index(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(coco(tmp_path / "in", [[1, 1, 20, 20]]), out) == 0
    assert refusal(0, out) is None
    unpacked = archive.unpack(out / "archive.tar", tmp_path / "unpacked")
    assert Index.model_validate_json((unpacked / "index.json").read_bytes()) == Index.model_validate_json(
        (out / "index.json").read_bytes()
    )


def test_folder_without_boxes_is_refused_with_its_report(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = run(coco(tmp_path / "in", []), out)
    refused = refusal(code, out)
    assert isinstance(refused, Rejected)
    assert refused.report == Report.model_validate_json((out / "report.json").read_bytes())
    assert refused.error
    assert not (out / "archive.tar").exists()


def test_refusal_names_the_file_and_its_fault_and_nothing_that_follows_from_it(tmp_path: Path) -> None:
    folder = coco(tmp_path / "in", [[1, 1, 20, 20]])
    (folder / "annotations/instances_train.json").write_text('{"images": [')
    refused = refusal(run(folder, tmp_path / "out"), tmp_path / "out")
    assert isinstance(refused, Rejected)
    assert refused.error == (
        "annotations/instances_train.json: invalid JSON at line 1, column 13 (byte 12): Expecting value"
    )


def test_folder_that_is_no_data_set_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    code = run(tmp_path / "in", tmp_path / "out")
    refused = refusal(code, tmp_path / "out")
    assert code == importer.NOTHING_THERE
    assert isinstance(refused, Rejected)
    assert str(tmp_path / "in") in refused.error


def test_error_in_the_reader_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "tail.txt").write_text("Traceback\nMemoryError\n")
    refused = refusal(1, tmp_path)
    assert isinstance(refused, Rejected)
    assert "exit code 1" in refused.error
    assert "MemoryError" in refused.error


@pytest.mark.parametrize(("code", "words"), [(-9, "signal 9"), (-11, "signal 11"), (importer.TRY_AGAIN, "No space")])
def test_killed_reader_or_a_full_disk_is_not_held_against_the_data_set(tmp_path: Path, code: int, words: str) -> None:
    (tmp_path / "tail.txt").write_text("OSError: [Errno 28] No space left on device\n")
    refused = refusal(code, tmp_path)
    assert isinstance(refused, ChildBroken)
    assert words in refused.reason
    assert "breaks the reader" not in refused.reason


FULL = """
import errno, os
from fgd.data import archive
from worker import importer

def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

archive.pack = full
exit(importer.main())
"""


def test_importer_on_a_full_disk_asks_for_another_try(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert run(coco(tmp_path / "in", [[1, 1, 20, 20]]), out, "-c", FULL) == importer.TRY_AGAIN
    refused = refusal(importer.TRY_AGAIN, out)
    assert isinstance(refused, ChildBroken)
    assert "No space left on device" in refused.reason


def test_importer_is_confined(tmp_path: Path) -> None:
    script = "import resource; from worker.limits import limit; limit(2.0); " + (
        "print([resource.getrlimit(r)[1] for r in (resource.RLIMIT_CPU, resource.RLIMIT_CORE, resource.RLIMIT_NOFILE)])"
    )
    done = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT)}, capture_output=True)
    cpu, core, files = json.loads(done.stdout)
    assert (cpu, core) == (2 * 60 * limits.THREADS + 5, 0)
    assert files <= max(limits.OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
