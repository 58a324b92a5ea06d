"""Data sets in a real browser: a zip that is dropped, and what is seen of it once it is imported."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Picture

from api.core import datasets
from api.core.rows import db
from tests.browser.axe import serious
from tests.browser.seeds import Seeds

expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (make test-browser)").expect
NASTY = '<img src=x onerror=alert(1)> "it\'s" & 🎉'
COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures in each split, one of them with a box that has no area."""
    root = tmp_path_factory.mktemp("shapes")
    for split in ("train", "val"):
        (root / split).mkdir()
        for colour in COLOURS:
            Picture.new("RGB", (64, 48), colour).save(root / split / f"{colour}.png")
        boxes = [(1, 1, [4, 4, 20, 10]), (2, 2, [10, 8, 30, 30]), (3, 1, [0, 0, 60, 40]), (3, 1, [5, 5, 0, 9])]
        images = [
            {"id": n, "file_name": f"{colour}.png", "width": 64, "height": 48} for n, colour in enumerate(COLOURS, 1)
        ]
        marks = [
            {"id": k, "image_id": image, "category_id": label, "bbox": box}
            for k, (image, label, box) in enumerate(boxes)
        ]
        classes = [{"id": 1, "name": NASTY}, {"id": 2, "name": "plain"}]
        content = {"images": images, "annotations": marks, "categories": classes}
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def packed(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for path in sorted(folder.rglob("*.*")):
            file.write(path, path.relative_to(folder))
    return buffer.getvalue()


def row(page: Any, name: str) -> Any:
    return page.locator("tr[data-dataset]", has_text=name)


def test_a_zip_is_uploaded_over_a_break_and_shown_once_it_is_imported(
    tab: Any, server: Any, seeds: Seeds, folder: Path, packed: bytes, tmp_path: Path
) -> None:
    tab.expect("ERR_FAILED", "ERR_CONNECTION")
    page = tab.page
    broken: list[str] = []

    def break_once(route: Any) -> None:
        if route.request.method == "PATCH" and not broken:
            broken.append(route.request.url)
            route.abort()
        else:
            route.continue_()

    page.route("**/content", break_once)
    page.goto(f"{server.url}#/datasets")
    page.get_by_label("Choose a zip").set_input_files(
        {"name": "holiday.txt", "mimeType": "text/plain", "buffer": b"no"}
    )
    expect(page.get_by_role("alert").filter(has_text="is no zip")).to_be_visible()

    page.get_by_label("Choose a zip").set_input_files(
        {"name": f"{NASTY}.zip", "mimeType": "application/zip", "buffer": packed}
    )

    expect(row(page, NASTY).locator(".state")).to_have_text("being imported")
    assert broken
    row(page, NASTY).locator("a.title").click()
    seeds.imported(folder)
    expect(page.locator(".heading .state")).to_have_text("ready")
    expect(page.locator(".picture .box-of")).to_have_count(3)
    expect(page.get_by_role("img", name="blue.png: 1 box")).to_be_visible()
    expect(page.get_by_role("region", name="Boxes of each class").locator("tr", has_text=NASTY)).to_contain_text("2")
    sizes = page.get_by_role("region", name="Sizes of boxes")
    expect(sizes.locator("tr", has_text="16–32 px")).to_contain_text("1")
    expect(sizes.locator("tr", has_text="medium")).to_contain_text("1")
    expect(page.locator(".picture .warn")).to_have_text(
        ["⚠ train/_annotations.coco.json: annotation 3 has box [5, 5, 0, 9], which has no area"]
    )
    page.get_by_role("button", name="val 3").click()
    page.get_by_role("button", name="zero area box 2").click()
    expect(page.get_by_role("region", name="Defects").locator("tbody tr")).to_have_count(2)
    assert page.url.endswith("?split=val&defect=zero_area_box")
    page.get_by_role("region", name="Defects").get_by_role("button", name="val/blue.png").click()
    opened = page.get_by_role("dialog")
    expect(opened.locator(".boxed .mark.truth")).to_have_count(1)
    expect(opened.locator(".boxed .mark.false path").last).to_have_attribute("d", "M5 5H5V14H5Z")
    expect(opened).to_contain_text("which has no area")
    assert serious(page) == []
    page.keyboard.press("Escape")
    expect(opened).to_have_count(0)
    search = page.get_by_label("Find pictures by file name")
    search.fill("GREEN")
    search.press("Enter")
    expect(page.locator(".picture figcaption")).to_have_count(1)
    expect(page.get_by_role("img", name="green.png: 1 box")).to_be_visible()


def test_an_upload_is_gone_on_with_renamed_and_deleted(page: Any, server: Any, seeds: Seeds, packed: bytes) -> None:
    api = f"{server.url}v1/datasets"
    begun = page.request.post(api, data={"name": "half"}).json()["id"]
    headers = {"Content-Type": "application/partial-upload", "Upload-Offset": "0", "Upload-Length": str(len(packed))}
    page.request.patch(f"{api}/{begun}/content", data=packed[:100], headers=headers)
    page.goto(f"{server.url}#/datasets")
    with page.expect_file_chooser() as chooser:
        row(page, "half").get_by_role("button", name="Go on with the upload").click()

    chooser.value.set_files({"name": "half.zip", "mimeType": "application/zip", "buffer": packed})

    expect(row(page, "half").locator(".state")).to_have_text("being imported")
    with db.transaction(seeds.engine) as s:
        assert datasets.get(s, "prj_default", begun).upload_sha256 == hashlib.sha256(packed).hexdigest()
    row(page, "half").locator("summary").click()
    row(page, "half").get_by_role("button", name="Rename").click()
    page.get_by_label("Name", exact=True).fill("whole")
    page.get_by_role("dialog").get_by_role("button", name="Rename").click()
    expect(row(page, "whole").locator(".title")).to_have_text("whole")
    row(page, "whole").locator("summary").click()
    row(page, "whole").get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("There are no data sets yet")).to_be_visible()


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1280)])
def test_anybody_can_use_them(
    tabs: Any, server: Any, seeds: Seeds, folder: Path, tmp_path: Path, scheme: str, width: int
) -> None:
    page = tabs(color_scheme=scheme, viewport={"width": width, "height": 800}).page
    made = page.request.post(f"{server.url}v1/datasets", data={"name": NASTY}).json()["id"]
    page.goto(f"{server.url}#/datasets")
    expect(row(page, NASTY)).to_be_visible()
    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.request.put(f"{server.url}v1/datasets/{made}/content", data=b"PK", headers={"Content-Type": "application/zip"})
    seeds.imported(folder)

    row(page, NASTY).locator("a.title").click()

    expect(page.locator(".picture .box-of")).to_have_count(3)
    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
