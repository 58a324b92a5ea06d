"""What a job learns from, in a real browser: maps over pictures, channels, and the way through the training."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.axe import serious
from tests.browser.seeds import Seeds

expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (make test-browser)").expect


@pytest.fixture
def student(seeds: Seeds) -> str:
    """The id of one that runs, and was looked at before its first step and after two epochs."""
    seeds.worker()
    data = seeds.dataset()
    teacher = seeds.finished(seeds.job(data, name="teacher"), [40.0])
    student = seeds.taught(data, teacher, name="student")
    attempt = seeds.run(student, [12.0, 23.0], total=4)
    for epoch in (0, 1, 2):
        seeds.looked_at(student, attempt, epoch)
    return student


def shown(page: Any) -> Any:
    return page.locator(".looks figure")


def test_teacher_student_and_their_difference_stand_side_by_side(page: Any, server: Any, student: str) -> None:
    page.goto(f"{server.url}#/jobs/{student}?tab=learns")

    expect(shown(page)).to_have_count(3)
    expect(shown(page).nth(0)).to_contain_text("The teacher's spatial attention")
    expect(shown(page).nth(1)).to_contain_text("The student's spatial attention")
    expect(shown(page).nth(2)).to_contain_text("Difference")
    expect(shown(page).nth(0)).to_contain_text("mean 4.00 in boxes, 0 outside; 0 to 4.00, 4 x 2 cells")
    expect(page.get_by_text("2 channels, the teacher's strongest first")).to_be_visible()
    page.get_by_role("combobox", name="Show").select_option("foreground")
    expect(shown(page)).to_have_count(1)
    expect(shown(page)).to_contain_text("Foreground")
    page.reload()
    expect(shown(page)).to_contain_text("Foreground")
    assert serious(page) == []


def test_the_slider_goes_over_the_training_and_the_newest_is_live(
    page: Any, server: Any, seeds: Seeds, student: str
) -> None:
    page.goto(f"{server.url}#/jobs/{student}?tab=learns")
    slider = page.get_by_label("Evaluation")
    expect(page.get_by_text("epoch 2, step 200")).to_be_visible()
    last = shown(page).nth(1).inner_text()

    seeds.looked_at(student, 1, 3)
    expect(page.get_by_text("epoch 3, step 300")).to_be_visible()
    slider.press("Home")
    expect(page.get_by_text("before the first step")).to_be_visible()
    expect(shown(page).nth(1)).not_to_have_text(last)
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_text("epoch 3, step 300")).to_be_visible()
    expect(page.get_by_role("button", name="Play")).to_be_visible()


def test_a_job_without_a_teacher_says_so(page: Any, server: Any, seeds: Seeds) -> None:
    job = seeds.job(seeds.dataset())
    page.goto(f"{server.url}#/jobs/{job}?tab=learns")
    expect(page.get_by_text("A job without a teacher has nothing to show here.")).to_be_visible()
