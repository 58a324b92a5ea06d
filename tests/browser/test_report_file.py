"""The report of a job as a file: from disk, without a network, light and dark; nothing is loaded or complained of."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from api.core import tasks
from api.core.rows import db
from api.core.rows.tables import Inspection
from fgd.inspected import InspectionResult, Pictures
from tests.browser.axe import serious
from tests.browser.seeds import RESULT, WORKER, Seeds

expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (make test-browser)").expect
TIME = {"median_ms": 8.2, "p10_ms": 8.0, "p90_ms": 9.5, "min_ms": 7.9, "runs": 30, "waited_share": 0.0}


def inspected(seeds: Seeds) -> None:
    """What a worker does with the one that waits."""
    with db.transaction(seeds.engine) as s:
        claim = tasks.claim(s, Inspection, WORKER, ("cpu", "auto"), lease_s=20.0)
    assert claim is not None
    roles = claim.request["networks"]
    networks = [
        {"role": role, "gflops": 3.5, "speeds": [{"batch": batch, "time": TIME} for batch in (1, 8)]} for role in roles
    ]
    result = {
        "input": [240, 320], "device": "a processor", "threads": 2, "networks": networks, "not_timed": None,
        "pictures": 1, "pictures_reason": None, "seconds": 1.0,
    }  # fmt: skip
    jpeg = BytesIO()
    Image.new("RGB", (320, 240), (90, 120, 60)).save(jpeg, "JPEG")
    box = {"box": [20, 40, 90, 150], "name": "<b>cat</b>"}
    views = [
        {"role": role, "right": 1, "wrong": 0, "missed": 0, "detections": [box | {"score": 0.9, "right": True}]}
        for role in roles
    ]
    picture = {
        "name": "a <i>.jpg", "width": 320, "height": 240, "jpeg": base64.b64encode(jpeg.getvalue()).decode(),
        "boxes": [box], "networks": views,
    }  # fmt: skip
    kept = Pictures.model_validate({"score": 0.3, "iou": 0.5, "differ": ["student", "control"], "pictures": [picture]})
    blob = seeds.store.put_bytes(kept.model_dump_json().encode())
    with db.transaction(seeds.engine) as s:
        told = InspectionResult.model_validate(result).model_dump(mode="json")
        file = tasks.TaskFile("pictures", "pictures.json", blob, "application/json")
        tasks.finish(s, Inspection, claim.id, claim.attempt, told, [file])


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_it_opens_from_disk_without_a_network(
    seeds: Seeds, server: Any, chromium: Any, tmp_path: Path, colours: Any
) -> None:
    seeds.worker()
    data = seeds.dataset()
    teacher = seeds.finished(seeds.job(data, name="teacher", student={"backbone": "resnet50"}), [40.0], RESULT)
    seeds.finished(seeds.job(data, name="control"), [20.0], RESULT)
    job = seeds.finished(seeds.taught(data, teacher, name="student"), [25.0], RESULT)
    with httpx.Client(base_url=server.url, trust_env=False, headers={"Accept": "text/html"}) as http:
        http.get(f"v1/jobs/{job}/report")
        inspected(seeds)
        file = tmp_path / "report.html"
        file.write_text(http.get(f"v1/jobs/{job}/report").text, encoding="utf-8")

    context = chromium.new_context(offline=True, color_scheme=colours, viewport={"width": 900, "height": 800})
    page = context.new_page()
    complaints: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())

    expect(page.get_by_role("heading", name="student", exact=True).first).to_be_visible()
    expect(page.get_by_text("student: 1 right, 0 wrong, 0 missed")).to_be_visible()
    shown = page.locator(".panels svg").first.screenshot()
    red, green, blue = Image.open(BytesIO(shown)).convert("RGB").getpixel((3, 3))  # type: ignore[misc]
    assert abs(red - 90) + abs(green - 120) + abs(blue - 60) < 40  # the picture itself is there
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(16, 20, 24)"}[colours]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert serious(page) == []
    context.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
