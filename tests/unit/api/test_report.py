"""GET /v1/jobs/{id}/report: the figures are those of the statistics, and the page is safe and needs nothing else."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from api.core import report, report_rows, tasks
from api.core.jobs import attempts, record
from api.core.report_views import JobReport
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT, Inspection
from api.http import report_page
from fgd import split_figures
from fgd.events import Evaluated, Note, Started
from fgd.inspected import InspectionResult, Pictures
from fgd.spec import SubmitJob
from fgd.statistics import detections
from fgd.statistics.average_precision import figures, precision_recall
from fgd.statistics.detections import SplitDetections
from fgd.statistics.intervals import difference_over_images, drawn
from fgd.statistics.matching import match

FGD = [{"kind": "fgd"}]
LEASE_S = 20.0
BOX, FAR = (10.0, 10.0, 50.0, 50.0), (200.0, 200.0, 330.0, 330.0)
NASTY = ("<script>alert(1)</script>", "\"' onload=x &amp;", "\u202eabc \u2066", "קטב", "🐈‍⬛ & co", "a\nb")
MANIFEST = {
    "parameters": 1234567,
    "machine": {"device": "a <CPU>", "threads": 2},
    "versions": {"torch": "9.9"},
    "latency": {
        "budget_ms": 15, "runtime": "torch", "threads": 1, "median_ms": 12.5, "p10_ms": 12.0, "p90_ms": 14.0,
        "holds": True,
    },
}  # fmt: skip


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> str:
    """SQLite alone: the queries are few and plain."""
    (tmp_path / "fgd.db").write_bytes(migrated.read_bytes())
    return f"sqlite:///{tmp_path}/fgd.db"


def found(hits: int, classes: tuple[str, ...] = ("cat", "dog"), images: int = 30) -> SplitDetections:
    """One box an image, of which the first `hits` are found and the others missed by far; the classes in turn."""
    labels = [1 + n % len(classes) for n in range(images)]
    return SplitDetections.of(
        classes,
        [f"{n}.png" for n in range(images)],
        image_id=range(images),
        size=[(400, 300)] * images,
        truth_image=range(images),
        truth_box=[BOX if n % 3 else FAR for n in range(images)],
        truth_label=labels,
        truth_crowd=[False] * images,
        found_image=range(images),
        found_box=[(BOX if n % 3 else FAR) if n < hits else (60.0, 90.0, 70.0, 99.0) for n in range(images)],
        found_label=labels,
        found_score=[0.9 - n / 100 for n in range(images)],
    )


class Trained:
    """Jobs that have ended, without training."""

    def __init__(self, client: Any, given: Any, tmp_path: Path) -> None:
        self.client, self.given, self.folder = client, given, tmp_path
        self.dataset = given.dataset()
        self.recipe = given.succeeded()  # any, so that there is a teacher of other data

    def job(self, kept: SplitDetections | None, ap: float = 30.0, *, note: str = "", **changes: Any) -> str:
        body = self.given.body(self.dataset, **changes)
        answer = self.client.post("/v1/jobs", json=body)
        assert answer.status_code == 201, answer.text
        return self.end(kept, ap, note)

    def end(self, kept: SplitDetections | None, ap: float, note: str = "") -> str:
        claim = self.given.claim(cpu=2)
        of = claim.job_id, claim.attempt
        started = Started(step=0, total_steps=20, epochs=2, device="cpu", threads=1, precision="float32", versions={})
        told: list[Any] = [started, *(Evaluated(step=n, epoch=1, split="val", values={"ap": ap}) for n in (10, 20))]
        if note:
            told.append(Note(code="odd", message=note, level="warning"))
        recipe = {
            "detector": {"kind": "fcos"}, "classes": list(kept.classes if kept else ("cat", "dog")), "min_size": 64,
            "max_size": 64,
        }  # fmt: skip
        contents = {
            "student.safetensors": claim.job_id.encode(),
            "recipe.json": json.dumps(recipe).encode(),
            "manifest.json": json.dumps(MANIFEST).encode(),
        }
        if kept is not None:
            detections.write(self.folder / "detections.npz", {"val": kept})
            contents["detections.npz"] = (self.folder / "detections.npz").read_bytes()
        blobs = {name: self.given.store.put_bytes(content) for name, content in contents.items()}
        with db.transaction(self.given.engine) as s:
            record.record(s, *of, told)
            files = [attempts.ArtifactIn(name, blob.digest, blob.size) for name, blob in blobs.items()]
            attempts.finish(s, *of, files, "e" * 64)
        return str(claim.job_id)

    def made(self, job: str) -> JobReport:
        """With what the processes beside the server would work out, worked out here."""
        with db.reading(self.given.engine) as s:
            found = report_rows.read(s, DEFAULT_PROJECT, job, "val", LEASE_S)

        def split(digest: str) -> SplitDetections:
            return detections.read_from(io.BytesIO(b"".join(self.given.store.read(digest))), digest)["val"]

        resampled = {digest: drawn(match(split(digest))) for digest in found.compared()}
        figures = {digest: split_figures.of(split(digest), 0.3) for digest in found.shown()}
        return report.report(found, self.given.store, resampled, figures)

    def report(self, job: str) -> Any:
        return self.made(job).model_dump(mode="json")

    def page(self, job: str) -> str:
        return report_page.page(self.made(job))


@pytest.fixture
def trained(client: Any, given: Any, tmp_path: Path) -> Trained:
    return Trained(client, given, tmp_path)


def network(report: dict[str, Any], role: str) -> Any:
    (one,) = [each for each in report["networks"] if each["role"] == role]
    return one


def test_its_figures_are_those_of_the_statistics(trained: Trained) -> None:
    teacher = trained.job(found(28), 50.0, seed=7)
    control = trained.job(found(12), 30.0)
    student = trained.job(found(21), 34.0, teacher={"job": teacher}, methods=FGD, note="odd thing")

    report = trained.report(student)

    for role, hits, job in (("teacher", 28, teacher), ("control", 12, control), ("student", 21, student)):
        shown, expected = network(report, role), figures(match(found(hits)))
        assert shown["job"] == job
        for name in ("ap", "ap50", "ap_m", "ap_l", "ar100"):
            assert shown["figures"][name] == pytest.approx(expected[name])
        assert shown["figures"]["ap_s"] is None
        by_class = {each["name"]: each["ap"] for each in shown["figures"]["per_class"]}
        assert by_class == pytest.approx({name: expected[f"ap/{name}"] for name in ("cat", "dog")})
        curve = precision_recall(match(found(hits)))[0]
        assert shown["figures"]["precision_recall"][0]["precision"] == pytest.approx(curve.precision_R, abs=1e-4)
    interval = difference_over_images({0: match(found(21))}, {0: match(found(12))})
    assert interval is not None
    told = report["comparison"]["difference_over_images"]
    assert (told["value"], told["low"], told["high"]) == pytest.approx((interval.value, interval.low, interval.high))
    assert report["comparison"]["difference"]["value"] == pytest.approx(4.0)
    assert report["comparison"]["gap_closed"]["value"] == pytest.approx(4.0 / 20.0)
    assert report["control_request"] is None
    assert (network(report, "student")["parameters"], report["versions"]) == (1234567, {"torch": "9.9"})
    assert network(report, "student")["latency"]["median_ms"] == 12.5
    assert [each["message"] for each in report["warnings"]] == ["odd thing"]
    assert report["digests"].keys() >= {"student.safetensors", "detections.npz", "tensors", "dataset/index"}
    page = trained.page(student)
    assert f"{interval.low:+.2f} to {interval.high:+.2f}" in page
    assert "12.5 ms" in page
    assert page.count("<polyline") >= 9  # of the mean and two classes, each three; and of the training


def test_runs_of_a_study_are_compared_over_its_seeds(trained: Trained) -> None:
    teacher = trained.job(found(28), 50.0, seed=7)
    body = {
        "name": "s", "teacher": {"job": teacher}, "dataset": trained.dataset.id, "seeds": [0, 1],
        "arms": [{"name": "fgd", "methods": FGD}], "students": [{"fpn_channels": 64}],
    }  # fmt: skip
    assert trained.client.post("/v1/studies", json=body).status_code == 201
    hits = [10, 18, 13, 23]  # control and fgd of seed 0, then of seed 1
    jobs = [trained.end(found(each), float(each)) for each in hits]

    report = trained.report(jobs[3])

    interval = difference_over_images(
        {0: match(found(18)), 1: match(found(23))}, {0: match(found(10)), 1: match(found(13))}
    )
    assert interval is not None
    comparison = report["comparison"]
    told = comparison["difference_over_images"]
    assert (told["value"], told["low"], told["high"]) == pytest.approx((interval.value, interval.low, interval.high))
    assert (comparison["difference"]["value"], comparison["difference"]["seeds"]) == (9.0, [0, 1])
    assert (comparison["arm"], comparison["against"], report["seeds"]) == ("fgd", "control", [0, 1])
    assert network(report, "control")["job"] == jobs[2]


def test_without_a_control_it_has_the_request_that_trains_one(trained: Trained) -> None:
    teacher = trained.job(found(28), 50.0, seed=7)
    student = trained.job(found(21), 34.0, teacher={"job": teacher}, methods=FGD, name="a </pre> 'END'")

    report, page = trained.report(student), trained.page(student)

    assert report["comparison"] is None
    assert "No control was run" in page
    asked = report["control_request"]
    assert json.loads(asked["command"].split("\n")[1]) == asked["body"]
    SubmitJob.model_validate(asked["body"])
    assert trained.client.post("/v1/jobs", json=asked["body"]).status_code == 201
    trained.end(found(12), 30.0)
    again = trained.report(student)
    assert again["control_request"] is None
    assert again["comparison"]["difference"]["value"] == pytest.approx(4.0)


def test_a_job_that_has_no_result_yet_has_a_report(trained: Trained) -> None:
    id = trained.client.post("/v1/jobs", json=trained.given.body(trained.dataset)).json()["id"]

    report = trained.report(id)

    assert (report["state"], report["comparison"], report["control_request"]) == ("queued", None, None)
    assert network(report, "student")["figures_reason"] == "the job has no result"
    assert (report["inspection"], report["pictures_reason"]) == (None, "the job has no result")
    assert "measured once the job has succeeded" in trained.page(id)


def test_a_teacher_of_other_data_is_named_without_figures(trained: Trained) -> None:
    student = trained.job(found(21), 34.0, teacher={"job": trained.recipe}, methods=FGD)

    teacher = network(trained.report(student), "teacher")

    assert teacher["figures"] is teacher["ap"] is None
    assert "fgd evaluate" in teacher["figures_reason"]
    assert teacher["bytes"] > 0


JPEG = base64.b64encode(b"\xff\xd8\xff\xe0 a picture").decode()
FAST = {"median_ms": 8.25, "p10_ms": 8.0, "p90_ms": 9.5, "min_ms": 7.9, "runs": 30, "waited_share": 0.0}


def inspected(trained: Trained, names: Sequence[str] = ("cat",), **changes: Any) -> tasks.TaskClaim:
    """The inspection that waits, as a worker ends it."""
    with db.transaction(trained.given.engine) as s:
        claim = tasks.claim(s, Inspection, "wrk_a", ("cpu", "auto"), 20.0)
    assert claim is not None
    roles = claim.request["networks"]
    speeds = [{"batch": 1, "time": FAST}, {"batch": 8, "time": FAST | {"median_ms": 61.5}}]
    result = {
        "input": [96, 128], "device": "a <CPU>", "threads": 2, "not_timed": None, "pictures": 1,
        "pictures_reason": None, "seconds": 9.0,
        "networks": [{"role": role, "gflops": 3.5, "speeds": speeds} for role in roles],
    } | changes  # fmt: skip
    box = {"box": [10, 10, 50, 50], "name": names[0]}
    networks = [
        {"role": role, "right": 1, "wrong": 2, "missed": 3, "detections": [box | {"score": 0.5, "right": True}]}
        for role in roles
    ]
    picture = {"name": names[-1], "width": 400, "height": 300, "jpeg": JPEG, "boxes": [box], "networks": networks}
    kept = Pictures.model_validate({"score": 0.3, "iou": 0.5, "differ": ["student", "control"], "pictures": [picture]})
    blob = trained.given.store.put_bytes(kept.model_dump_json().encode())
    file = tasks.TaskFile("pictures", "pictures.json", blob, "application/json")
    with db.transaction(trained.given.engine) as s:
        told = InspectionResult.model_validate(result).model_dump(mode="json")
        tasks.finish(s, Inspection, claim.id, claim.attempt, told, [file] if result["pictures"] else [])
    return claim


def asked(trained: Trained, job: str) -> Any:
    return trained.client.get(f"/v1/jobs/{job}/report").json()


def test_a_worker_counts_times_and_draws_for_the_first_who_asks(trained: Trained) -> None:
    teacher = trained.job(found(28), 50.0, seed=7)
    trained.job(found(12), 30.0)
    student = trained.job(found(21), 34.0, teacher={"job": teacher}, methods=FGD)

    first = asked(trained, student)
    assert first["inspection"]["state"] == "pending"
    assert "no worker is running" in first["inspection"]["reason"] == first["pictures_reason"]
    comes = asked(trained, student)["pending"]
    trained.given.worker()
    assert asked(trained, student)["pending"] == comes + 1
    claim = inspected(trained)

    assert claim.request["networks"] == ["teacher", "control", "student"]
    assert claim.blobs["student"].keys() == {"recipe.json", "student.safetensors", "detections.npz"}
    assert claim.blobs["dataset"].keys() == {"archive"}
    report = trained.report(student)
    for each in report["networks"]:
        assert each["gflops"] == 3.5
        assert [(speed["batch"], speed["time"]["median_ms"]) for speed in each["speeds"]] == [(1, 8.25), (8, 61.5)]
    assert [each["role"] for each in report["pictures"]["pictures"][0]["networks"]] == ["teacher", "control", "student"]
    page = trained.page(student)
    for shown in ("8.2", "61.5", "(8.0 to 9.5)", "96x128 pixels", "student: 1 right, 2 wrong, 3 missed"):
        assert shown in page
    assert "not found" in page
    assert asked(trained, student)["inspection"]["state"] == "succeeded"


def test_another_control_is_looked_at_anew_and_a_failure_says_why(trained: Trained) -> None:
    teacher = trained.job(found(28), 50.0, seed=7)
    student = trained.job(found(21), 34.0, teacher={"job": teacher}, methods=FGD)
    asked(trained, student)
    assert inspected(trained).request["networks"] == ["teacher", "student"]
    trained.job(found(12), 30.0)

    asked(trained, student)
    with db.transaction(trained.given.engine) as s:
        claim = tasks.claim(s, Inspection, "wrk_a", ("cpu", "auto"), 20.0)
        assert claim is not None
        tasks.fail(s, Inspection, claim.id, claim.attempt, "stalled", "it took too long")

    assert claim.request["networks"] == ["teacher", "control", "student"]
    report = asked(trained, student)
    assert (report["inspection"]["state"], report["inspection"]["reason"]) == ("failed", "it took too long")
    assert all(each["gflops"] is None and each["speeds"] == [] for each in report["networks"])
    with db.transaction(trained.given.engine) as s:
        s.execute(update(Inspection).values(finished_at=datetime.now(UTC) - timedelta(hours=2)))
    assert asked(trained, student)["inspection"]["state"] == "pending"
    assert trained.client.delete(f"/v1/jobs/{student}").status_code == 204


def test_without_its_data_set_it_says_so(trained: Trained) -> None:
    student = trained.job(found(21), 34.0)
    asked(trained, student)

    inspected(trained, pictures=0, pictures_reason="the data set is no longer there")

    assert asked(trained, student)["pictures_reason"] == "the data set is no longer there"
    assert "There are no pictures: the data set is no longer there." in trained.page(student)


class Page(HTMLParser):
    """Elements and attributes, as a browser finds them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else_and_no_name_in_it_does_anything(trained: Trained) -> None:
    teacher = trained.job(found(28, NASTY), 50.0, seed=7)
    trained.job(found(12, NASTY))
    student = trained.job(
        found(21, NASTY), 34.0, teacher={"job": teacher}, methods=FGD, name=NASTY[0] + NASTY[4], note=NASTY[1]
    )

    asked(trained, student)
    inspected(trained, NASTY)
    html = trained.page(student)

    page = Page()
    page.feed(html)
    page.close()
    assert page.tags <= {
        *("html", "head", "meta", "title", "style", "body", "section", "h1", "h2", "h3", "p", "br", "span", "bdi"),
        *("strong", "code", "pre", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"),
        *("svg", "path", "text", "polyline", "circle", "rect", "g", "defs", "image", "use"),
        *("div", "figure", "figcaption"),
    }
    assert not {name for name, _ in page.attributes if name.startswith("on") or name in ("src", "xmlns")}
    links = [value for name, value in page.attributes if name == "href"]
    assert all(value.startswith(("#p", "data:image/jpeg;base64,")) for value in links)
    assert len(links) == 5  # the image, and over it what there is and what three networks found
    assert "url(" not in html
    assert "@import" not in html
    assert not any(turns in html for turns in "\u202e\u2066")
    for name in (NASTY[0], NASTY[1], NASTY[3], NASTY[4]):
        assert name in page.text
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_it_is_negotiated_and_one_that_is_known_is_not_sent_again(trained: Trained) -> None:
    job = trained.job(found(21))
    url, browser = f"/v1/jobs/{job}/report", {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}

    first = trained.client.get(url, headers=browser)
    assert first.headers["refresh"] == "3"
    assert "being worked out" in first.text
    until = time.monotonic() + 60
    while (told := trained.client.get(url)).json()["pending"]:
        assert time.monotonic() < until
        time.sleep(0.05)

    assert told.headers["content-type"] == "application/json"
    assert told.json() == trained.report(job)
    page = trained.client.get(url, headers=browser)
    assert page.text == trained.page(job)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "refresh" not in page.headers
    for answer, headers in ((told, {}), (page, browser)):
        again = trained.client.get(url, headers={"If-None-Match": answer.headers["ETag"], **headers})
        assert again.status_code == 304
