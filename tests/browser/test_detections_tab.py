"""A job's tab on which teacher, control and student stand side by side, in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from api.core import tasks
from api.core.rows import db
from api.core.rows.tables import Evaluation
from fgd.evaluated import EvaluationResult
from tests.browser.axe import serious
from tests.browser.seeds import RESULT, WORKER, Seeds

RESULT_OF_EVALUATION = EvaluationResult(
    images=3, boxes=6, detections=6, ap=90.0, ap50=90.0, ap75=90.0, ap_s=None, ap_m=90.0, ap_l=None, ar1=90.0,
    ar10=90.0, ar100=90.0, ar_s=None, ar_m=90.0, ar_l=None, per_class=(), precision_recall=(), confusion=None,
    undecodable=0, device="cpu", seconds=1.0,
)  # fmt: skip
expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (make test-browser)").expect
NASTY = "<img src=x onerror=alert(1)>.png"
LEFT, RIGHT, LOW = (5.0, 5.0, 45.0, 45.0), (60.0, 10.0, 110.0, 60.0), (10.0, 60.0, 90.0, 85.0)
IMAGES = {"same.png": [(LEFT, 1)], "worse.png": [(LEFT, 1), (RIGHT, 2)], NASTY: [(LEFT, 1), (RIGHT, 2), (LOW, 2)]}
CONTROL = {"same.png": [(LEFT, 1, 0.9)], "worse.png": [(LEFT, 1, 0.9)], NASTY: [(LOW, 1, 0.5)]}
STUDENT = {
    "same.png": [(LEFT, 1, 0.8)],
    "worse.png": [(LOW, 1, 0.6)],
    NASTY: [(LEFT, 1, 0.9), (RIGHT, 2, 0.7), (LOW, 2, 0.4)],
}
TEACHER = {name: [(box, label, 0.95) for box, label in boxes] for name, boxes in IMAGES.items()}


@pytest.fixture
def dataset(seeds: Seeds, tmp_path: Path) -> str:
    seeds.worker()
    return seeds.pictured(tmp_path / "pictures", IMAGES)


def student(seeds: Seeds, dataset: str, teacher: bool = True) -> str:
    """The id of one that has succeeded beside its control; `teacher`: its detections are known."""
    kept = {"detections.npz": seeds.found(dataset, TEACHER)} if teacher else {}
    of = seeds.finished(seeds.job(dataset, name="teacher", seed=5), [40.0], RESULT | kept)
    control = RESULT | {"detections.npz": seeds.found(dataset, CONTROL)}
    seeds.finished(seeds.job(dataset, name="control"), [30.0], control)
    mine = RESULT | {"detections.npz": seeds.found(dataset, STUDENT)}
    return seeds.finished(seeds.taught(dataset, of, name="student"), [33.0], mine)


def side(page: Any, role: str) -> Any:
    return page.locator(f'.sides figure[data-role="{role}"]')


def marks(page: Any, role: str, kind: str) -> Any:
    return side(page, role).locator(f".mark.{kind}")


def listed(page: Any) -> Any:
    return page.get_by_role("region", name="Images").locator("tbody tr")


def test_the_image_on_which_they_differ_most_comes_first_with_the_boxes_of_all(
    page: Any, server: Any, seeds: Seeds, dataset: str
) -> None:
    page.goto(f"{server.url}#/jobs/{student(seeds, dataset)}?tab=detections")

    expect(listed(page)).to_have_count(3)
    expect(listed(page).locator("th button")).to_have_text([NASTY, "worse.png", "same.png"])
    expect(page.locator(".sides figure h3")).to_have_text(["Ground truth", "Teacher", "Control", "Student"])
    expect(marks(page, "truth", "truth")).to_have_count(3)
    expect(marks(page, "teacher", "hit")).to_have_count(3)
    expect(marks(page, "student", "hit")).to_have_count(3)
    expect(side(page, "control")).to_contain_text("0 found, 3 missed, 1 false")
    expect(marks(page, "control", "missed")).to_have_count(3)
    picture = side(page, "student").locator("image").get_attribute("href")
    width = "(url) => { const of = new Image(); of.src = url; return of.decode().then(() => of.width); }"
    assert page.evaluate(width, picture) == 120


def test_the_score_counts_again_without_a_question_and_keys_step_on(
    page: Any, server: Any, seeds: Seeds, dataset: str
) -> None:
    page.goto(f"{server.url}#/jobs/{student(seeds, dataset)}?tab=detections")
    expect(side(page, "student")).to_contain_text("3 found")
    page.wait_for_load_state("networkidle")
    asked: list[str] = []
    page.on("request", lambda request: "/detections" in request.url and asked.append(request.url))

    page.get_by_label("Score from").fill("0.8")

    expect(side(page, "student")).to_contain_text("1 found, 2 missed, 0 false")
    expect(side(page, "control")).to_contain_text("0 found, 3 missed, 0 false")
    assert asked == []
    page.get_by_role("button", name="Sort at 0.80").click()
    expect(listed(page).locator("th button")).to_have_text(["worse.png", NASTY, "same.png"])
    page.get_by_role("region", name="Image", exact=True).focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_text("2 of 3:")).to_be_visible()
    page.keyboard.press("j")
    expect(page.get_by_text("3 of 3: same.png")).to_be_visible()
    expect(page.get_by_role("button", name="Next ›")).to_be_disabled()
    page.keyboard.press("k")
    page.reload()  # the address has the image and the score
    expect(page.get_by_text(NASTY, exact=True).first).to_be_visible()
    expect(side(page, "student")).to_contain_text("1 found, 2 missed, 0 false")


def test_filters_leave_the_images_that_are_asked_for(page: Any, server: Any, seeds: Seeds, dataset: str) -> None:
    page.goto(f"{server.url}#/jobs/{student(seeds, dataset)}?tab=detections")
    page.get_by_role("combobox", name="Show").select_option("worse")
    expect(listed(page).locator("th button")).to_have_text(["worse.png"])
    page.get_by_role("combobox", name="Show").select_option("")
    page.get_by_role("combobox", name="Compare with").select_option("teacher")
    expect(listed(page).locator("th button").first).to_have_text("worse.png")
    page.get_by_role("combobox", name="Class").select_option("dog")
    expect(listed(page)).to_have_count(2)
    expect(marks(page, "truth", "truth")).to_have_count(1)
    assert "against=teacher" in page.url
    assert "class=dog" in page.url


def test_a_teacher_that_was_not_evaluated_is_evaluated_with_a_button(
    page: Any, server: Any, seeds: Seeds, dataset: str
) -> None:
    page.goto(f"{server.url}#/jobs/{student(seeds, dataset, teacher=False)}?tab=detections")
    expect(side(page, "teacher")).to_contain_text("it was not evaluated on these images")

    side(page, "teacher").get_by_role("button", name="Evaluate it").click()

    expect(side(page, "teacher")).to_contain_text("it is being evaluated")
    blob = seeds.store.put_bytes(seeds.found(dataset, TEACHER))
    with db.transaction(seeds.engine) as s:
        claim = tasks.claim(s, Evaluation, WORKER, ("cpu", "auto"), lease_s=20.0)
        assert claim is not None
        file = tasks.TaskFile("detections", "detections.npz", blob, "application/zip")
        tasks.finish(s, Evaluation, claim.id, claim.attempt, RESULT_OF_EVALUATION.model_dump(mode="json"), [file])
    expect(marks(page, "teacher", "hit")).to_have_count(3)


def test_a_job_that_has_not_ended_says_when(page: Any, server: Any, seeds: Seeds, dataset: str) -> None:
    page.goto(f"{server.url}#/jobs/{seeds.job(dataset)}?tab=detections")
    expect(page.get_by_text("When the job has succeeded")).to_be_visible()


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1280)])
def test_anybody_can_use_it(
    tabs: Any, server: Any, seeds: Seeds, dataset: str, scheme: str, width: int, tmp_path: Path
) -> None:
    page = tabs(color_scheme=scheme, viewport={"width": width, "height": 900}).page
    page.goto(f"{server.url}#/jobs/{student(seeds, dataset, teacher=scheme == 'dark')}?tab=detections")
    expect(side(page, "student")).to_contain_text("3 found")
    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
