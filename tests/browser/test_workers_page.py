"""The workers, in a real browser."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from api.core import workers
from api.core.rows import db
from api.core.rows.tables import WorkerRow
from tests.browser.axe import serious
from tests.browser.seeds import Seeds

expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (make test-browser)").expect
NASTY = "<i>host</i> 🎉"
FACTS = {
    "cpu": "EPYC", "cores": 16, "memory": 64_000_000_000, "free_disk": 500_000_000_000, "threads": 8,
    "system": "Linux 6.1 x86_64", "versions": {"fgd": "1.0", "torch": "2.9"},
}  # fmt: skip
GPU = {"kind": "cuda", "name": "H200", "memory": 150_000_000_000, "bf16": True}


@dataclass(frozen=True)
class Seen:
    server: Any
    job: str


@pytest.fixture
def seen(serving: Any) -> Seen:
    """A worker that runs a job, beside one with a GPU and one that is silent."""
    server = serving(lease_s=3600.0)
    seeds: Seeds = server.seeds
    seeds.worker()
    job = seeds.job(seeds.dataset(), name=NASTY)
    seeds.run(job, [10.0], total=3)
    with db.transaction(seeds.engine) as s:
        workers.register(s, "wrk_gpu", host=NASTY, pid=7, slots=2, devices=[GPU], facts=FACTS)
        workers.register(s, "wrk_gone", host="gone", pid=8, slots=1)
        long_ago = db.now(s) - timedelta(hours=2)
        s.execute(update(WorkerRow).where(WorkerRow.id == "wrk_gone").values(last_beat=long_ago))
    return Seen(server, job)


def card(page: Any, host: str) -> Any:
    return page.get_by_role("region", name=f"Worker on {host}", exact=False)


def test_each_worker_shows_what_it_has_and_runs(page: Any, seen: Seen) -> None:
    page.goto(f"{seen.server.url}#/workers")
    expect(page.get_by_role("status").first).to_have_text(
        "2 workers on 2 hosts · 1 GPU · 9 of 10 places free · 1 silent"
    )
    expect(card(page, NASTY)).to_contain_text("H200 150 GB, bfloat16")
    expect(card(page, NASTY)).to_contain_text("fgd 1.0, torch 2.9")
    expect(card(page, NASTY)).to_contain_text("It runs no job.")
    expect(card(page, "here").locator(".state")).to_have_text("working")
    expect(card(page, "here").get_by_role("row").nth(1)).to_contain_text("training")

    with db.transaction(seen.server.engine) as s:
        workers.beat(s, "wrk_gpu", complaint="its disk is full")

    expect(card(page, NASTY).locator(".state")).to_have_text("takes no jobs")
    expect(card(page, NASTY)).to_contain_text("its disk is full")
    page.get_by_label("Show silent ones").check()
    page.reload()
    expect(card(page, "gone").locator(".state")).to_have_text("silent")
    card(page, "here").get_by_role("link", name=NASTY).click()
    assert page.url.endswith(seen.job)


def test_without_a_worker_it_says_how_to_start_one(page: Any, server: Any) -> None:
    page.goto(f"{server.url}#/workers")

    expect(page.get_by_text("No worker is running, so no job begins.")).to_be_visible()


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1280)])
def test_anybody_can_use_it(tabs: Any, seen: Seen, scheme: str, width: int) -> None:
    page = tabs(color_scheme=scheme, viewport={"width": width, "height": 800}).page
    page.goto(f"{seen.server.url}#/workers?silent=true")
    expect(card(page, "gone")).to_be_visible()

    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
