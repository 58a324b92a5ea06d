"""The studies and a study's leaderboard, in a real browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import pytest

from tests.browser.axe import serious
from tests.browser.seeds import RESULT, Seeds

expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (make test-browser)").expect
NASTY = "<img src=x onerror=alert(1)> مرحبا 🎉"
RESULTS = {"control": (20.0, 22.0, 21.0), NASTY[:40]: (24.0, 25.5, 25.0), "mimic": (19.0, 23.0, 20.0)}
"""AP of each arm's seeds."""


@pytest.fixture
def study(server: Any, seeds: Seeds) -> str:
    """Arms of which one helps and one does not, over two seeds that have ended and one that waits."""
    seeds.worker()
    data = seeds.dataset()
    teacher = seeds.finished(seeds.job(data, name="the big one", student={"backbone": "resnet50"}), [30.0], RESULT)
    arms = [{"name": name, "methods": [{"kind": kind}]} for name, kind in ((NASTY[:40], "fgd"), ("mimic", "mimic"))]
    body = {
        "name": NASTY,
        "teacher": {"job": teacher},
        "dataset": data,
        "arms": arms,
        "students": [{}],
        "seeds": [0, 1],
    }
    id = str(post(server, "studies", body)["id"])
    finish(server, seeds, id, RESULTS)
    post(server, f"studies/{id}/extend", {"seeds": [2]})
    return id


def post(server: Any, path: str, body: Mapping[str, Any]) -> Any:
    answer = httpx.post(f"{server.url}v1/{path}", json=body)
    assert answer.is_success, answer.text
    return answer.json()


def finish(server: Any, seeds: Seeds, study: str, results: Mapping[str, Sequence[float]]) -> None:
    """In the order in which they wait."""
    jobs = httpx.get(f"{server.url}v1/jobs?study={study}&limit=100").json()["items"]
    rows = httpx.get(f"{server.url}v1/studies/{study}/leaderboard").json()["rows"]
    scores = {run["job"]: results[row["arm"]][run["seed"]] for row in rows for run in row["runs"]}
    for job in sorted(jobs, key=lambda job: (job["created_at"], job["id"])):
        seeds.finished(job["id"], [scores[job["id"]]])


def row(page: Any, arm: str) -> Any:
    return page.locator(".leaderboard tbody tr", has=page.get_by_role("rowheader").filter(has_text=arm))


def test_a_leaderboard_draws_what_each_arm_adds(page: Any, server: Any, study: str) -> None:
    page.goto(f"{server.url}#/studies")
    expect(page.locator(f'tr[data-study="{study}"]')).to_contain_text("6 of 9 jobs succeeded · 3 queued")
    page.locator(f'tr[data-study="{study}"] a').click()

    expect(page.locator(".facts").get_by_role("link", name="the big one")).to_be_visible()
    expect(row(page, NASTY[:40]).locator(".difference")).to_contain_text("+3.8 (+0.6 to +6.9)")
    expect(row(page, NASTY[:40]).locator("svg.interval.good")).to_be_visible()
    expect(row(page, "mimic").get_by_role("img", name="±0.0 AP, over seeds −12.7 to +12.7")).to_be_visible()
    expect(row(page, "control").locator(".difference")).to_contain_text("compared with it")
    expect(row(page, "mimic").locator(".run")).to_have_text(
        ["seed 0 19.0 succeeded", "seed 1 23.0 succeeded", "seed 2 queued queued"]
    )
    expect(page.locator("main img")).to_have_count(0)  # a name is no markup
    page.get_by_label("Order").select_option("ap")
    page.reload()
    expect(page.get_by_role("rowheader").first).to_contain_text(NASTY[:40])
    row(page, "mimic").locator(".run").first.click()
    expect(page.get_by_role("heading", name="mimic / seed 0")).to_be_visible()


def test_a_study_is_extended_paused_resumed_and_cancelled(page: Any, server: Any, study: str) -> None:
    page.goto(f"{server.url}#/studies/{study}")
    page.get_by_role("button", name="Add seeds").click()
    page.get_by_role("dialog").get_by_label("Seeds").fill("three")
    page.get_by_role("dialog").get_by_role("button", name="Add them").click()
    expect(page.get_by_role("alert").filter(has_text="three is no list of seeds")).to_be_visible()
    page.get_by_role("button", name="Add seeds").click()
    page.get_by_role("dialog").get_by_label("Seeds").fill("7-8")
    page.get_by_role("dialog").get_by_role("button", name="Add them").click()
    expect(page.locator(".facts")).to_contain_text("6 of 15 jobs succeeded · 9 queued")

    page.get_by_role("button", name="Pause").click()
    expect(page.locator(".facts")).to_contain_text("9 paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator(".facts")).to_contain_text("9 queued")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()

    expect(page.locator(".heading .state")).to_have_text("cancelled")
    expect(page.get_by_role("button", name="Retry")).to_be_visible()


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1280)])
def test_anybody_can_use_studies(tabs: Any, server: Any, study: str, scheme: str, width: int) -> None:
    page = tabs(color_scheme=scheme, viewport={"width": width, "height": 800}).page
    for path, there in (("studies", "[data-study]"), (f"studies/{study}", ".leaderboard")):
        page.goto(f"{server.url}#/{path}")
        expect(page.locator(there)).to_be_visible()

        assert serious(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
