"""The table of jobs, in a real browser."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.browser.axe import serious
from tests.browser.conftest import KEY
from tests.browser.seeds import Seeds

expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (make test-browser)").expect
NASTY = "<img src=x onerror=alert(1)> \"quotes' & مرحبا 🎉"


@pytest.fixture
def family(seeds: Seeds) -> dict[str, str]:
    """A control, two students of which one is worse, a running one and a queued one."""
    seeds.worker()
    data = seeds.dataset()
    control = seeds.finished(seeds.job(data, name="the control"), [10, 20, 30])
    jobs = {"data": data, "control": control}
    jobs["better"] = seeds.finished(seeds.taught(data, control, name="better"), [12, 23, 34])
    jobs["worse"] = seeds.finished(seeds.taught(data, control, name="worse"), [9, 18, 25])
    jobs["running"] = seeds.taught(data, control, name="on its way")
    seeds.run(jobs["running"], [14.0], total=3)
    jobs["queued"] = seeds.job(data, name="waits", seed=7)
    return jobs


def row(page: Any, job: str) -> Any:
    return page.locator(f'tr[data-job="{job}"]')


def names(page: Any) -> list[str]:
    return list(page.locator("tr[data-job] .title").all_inner_texts())


def test_each_job_shows_its_ap_and_its_gain(page: Any, server: Any, family: dict[str, str]) -> None:
    page.goto(server.url)

    expect(row(page, family["better"]).locator(".gain")).to_contain_text("+4.0")
    expect(row(page, family["worse"]).locator(".gain")).to_contain_text("−5.0 ▼ worse than its control")
    expect(row(page, family["running"]).locator(".gain")).to_contain_text("+4.0")  # after one epoch, as the control
    expect(row(page, family["running"]).locator(".done")).to_contain_text("33 % · epoch 1/3")
    expect(row(page, family["control"]).locator(".gain")).to_have_text("–")


def test_filters_search_and_order_live_in_the_address(page: Any, server: Any, family: dict[str, str]) -> None:
    page.goto(server.url)
    page.get_by_role("button", name="succeeded").click()
    page.get_by_role("button", name="Gain").click()
    expect(page.locator("tr[data-job] .title").first).to_have_text("better")
    assert names(page) == ["better", "worse", "the control"]
    page.get_by_role("searchbox").fill("wor")
    expect(page.locator("tr[data-job]")).to_have_count(1)

    page.reload()

    expect(page.locator("tr[data-job] .title")).to_have_text(["worse"])
    assert page.evaluate("location.hash") == "#/jobs?search=wor&state=succeeded&sort=-gain"
    page.get_by_role("searchbox").fill("no such name")
    page.get_by_role("button", name="Show all jobs").click()
    expect(page.locator("tr[data-job]")).to_have_count(5)
    page.get_by_role("button", name="Worse than control").click()
    expect(page.locator("tr[data-job] .title")).to_have_text(["worse"])


def test_the_table_follows_what_happens(page: Any, server: Any, seeds: Seeds, family: dict[str, str]) -> None:
    page.goto(server.url)
    line = row(page, family["running"])
    expect(line.locator(".ap")).to_have_text("14.0")
    line.get_by_role("checkbox").check()

    seeds.say(family["running"], 1, [seeds.stepped(200, 2), seeds.evaluated(200, 2, 21.5)])

    expect(line.locator(".ap")).to_have_text("21.5")
    expect(line.locator(".gain")).to_contain_text("+1.5")
    expect(line.get_by_role("checkbox")).to_be_checked()


def test_jobs_are_paused_resumed_cancelled_and_copied(page: Any, server: Any, family: dict[str, str]) -> None:
    page.goto(server.url)
    line = row(page, family["queued"])
    for action, state in (("Pause", "paused"), ("Resume", "queued")):
        line.locator("summary").click()
        line.get_by_role("button", name=action).click()
        expect(line.locator(".state")).to_have_text(state)
    line.locator("summary").click()
    line.get_by_role("link", name="Copy").click()
    page.get_by_label("Name", exact=True).fill("a copy")
    page.get_by_role("button", name="Start the job").click()
    expect(page.locator("h1")).to_have_text("a copy")
    page.get_by_role("link", name="Jobs", exact=True).click()
    expect(page.locator("tr[data-job] .title").first).to_have_text("a copy")
    line.get_by_role("checkbox").check()
    page.get_by_role("region", name="Chosen jobs").get_by_role("button", name="Cancel").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()

    expect(line.locator(".state")).to_have_text("cancelled")


def test_names_are_text_whatever_is_in_them(page: Any, server: Any, seeds: Seeds) -> None:
    data = seeds.dataset(name="<b>data</b>")
    job = seeds.job(data, name=NASTY, metadata={"owner": "\u202e<script>alert(2)</script>"})
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))

    page.goto(server.url)

    expect(row(page, job).locator(".title")).to_have_text(NASTY)
    expect(row(page, job)).to_contain_text("<b>data</b>")
    assert page.locator("td img, td b, td script").count() == 0
    assert dialogs == []


def test_without_the_key_only_the_form_for_it_is_seen(tab: Any, serving: Any) -> None:
    tab.expect("401")
    server = serving(key=True)
    server.seeds.job(server.seeds.dataset(), name="a secret name")
    page = tab.page
    page.goto(server.url)
    page.get_by_label("Key").fill("x" * 32)
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("alert")).to_contain_text("does not accept")
    assert "secret" not in page.content()
    assert serious(page) == []

    page.get_by_label("Key").fill(KEY)
    page.get_by_role("button", name="Open").click()

    expect(page.locator("tr[data-job] .title")).to_have_text("a secret name")
    assert KEY not in page.url
    page.reload()
    expect(page.locator("tr[data-job] .title")).to_have_text("a secret name")
    page.get_by_role("button", name="Forget the key").click()
    expect(page.get_by_label("Key")).to_be_visible()
    assert "secret" not in page.content()


def test_the_page_works_below_the_prefix_of_a_proxy(page: Any, serving: Any) -> None:
    server = serving(root_path="/fgd")
    server.seeds.job(server.seeds.dataset(), name="far away")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    # What a proxy does: it takes the prefix off before it asks the server.
    page.route("**/fgd/**", lambda route: route.continue_(url=route.request.url.replace("/fgd/", "/", 1)))

    page.goto(f"{server.url}fgd/")

    expect(page.locator("tr[data-job] .title")).to_have_text("far away")
    assert [url for url in asked if not url.startswith(f"{server.url}fgd/")] == []


def test_a_server_that_restarts_is_waited_for(tab: Any, server: Any, family: dict[str, str]) -> None:
    tab.expect("ERR_CONNECTION_REFUSED")
    page = tab.page
    page.goto(server.url)
    expect(row(page, family["queued"])).to_be_visible()
    server.stop()
    expect(page.get_by_text("The server does not answer")).to_be_visible()
    server.start()

    expect(page.get_by_text("The server does not answer")).to_be_hidden()
    expect(row(page, family["queued"])).to_be_visible()


def test_a_telephone_shows_how_long_a_job_still_takes(
    tabs: Any, server: Any, seeds: Seeds, family: dict[str, str]
) -> None:
    page = tabs(viewport={"width": 390, "height": 800}).page
    page.goto(server.url)

    expect(row(page, family["running"]).locator(".left")).to_have_text(re.compile(r"\d+ (s|min)"))
    expect(row(page, family["running"]).locator(".left")).to_be_visible()
    expect(row(page, family["queued"]).locator(".left")).to_be_hidden()


def test_the_keyboard_is_enough(page: Any, server: Any, family: dict[str, str]) -> None:
    page.goto(server.url)
    expect(row(page, family["queued"])).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type("the con")
    expect(page.locator("tr[data-job]")).to_have_count(1)
    page.locator("tr[data-job] summary").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="Copy")).to_be_visible()

    page.keyboard.press("Escape")

    expect(page.get_by_role("link", name="Copy")).to_be_hidden()


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1280)])
def test_anybody_can_use_it(tabs: Any, server: Any, family: dict[str, str], scheme: str, width: int) -> None:
    page = tabs(color_scheme=scheme, viewport={"width": width, "height": 800}).page
    page.goto(server.url)
    expect(row(page, family["queued"])).to_be_visible()
    row(page, family["queued"]).get_by_role("checkbox").check()

    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_colours_stay_as_they_were_chosen(page: Any, server: Any, family: dict[str, str]) -> None:
    page.goto(server.url)
    page.get_by_role("button", name="Switch to dark colours").click()

    page.reload()

    expect(page.get_by_role("button", name="Switch to light colours")).to_be_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 20, 24)"
