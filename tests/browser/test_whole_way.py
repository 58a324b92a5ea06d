"""From a zip to weights in a real browser, through the real service, whose API is killed halfway."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import signal
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import KEY
from tests.e2e.conftest import real_services, services
from tests.e2e.parts import TRAINER, Service, small_digits

expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (make test-browser)").expect
PATIENT_MS = 200_000
DROP = """(content) => {
  const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0)), dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], "my digits.zip", { type: "application/zip" }));
  const target = document.querySelector("main");
  for (const type of ["dragenter", "dragover", "drop"])
    target.dispatchEvent(new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
}"""


@contextmanager
def scripted_service(home: Path) -> Iterator[Service]:
    home.mkdir()
    with services("") as start:
        yield start(home, FGD_API_KEY=KEY, FGD_TRAINER=TRAINER, FGD_STALL_S="60")


def zipped(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for path in sorted(folder.rglob("*.*")):
            file.write(path, path.relative_to(folder))
    return buffer.getvalue()


def fill(page: Any, **values: str) -> None:
    for label, value in values.items():
        page.get_by_label(label.replace("_", " "), exact=True).fill(value)


def walk(tab: Any, service: Service, digits: Path, fields: dict[str, str], when: re.Pattern[str], into: Path) -> None:
    """Upload, form, plan, job; the API is killed `when` this is seen of the job; then its weights are downloaded."""
    tab.expect("401", "ERR_")
    page, url = tab.page, str(service.http.base_url)
    page.goto(f"{url}/#/datasets")
    page.get_by_label("Key").fill(KEY)
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_text("There are no data sets yet")).to_be_visible()

    page.evaluate(DROP, base64.b64encode(zipped(digits)).decode())
    line = page.locator("tr[data-dataset]", has_text="my digits")
    expect(line.locator(".state")).to_have_text("ready", timeout=PATIENT_MS)
    line.locator("summary").click()
    line.get_by_role("link", name="Train on it").click()
    expect(page.get_by_label("Data set").locator("option:checked")).to_contain_text("my digits · 2 classes")
    fill(page, **fields)
    page.get_by_role("button", name="Show the plan").click()
    expect(page.locator(".side")).to_contain_text("3 in each epoch, of 4 images each")

    page.get_by_role("button", name="Start the job").click()
    expect(page.locator("h1")).to_have_text(fields["Name"])
    expect(page.locator(".facts")).to_contain_text(when, timeout=PATIENT_MS)
    os.kill(service.pid("deploy.api"), signal.SIGKILL)

    expect(page.locator(".heading .state")).to_have_text("succeeded", timeout=PATIENT_MS)
    expect(page.locator(".offline")).to_be_hidden()
    expect(page.locator(".facts")).to_contain_text("100 %")
    expect(page.locator(".legend").first).to_contain_text("this job")
    page.get_by_role("tab", name="Files").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download student.safetensors").click()
    download.value.save_as(into)
    digest = hashlib.sha256(into.read_bytes()).hexdigest()
    expect(page.locator("code", has_text=digest[:16])).to_be_visible()


@pytest.mark.timeout(600)
def test_a_job_is_followed_from_a_zip_to_its_file_over_a_restart(tab: Any, tmp_path: Path) -> None:
    digits = small_digits(tmp_path / "data" / "digits")
    with scripted_service(tmp_path / "home") as service:
        fields = {"Name": "mine steps=60 ms=100", "Batch_size": "4"}
        walk(tab, service, digits, fields, re.compile(r"[1-4]\d %"), tmp_path / "weights")
        tab.page.goto("about:blank")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_real_training_is_followed_to_weights_that_load(tab: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    digits = small_digits(tmp_path / "data" / "digits")
    with real_services(tmp_path / "home", tmp_path, FGD_API_KEY=KEY) as service:
        fields = {"Name": "mine", "Batch_size": "4", "Epochs": "6", "Min_size": "64", "Max_size": "64"}
        fields["Fpn_channels"] = "64"
        walk(tab, service, digits, fields, re.compile("epoch [1-4]/6"), tmp_path / "weights")
        tab.page.goto("about:blank")

    assert sum(tensor.numel() for tensor in load_file(tmp_path / "weights").values()) > 1_000_000
