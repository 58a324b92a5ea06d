"""GET /v1/jobs/{id}/detections: the order of images, the counts on each, and all boxes of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from api.core import datasets, side_by_side
from api.core.jobs import attempts, record
from api.core.request_bodies import SubmitDataset
from api.core.rows import db
from api.core.rows.tables import Dataset
from fgd.data.index import Box, Image, Index, Report
from fgd.data.report import count
from fgd.events import Evaluated, Started
from fgd.recipe import Recipe
from fgd.statistics import detections
from fgd.statistics.detections import SplitDetections
from tests.unit.api.test_evaluations import finished

FGD = [{"kind": "fgd"}]
CLASSES = ("cat", "<b>dog</b>")
LEFT, RIGHT, BELOW = (10.0, 10.0, 50.0, 50.0), (60.0, 10.0, 99.0, 50.0), (10.0, 60.0, 90.0, 95.0)
TRUTH = {3: [(LEFT, 1), (RIGHT, 2)], 5: [(LEFT, 1)], 8: [], 9: [(LEFT, 2), (BELOW, 1)]}
"""Boxes and labels of the val images, by id; the others of the data set are train's."""
Found = Mapping[int, list[tuple[Box, int, float]]]
STUDENT: Found = {
    3: [(LEFT, 1, 0.9), (RIGHT, 2, 0.8)],
    5: [(BELOW, 1, 0.7), (LEFT, 1, 0.2)],
    9: [(LEFT, 2, 0.9), (BELOW, 1, 0.6)],
}
CONTROL: Found = {
    3: [(BELOW, 1, 0.5), (BELOW, 2, 0.4)],
    5: [(LEFT, 1, 0.6)],
    9: [(LEFT, 2, 0.9), (BELOW, 1, 0.31)],
}


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> str:
    """SQLite alone: the queries are few and plain."""
    (tmp_path / "fgd.db").write_bytes(migrated.read_bytes())
    return f"sqlite:///{tmp_path}/fgd.db"


def image(id: int) -> Image:
    truth = TRUTH.get(id, [(LEFT, 1), (LEFT, 2)])
    return Image(
        id=id, file=f"images/aa/{id}.png", name=f"<i>{id}</i>.png", width=100, height=100,
        boxes=tuple(box for box, _ in truth), labels=tuple(label for _, label in truth),
        crowd=tuple(False for _ in truth),
    )  # fmt: skip


def split(found: Found, classes: tuple[str, ...] = CLASSES, truth: Mapping[int, Any] = TRUTH) -> SplitDetections:
    boxes = [(n, box, label) for n, id in enumerate(truth) for box, label in truth[id]]
    made = [(n, *each) for n, id in enumerate(truth) for each in found.get(id, ())]
    return SplitDetections.of(
        classes, [f"<i>{id}</i>.png" for id in truth], image_id=list(truth), size=[(100, 100)] * len(truth),
        truth_image=[row[0] for row in boxes], truth_box=[row[1] for row in boxes],
        truth_label=[row[2] for row in boxes], truth_crowd=[False] * len(boxes), found_image=[row[0] for row in made],
        found_box=[row[1] for row in made], found_label=[row[2] for row in made], found_score=[row[3] for row in made],
    )  # fmt: skip


class World:
    def __init__(self, client: Any, given: Any, folder: Path) -> None:
        self.client, self.given, self.file = client, given, folder / "detections.npz"
        index = Index(
            classes=CLASSES,
            splits={"train": tuple(map(image, (1, 2, 4, 6, 7))), "val": tuple(map(image, TRUTH))},
        )
        counts = {name: count(images, CLASSES) for name, images in index.splits.items()}
        report = Report(ok=True, format="coco", classes=CLASSES, splits=counts, defect_counts={}, defects=())
        with db.transaction(given.engine) as s:
            self.dataset: Dataset = datasets.submit(s, "prj_default", SubmitDataset(name="d", path="/data/d"))
            claim = datasets.claim_import(s, "wrk_a", lease_s=20.0)
            assert claim is not None
            tar = given.store.put_bytes(b"archive")
            blob = given.store.put_bytes(index.model_dump_json().encode())
            datasets.finish_import(s, claim.id, claim.attempt, tar, blob, report)

    def packed(self, found: SplitDetections, name: str = "val") -> bytes:
        detections.write(self.file, {name: found})
        return self.file.read_bytes()

    def job(self, kept: SplitDetections | None, **changes: Any) -> str:
        """The id of one that has succeeded."""
        answer = self.client.post("/v1/jobs", json=self.given.body(self.dataset, **{"schedule": self.short, **changes}))
        assert answer.status_code == 201, answer.text
        claim = self.given.claim(cpu=2)
        recipe = Recipe(detector={"kind": "fcos"}, classes=CLASSES, min_size=64, max_size=64)  # type: ignore[arg-type]
        contents = {"student.safetensors": claim.job_id.encode(), "recipe.json": recipe.model_dump_json().encode()}
        contents |= {"detections.npz": self.packed(kept)} if kept is not None else {}
        blobs = {name: self.given.store.put_bytes(content) for name, content in contents.items()}
        started = Started(step=0, total_steps=9, epochs=1, device="cpu", threads=1, precision="float32", versions={})
        told = [started, Evaluated(step=9, epoch=1, split="val", values={"ap": 30.0})]
        with db.transaction(self.given.engine) as s:
            record.record(s, claim.job_id, claim.attempt, told)
            files = [attempts.ArtifactIn(name, blob.digest, blob.size) for name, blob in blobs.items()]
            attempts.finish(s, claim.job_id, claim.attempt, files, "e" * 64)
        return str(claim.job_id)

    short: Any = {"batch_size": 2}  # noqa: RUF012

    def student(self, teacher: SplitDetections | None = None, control: bool = True) -> str:
        of = self.job(teacher, seed=7)
        if control:
            self.job(split(CONTROL))
        return self.job(split(STUDENT), teacher={"job": of}, methods=FGD)

    def ask(self, job: str, **query: Any) -> Any:
        return self.client.get(f"/v1/jobs/{job}/detections", params=query)

    def get(self, job: str, **query: Any) -> Any:
        answer = self.ask(job, **query)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def world(client: Any, given: Any, tmp_path: Path) -> World:
    return World(client, given, tmp_path)


def order(table: Any) -> list[int]:
    return [each["image_id"] for each in table["items"]]


def counted(table: Any, image_id: int) -> dict[str, tuple[int, int, int]]:
    (item,) = [each for each in table["items"] if each["image_id"] == image_id]
    return {each["role"]: (each["found"], each["missed"], each["false"]) for each in item["counts"]}


def test_images_stand_by_how_much_student_and_control_differ(world: World) -> None:
    table = world.get(world.student(split(STUDENT)))

    assert (table["against"], table["total"], table["worse"], table["better"]) == ("control", 4, 1, 1)
    assert [(each["image_id"], each["apart"], each["worse_by"]) for each in table["items"]] == [
        (3, 4, -4), (5, 2, 2), (8, 0, 0), (9, 0, 0),
    ]  # fmt: skip
    assert counted(table, 3) == {"teacher": (2, 0, 0), "control": (0, 2, 2), "student": (2, 0, 0)}
    assert counted(table, 5) == {"teacher": (0, 1, 1), "control": (1, 0, 0), "student": (0, 1, 1)}
    first = table["items"][0]
    assert (first["name"], first["sample"], first["boxes"]) == ("<i>3</i>.png", 0, 2)
    assert first["image_url"] == f"/v1/datasets/{world.dataset.id}/samples/0/image?split=val"
    assert [each["role"] for each in table["networks"]] == ["teacher", "control", "student"]
    assert all(each["reason"] is None for each in table["networks"])


def test_filters_the_score_and_pages(world: World) -> None:
    job = world.student(split({**STUDENT, 5: [(LEFT, 1, 0.9)]}))
    for query, expected in (
        ({"only": "worse"}, [5]),
        ({"only": "better"}, [3]),
        ({"against": "teacher"}, [5, 3, 8, 9]),
        ({"class": "<b>dog</b>"}, [3, 9]),
        ({"class": "cat", "only": "better"}, [3]),
        ({"score": 0.61}, [3, 5, 9, 8]),
        ({"score": 0.2}, [3, 5, 8, 9]),
        ({"offset": 1, "limit": 2}, [5, 8]),
        ({"offset": 9}, []),
    ):
        assert order(world.get(job, **query)) == expected, query


def test_every_image_stands_at_its_place_in_the_data_set(world: World) -> None:
    table = world.get(world.student())
    for item in table["items"]:
        sample = world.client.get(f"/v1/datasets/{world.dataset.id}/samples/{item['sample']}?split=val").json()
        assert sample["name"] == item["name"]


def test_a_score_decides_as_it_is_shown(world: World) -> None:
    """0.7 is less than the float32 0.7, and more than the next below it."""
    job = world.job(split({3: [(LEFT, 1, 0.7), (RIGHT, 2, 0.70004)]}))
    assert counted(world.get(job, score=0.7), 3) == {"student": (2, 0, 0)}
    shown = world.client.get(f"/v1/jobs/{job}/detections/3").json()
    assert shown["networks"][0]["found_at"] == [0.7, 0.7]


def test_one_image_has_the_boxes_of_all(world: World) -> None:
    job = world.student()

    shown = world.client.get(f"/v1/jobs/{job}/detections/5").json()

    assert (shown["width"], shown["height"], shown["sample"]) == (100, 100, 1)
    assert shown["boxes"] == [{"box": list(LEFT), "name": "cat", "label": 1, "crowd": False}]
    by_role = {each["role"]: each for each in shown["networks"]}
    assert by_role.keys() == {"control", "student"}
    told = [(each["box"], each["score"], each["hit"]) for each in by_role["student"]["detections"]]
    assert told == [(list(BELOW), 0.7, False), (list(LEFT), 0.2, True)]
    assert (by_role["student"]["found_at"], by_role["control"]["found_at"]) == ([0.2], [0.6])
    assert by_role["student"]["counted"] == [True]
    missing = world.client.get(f"/v1/jobs/{job}/detections/4")  # one of train
    assert (missing.status_code, missing.json()["code"]) == (404, "image_not_found")


def test_a_teacher_that_was_not_evaluated_is_evaluated_with_the_body_that_is_offered(world: World) -> None:
    job = world.student()
    (teacher, *_) = world.get(job)["networks"]
    assert (teacher["reason"], teacher["evaluation"]) == ("it was not evaluated on these images", None)
    refused = world.ask(job, against="teacher")
    assert (refused.status_code, refused.json()["errors"][0]["parameter"]) == (422, "against")
    assert "it was not evaluated" in refused.json()["detail"]

    made = world.client.post("/v1/evaluations", json=teacher["evaluate"])
    assert made.status_code == 202, made.text
    (teacher, *_) = world.get(job)["networks"]
    assert (teacher["evaluate"], teacher["evaluation"]) == (None, made.json()["id"])
    assert teacher["reason"] == "it is being evaluated on these images"
    dogs: Found = {3: [(RIGHT, 1, 0.9)], 9: [(LEFT, 1, 0.9)]}
    finished(world.given, world.packed(split(dogs, ("<b>dog</b>",), {id: [] for id in TRUTH})))

    table = world.get(job, against="teacher")
    (teacher, *_) = table["networks"]
    assert (teacher["evaluation"], teacher["reason"]) == (made.json()["id"], None)
    assert teacher["unknown"] == ["cat"]
    assert counted(table, 3)["teacher"] == (1, 0, 0)
    assert [(each["image_id"], each["apart"]) for each in table["items"]] == [(5, 0), (3, 0), (8, 0), (9, 0)]
    of_image = world.client.get(f"/v1/jobs/{job}/detections/9").json()["networks"][0]
    assert (of_image["role"], of_image["counted"]) == ("teacher", [True, False])


def test_a_teacher_of_several_is_evaluated_by_its_own_name(world: World) -> None:
    teachers = {name: {"job": world.job(split(STUDENT) if name == "a" else None, seed=7)} for name in ("a", "b")}
    methods = [{"kind": "fgd", "teacher": name} for name in teachers]
    job = world.job(split(STUDENT), teachers=teachers, methods=methods)

    table = world.get(job)

    assert [each["role"] for each in table["networks"]] == ["teacher a", "teacher b", "control", "student"]
    assert table["against"] == "teacher a"
    body = table["networks"][1]["evaluate"]
    assert body == {**teachers["b"], "dataset": world.dataset.id, "split": "val"}
    made = world.client.post("/v1/evaluations", json=body).json()
    assert world.get(job)["networks"][1]["evaluation"] == made["id"]


def test_a_job_alone_has_its_own_mistakes_first(world: World) -> None:
    job = world.job(split(CONTROL))
    table = world.get(job, score=0.35)
    assert (table["against"], order(table)) == (None, [3, 9, 5, 8])
    assert (table["items"][0]["apart"], table["items"][0]["worse_by"]) == (None, None)
    refused = world.ask(job, only="worse").json()
    assert (refused["code"], refused["errors"][0]["parameter"]) == ("nothing_to_compare", "only")


def test_a_control_that_has_not_ended_says_so(world: World) -> None:
    teacher = world.job(None, seed=7)
    assert "control" not in {each["role"] for each in world.get(world.job(split(STUDENT)))["networks"]}
    job = world.job(split(STUDENT), teacher={"job": teacher}, methods=FGD, seed=3)
    (control,) = [each for each in world.get(job)["networks"] if each["role"] == "control"]
    assert control["reason"] == "no job has trained the same student without a teacher"


def test_a_wrong_question_is_refused_by_its_name(world: World) -> None:
    job = world.job(split(STUDENT))
    for query, code in (
        ({"split": "test"}, "split_not_found"),
        ({"split": "train"}, "literal_error"),
        ({"class": "horse"}, "class_not_found"),
        ({"score": 0.01}, "greater_than_equal"),
        ({"score": "nan"}, "finite_number"),
        ({"limit": 501}, "less_than_equal"),
        ({"offset": -1}, "greater_than_equal"),
        ({"only": "best"}, "literal_error"),
        ({"which": "best"}, "extra_forbidden"),
    ):
        answer = world.ask(job, **query)
        assert answer.status_code == 422
        told = answer.json()["errors"][0]
        assert (told["code"], told["parameter"]) == (code, next(iter(query)))


def test_a_job_without_detections_says_why(world: World, given: Any) -> None:
    old = world.job(None)
    running = given.job()
    for job, reason, retryable in ((running, "it is queued", True), (old, "earlier version", False)):
        answer = world.ask(job)
        assert (answer.status_code, answer.json()["code"]) == (409, "no_detections")
        assert reason in answer.json()["detail"]
        assert answer.json()["retryable"] is retryable


def test_a_file_of_another_network_that_is_gone_is_a_reason_and_its_own_a_refusal(world: World, given: Any) -> None:
    teacher = world.job(None, seed=7)
    control, job = world.job(split(CONTROL)), world.job(split({}), teacher={"job": teacher}, methods=FGD)
    for each, (against, reason) in {control: (None, "no longer in the store"), job: (None, None)}.items():
        files = world.client.get(f"/v1/jobs/{each}/artifacts").json()["items"]
        given.store.delete(next(file["sha256"] for file in files if file["name"] == "detections.npz"))
        if reason is not None:
            table = world.get(job)
            assert table["against"] is against
            assert reason in table["networks"][1]["reason"]
    side_by_side._read.cache_clear()
    answer = world.ask(job)
    assert (answer.status_code, answer.json()["code"]) == (409, "no_detections")
