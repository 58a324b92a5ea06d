"""An API noun costs what docs/extending.md says: one is added to a copy of the packages, file by file as listed, and
created, worked on, swept, listed, polled, backed up and deleted there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.unit.breadth.copied import HERE, ROOT, Copy, listed

TALLY = HERE / "tally"
TESTS = ("conftest.py", "postgres.py", "s3.py", "unit/api")
DRIVE = "tests/unit/api/test_tallies.py"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    made = Copy(tmp_path_factory.mktemp("copy"))
    for name in TESTS:
        (made.root / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        copied = shutil.copytree if (ROOT / "tests" / name).is_dir() else shutil.copyfile
        copied(ROOT / "tests" / name, made.root / "tests" / name)
    shutil.copyfile(ROOT / "pyproject.toml", made.root / "pyproject.toml")
    shutil.copyfile(TALLY / "drive.py", made.root / DRIVE)
    add_noun(made)
    return made


def add_noun(copy: Copy) -> None:
    """ "An API noun"."""
    table = "class Tally" + text_of("table.py").partition("class Tally")[2]
    copy.edit("api/core/rows/tables.py", (r"^class WorkerRow", f"{table}\n\n\\g<0>"))
    head = max(int(file.name[:4]) for file in (copy.root / "api/migrations/versions").glob("0*.py"))
    migration = text_of("migration.py").replace('"HEAD"', f'"{head:04}"').replace('"NEXT"', f'"{head + 1:04}"')
    copy.write("api/migrations/versions/NNNN_tallies.py", migration)
    copy.write("api/core/tallies.py", text_of("tallies.py"))
    sweep = 'Sweep("tallies", tallies.sweep, lane="tallies")'
    enter(copy, "api/core/sweeper.py", "SWEEPS = (", "from api.core import tallies", sweep)
    copy.write("api/routes/tallies.py", text_of("routes.py"))
    enter(copy, "api/main.py", "PARTS = (", "from api.routes import tallies", "tallies")
    copy.write("worker/tally.py", text_of("tally.py"))
    copy.write("worker/tally_child.py", text_of("tally_child.py"))
    enter(copy, "worker/take.py", "WORK = (", "from worker import tally", "Work(tally.claim)")


def enter(copy: Copy, file: str, opening: str, imports: str, entry: str) -> None:
    """In a list, at its beginning."""
    start = "^" + opening.replace("(", r"\(")
    copy.edit(file, (r"^from __future__ import annotations$", f"\\g<0>\n\n{imports}"), (start, f"\\g<0>\n    {entry},"))


def text_of(file: str) -> str:
    return (TALLY / file).read_text()


def passes(copy: Copy, *arguments: str) -> None:
    """pytest in the copy."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *arguments],
        cwd=copy.root, env=kept | {"PYTHONPATH": str(copy.root)}, capture_output=True, text=True, timeout=280,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_the_docs_list_every_file_that_was_touched(copy: Copy) -> None:
    names = {path.replace("tallies", "NOUNS").replace("tally", "NOUN") for path in copy.edited}
    assert listed("An API noun") == names


@pytest.mark.long
@pytest.mark.slow
def test_the_noun_is_made_once_worked_on_swept_listed_polled_backed_up_and_deleted(copy: Copy) -> None:
    """And what guards every table holds for it: no drift between table and migration, down and up again, and each
    column that names blobs says so."""
    guards = "drift or exactly or down_and_up or one_line or every or digest_of"
    files = [DRIVE, "tests/unit/api/core/test_tables.py", "tests/unit/api/core/test_db.py"]
    passes(copy, *files, "-k", f"test_tallies or {guards}")
