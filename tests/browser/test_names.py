"""Names that hold markup, quotes, right-to-left text, emoji and no blank, on every page: they are text, stay in their
place, and run nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from api.core import datasets, tasks, workers
from api.core.rows import db
from api.core.rows.tables import Prediction
from fgd.events import Evaluated, Event, Note
from fgd.predicted import Detection, NetworkDetections, PredictionResult
from tests.browser.axe import serious
from tests.browser.seeds import RESULT, WORKER, Seeds

expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (make test-browser)").expect
TURN = "\u202e"
"""Turns what follows, where a name may have it."""


def nasty(kind: str) -> str:
    """A name of at most 100 characters, which begins and ends from the right."""
    return f"שלום {kind}\u200f<img src=x onerror=alert(1)>\"'&amp;{{{{7*7}}}} {'W' * 30}مرحبا 🎉"


ARM = "ערב <b>&\"'مرحبا 🎉WWWWWWWWWWWW"
SHORT = "ערב 3"
CLASSES = (nasty("class"), "<script>alert(2)</script>")
PICTURE = "<svg onload=alert(3)>\"' שלום 🎉" + "W" * 60 + ".png"
HOST = "host<svg onload=alert(4)>مرحبا" + "W" * 60
FAILURE = f"the value {nasty('failure')!r} is refused"
NOTE = f"'{nasty('event')}' was found {TURN}here"
LINE = f"line {TURN}<script>alert(5)</script> {nasty('log')}"

BEYOND = """() => [...document.querySelectorAll("main *")]
  .filter((each) => each.getBoundingClientRect().right > innerWidth && !each.closest(".wide"))
  .map((each) => each.outerHTML.slice(0, 120))"""
WATCH = """
window.violations = [];
const note = (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`);
document.addEventListener("securitypolicyviolation", note);
"""
INJECTED = "main :is(script, iframe, object, b, i:not([class]), img[src='x'], [onerror], [onload], svg svg)"
LOOSE = """() => {
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const apart = (element) => /isolate|plaintext/.test(getComputedStyle(element).unicodeBidi);
  const inline = (element) => getComputedStyle(element).display.startsWith("inline");
  while (walk.nextNode()) {
    const text = walk.currentNode.data, holder = walk.currentNode.parentElement;
    if (!/[\\u0590-\\u06ff\\u202e]/.test(text) || text.includes("\\u2068")) continue;
    if (!holder.checkVisibility() || holder.closest("textarea")) continue;
    let each = holder;
    while (inline(each) && !apart(each)) each = each.parentElement;
    const alone = each.textContent.trim() === text.trim();
    if (!apart(each) && !alone) found.push(`${each.tagName}: ${text.slice(0, 80)}`);
  }
  return found;
}"""
"""Texts that would move what stands beside them: neither isolated nor alone in their block."""


@dataclass(frozen=True)
class Seeded:
    student: str
    failed: str
    control: str
    data: str
    rejected: str
    study: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits whose classes and files have such names, with a box that has no area."""
    root = tmp_path_factory.mktemp("names")
    for split in ("train", "val"):
        (root / split).mkdir()
        Image.new("RGB", (64, 48), "red").save(root / split / PICTURE)
        boxes = [(1, [4, 4, 20, 10]), (2, [10, 8, 30, 30]), (1, [5, 5, 0, 9])]
        marks = [{"id": k, "image_id": 1, "category_id": label, "bbox": box} for k, (label, box) in enumerate(boxes)]
        classes = [{"id": n, "name": name} for n, name in enumerate(CLASSES, start=1)]
        images = [{"id": 1, "file_name": PICTURE, "width": 64, "height": 48}]
        content = {"images": images, "annotations": marks, "categories": classes}
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def server(serving: Callable[..., Any]) -> Any:
    """On which no worker falls silent while pages are looked at."""
    return serving(lease_s=3600.0)


@pytest.fixture
def seeded(server: Any, seeds: Seeds, folder: Path) -> Seeded:
    def post(path: str, body: Any) -> Any:
        answer = httpx.post(f"{server.url}v1/{path}", json=body)
        assert answer.is_success, answer.text
        return answer.json()

    with db.transaction(seeds.engine) as s:
        gpu = {"kind": "cuda", "name": HOST, "memory": 150_000_000_000, "bf16": True}
        workers.register(s, WORKER, host=HOST, pid=1, slots=8, devices=[gpu], facts={"cpu": HOST, "system": HOST})
        workers.beat(s, WORKER, complaint=FAILURE)
    zip_of = httpx.put(
        f"{server.url}v1/datasets/{post('datasets', {'name': nasty('rejected')})['id']}/content", content=b"PK",
        headers={"Content-Type": "application/zip"},
    )  # fmt: skip
    assert zip_of.is_success
    with db.transaction(seeds.engine) as s:
        claim = datasets.claim_import(s, WORKER, lease_s=20.0)
        assert claim is not None
        datasets.reject(s, claim.id, claim.attempt, None, FAILURE)
    waiting = post("datasets", {"name": nasty("data")})["id"]
    httpx.put(f"{server.url}v1/datasets/{waiting}/content", content=b"PK", headers={"Content-Type": "application/zip"})
    data = seeds.imported(folder)
    labels = {"owner": TURN + nasty("label") + TURN}

    teacher = seeds.finished(seeds.job(data, name=nasty("teacher"), metadata=labels), [40.0], RESULT)
    kept = RESULT | {"detections.npz": seeds.found(data, {PICTURE: [((4.0, 4.0, 24.0, 14.0), 1, 0.9)]})}
    control = seeds.finished(seeds.job(data, name=nasty("control"), metadata=labels), [20.0], kept)
    student = seeds.taught(data, teacher, name=nasty("student"), metadata=labels)
    attempt = seeds.run(student, [25.0])
    seeds.looked_at(student, attempt, 1)
    scores = {f"ap/{name}": 20.0 + n for n, name in enumerate(CLASSES)}
    events: list[Event] = [Note(code="found", message=NOTE), Evaluated(step=100, epoch=1, split="val", values=scores)]
    seeds.say(student, attempt, events, LINE.encode())
    seeds.finish(student, attempt, kept)
    failed = seeds.failed(seeds.taught(data, teacher, name=nasty("failed"), seed=9), FAILURE)
    post("models", {"name": nasty("model"), "job": teacher})
    arms = [
        {"name": name, "methods": [{"kind": kind}]} for name, kind in ((ARM, "fgd"), (SHORT, "pkd"), ("a", "mimic"))
    ]
    study: dict[str, Any] = {
        "name": nasty("study"),
        "teacher": {"job": teacher},
        "dataset": data,
        "arms": arms,
        "metadata": labels,
    }
    study |= {"students": [{}], "seeds": [0], "schedule": {"batch_size": 1}}
    made = post("studies", study)["id"]
    jobs = httpx.get(f"{server.url}v1/jobs?study={made}&limit=9").json()["items"]
    seeds.claim(jobs[-1]["id"])  # one of its jobs runs
    return Seeded(student, failed, control, data, claim.id, made)


def predicted(seeds: Seeds) -> None:
    """What a worker does with the picture that waits."""
    found = Detection(box=(20.0, 20.0, 90.0, 90.0), score=0.9, name=CLASSES[0], label=1)
    with db.transaction(seeds.engine) as s:
        claim = tasks.claim(s, Prediction, WORKER, ("cpu", "auto"), lease_s=20.0)
        assert claim is not None
        networks = (NetworkDetections(role="student", detections=(found,), seconds=0.1),)
        result = PredictionResult(width=120, height=120, orientation=1, networks=networks)
        tasks.finish(s, Prediction, claim.id, claim.attempt, result.model_dump(mode="json"), [])


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1280)])
def test_names_are_text_in_their_place_on_every_page(
    tabs: Callable[..., Any], server: Any, seeds: Seeds, seeded: Seeded, scheme: str, width: int
) -> None:
    page = tabs(color_scheme=scheme, viewport={"width": width, "height": 800}).page
    dialogs: list[str] = []

    def dismiss(dialog: Any) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", dismiss)
    page.add_init_script(WATCH)
    job = f"jobs/{seeded.student}"
    seen = {
        "jobs": nasty("student"),
        job: nasty("student"),
        f"{job}?tab=learns": "Where teacher and student look",
        f"{job}?tab=classes": CLASSES[0],
        f"{job}?tab=detections": PICTURE,
        f"{job}?tab=timeline": NOTE,
        f"{job}?tab=log": LINE,
        f"{job}?tab=files": "student.safetensors",
        f"{job}?tab=spec": "Resolved spec",
        f"jobs/{seeded.failed}": FAILURE,
        f"jobs/{seeded.failed}?tab=timeline": HOST,
        f"compare?id={seeded.student}&id={seeded.control}&id={seeded.failed}": nasty("control"),
        f"new?copy={seeded.student}": nasty("student"),
        "datasets": nasty("data"),
        f"datasets/{seeded.data}": CLASSES[1],
        f"datasets/{seeded.rejected}": FAILURE,
        "studies": nasty("study"),
        f"studies/{seeded.study}": ARM,
        f"studies/new?copy={seeded.study}": "What is compared",
        "workers": HOST,
        "budget": "Budget",
    }  # fmt: skip

    def check(where: str) -> None:
        assert dialogs == [], where
        assert page.evaluate("window.violations") == [], where
        assert page.locator(INJECTED).count() == 0, where
        assert page.evaluate(LOOSE) == [], where
        assert serious(page) == [], where
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, (where, page.evaluate(BEYOND))

    for path, text in seen.items():
        page.goto(f"{server.url}#/{path}")
        expect(page.locator("main")).to_contain_text(text)
        check(path)
    page.goto(f"{server.url}#/datasets/{seeded.data}")
    page.get_by_role("region", name="Defects").locator("td button").first.click()
    expect(page.get_by_role("dialog")).to_contain_text("the box as it was written")
    check("a defect")
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    page.goto(f"{server.url}#/{job}?tab=try")
    picture = BytesIO()
    Image.new("RGB", (120, 120)).save(picture, "PNG")
    page.get_by_label("Choose a picture").set_input_files(
        {"name": PICTURE, "mimeType": "image/png", "buffer": picture.getvalue()}
    )
    expect(page.get_by_text("Waits:")).to_be_visible()
    predicted(seeds)
    expect(page.get_by_role("region", name="Found")).to_contain_text(CLASSES[0])
    check("try")

    page.goto(f"{server.url}#/jobs")
    line = page.locator(f'tr[data-job="{seeded.student}"]')
    line.get_by_role("checkbox").check()
    line.locator("summary").click()
    check("a menu")
    line.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("dialog")).to_contain_text(nasty("student"))
    check("a dialog")
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    page.goto(f"{server.url}#/studies/{seeded.study}")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator(".toast")).to_contain_text(nasty("study"))
    check("a message")


def test_a_name_from_the_right_leaves_those_beside_it_in_order(page: Any, server: Any, seeded: Seeded) -> None:
    page.goto(f"{server.url}#/studies")
    arms = page.locator("[data-study] td:nth-child(3) bdi")
    expect(arms).to_have_text(["control", ARM, SHORT, "a"])
    turned, last = (arms.nth(n).bounding_box() for n in (2, 3))
    assert (turned["y"], turned["x"]) < (last["y"], last["x"])
