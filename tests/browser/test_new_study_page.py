"""The form of a new study, in a real browser. What a worker would measure is written into the plans' rows."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest

from api.core import plans
from api.core.rows import db
from fgd.outline import Measurement
from tests.browser.axe import serious
from tests.browser.seeds import RESULT, WORKER, Seeds

expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (make test-browser)").expect
NASTY = '<img src=x onerror=alert(1)> "it\'s" & مرحبا 🎉'
MEASURED = Measurement(
    device="a processor", threads=2, precision="float32", student_parameters=11_719_752, teacher_parameters=22_460_000,
    method_parameters=0, memory_peak_mb=900.0, cache_mb=12.0, s_per_step=0.25, steps=5, s_per_image_evaluated=0.05,
    s_to_start=3.0, hours=0.5, training_hours=0.4, checkpoint_mb=180.0, result_mb=90.0, disk_mb=1260.0,
)  # fmt: skip


@pytest.fixture
def data(seeds: Seeds) -> str:
    seeds.worker()
    data = seeds.dataset(name=NASTY)
    seeds.finished(seeds.job(data, name="the big one", student={"backbone": "resnet50"}), [30.0], RESULT)
    return data


def claimed(seeds: Seeds) -> plans.PlanClaim | None:
    with db.transaction(seeds.engine) as s:
        return plans.claim(s, WORKER, ("cpu", "auto"), lease_s=3600.0)


def measure(page: Any, seeds: Seeds, error: str | None = None) -> None:
    """What a worker does with the oldest plan that waits, when there is one."""
    while (claim := claimed(seeds)) is None:
        page.wait_for_timeout(50)
    with db.transaction(seeds.engine) as s:
        if error is None:
            plans.finish(s, claim.id, claim.attempt, MEASURED, 0)
        else:
            plans.fail(s, claim.id, claim.attempt, "user_error", error)


def shown(page: Any, way: str) -> str:
    page.get_by_role("button", name=way, exact=True).click()
    return str(page.get_by_role("region", name="The same request").inner_text())


def test_a_form_makes_the_study_that_its_plan_and_its_request_show(
    tab: Any, server: Any, seeds: Seeds, data: str
) -> None:
    tab.expect("422")
    page = tab.page
    page.goto(f"{server.url}#/studies")
    page.get_by_role("link", name="New study").click()
    page.get_by_label("Name", exact=True).first.fill(NASTY)
    page.get_by_label("Data set").select_option(index=1)
    page.get_by_role("button", name="Show the plan").click()
    expect(page.get_by_role("alert").filter(has_text="methods need a teacher")).to_be_visible()
    page.get_by_label("Teacher", exact=True).first.select_option(index=1)
    page.get_by_label("Compare").select_option("mimic")
    page.get_by_role("button", name="Add an arm").click()
    page.get_by_role("button", name="Add a student").click()
    page.get_by_label("Fpn channels").nth(1).fill("64")
    page.get_by_label("Seeds").fill("0, 7-8")
    page.get_by_label("Epochs", exact=True).last.fill("2")

    page.get_by_role("button", name="Show the plan").click()

    expect(page.locator(".side")).to_contain_text("18 jobs: 3 arms × 2 students × 3 seeds")
    jobs = page.get_by_role("region", name="Jobs of the study")
    expect(jobs.get_by_role("row")).to_have_count(7)
    measure(page, seeds)
    expect(page.locator(".side")).to_contain_text("Time of the 1 of 6 that are measured")
    for _ in range(5):
        measure(page, seeds)
    expect(page.locator(".side")).to_contain_text("9 h 00")
    page.reload()  # the address holds the form
    expect(page.get_by_label("Fpn channels").nth(1)).to_have_value("64")
    command = shown(page, "fgd")
    sent = subprocess.run(
        ["bash", "-c", command.replace("fgd study submit", "fgd() { cat; }; fgd")], capture_output=True, check=True
    )
    spec = shown(page, "Python").partition("spec = ")[2].partition("\nwith")[0]

    page.get_by_role("button", name="Start the study").click()

    expect(page.locator("h1")).to_have_text(NASTY)
    expect(page.locator(".facts")).to_contain_text("0 of 18 jobs succeeded · 18 queued")
    expect(page.get_by_role("rowheader")).to_have_count(6)
    body = json.loads(sent.stdout)
    assert body == eval(spec)  # the page's own Python
    assert [arm["methods"] for arm in body["arms"]] == [[{"kind": "fgd"}], [{"kind": "mimic"}]]
    assert (body["seeds"], body["students"][1]["fpn_channels"], body["schedule"]) == ([0, 7, 8], 64, {"epochs": 2})
    page.get_by_role("link", name="Copy").click()
    expect(page.get_by_label("Name", exact=True).first).to_have_value(f"{NASTY} (copy)")
    expect(page.get_by_role("heading", name="Arm 3")).to_be_visible()  # the control is one of its own now


def test_what_a_run_would_fail_of_is_said_in_the_plan(page: Any, server: Any, seeds: Seeds, data: str) -> None:
    page.goto(f"{server.url}#/studies/new?dataset={data}")
    page.get_by_label("Name", exact=True).first.fill("s")
    page.get_by_label("Teacher", exact=True).first.select_option(index=1)
    page.get_by_role("button", name="Show the plan").click()
    expect(page.locator(".side")).to_contain_text("6 jobs: 2 arms × 1 student × 3 seeds")
    expect(page.locator(".side")).to_contain_text("A worker measures")

    measure(page, seeds, "too small")
    measure(page, seeds)

    expect(page.locator(".side .bad")).to_have_text(["fails", re.compile("^(control|fgd): too small$")])


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1280)])
def test_anybody_can_use_it(tabs: Any, server: Any, seeds: Seeds, data: str, scheme: str, width: int) -> None:
    page = tabs(color_scheme=scheme, viewport={"width": width, "height": 800}).page
    page.goto(f"{server.url}#/studies/new?dataset={data}")
    page.get_by_label("Teacher", exact=True).first.select_option(index=1)
    page.get_by_label("Name", exact=True).first.fill("s")
    page.get_by_role("button", name="Show the plan").click()
    expect(page.get_by_role("region", name="Jobs of the study")).to_be_visible()
    for summary in page.locator("details.advanced:visible > summary").all():
        summary.click()

    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
