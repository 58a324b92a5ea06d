"""A format is listed once; who offers formats, and who lets files through, follows that list."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from api.catalogue import catalogue
from api.core.request_bodies import SubmitDataset
from fgd.cli import hub
from fgd.cli.main import app
from fgd.data import zips
from fgd.data.format_list import FORMATS, TITLES
from fgd.data.tree import list_tree

README = Path(__file__).parents[3] / "README.md"


def test_requests_command_line_catalogue_and_readme_offer_the_same_formats() -> None:
    names = ["auto", *FORMATS]
    assert SubmitDataset.model_json_schema()["properties"]["format"]["enum"] == names
    assert [entry.kind for entry in catalogue()[0].formats] == names
    assert (
        f"<{'|'.join(names)}>" in CliRunner().invoke(app, ["dataset", "add", "--help"], env={"COLUMNS": "300"}).output
    )
    assert TITLES in README.read_text()


@pytest.mark.parametrize("name", FORMATS)
def test_a_formats_own_files_pass_through_zip_and_hub(name: str, tmp_path: Path) -> None:
    files = [f"a/b{suffix}" for suffix in FORMATS[name].suffixes] + [f"a/{file}" for file in FORMATS[name].names]
    for file in files:
        (tmp_path / "in" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / file).write_bytes(b"x")
    zips.pack(tmp_path / "in", tmp_path / "a.zip")
    zips.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert list_tree(tmp_path / "out").files == set(files)
    assert all(any(Path(file).match(pattern) for pattern in hub.WANTED) for file in files)
