"""A job's page and the comparison of several, in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fgd.events import Phase
from tests.browser.axe import serious
from tests.browser.conftest import KEY
from tests.browser.seeds import Seeds

expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (make test-browser)").expect
TABS = (
    "Curves",
    "What it learns from",
    "Detections",
    "Classes and sizes",
    "Try it",
    "Timeline",
    "Log",
    "Files",
    "Spec",
)
FILES = {"student.safetensors": b"the weights", "recipe.json": b"{}"}


@pytest.fixture
def running(seeds: Seeds) -> dict[str, str]:
    """A student after two epochs of four, its finished control and its teacher."""
    seeds.worker()
    data = seeds.dataset(classes=("cat", "dog"))
    teacher = seeds.finished(seeds.job(data, name="teacher", student={"backbone": "resnet50"}), [30.0, 40.0])
    control = seeds.finished(seeds.job(data, name="control"), [10.0, 20.0, 25.0, 30.0], FILES)
    student = seeds.taught(data, teacher, name="student")
    attempt = seeds.run(student, [12.0, 23.0], total=4, speed=25.0)
    seeds.teacher_checked(student, attempt, 41.0)
    seeds.say(student, attempt, [], b"the first line\n")
    return {"student": student, "control": control, "teacher": teacher}


def legend(page: Any, chart: int = 0) -> Any:
    return page.locator(".legend").nth(chart)


def test_the_curves_stand_beside_those_of_control_and_teacher(page: Any, server: Any, running: dict[str, str]) -> None:
    page.goto(f"{server.url}#/jobs/{running['student']}")

    expect(legend(page)).to_contain_text("student23")
    expect(legend(page)).to_contain_text("control30")
    expect(legend(page)).to_contain_text("teacher40")
    expect(legend(page, 1)).to_contain_text("fgd/focal")
    expect(page.locator(".facts")).to_contain_text("+3.0")
    expect(page.locator(".facts")).to_contain_text("Teacher costs38 % of a step 25 images/s, control 40")
    expect(page.locator(".facts").get_by_role("link", name="teacher", exact=True)).to_be_visible()
    page.get_by_label("Figure").select_option("ap50")
    expect(legend(page)).to_contain_text("teacher60")


def test_a_page_without_curves_says_what_it_waits_for(page: Any, server: Any, seeds: Seeds) -> None:
    seeds.worker()
    job = seeds.job(seeds.dataset(), schedule={"epochs": 4, "evaluate_every": 2})
    attempt = seeds.claim(job)
    seeds.say(job, attempt, [Phase(phase="loading")])
    page.goto(f"{server.url}#/jobs/{job}")
    expect(page.get_by_text("The first point comes after epoch 2")).to_be_visible()
    expect(page.get_by_text("No step is reported yet. The trainer starts")).to_be_visible()

    seeds.say(job, attempt, [seeds.stepped(1, 1), seeds.evaluated(200, 2, 10.0)])

    expect(legend(page)).to_contain_text("this job10")
    for text in ("The first point comes", "No step is reported"):
        expect(page.get_by_text(text)).to_be_hidden()


def test_losses_and_ap_are_live(page: Any, server: Any, seeds: Seeds, running: dict[str, str]) -> None:
    page.goto(f"{server.url}#/jobs/{running['student']}")
    expect(legend(page)).to_contain_text("student23")
    before = legend(page, 1).inner_text()

    seeds.say(running["student"], 1, [seeds.stepped(250, 3)])
    expect(legend(page, 1)).not_to_have_text(before)
    seeds.say(running["student"], 1, [seeds.evaluated(300, 3, 27.5)])

    expect(legend(page)).to_contain_text("student27.5")
    expect(page.locator(".facts")).to_contain_text("+2.5")
    seeds.finish(running["student"], 1, FILES)
    expect(page.locator(".heading .state")).to_have_text("succeeded")


def test_a_part_of_a_chart_is_read_again_from_the_server(page: Any, server: Any, running: dict[str, str]) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server.url}#/jobs/{running['student']}")
    expect(legend(page)).to_contain_text("student23")
    box = page.locator("canvas").nth(1).bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 400, box["y"] + 100, steps=4)
    page.mouse.up()

    expect(page.get_by_role("button", name="Show all")).to_be_visible()
    assert any("from=" in url and "to=" in url for url in asked)
    page.locator("canvas").nth(1).dblclick()
    expect(page.get_by_role("button", name="Show all")).to_be_hidden()


def test_charts_are_read_by_the_keyboard(page: Any, server: Any, running: dict[str, str]) -> None:
    page.goto(f"{server.url}#/jobs/{running['student']}")
    expect(legend(page)).to_contain_text("student23")
    page.locator("canvas").first.focus()
    page.keyboard.press("ArrowRight")

    expect(page.locator(".readout").first).to_contain_text("student:")
    page.get_by_label("Logarithmic").check()
    page.get_by_label("Smooth").focus()
    page.keyboard.press("End")
    assert "log=true" in page.url
    assert "smooth=0.99" in page.url


def test_values_that_are_not_finite_are_gaps(page: Any, server: Any, seeds: Seeds) -> None:
    seeds.worker()
    job = seeds.job(seeds.dataset())
    seeds.run(job, [10.0, None, 30.0])

    page.goto(f"{server.url}#/jobs/{job}")

    expect(legend(page)).to_contain_text("this job30")
    columns = page.evaluate(
        """() => { const canvas = document.querySelector("canvas"), ratio = canvas.width / canvas.clientWidth;
        const left = 58 * ratio, top = 12 * ratio;
        const width = canvas.width - 72 * ratio, height = canvas.height - 48 * ratio;
        const { data } = canvas.getContext("2d").getImageData(left, top, width, height), found = [0, 0, 0];
        for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 128 && data[i + 2] - data[i] > 60)
          found[Math.floor((3 * (i / 4 % Math.floor(width))) / width)] += 1;
        return found; }"""
    )
    assert columns[0] > 0, columns
    assert columns[1] == 0, columns
    assert columns[2] > 0, columns


def test_classes_and_sizes_are_compared_after_the_same_step(page: Any, server: Any, running: dict[str, str]) -> None:
    page.goto(f"{server.url}#/jobs/{running['student']}?tab=classes")

    expect(page.get_by_text("after step 200")).to_be_visible()
    expect(page.get_by_role("row", name="AP, small boxes")).to_have_text("AP, small boxes20.010.011.5+1.5")
    expect(page.get_by_role("row", name="cat")).to_have_text("cat42.022.025.0+3.0")


def test_the_log_follows(page: Any, server: Any, seeds: Seeds, running: dict[str, str]) -> None:
    page.goto(f"{server.url}#/jobs/{running['student']}?tab=log")
    expect(page.get_by_role("log")).to_contain_text("the first line")

    seeds.say(running["student"], 1, [], b"<b>the second</b> line \xf0\x9f\x8e\x89\n")

    expect(page.get_by_role("log")).to_contain_text("<b>the second</b> line 🎉")


def test_the_timeline_tells_what_happened(page: Any, server: Any, seeds: Seeds, running: dict[str, str]) -> None:
    page.goto(f"{server.url}#/jobs/{running['student']}?tab=timeline")
    expect(page.get_by_role("listitem").first).to_contain_text("the teacher has AP 41")

    page.get_by_role("button", name="Pause").click()

    expect(page.get_by_role("listitem").first).to_contain_text("pause requested")
    expect(page.get_by_role("region", name="Attempts")).to_contain_text("running")


def test_files_are_downloaded_with_the_key_in_no_address(tab: Any, serving: Any, tmp_path: Path) -> None:
    tab.expect("401")
    server = serving(key=True)
    server.seeds.worker()
    job = server.seeds.finished(server.seeds.job(server.seeds.dataset()), [1.0], FILES)
    page, asked = tab.page, list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server.url}#/jobs/{job}?tab=files")
    page.get_by_label("Key").fill(KEY)
    page.get_by_role("button", name="Open").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download student.safetensors").click()

    download.value.save_as(tmp_path / "weights")

    assert (tmp_path / "weights").read_bytes() == b"the weights"
    assert download.value.suggested_filename == "student.safetensors"
    assert not [url for url in asked if KEY in url]


def test_the_spec_has_its_digests(page: Any, server: Any, running: dict[str, str]) -> None:
    page.goto(f"{server.url}#/jobs/{running['control']}?tab=spec")

    expect(page.get_by_role("region", name="Resolved spec")).to_contain_text('"backbone": "resnet18"')
    expect(page.get_by_role("region", name="Digests")).to_contain_text("dataset: archive" + "a" * 64)
    expect(page.get_by_role("region", name="Digests")).to_contain_text("Tensors of the student" + "e" * 64)


def test_chosen_jobs_are_compared(page: Any, server: Any, running: dict[str, str]) -> None:
    page.goto(server.url)
    for job in running.values():
        page.locator(f'tr[data-job="{job}"]').get_by_role("checkbox").check()
    page.get_by_role("link", name="Compare").click()
    expect(legend(page)).to_contain_text("student23")
    expect(legend(page)).to_contain_text("teacher40")
    assert serious(page) == []

    page.get_by_role("button", name="Leave out teacher").click()

    expect(legend(page)).not_to_contain_text("teacher")
    page.reload()
    expect(legend(page)).to_contain_text("control30")
    expect(legend(page)).not_to_contain_text("teacher")


def test_of_too_many_jobs_the_first_are_compared_and_that_is_said(page: Any, server: Any, seeds: Seeds) -> None:
    data = seeds.dataset()
    ids = [seeds.job(data, name=f"job {n}", seed=n) for n in range(14)]

    page.goto(f"{server.url}#/compare?" + "&".join(f"id={each}" for each in [*ids, ids[0]]))

    expect(page.get_by_role("status").first).to_have_text("The first 12 of 14 chosen jobs are compared.")
    expect(page.locator("tbody tr")).to_have_count(12)


def test_a_job_that_is_not_there_says_so(tab: Any, server: Any) -> None:
    tab.expect("404")
    tab.page.goto(f"{server.url}#/jobs/job_{'0' * 32}")

    expect(tab.page.get_by_role("heading", name="Not found")).to_be_visible()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_anybody_can_use_every_tab(tabs: Any, server: Any, running: dict[str, str], scheme: str, width: int) -> None:
    page = tabs(color_scheme=scheme, viewport={"width": width, "height": 800}).page
    page.goto(f"{server.url}#/jobs/{running['student']}")
    for name in TABS:
        page.get_by_role("tab", name=name).click()
        expect(page.get_by_role("tabpanel").locator("h2").first).to_be_visible()
        assert serious(page) == [], name
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
