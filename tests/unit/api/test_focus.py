"""What a job's methods look at, from the trainer's file to the answer."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api.core import blobs
from api.core.jobs import attempts, record, removal
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT, BlobRow, JobFocus
from api.core.store.local import LocalStore
from api.core.store.names import Blob, StoreAway
from fgd.events import Focused, Started
from fgd.focus_files import name_of, packed
from worker import devices, focus_uploader
from worker.event_writer import EventWriter
from worker.host import Host
from worker.slots import Slots
from worker.staging import Cache

PHOTOS = {"format": "fgd-photos/1", "split": "val", "photos": []}


class Away(LocalStore):
    away = False

    def put_bytes(self, data: bytes) -> Blob:
        if self.away:
            raise StoreAway("no answer")
        return super().put_bytes(data)


@pytest.fixture
def host(given: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(focus_uploader, "AGAIN_S", 0.01)
    store = Away(settings.blobs)
    found = devices.Hardware((), "a processor", 1, False, 1, 1)
    return Host(
        settings, given.engine, store, None, found, Slots.on_host(1, []), Cache(settings.home / "c", 1, store), 0.3
    )


@pytest.fixture
def running(given: Any, host: Host, tmp_path: Path) -> tuple[str, EventWriter, Path]:
    job = given.job()
    out = tmp_path / "work" / "out"
    out.mkdir(parents=True)
    return job, EventWriter(host, given.claim(), out), out


def maps(step: int) -> dict[str, Any]:
    shown = {
        "method": "fgd", "name": "foreground", "network": None, "level": "p3", "shape": [1, 2], "of": [1, 2],
        "low": 0.0, "high": 1.0, "by_magnitude": False, "values": "AP8=",
    }  # fmt: skip
    image = {"photo": 0, "size": [8, 16], "padded": [32, 32], "shown": [shown]}
    return {"format": "fgd-focus/1", "step": step, "epoch": 1, "strides": {"p3": 8}, "images": [image]}


def told(out: Path, step: int | None, content: dict[str, Any]) -> Focused:
    path = out / name_of(step)
    path.write_bytes(packed(content))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    epoch = None if step is None else 1
    return Focused(step=step, epoch=epoch, path=str(path), sha256=digest, size=path.stat().st_size)


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def write(writer: EventWriter, *events: Any) -> None:
    writer.add(events)
    until(lambda: writer.write() and not writer.showing)


def test_what_a_trainer_shows_can_be_fetched_while_the_job_runs(client: Any, running: Any) -> None:
    job, writer, out = running
    assert client.get(f"/v1/jobs/{job}/focus").json() == {"items": []}
    write(writer, told(out, None, PHOTOS), told(out, 0, maps(0)), told(out, 30, maps(30)))

    listed = client.get(f"/v1/jobs/{job}/focus")
    assert [(each["step"], each["epoch"]) for each in listed.json()["items"]] == [(0, 1), (30, 1)]
    assert client.get(f"/v1/jobs/{job}/focus", headers={"If-None-Match": listed.headers["etag"]}).status_code == 304
    assert client.get(f"/v1/jobs/{job}/focus/photos").json() == PHOTOS
    for encoding in ("gzip", "identity"):
        answer = client.get(f"/v1/jobs/{job}/focus/30", headers={"Accept-Encoding": encoding})
        assert answer.json() == maps(30)
        assert answer.headers["cache-control"] == "private, no-cache"
        tag = {"If-None-Match": answer.headers["etag"]}
    assert client.get(f"/v1/jobs/{job}/focus/30", headers=tag).status_code == 304


def test_of_an_ended_job_it_never_changes(client: Any, given: Any, running: Any) -> None:
    job, writer, out = running
    write(writer, told(out, 3, maps(3)))
    with db.transaction(given.engine) as s:
        attempts.fail(s, job, 1, "protocol", "no result")
    assert "immutable" in client.get(f"/v1/jobs/{job}/focus/3").headers["cache-control"]


@pytest.mark.parametrize("step", ["4", "photos"])
def test_what_is_not_there_is_a_404(client: Any, given: Any, step: str) -> None:
    answer = client.get(f"/v1/jobs/{given.job()}/focus/{step}")
    assert (answer.status_code, answer.json()["code"]) == (404, "focus_not_found")


@pytest.mark.parametrize("step", ["-1", "last", "1e3"])
def test_a_step_that_is_none_is_refused_by_its_name(client: Any, given: Any, step: str) -> None:
    answer = client.get(f"/v1/jobs/{given.job()}/focus/{step}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["parameter"] == "step"


def test_an_attempt_that_goes_on_from_an_earlier_step_forgets_what_came_after(
    client: Any, given: Any, running: Any
) -> None:
    job, writer, out = running
    write(writer, told(out, None, PHOTOS), *(told(out, step, maps(step)) for step in (0, 10, 20)))
    began = Started(step=10, total_steps=40, epochs=4, device="cpu", threads=1, precision="fp32", versions={})
    with db.transaction(given.engine) as s:
        record.record(s, job, 1, [began])
    assert [each["step"] for each in client.get(f"/v1/jobs/{job}/focus").json()["items"]] == [0, 10]
    assert client.get(f"/v1/jobs/{job}/focus/photos").status_code == 200


def test_the_same_step_again_takes_the_place_of_what_was_there(client: Any, running: Any) -> None:
    job, writer, out = running
    write(writer, told(out, 5, maps(5)))
    write(writer, told(out, 5, maps(5) | {"epoch": 2}))
    assert client.get(f"/v1/jobs/{job}/focus/5").json()["epoch"] == 2


def test_it_waits_for_a_store_that_is_away_and_its_blobs_are_known_before_they_are_put(
    given: Any, host: Host, running: Any, client: Any
) -> None:
    job, writer, out = running
    host.store.away = True  # type: ignore[attr-defined]
    event = told(out, 7, maps(7))
    writer.add([event])
    assert writer.write()
    assert writer.write()
    assert writer.showing
    with db.reading(given.engine) as s:
        assert s.get(BlobRow, (DEFAULT_PROJECT, event.sha256)) is not None
    assert client.get(f"/v1/jobs/{job}/focus").json() == {"items": []}

    host.store.away = False  # type: ignore[attr-defined]
    until(lambda: writer.write() and not writer.showing)
    assert client.get(f"/v1/jobs/{job}/focus/7").json() == maps(7)


def test_a_file_outside_of_the_trainers_folder_and_one_of_other_bytes_are_not_kept(
    client: Any, running: Any, tmp_path: Path
) -> None:
    job, writer, out = running
    inside = told(out, 1, maps(1))
    Path(inside.path).write_bytes(b"other bytes")
    write(writer, told(tmp_path, 2, maps(2)), inside)
    assert client.get(f"/v1/jobs/{job}/focus").json() == {"items": []}
    assert b"not kept" in client.get(f"/v1/jobs/{job}/logs").content


def test_its_rows_go_with_the_job_and_its_blobs_are_free_then(given: Any, running: Any) -> None:
    job, writer, out = running
    event = told(out, 1, maps(1))
    write(writer, event)
    with db.reading(given.engine) as s:
        assert (DEFAULT_PROJECT, event.sha256) not in blobs.unused(s)
    with db.transaction(given.engine) as s:
        attempts.fail(s, job, 1, "protocol", "no result")
    with db.transaction(given.engine) as s:
        removal.delete_job(s, DEFAULT_PROJECT, job)
    with db.reading(given.engine) as s:
        assert s.query(JobFocus).count() == 0
        assert (DEFAULT_PROJECT, event.sha256) in blobs.unused(s)
