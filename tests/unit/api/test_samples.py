"""Images of a data set with their boxes, and the end of a data set."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Picture
from PIL import ImageOps

from api.core import datasets
from api.core.errors import Fenced
from api.core.request_bodies import SubmitDataset
from api.core.rows import db, leases
from api.core.rows.ids import new_id
from api.core.rows.tables import Dataset
from fgd.data import archive, formats


@pytest.fixture
def imported(given: Any, tmp_path: Path) -> Dataset:
    """A data set whose blobs are really those of an import."""
    colours = iter(("red", "green"))
    return _imported(given, tmp_path, lambda path: Picture.new("RGB", (40, 30), next(colours)).save(path))


@pytest.fixture
def imported_from(given: Any, tmp_path: Path) -> Callable[..., Dataset]:
    return lambda draw, **how: _imported(given, tmp_path, draw, **how)


def _imported(
    given: Any,
    tmp_path: Path,
    draw: Callable[[Path], None],
    size: tuple[int, int] = (40, 30),
    bbox: Sequence[int] = (1, 2, 10, 12),
) -> Dataset:
    root = tmp_path / "cells"
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        draw(root / split / "ä b.png")
        content = {
            "images": [{"id": 1, "file_name": "ä b.png", "width": size[0], "height": size[1]}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "bbox": list(bbox)}],
            "categories": [{"id": 5, "name": "cell"}],
        }
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    index, report, sources = formats.read(root)
    archive.pack(index, sources, tmp_path / "cells.tar")
    with db.transaction(given.engine) as s:
        dataset = datasets.submit(s, "prj_default", SubmitDataset(name="cells", path=str(root)))
        claim = datasets.claim_import(s, "wrk_a", lease_s=20.0)
        assert claim is not None
        tar = given.store.put_file(tmp_path / "cells.tar")
        json_blob = given.store.put_bytes(index.model_dump_json().encode())
        datasets.finish_import(s, dataset.id, claim.attempt, tar, json_blob, report)
        return dataset


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


@pytest.mark.parametrize(("split", "pixel"), [("train", (255, 0, 0)), ("val", (0, 128, 0))])
def test_a_sample_is_an_image_and_its_boxes(client: Any, imported: Dataset, split: str, pixel: Any) -> None:
    sample = client.get(f"/v1/datasets/{imported.id}/samples/0?split={split}").json()
    assert (sample["name"], sample["width"], sample["height"], sample["split"]) == ("ä b.png", 40, 30, split)
    assert sample["boxes"] == [{"box": [1, 2, 11, 14], "name": "cell", "label": 1, "crowd": False}]
    answer = client.get(sample["image_url"])
    assert answer.headers["content-type"] == "image/png"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert Picture.open(io.BytesIO(answer.content)).getpixel((0, 0)) == pixel
    again = client.get(sample["image_url"], headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304


def test_an_image_is_found_by_its_name(client: Any, given: Any, imported: Dataset) -> None:
    def find(**query: Any) -> Any:
        return client.get(f"/v1/datasets/{imported.id}/samples", params=query)

    both = [{"split": split, "n": 0, "name": "ä b.png"} for split in ("train", "val")]
    assert find(name="Ä B.PNG").json() == {"items": both}
    assert find(name=" b", split="val").json() == {"items": both[1:]}
    assert find(name="c.png").json() == find(name="a", split="test").json() == {"items": []}
    assert find().json() == {"items": both}
    assert find(limit=1).json() == {"items": both[:1]}
    for query, parameter in (({"name": "a", "split": "all"}, "split"), ({"limit": 0}, "limit")):
        wrong = find(**query)
        assert (wrong.status_code, wrong.json()["errors"][0]["parameter"]) == (422, parameter)


def test_a_turned_picture_is_shown_as_its_boxes_lie(client: Any, imported_from: Any) -> None:
    def turned(path: Path) -> None:
        """Upright 30x40 with a red bar on its left; stored 40x30, the bar at the top."""
        pixels = Picture.new("RGB", (40, 30))
        pixels.paste((255, 0, 0), (0, 0, 40, 10))
        exif = Picture.Exif()
        exif[0x0112] = 8
        pixels.save(path, "PNG", exif=exif)

    dataset = imported_from(turned, size=(30, 40), bbox=[0, 0, 10, 40])
    sample = client.get(f"/v1/datasets/{dataset.id}/samples/0?split=train").json()
    shown = ImageOps.exif_transpose(Picture.open(io.BytesIO(client.get(sample["image_url"]).content)))
    assert (sample["width"], sample["height"]) == shown.size == (40, 30)
    assert shown.crop([int(side) for side in sample["boxes"][0]["box"]]).getcolors() == [(400, (255, 0, 0))]


def test_boxes_of_a_sample_come_in_pages(client: Any, imported: Dataset) -> None:
    url = f"/v1/datasets/{imported.id}/samples/0"
    first = client.get(f"{url}?limit=1").json()
    assert (len(first["boxes"]), first["box_count"], first["next_after"]) == (1, 1, None)
    rest = client.get(f"{url}?after=1").json()
    assert (rest["boxes"], rest["box_count"], rest["next_after"]) == ([], 1, None)
    for query, parameter in (("limit=0", "limit"), ("limit=10001", "limit"), ("after=-1", "after")):
        wrong = client.get(f"{url}?{query}")
        assert (wrong.status_code, wrong.json()["errors"][0]["parameter"]) == (422, parameter)
    assert client.get(f"{url}/image?limit=1").status_code == 422


@pytest.mark.parametrize("image", ["", "/image"])
def test_what_is_no_sample_is_refused_with_its_code(client: Any, given: Any, imported: Dataset, image: str) -> None:
    def get(id: str, rest: str) -> Any:
        return client.get(f"/v1/datasets/{id}/samples/{rest}".replace("?", f"{image}?") if "?" in rest else
                          f"/v1/datasets/{id}/samples/{rest}{image}")  # fmt: skip

    assert code(get(imported.id, "1")) == (404, "sample_not_found")
    assert code(get(imported.id, "-1")) == (404, "sample_not_found")
    assert code(get(imported.id, "0?split=test")) == (404, "sample_not_found")
    assert code(get(new_id("ds"), "0")) == (404, "dataset_not_found")
    assert code(get(given.dataset("rejected").id, "0")) == (404, "sample_not_found")
    assert code(get(given.dataset("verifying").id, "0")) == (409, "dataset_not_ready")
    for rest in ("x", "0?split=all", "0?which=1", "..%2f..%2fetc%2fpasswd"):
        assert get(imported.id, rest).status_code in (404, 422)
    wrong = get(imported.id, "0?split=all")
    assert (wrong.status_code, wrong.json()["errors"][0]["parameter"]) == (422, "split")


def test_a_data_set_that_nobody_uses_can_be_deleted(client: Any, imported: Dataset) -> None:
    assert client.delete(f"/v1/datasets/{imported.id}").status_code == 204
    for answer in (client.get(f"/v1/datasets/{imported.id}"), client.delete(f"/v1/datasets/{imported.id}")):
        assert code(answer) == (404, "dataset_not_found")


def test_a_data_set_in_use_is_a_409_that_names_the_jobs(client: Any, given: Any) -> None:
    dataset = given.dataset()
    jobs = [given.job(dataset), given.job(dataset)]
    answer = client.delete(f"/v1/datasets/{dataset.id}")
    assert code(answer) == (409, "dataset_in_use")
    assert all(job in answer.json()["detail"] for job in jobs)
    assert client.get(f"/v1/datasets/{dataset.id}").json()["state"] == "ready"


def test_a_data_set_deleted_under_its_import_fences_the_worker(client: Any, given: Any) -> None:
    id = given.dataset("verifying").id
    claim = given.claim_import()
    assert client.delete(f"/v1/datasets/{id}").status_code == 204
    with pytest.raises(Fenced), db.transaction(given.engine) as s:
        leases.beat(s, Dataset, id, claim.attempt, "wrk_a", lease_s=20.0)


def test_a_key_of_a_deleted_data_set_makes_a_new_one(client: Any) -> None:
    headers = {"Idempotency-Key": "once"}
    first = client.post("/v1/datasets", json={"name": "d"}, headers=headers).json()["id"]
    client.delete(f"/v1/datasets/{first}")
    again = client.post("/v1/datasets", json={"name": "d"}, headers=headers)
    assert again.status_code == 202
    assert again.json()["id"] != first


@pytest.mark.parametrize(
    ("changes", "pointer", "error"),
    [
        ({"format": "tfrecord"}, "/format", "literal_error"),
        ({"verify": "maybe"}, "/verify", "literal_error"),
        ({"group_by": "folder"}, "/group_by", "literal_error"),
        ({"val_fraction": 0}, "/val_fraction", "greater_than"),
        ({"val_fraction": 1}, "/val_fraction", "less_than"),
        ({"val_fraction": "0.1"}, "/val_fraction", "float_type"),
        ({"val_fraction": True}, "/val_fraction", "float_type"),
        ({"name": ""}, "/name", "string_too_short"),
        ({"path": ""}, "/path", "string_too_short"),
        ({"path": 3}, "/path", "string_type"),
        ({"file": "x.zip"}, "/file", "extra_forbidden"),
    ],
)
def test_a_wrong_field_is_a_422_that_points_to_it(client: Any, changes: Any, pointer: str, error: str) -> None:
    answer = client.post("/v1/datasets", json={"name": "d"} | changes)
    assert answer.status_code == 422, answer.text
    assert (answer.json()["errors"][0]["pointer"], answer.json()["errors"][0]["code"]) == (pointer, error)


@pytest.mark.parametrize(
    ("content", "kind", "status", "error"),
    [
        (b"{", "application/json", 400, "malformed_json"),
        (b'{"name": "d"}', "text/plain", 415, "not_json_type"),
        (b'{"name": "' + b"x" * (1 << 20) + b'"}', "application/json", 413, "body_too_large"),
    ],
)
def test_a_body_that_is_no_json_is_refused(client: Any, content: bytes, kind: str, status: int, error: str) -> None:
    answer = client.post("/v1/datasets", content=content, headers={"Content-Type": kind})
    assert code(answer) == (status, error)
