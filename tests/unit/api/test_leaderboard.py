"""GET /v1/studies/{id}/leaderboard: figures that can be checked by hand, and intervals over kept detections."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

import pytest

from api.core.jobs import attempts, record
from api.core.lifecycle import FailureCode
from api.core.rows import db
from fgd.events import Evaluated, Started
from fgd.statistics import detections
from fgd.statistics.detections import SplitDetections
from fgd.statistics.intervals import difference_over_images, students_t
from fgd.statistics.matching import match

FGD = [{"kind": "fgd"}]
Curve = dict[int, float]
"""Step -> AP."""
BOX = (10.0, 10.0, 50.0, 50.0)
FAR = (200.0, 200.0, 240.0, 240.0)


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> str:
    """SQLite alone: the queries are few and plain; test_studies.py runs on both."""
    (tmp_path / "fgd.db").write_bytes(migrated.read_bytes())
    return f"sqlite:///{tmp_path}/fgd.db"


def found(hits: int, images: int = 40) -> SplitDetections:
    """One box an image, of which the first `hits` are found and the others missed by far."""
    return SplitDetections.of(
        ["cat"],
        [f"{n}.png" for n in range(images)],
        image_id=range(images),
        size=[(400, 300)] * images,
        truth_image=range(images),
        truth_box=[BOX] * images,
        truth_label=[1] * images,
        truth_crowd=[False] * images,
        found_image=range(images),
        found_box=[BOX if n < hits else FAR for n in range(images)],
        found_label=[1] * images,
        found_score=[0.9] * images,
    )


class Play:
    """Trains what is queued, without training."""

    def __init__(self, client: Any, given: Any, tmp_path: Path) -> None:
        self.client, self.given, self.folder = client, given, tmp_path
        self.dataset = given.dataset()

    def next(self, curve: Curve, *, fails: bool = False, kept: SplitDetections | None = None) -> str:
        """Of the next job: these evaluations, and its end."""
        claim = self.given.claim(cpu=2)
        started = Started(step=0, total_steps=20, epochs=2, device="cpu", threads=1, precision="float32", versions={})
        told = [Evaluated(step=step, epoch=1, split="val", values={"ap": ap}) for step, ap in curve.items()]
        of = claim.job_id, claim.attempt
        with db.transaction(self.given.engine) as s:
            record.record(s, *of, [started, *told])
        files = []
        if kept is not None:
            path = self.folder / "detections.npz"
            detections.write(path, {"val": kept})
            blob = self.given.store.put_bytes(path.read_bytes())
            files = [attempts.ArtifactIn("detections.npz", blob.digest, blob.size)]
        with db.transaction(self.given.engine) as s:
            if fails:
                attempts.fail(s, *of, FailureCode.user_error, "it cannot be")
            else:
                attempts.finish(s, *of, self.weights(claim.job_id) + files, "e" * 64)
        return str(claim.job_id)

    def weights(self, id: str) -> list[attempts.ArtifactIn]:
        names = {"student.safetensors": id.encode(), "recipe.json": RECIPE}
        blobs = {name: self.given.store.put_bytes(content) for name, content in names.items()}
        return [attempts.ArtifactIn(name, blob.digest, blob.size) for name, blob in blobs.items()]

    def teacher(self, ap: float, kept: SplitDetections | None = None) -> dict[str, str]:
        self.given.job(self.dataset)
        return {"job": self.next({20: ap}, kept=kept)}

    def study(self, teacher: dict[str, str], **changes: Any) -> dict[str, Any]:
        body = {
            "name": "s",
            "teacher": teacher,
            "dataset": self.dataset.id,
            "arms": [{"name": "fgd", "methods": FGD}],
            "students": [{"fpn_channels": 64}],
            "seeds": [0, 1],
            **changes,
        }
        answer = self.client.post("/v1/studies", json=body)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def board(self, study: dict[str, Any], **query: str) -> Any:
        answer = self.client.get(study["leaderboard_url"], params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def settled(self, study: dict[str, Any]) -> Any:
        """The leaderboard, once nothing is pending."""
        until = time.monotonic() + 60
        while (board := self.board(study))["pending"]:
            assert time.monotonic() < until
            time.sleep(0.1)
        return board


RECIPE = (
    b'{"detector": {"kind": "fcos"}, "classes": ["cat", "dog"], "min_size": 64, "max_size": 64,'
    b' "image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2]}'
)


@pytest.fixture
def play(client: Any, given: Any, tmp_path: Path) -> Play:
    return Play(client, given, tmp_path)


def row_of(board: dict[str, Any], arm: str) -> dict[str, Any]:
    (row,) = [row for row in board["rows"] if row["arm"] == arm]
    return dict(row)


def test_figures_are_those_of_the_paired_runs(play: Play) -> None:
    study = play.study(play.teacher(50.0))
    play.next({10: 20.0, 20: 30.0})  # control, seed 0
    play.next({10: 33.0, 20: 35.0})  # fgd, seed 0
    play.next({10: 10.0, 20: 34.0})  # control, seed 1
    play.next({10: 31.0, 20: 37.0})  # fgd, seed 1

    board = play.board(study)

    control, fgd = row_of(board, "control"), row_of(board, "fgd")
    assert (control["ap"], fgd["ap"]) == (32.0, 36.0)
    half = students_t(1) * 1.0  # differences 5 and 3: standard error 1
    assert fgd["difference"]["value"] == pytest.approx(4.0)
    assert (fgd["difference"]["low"], fgd["difference"]["high"]) == pytest.approx((4.0 - half, 4.0 + half))
    assert fgd["difference"]["seeds"] == [0, 1]
    assert board["teachers"] == [
        {"teacher": {"job": study["spec"]["teacher"]["job"], "allow_unfit": False}, "ap": 50.0}
    ]
    assert fgd["gap_closed"]["value"] == pytest.approx(4.0 / 18.0)
    assert control["difference"] is control["gap_closed"] is control["against"] is None
    assert (board["state"], board["pending"]) == ("succeeded", 0)


def test_time_to_quality_is_when_the_controls_ap_was_reached(play: Play) -> None:
    study = play.study(play.teacher(50.0))
    for curve in ({10: 20.0, 20: 30.0}, {10: 33.0, 20: 35.0}, {10: 10.0, 20: 34.0}, {10: 31.0, 20: 37.0}):
        play.next(curve)

    fgd = row_of(play.board(study), "fgd")

    assert {name: fgd["quality"][name] for name in ("ap", "reached", "runs", "step", "steps_ratio")} == {
        "ap": 32.0, "reached": 2, "runs": 2, "step": 15.0, "steps_ratio": 0.75,
    }  # fmt: skip
    assert [run["quality_step"] for run in fgd["runs"]] == [10, 20]
    assert all(run["quality_seconds"] >= 0 for run in fgd["runs"])


def test_a_run_that_failed_is_shown_and_the_others_count(play: Play) -> None:
    study = play.study(play.teacher(50.0))
    play.next({20: 30.0})
    failed = play.next({10: 12.0}, fails=True)
    play.next({20: 34.0})
    play.next({20: 37.0})

    board = play.board(study)

    fgd = row_of(board, "fgd")
    assert [(run["seed"], run["state"], run["failure"], run["ap"]) for run in fgd["runs"]] == [
        (0, "failed", "user_error", 12.0),
        (1, "succeeded", None, 37.0),
    ]
    assert fgd["runs"][0]["job"] == failed
    assert (fgd["succeeded"], fgd["ap"], board["state"]) == (1, 37.0, "failed")
    assert fgd["difference"] == {"value": 3.0, "low": None, "high": None, "seeds": [1]}


def test_before_any_run_has_ended_there_are_no_figures(play: Play) -> None:
    study = play.study(play.teacher(50.0))

    fgd = row_of(play.board(study), "fgd")

    assert fgd["ap"] is fgd["difference"] is fgd["quality"] is fgd["device_seconds"] is None
    assert fgd["images_reason"] == "no seed has ended in both arms yet"
    assert [run["state"] for run in fgd["runs"]] == ["queued", "queued"]


def test_cost_is_the_time_of_all_attempts_on_all_devices(play: Play) -> None:
    study = play.study(play.teacher(50.0), resources={"devices": 2}, seeds=[0])
    control, fgd = play.next({20: 30.0}), play.next({20: 31.0})
    for job, seconds in ((control, 100), (fgd, 130)):
        then = f"strftime('%Y-%m-%d %H:%M:%f000', finished_at, '-{seconds} seconds')"
        with play.given.engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE job_attempts SET started_at = {then} WHERE job_id = '{job}'")

    board = play.board(study)

    assert row_of(board, "control")["device_seconds"] == pytest.approx(200.0, abs=0.1)
    assert row_of(board, "fgd")["device_seconds_total"] == pytest.approx(260.0, abs=0.1)


def test_the_interval_over_images_is_that_of_the_kept_detections(play: Play) -> None:
    hits = {"control": {0: 20, 1: 22}, "fgd": {0: 26, 1: 30}}
    study = play.study(play.teacher(50.0, kept=found(38)))
    for seed in (0, 1):
        for arm in ("control", "fgd"):
            play.next({20: 1.0}, kept=found(hits[arm][seed]))

    assert play.board(study)["pending"] == 5
    fgd = row_of(play.settled(study), "fgd")

    runs = [{seed: match(found(hits[arm][seed])) for seed in (0, 1)} for arm in ("fgd", "control")]
    expected = difference_over_images(*runs)
    assert expected is not None
    told = fgd["difference_over_images"]
    assert (told["value"], told["low"], told["high"]) == pytest.approx((expected.value, expected.low, expected.high))
    assert 0 < fgd["gap_closed_over_images"]["value"] < 1
    assert fgd["images_reason"] is None


def test_results_without_detections_have_no_interval_over_images(play: Play) -> None:
    study = play.study(play.teacher(50.0), seeds=[0])
    play.next({20: 30.0})
    play.next({20: 31.0}, kept=found(30))

    fgd = row_of(play.settled(study), "fgd")

    assert fgd["difference_over_images"] is None
    assert "detections.npz" in fgd["images_reason"]


def test_detections_that_cannot_be_read_are_a_reason(play: Play) -> None:
    study = play.study(play.teacher(50.0), seeds=[0])
    play.next({20: 30.0}, kept=found(30))
    play.next({20: 31.0}, kept=found(31))
    with play.given.engine.begin() as connection:
        blob = play.given.store.put_bytes(b"no zip")
        at = "(SELECT created_at FROM blobs LIMIT 1)"
        connection.exec_driver_sql(
            f"INSERT INTO blobs (project_id, digest, size, created_at) VALUES ('prj_default', '{blob.digest}', 6, {at})"
        )
        connection.exec_driver_sql(f"UPDATE artifacts SET digest = '{blob.digest}' WHERE name = 'detections.npz'")

    fgd = row_of(play.settled(study), "fgd")

    assert "not the detections of a job" in fgd["images_reason"]


@pytest.mark.parametrize("which", ["last", "best"])
def test_a_teacher_that_is_a_model_of_a_job_has_that_ones_ap(play: Play, which: str) -> None:
    model = play.client.post("/v1/models", json={"name": "t", "which": which, **play.teacher(48.0)}).json()
    study = play.study({"model": model["id"]})

    assert play.board(study)["teachers"][0]["ap"] == (48.0 if which == "last" or model["source"]["step"] else None)


def test_a_teacher_of_other_data_has_no_gap(play: Play, given: Any) -> None:
    study = play.study({"job": given.succeeded()})
    for _ in range(4):
        play.next({20: 30.0})

    board = play.board(study)
    assert board["teachers"][0]["ap"] is None
    assert row_of(board, "fgd")["gap_closed"] is None


def test_as_csv_it_has_a_line_for_each_row(play: Play) -> None:
    study = play.study(play.teacher(50.0), arms=[{"name": "=cmd", "methods": FGD}])
    for ap in (30.0, 35.0, 34.0, 37.0):
        play.next({20: ap})

    answer = play.client.get(study["leaderboard_url"], headers={"Accept": "text/csv"})

    assert answer.headers["content-type"].startswith("text/csv")
    lines = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(line["arm"], line["against"], line["ap"], line["difference"]) for line in lines] == [
        ("control", "", "32.0", ""), ("'=cmd", "control", "36.0", "4.0"),
    ]  # fmt: skip


def test_a_leaderboard_that_is_known_is_not_sent_again(play: Play) -> None:
    study = play.study(play.teacher(50.0))
    first = play.client.get(study["leaderboard_url"])

    same = play.client.get(study["leaderboard_url"], headers={"If-None-Match": first.headers["ETag"]})
    play.next({20: 30.0})
    other = play.client.get(study["leaderboard_url"], headers={"If-None-Match": first.headers["ETag"]})

    assert (same.status_code, other.status_code) == (304, 200)


def test_of_a_split_that_was_not_evaluated_there_are_no_figures(play: Play) -> None:
    study = play.study(play.teacher(50.0), seeds=[0])
    play.next({20: 30.0})
    play.next({20: 31.0})

    fgd = row_of(play.board(study, split="test"), "fgd")

    assert (fgd["succeeded"], fgd["ap"], fgd["difference"]) == (1, None, None)
    assert fgd["quality"]["ap"] == 30.0
