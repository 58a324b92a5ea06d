"""A job's tab on which a picture is tried, in a real browser. What a worker would find is written into the row."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from api.core import tasks
from api.core.rows import db
from api.core.rows.tables import Prediction
from fgd.predicted import Detection, NetworkDetections, PredictionResult
from tests.browser.axe import serious
from tests.browser.seeds import RESULT, WORKER, Seeds

expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (make test-browser)").expect
NASTY = "<b>cat</b>"


@pytest.fixture
def student(seeds: Seeds) -> str:
    """Taught, with its teacher and its control."""
    seeds.worker()
    data = seeds.dataset()
    teacher = seeds.finished(seeds.job(data, name="teacher", student={"backbone": "resnet50"}), [40.0], RESULT)
    seeds.finished(seeds.job(data, name="control"), [20.0], RESULT)
    return seeds.finished(seeds.taught(data, teacher, name="student"), [25.0], RESULT)


def picture() -> dict[str, Any]:
    file = BytesIO()
    Image.new("RGB", (320, 240), (90, 120, 60)).save(file, "PNG")
    return {"name": "photo.png", "mimeType": "image/png", "buffer": file.getvalue()}


def found(role: str, *scores: float) -> NetworkDetections:
    boxes = ((20.0 + 60 * k, 40.0, 90.0 + 60 * k, 150.0) for k in range(len(scores)))
    detections = (
        Detection(box=box, score=score, name=NASTY, label=1) for box, score in zip(boxes, scores, strict=True)
    )
    return NetworkDetections(role=role, detections=tuple(detections), seconds=0.125)


def work(seeds: Seeds, error: str | None = None) -> None:
    """What a worker does with the oldest that waits."""
    with db.transaction(seeds.engine) as s:
        claim = tasks.claim(s, Prediction, WORKER, ("cpu", "auto"), lease_s=20.0)
        assert claim is not None
        if error is not None:
            tasks.fail(s, Prediction, claim.id, claim.attempt, "picture_unreadable", error)
        else:
            networks = (found("student", 0.9, 0.4), found("teacher", 0.95, 0.6, 0.35), found("control", 0.7, 0.1))
            result = PredictionResult(width=320, height=240, orientation=1, networks=networks)
            tasks.finish(s, Prediction, claim.id, claim.attempt, result.model_dump(mode="json"), [])


def boxes(page: Any, role: str) -> Any:
    return page.locator(f".scene rect.{role}")


def test_what_each_network_finds_is_drawn_over_the_picture(page: Any, server: Any, seeds: Seeds, student: str) -> None:
    page.goto(f"{server.url}#/jobs/{student}?tab=try")
    page.get_by_label("Choose a picture").set_input_files(picture())
    expect(page.get_by_text("Waits:")).to_be_visible()
    work(seeds)

    expect(boxes(page, "teacher")).to_have_count(3)
    expect(boxes(page, "student")).to_have_count(2)
    expect(boxes(page, "control")).to_have_count(1)
    expect(page.get_by_role("row", name="teacher <b>cat</b> 0.95 20, 40, 90, 150")).to_be_visible()
    assert page.locator(".scene img").evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 320
    page.get_by_label("Score from").focus()
    page.keyboard.press("End")
    expect(page.get_by_text("Nothing is found with this score")).to_be_visible()
    page.get_by_label("Score from").fill("0.5")
    expect(boxes(page, "student")).to_have_count(1)
    page.get_by_role("checkbox", name="teacher").uncheck()
    expect(boxes(page, "teacher")).to_have_count(0)
    page.reload()  # the address has the answer, the score and what is hidden
    expect(page.get_by_text("The picture is not kept")).to_be_visible()
    expect(boxes(page, "student")).to_have_count(1)
    expect(page.get_by_role("checkbox", name="teacher")).not_to_be_checked()


def test_what_is_no_picture_is_refused_in_words(tab: Any, server: Any, seeds: Seeds, student: str) -> None:
    tab.expect("422")
    page = tab.page
    page.goto(f"{server.url}#/jobs/{student}?tab=try")
    page.get_by_label("Choose a picture").set_input_files(
        {"name": "a.zip", "mimeType": "application/zip", "buffer": b"PK\3\4 and more"}
    )
    expect(page.get_by_role("alert")).to_contain_text("the body")

    page.get_by_label("Choose a picture").set_input_files(picture())
    expect(page.get_by_text("Waits:")).to_be_visible()
    work(seeds, "the picture ends in its middle")

    expect(page.get_by_role("alert")).to_have_text("the picture ends in its middle")


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1280)])
def test_anybody_can_use_it(tabs: Any, server: Any, seeds: Seeds, student: str, scheme: str, width: int) -> None:
    page = tabs(color_scheme=scheme, viewport={"width": width, "height": 800}).page
    page.goto(f"{server.url}#/jobs/{student}?tab=try")
    page.get_by_label("Choose a picture").set_input_files(picture())
    expect(page.get_by_text("Waits:")).to_be_visible()
    work(seeds)
    expect(boxes(page, "student")).to_have_count(2)

    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
