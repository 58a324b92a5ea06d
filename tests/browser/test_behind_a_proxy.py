"""With a key, behind a real proxy, below its prefix and over plain http, as docker-compose.yml publishes it: all pages
work, and nobody without the key sees anything but the page that asks for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.browser.axe import serious
from tests.browser.conftest import HOST, KEY
from tests.browser.reverse_proxy import proxy
from tests.browser.seeds import RESULT, Seeds

expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (make test-browser)").expect
PREFIX = "/distil/fgd"
AS_COMPOSED: dict[str, Any] = {"key": True, "host": "0.0.0.0", "port": 8000}
"""What docker-compose.yml sets for the API."""


@pytest.fixture
def behind(serving: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Starts a service and a proxy in front of it; the service, and the address that a browser knows."""
    with ExitStack() as proxies:

        def start(strip: bool) -> tuple[Any, str]:
            server = serving(**AS_COMPOSED, lease_s=3600.0, left="" if strip else PREFIX)
            return server, f"http://{HOST}:{proxies.enter_context(proxy(server.port, PREFIX, strip))}{PREFIX}/"

        yield start


def open_with_key(page: Any, url: str) -> None:
    page.goto(url)
    page.get_by_label("Key").fill(KEY)
    page.get_by_role("button", name="Open").click()


@pytest.mark.parametrize("strip", [True, False], ids=["taken off", "left"])
def test_all_pages_work_below_a_prefix(tab: Any, behind: Any, strip: bool, tmp_path: Path) -> None:
    tab.expect("401")
    server, url = behind(strip)
    seeds: Seeds = server.seeds
    seeds.worker()
    data = seeds.dataset()
    teacher = seeds.finished(seeds.job(data, name="teacher", student={"backbone": "resnet50"}), [40.0], RESULT)
    student = seeds.taught(data, teacher, name="student")
    attempt = seeds.run(student, [12.0], total=3)
    seeds.looked_at(student, attempt, 1)
    page, asked = tab.page, list[str]()
    page.on("request", lambda request: asked.append(request.url))

    page.goto(url.removesuffix("/"))  # the proxy, or the service, leads to where relative addresses hold
    expect(page.get_by_label("Key")).to_be_visible()
    assert page.url.partition("#")[0] == url
    open_with_key(page, url)
    expect(page.locator("tr[data-job] .title")).to_have_text(["student", "teacher"])
    page.goto(f"{url}#/jobs/{student}")
    legend = page.locator(".legend").first
    expect(legend).to_contain_text("student12")
    seeds.say(student, attempt, [seeds.stepped(150, 2), seeds.evaluated(200, 2, 27.5)])
    expect(legend).to_contain_text("student27.5")  # by the stream, which the proxy passes on
    page.get_by_role("tab", name="What it learns from").click()
    expect(page.locator(".looks figure")).to_have_count(3)
    page.goto(f"{url}#/jobs/{teacher}?tab=files")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download student.safetensors").click()
    download.value.save_as(tmp_path / "weights")
    assert (tmp_path / "weights").read_bytes() == RESULT["student.safetensors"]
    page.get_by_role("tab", name="Try it").click()
    picture = BytesIO()
    Image.new("RGB", (64, 48)).save(picture, "PNG")
    sent = {"name": "photo.png", "mimeType": "image/png", "buffer": picture.getvalue()}
    page.get_by_label("Choose a picture").set_input_files(sent)
    expect(page.get_by_text("Waits:")).to_be_visible()
    page.goto(f"{url}#/datasets")
    piece = {"name": "mine.zip", "mimeType": "application/zip", "buffer": b"PK" + bytes(5_000_000)}
    page.get_by_label("Choose a zip").set_input_files(piece)
    expect(page.locator("tr[data-dataset]", has_text="mine").locator(".state")).to_have_text("being imported")
    page.goto(f"{url}#/new?copy={student}")
    expect(page.get_by_role("region", name="The same request")).to_contain_text(f"{url}v1/jobs")
    page.get_by_role("button", name="Start the job").click()
    expect(page.locator("h1")).to_have_text("student (copy)")
    page.goto(f"{url}#/studies/new")
    expect(page.get_by_role("heading", name="New study")).to_be_visible()
    for path, there in (("studies", "no studies yet"), ("budget", "Find students"), ("workers", "1 worker on 1 host")):
        page.goto(f"{url}#/{path}")
        expect(page.locator("main")).to_contain_text(there)

    assert [each for each in asked if not each.startswith((url, f"blob:{url[:20]}")) and each != url[:-1]] == []
    assert [each for each in asked if KEY in each] == []


def test_the_reference_below_a_prefix_asks_the_service(page: Any, serving: Callable[..., Any]) -> None:
    server = serving()
    with proxy(server.port, PREFIX, strip=True) as port:
        url = f"http://localhost:{port}{PREFIX}"
        page.goto(f"{url}/docs")
        expect(page.get_by_role("heading", name="Detector distillation")).to_be_visible()

        # What the button "Execute" sends passes this.
        for asked in (f"http://localhost:{port}/v1/jobs?limit=1", f"{url}/v1/jobs?limit=1", "/v1/jobs?limit=1"):
            sent = page.evaluate("(url) => below({ url }).url", asked)
            assert sent == f"{url}/v1/jobs?limit=1"
        assert page.evaluate("(url) => fetch(url).then((answer) => answer.status)", sent) == 200


def test_without_the_key_every_page_only_asks_for_it(tab: Any, behind: Any) -> None:
    tab.expect("401")
    server, url = behind(True)
    seeds: Seeds = server.seeds
    seeds.worker()
    data = seeds.dataset(name="secret data")
    job = seeds.finished(seeds.job(data, name="a secret job"), [10.0], RESULT)
    page = tab.page
    answers: list[tuple[int, str]] = []
    page.on("response", lambda answer: answers.append((answer.status, answer.url)))

    for path in ("jobs", f"jobs/{job}", f"jobs/{job}?tab=log", "new", f"new?copy={job}", "datasets", f"datasets/{data}",
                 "studies", "studies/new", "budget", "workers", f"compare?id={job}", "nonsense"):  # fmt: skip
        page.goto("about:blank")
        page.goto(f"{url}#/{path}")
        expect(page.get_by_label("Key")).to_be_visible()
        assert "secret" not in page.content(), path
        assert page.locator("nav a:visible").count() == 0, path
    assert serious(page) == []

    opened = {each.removeprefix(url) for status, each in answers if status == 200 and each.startswith(url)}
    assert all(re.fullmatch(r"(#.*)?|web/[0-9a-f]{12}/[\w/]+\.(js|css|svg)", each) for each in opened), opened
    assert not [each for each in opened if "secret" in httpx.get(f"{url}{each}".replace(HOST, "127.0.0.1")).text]
    open_with_key(page, f"{url}#/jobs/{job}")
    expect(page.locator("h1")).to_have_text("a secret job")
    page.get_by_role("button", name="Forget the key").click()
    expect(page.get_by_label("Key")).to_be_visible()
    page.go_back()
    assert "secret" not in page.content()
