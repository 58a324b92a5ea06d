"""The page that asks for a student, in a real browser. What a worker would find is written into the plan's row."""

from __future__ import annotations

import re
from typing import Any, Literal

import pytest

from api.core import plans
from api.core.rows import db
from fgd.budget import BudgetRow, BudgetTable, Latency, TimedTeacher
from fgd.outline import Size
from tests.browser.axe import serious
from tests.browser.seeds import RESULT, WORKER, Seeds

expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (make test-browser)").expect
NASTY = "<b>data</b> 🎉"


@pytest.fixture
def data(seeds: Seeds) -> str:
    seeds.worker()
    data = seeds.dataset(name=NASTY)
    seeds.finished(seeds.job(data, name="the big one", student={"backbone": "resnet50"}), [30.0], RESULT)
    return data


def latency(ms: float) -> Latency:
    return Latency(median_ms=ms, p10_ms=ms * 0.9, p90_ms=ms * 1.2, min_ms=ms * 0.9, runs=60, waited_share=0.0)


def row(data: str, title: str, ms: float, capacity: float, verdict: Literal["fits", "tight", "over"]) -> BudgetRow:
    student = {"kind": "fcos", "backbone": "resnet34", "fpn_channels": 96}
    return BudgetRow(
        title=title, student=student, size=Size(min_size=240, max_size=320), input=(240, 320), latency=latency(ms),
        verdict=verdict, parameters=22_000_000, gflops=14.5, mb=90.1, capacity=capacity, levels=5, levels_shared=5,
        small_box_px=17.5, median_box_px=40.0,
        spec={"name": "student", "dataset": data, "student": student, "methods": [], "latency_budget_ms": 15},
    )  # fmt: skip


def table(data: str) -> BudgetTable:
    rows = (row(data, "FCOS R34", 14.0, 18.0, "fits"), row(data, "FCOS R18", 9.0, 5.0, "fits"))
    return BudgetTable(
        latency_budget_ms=15, runtime="onnxruntime", threads=1, device="a processor", message="FCOS R34 is the largest",
        fits=True, missed_by_ms=None, noise=1.1, waited_share=0.0, candidates=600, timed=14, seconds=12.0,
        rows=(*rows, row(data, "RetinaNet R50", 21.0, 24.0, "over")),
        teacher=TimedTeacher(title="FCOS R50", parameters=32_000_000, input=(240, 320), latency=latency(31.0)),
    )  # fmt: skip


def claimed(seeds: Seeds) -> plans.PlanClaim:
    with db.transaction(seeds.engine) as s:
        claim = plans.claim(s, WORKER, ("cpu", "auto"), lease_s=3600.0)
        assert claim is not None
        plans.tell(s, claim.id, claim.attempt, "timing a spread of students, 3 done")
        return claim


def ask(page: Any, server: Any) -> None:
    page.goto(f"{server.url}#/budget?latency_budget_ms=15")
    page.get_by_label("Teacher").select_option(index=1)
    page.get_by_role("button", name="Find students").click()
    expect(page.get_by_text("Waits:")).to_be_visible()


def test_a_question_is_followed_to_the_form_of_a_job(page: Any, server: Any, seeds: Seeds, data: str) -> None:
    ask(page, server)
    claim = claimed(seeds)
    assert claim.question is not None
    assert (claim.question.latency_budget_ms, claim.question.dataset) == (15, data)
    expect(page.get_by_text("timing a spread of students, 3 done")).to_be_visible()
    page.reload()  # the address has the plan
    expect(page.get_by_text("timing a spread of students, 3 done")).to_be_visible()
    with db.transaction(seeds.engine) as s:
        plans.finish_search(s, claim.id, claim.attempt, table(data), 0)

    expect(page.get_by_text("FCOS R34 is the largest")).to_be_visible()
    expect(page.get_by_role("link", name=re.compile("make the job$"))).to_have_count(3)
    expect(page.get_by_role("region", name="Table of students").get_by_role("row")).to_have_count(5)
    point = page.get_by_role("link", name="2. FCOS R18: 9 ms, capacity 5, fits; make the job")
    point.focus()
    expect(page.locator("tr.marked")).to_contain_text("FCOS R18")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Fpn channels")).to_have_value("96")
    expect(page.get_by_label("Data set").locator("option:checked")).to_contain_text(NASTY)
    page.go_back()
    expect(page.locator('tr[aria-current="true"]')).to_contain_text("FCOS R18")


def test_what_goes_wrong_is_said(tab: Any, server: Any, seeds: Seeds, data: str) -> None:
    tab.expect("422", "404")
    page = tab.page
    page.goto(f"{server.url}#/budget?threads=2000&plan=plan_{'0' * 32}")
    expect(page.get_by_role("alert")).to_contain_text("forgotten")
    page.get_by_label("Processor threads").evaluate("(input) => input.removeAttribute('max')")
    page.get_by_role("button", name="Find students").click()
    expect(page.get_by_role("alert")).to_contain_text("threads:")
    ask(page, server)
    claim = claimed(seeds)

    with db.transaction(seeds.engine) as s:
        plans.fail(s, claim.id, claim.attempt, "no_runtime", "onnxruntime is not installed")

    expect(page.get_by_role("alert")).to_have_text("The search failed: onnxruntime is not installed")


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1280)])
def test_anybody_can_use_it(tabs: Any, server: Any, seeds: Seeds, data: str, scheme: str, width: int) -> None:
    page = tabs(color_scheme=scheme, viewport={"width": width, "height": 800}).page
    ask(page, server)
    claim = claimed(seeds)
    with db.transaction(seeds.engine) as s:
        plans.finish_search(s, claim.id, claim.attempt, table(data), 0)
    expect(page.locator(".pareto")).to_be_visible()

    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
