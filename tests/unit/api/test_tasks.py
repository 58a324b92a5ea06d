"""What holds for everything that a worker works out under a lease for somebody who asked: claimed, fenced, tried again,
handed back, ended once, waited for, deleted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from api.core import tasks
from api.core.errors import Fenced
from api.core.rows import db, leases
from api.core.rows.columns import Task
from api.core.rows.ids import new_id
from api.core.rows.tables import Evaluation, Export, Prediction
from api.core.sweeper import Sweeper
from worker.evaluation import EvaluationChild
from worker.export import ExportChild
from worker.host import Host
from worker.prediction import PredictionChild
from worker.take import take
from worker.task import TaskChild

LATE = "late"


class Noun:
    """One of them."""

    def __init__(self, url: str, table: type[Task], child: type[TaskChild], of_job: Callable[[Any, str], Any]) -> None:
        self.url = url
        self.table = table
        self.child = child
        self.of_job = of_job
        """Of (client, id of a job that has succeeded): the answer to a request that is accepted."""

    def post(self, client: Any, given: Any) -> Any:
        return self.of_job(client, given.succeeded())

    def ask(self, client: Any, job: str) -> Any:
        answer = self.of_job(client, job)
        assert answer.status_code == 202, answer.text
        return answer.json()


NOUNS = [
    Noun(
        "/v1/evaluations",
        Evaluation,
        EvaluationChild,
        lambda client, job: client.post("/v1/evaluations", json={"job": job}),
    ),
    Noun(
        "/v1/exports",
        Export,
        ExportChild,
        lambda client, job: client.post("/v1/exports", json={"job": job}),
    ),
    Noun(
        "/v1/predictions",
        Prediction,
        PredictionChild,
        lambda client, job: client.post(f"/v1/predictions?job={job}", content=b"GIF89a picture"),
    ),
]


@pytest.fixture(params=NOUNS, ids=lambda noun: noun.url.rpartition("/")[2])
def noun(request: pytest.FixtureRequest) -> Noun:
    found = request.param
    assert isinstance(found, Noun)
    return found


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> str:
    """SQLite alone: leases and blobs are tested on both kinds elsewhere."""
    (tmp_path / "fgd.db").write_bytes(migrated.read_bytes())
    return f"sqlite:///{tmp_path}/fgd.db"


def claimed(given: Any, table: type[Task], worker: str = "wrk_a") -> tasks.TaskClaim:
    with db.transaction(given.engine) as s:
        claim = tasks.claim(s, table, worker, ("cpu", "auto"), lease_s=20.0)
    assert claim is not None
    return claim


def failed(given: Any, table: type[Task], code: str, message: str) -> None:
    """The oldest one that waits."""
    claim = claimed(given, table)
    with db.transaction(given.engine) as s:
        tasks.fail(s, table, claim.id, claim.attempt, code, message)


def submitted(client: Any, given: Any, noun: Noun) -> str:
    answer = noun.post(client, given)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def look(given: Any, noun: Noun, id: str) -> Task:
    with db.reading(given.engine) as s:
        return s.get_one(noun.table, id)


def worked(host: Host) -> int:
    """Everything that waits, done; how much that was."""
    done = 0
    while work := take(host):
        work()
        done += 1
    return done


def plays(monkeypatch: pytest.MonkeyPatch, noun: Noun, script: str) -> None:
    """The child is this instead; the worker around it is real."""

    @contextmanager
    def command(*_: Any) -> Iterator[list[str]]:
        yield ["sh", "-c", script]

    monkeypatch.setattr(noun.child, "command", command)


def test_a_child_that_is_killed_again_and_again_is_given_up(
    client: Any, given: Any, noun: Noun, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays(monkeypatch, noun, "echo last words; kill -9 $$")
    id = submitted(client, given, noun)

    assert worked(host) == tasks.MAX_TRIES

    told = client.get(f"{noun.url}/{id}").json()
    assert (told["state"], told["error"]["code"]) == ("failed", "worker_lost")
    assert "signal 9" in told["error"]["message"]
    assert "last words" in told["error"]["message"]
    assert list((host.settings.home / "work").iterdir()) == []


def test_a_full_disk_is_tried_again_and_what_cannot_be_done_is_not(
    client: Any, given: Any, noun: Noun, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = '{"error": {"code": "no_space", "message": "full"}}'
    plays(monkeypatch, noun, f"echo '{said}' > answer.json; exit 1")
    id = submitted(client, given, noun)
    assert worked(host) == tasks.MAX_TRIES
    assert "full" in look(given, noun, id).error["message"]  # type: ignore[index]

    plays(monkeypatch, noun, f"echo '{said.replace('no_space', 'user_error')}' > answer.json; exit 1")
    id = submitted(client, given, noun)
    assert worked(host) == 1
    assert (look(given, noun, id).state, look(given, noun, id).losses) == ("failed", 0)


def test_an_answer_that_is_not_one_is_no_answer(
    client: Any, given: Any, noun: Noun, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays(monkeypatch, noun, """echo '{"result": {"ap": "high"}}' > answer.json""")
    id = submitted(client, given, noun)
    worked(host)

    assert "not a known one" in look(given, noun, id).error["message"]  # type: ignore[index]


def test_a_worker_that_goes_down_hands_it_back_and_the_try_does_not_count(
    client: Any, given: Any, noun: Noun, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays(monkeypatch, noun, "sleep 600")
    id, work = submitted(client, given, noun), take(host)
    assert work is not None
    host.stop()
    work()

    row = look(given, noun, id)
    assert (row.state, row.lease_owner, row.losses) == ("pending", None, 0)


def test_inputs_that_are_gone_from_the_store_fail_at_once(client: Any, given: Any, noun: Noun, host: Host) -> None:
    id = submitted(client, given, noun)
    for files in look(given, noun, id).blobs.values():
        for digest in files.values():
            given.store.delete(digest)

    assert worked(host) == 1

    row = look(given, noun, id)
    assert (row.state, row.error["code"]) == ("failed", "user_error")  # type: ignore[index]
    assert "no longer in the store" in row.error["message"]  # type: ignore[index]


def test_of_a_lost_worker_the_next_takes_it_and_the_old_one_writes_nothing(client: Any, given: Any, noun: Noun) -> None:
    id = submitted(client, given, noun)
    old = claimed(given, noun.table)
    given.later(60)
    given.worker("wrk_b")
    assert given.sweep().ring == [id]
    new = claimed(given, noun.table, "wrk_b")
    assert (old.attempt, new.attempt) == (1, 2)

    for write in (
        lambda s: leases.beat(s, noun.table, id, old.attempt, "wrk_a", lease_s=20.0),
        lambda s: tasks.finish(s, noun.table, id, old.attempt, {}, []),
        lambda s: tasks.fail(s, noun.table, id, old.attempt, "user_error", LATE),
        lambda s: tasks.lose(s, noun.table, id, old.attempt, LATE),
        lambda s: leases.hand_back(s, noun.table, id, old.attempt),
    ):
        with pytest.raises(Fenced), db.transaction(given.engine) as s:
            write(s)
    assert look(given, noun, id).state == "pending"


def test_its_files_stay_as_long_as_it_does_and_what_it_read_does_not(client: Any, given: Any, noun: Noun) -> None:
    id = submitted(client, given, noun)
    claim = claimed(given, noun.table)
    file = tasks.TaskFile("detections", "a.bin", given.store.put_bytes(b"what it wrote"), "application/zip")
    with db.transaction(given.engine) as s:
        tasks.finish(s, noun.table, id, claim.attempt, {}, [file])

    assert look(given, noun, id).blobs == {"files": {"a.bin": file.blob.digest}}
    Sweeper(given.engine, given.store, None, lease_s=20.0).collect()
    given.earlier("blobs", "unused_since", 7200)
    Sweeper(given.engine, given.store, None, lease_s=20.0).collect()
    assert given.store.exists(file.blob.digest)

    assert client.delete(f"{noun.url}/{id}").status_code == 204
    assert client.get(f"{noun.url}/{id}").status_code == 404


def test_a_deleted_one_stops_its_worker(client: Any, given: Any, noun: Noun) -> None:
    id = submitted(client, given, noun)
    claim = claimed(given, noun.table)
    assert client.delete(f"{noun.url}/{id}").status_code == 204
    with pytest.raises(Fenced), db.transaction(given.engine) as s:
        leases.beat(s, noun.table, id, claim.attempt, "wrk_a", lease_s=20.0)


def test_an_answer_that_may_wait_comes_as_soon_as_it_has_ended(client: Any, given: Any, noun: Noun) -> None:
    id = submitted(client, given, noun)
    tag = client.get(f"{noun.url}/{id}").headers["etag"]
    ending = threading.Timer(0.2, lambda: failed(given, noun.table, "user_error", "so"))
    ending.start()
    states = []
    while states[-1:] != ["failed"]:  # first a worker takes it
        seen = client.get(f"{noun.url}/{id}", headers={"If-None-Match": tag, "Prefer": "wait=20"})
        tag = seen.headers["etag"]
        states.append(seen.json()["state"])
    ending.join()
    assert len(states) <= 2


def test_a_list_is_narrowed_by_state_and_by_what_was_asked_for_and_its_pages_keep_that(
    client: Any, given: Any, noun: Noun
) -> None:
    jobs = [given.succeeded() for _ in range(2)]
    made = [str(noun.ask(client, job)["id"]) for job in (jobs[0], jobs[1], jobs[0], jobs[0])]
    failed(given, noun.table, "user_error", "cannot be")

    def ids(**filters: Any) -> list[str]:
        answer = client.get(noun.url, params=filters)
        assert answer.status_code == 200, answer.text
        return [each["id"] for each in answer.json()["items"]]

    assert ids(job=jobs[1]) == [made[1]]
    assert ids(state="failed") == [made[0]]
    assert ids(state=["failed", "pending"]) == made[::-1]
    assert ids(state="pending", job=jobs[0]) == [made[3], made[2]]
    assert ids(model=new_id("mdl")) == ids(job=new_id("job")) == ids(state="succeeded") == []
    first = client.get(noun.url, params={"limit": 1, "state": "pending", "job": jobs[0]})
    second = client.get(first.links["next"]["url"]).json()
    assert [each["id"] for each in second["items"]] == [made[2]]
    assert second["next"] is None
    other = client.get(noun.url, params={"cursor": first.json()["next"], "state": "failed"})
    assert (other.status_code, other.json()["code"]) == (400, "cursor_of_other_filters")


@pytest.mark.parametrize("url", ["/v1/evaluations", "/v1/exports"])
def test_lists_are_narrowed_by_data_set(client: Any, given: Any, url: str) -> None:
    job = given.succeeded()
    made = client.post(url, json={"job": job}).json()

    assert [each["id"] for each in client.get(url, params={"dataset": made["dataset"]}).json()["items"]] == [made["id"]]
    assert client.get(url, params={"dataset": new_id("ds")}).json()["items"] == []
