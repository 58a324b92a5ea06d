"""The form of a new job, in a real browser."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.browser.axe import serious
from tests.browser.seeds import RESULT, Seeds

expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (make test-browser)").expect
NASTY = '<img src=x onerror=alert(1)> "it\'s" & 🎉'


@pytest.fixture
def data(seeds: Seeds) -> str:
    return seeds.dataset(name=NASTY)


@pytest.fixture
def teacher(seeds: Seeds, data: str) -> str:
    seeds.worker()
    return seeds.finished(
        seeds.job(data, name="the big one"), [30], {"student.safetensors": b"w", "recipe.json": b"{}"}
    )


def test_a_form_makes_the_job_that_its_request_shows(tab: Any, server: Any, data: str) -> None:
    tab.expect("422")
    page = tab.page
    page.goto(f"{server.url}#/new")
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_role("alert").filter(has_text="is required")).to_have_count(1)  # the name, at its field
    expect(page.get_by_label("Data set").locator("option:checked")).to_contain_text("it's")  # the only one there is
    page.get_by_label("Name", exact=True).fill(NASTY)
    page.get_by_label("Data set").select_option(index=1)
    expect(page.get_by_label("Family")).to_have_value("fcos")
    page.get_by_label("Family").select_option("retinanet")
    page.get_by_label("Fpn channels").fill("100")
    page.get_by_role("button", name="As in the paper").click()
    page.get_by_label("Epochs", exact=True).fill("3")

    page.get_by_role("button", name="Show the plan").click()

    expect(page.locator(".field", has=page.get_by_label("Fpn channels")).get_by_role("alert")).to_contain_text(
        "multiple"
    )
    page.get_by_label("Fpn channels").fill("64")
    page.get_by_role("button", name="Show the plan").click()
    expect(page.locator(".side")).to_contain_text("15: 5 in each epoch, of 8 images each")
    expect(page.locator(".side .warn").last).to_contain_text("Set epochs to 60 or more")
    page.reload()  # the address holds the form
    expect(page.get_by_label("Fpn channels")).to_have_value("64")
    page.get_by_role("button", name="fgd", exact=True).click()
    command = page.get_by_role("region", name="The same request").inner_text()
    sent = subprocess.run(["bash", "-c", command.replace("fgd job submit", "fgd() { cat; }; fgd")], capture_output=True)
    page.get_by_role("button", name="Python").click()
    spec = (
        page.get_by_role("region", name="The same request").inner_text().partition("spec = ")[2].partition("\nwith")[0]
    )

    page.get_by_role("button", name="Start the job").click()

    expect(page.locator("h1")).to_have_text(NASTY)
    job = page.url.rpartition("/")[2]
    made = page.request.get(f"{server.url}v1/jobs/{job}").json()["spec"]
    assert (made["student"]["kind"], made["student"]["fpn_channels"]) == ("retinanet", 64)
    assert (made["schedule"]["epochs"], made["schedule"]["optimizer"]["kind"], made["teacher"]) == (3, "sgd", None)
    body = json.loads(sent.stdout)
    assert body == eval(spec)  # the page's own Python
    assert (body["name"], body["dataset"], body["methods"]) == (NASTY, data, [])


def test_a_finished_job_leads_to_one_that_it_teaches_and_that_to_its_control(
    page: Any, server: Any, seeds: Seeds, data: str
) -> None:
    seeds.worker()
    teacher = seeds.finished(seeds.job(data, name="the big one"), [30], RESULT)
    page.goto(f"{server.url}#/jobs/{teacher}")
    page.get_by_role("link", name="Teach with it").click()
    expect(page.get_by_label("Teacher", exact=True).locator("option:checked")).to_contain_text("the big one")
    expect(page.get_by_label("Data set").locator("option:checked")).to_contain_text("it's")
    expect(page.locator(".method").get_by_label("Strength (rho)")).to_have_attribute("placeholder", "30")
    page.get_by_label("Name", exact=True).fill("of two")
    page.get_by_label("Epochs", exact=True).fill("7")
    page.get_by_role("button", name="Start the job").click()

    page.get_by_role("link", name="make it").click()
    expect(page.get_by_label("Name", exact=True)).to_have_value("of two (control)")
    page.get_by_role("button", name="Start the job").click()

    expect(page.locator("h1")).to_have_text("of two (control)")
    specs = {each["name"]: each["spec"] for each in page.request.get(f"{server.url}v1/jobs").json()["items"]}
    student, control = specs["of two"], specs["of two (control)"]
    assert (student["teacher"]["job"], control["teacher"], control["methods"]) == (teacher, None, [])
    for common in ("student", "dataset", "schedule", "seed"):
        assert control[common] == student[common], common


def test_a_copy_is_filled_in_with_teacher_and_methods(
    tab: Any, server: Any, seeds: Seeds, data: str, teacher: str
) -> None:
    tab.expect("422")
    page = tab.page
    job = seeds.taught(data, teacher, name="of two", seed=7, metadata={"owner": "ada"})
    page.goto(f"{server.url}#/new?copy={job}")
    expect(page.get_by_label("Name", exact=True)).to_have_value("of two (copy)")
    expect(page.get_by_label("Teacher", exact=True).locator("option:checked")).to_contain_text("the big one")
    page.get_by_label("Add a method").select_option("mimic")
    page.get_by_role("button", name="Add", exact=True).click()
    page.get_by_role("button", name="Remove fgd").click()
    page.locator(".method summary").click()
    weight = page.locator(".method").get_by_label("Weight", exact=True)
    weight.fill("much")

    page.get_by_role("button", name="Start the job").click()

    expect(
        page.locator(".method .field", has=page.get_by_label("Weight", exact=True)).get_by_role("alert")
    ).to_contain_text("number")
    page.get_by_role("button", name="curl").click()
    body = json.loads(
        page.get_by_role("region", name="The same request").inner_text().partition("<<'END'\n")[2].removesuffix("\nEND")
    )
    assert body["methods"] == [{"kind": "mimic", "weight": "much"}]
    assert (body["teacher"], body["seed"], body["metadata"]) == ({"job": teacher}, 7, {"owner": "ada"})


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1280)])
def test_anybody_can_use_it(tabs: Any, server: Any, data: str, teacher: str, scheme: str, width: int) -> None:
    page = tabs(color_scheme=scheme, viewport={"width": width, "height": 800}).page
    page.goto(f"{server.url}#/new")
    page.get_by_label("Teacher", exact=True).select_option(index=1)
    for summary in page.locator("details.advanced:visible > summary").all():
        summary.click()

    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
