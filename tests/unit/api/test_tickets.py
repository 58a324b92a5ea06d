"""Downloads by an address that works once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select

from api.core.rows import db
from api.core.rows.tables import Artifact, TicketRow

KEY = "k" * 20 + "0123456789ab"
SOME = "01a22d722c687608b90d2b297c8aa5b1"
WITH_KEY = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def locked(settings: Any, serving: Any) -> Iterator[Any]:
    """A server that wants a key."""
    with serving(settings.model_copy(update={"api_key": SecretStr(KEY)})) as client:
        yield client


@pytest.fixture
def path(given: Any) -> str:
    """Of an artifact's bytes."""
    job, _ = given.artifact(b"the weights")
    with db.reading(given.engine) as s:
        return f"/v1/artifacts/{s.scalars(select(Artifact.id).where(Artifact.job_id == job)).one()}/content"


def ticket(client: Any, path: str) -> str:
    answer = client.post("/v1/tickets", json={"path": path}, headers=WITH_KEY)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return str(answer.json()["url"])


def test_a_ticket_opens_its_download_once_without_the_key(locked: Any, path: str) -> None:
    url = ticket(locked, path)

    first, second = locked.get(url), locked.get(url)

    assert (first.status_code, first.content) == (200, b"the weights")
    assert first.headers["content-disposition"].startswith("attachment")
    assert (second.status_code, second.json()["code"]) == (401, "ticket_spent")


def test_a_ticket_opens_nothing_else(locked: Any, given: Any, path: str) -> None:
    url = ticket(locked, path)
    token = url.partition("ticket=")[2]
    job = given.job()

    for other in (f"/v1/jobs/{job}/logs", "/v1/jobs", f"{path}/", f"{path}?x=1", "/v1/tickets"):
        mark = "&" if "?" in other else "?"
        assert locked.get(f"{other}{mark}ticket={token}").status_code == 401, other
    assert locked.post(f"/v1/jobs/{job}/cancel?ticket={token}").status_code == 401
    assert locked.head(url).status_code == 401
    assert locked.get(f"{url}&ticket={token}").status_code == 401
    assert locked.get(url).status_code == 200  # none of it used it up


def test_a_ticket_is_over_after_its_time_and_swept(locked: Any, given: Any, path: str) -> None:
    url = ticket(locked, path)
    given.earlier("tickets", "expires_at", 61.0)

    assert locked.get(url).status_code == 401
    given.sweep()
    with db.reading(given.engine) as s:
        assert s.scalars(select(TicketRow)).all() == []


def test_of_many_requests_with_a_ticket_one_is_answered(locked: Any, path: str) -> None:
    url = ticket(locked, path)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: locked.get(url).status_code, range(16)))

    assert sorted(answers) == [200] + [401] * 15


def test_the_token_is_kept_nowhere(locked: Any, given: Any, path: str) -> None:
    token = ticket(locked, path).partition("ticket=")[2]

    with db.reading(given.engine) as s:
        row = s.scalars(select(TicketRow)).one()
        assert token not in " ".join(str(value) for value in vars(row).values())
    assert re.fullmatch(r"tkt_[\w-]{43}", token)


def test_the_query_of_a_download_belongs_to_its_ticket(locked: Any, given: Any) -> None:
    job = given.running()
    path = f"/v1/jobs/{job}/logs?attempt=1"
    url = ticket(locked, path)

    assert locked.get(url.replace("attempt=1", "attempt=2")).status_code == 401
    assert locked.get(url).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs", "/v1/workers", "/healthz", "https://evil.example/", "//evil.example/v1/artifacts", "",
        f"/v1/jobs/job_{SOME}/events", "/v1/artifacts/x/content",
        f"/v1/artifacts/art_{SOME}/content/../../jobs",
        f"/v1/artifacts/art_{SOME}/content?a=\n",
    ],
)  # fmt: skip
def test_only_downloads_have_tickets(locked: Any, path: str) -> None:
    answer = locked.post("/v1/tickets", json={"path": path}, headers=WITH_KEY)

    assert answer.status_code == 422
    fault = answer.json()["errors"][0]
    assert (fault["pointer"], fault["code"]) == ("/path", "not_a_download")


def test_nobody_without_the_key_gets_a_ticket(locked: Any, path: str) -> None:
    assert locked.post("/v1/tickets", json={"path": path}).status_code == 401


def test_where_no_key_is_wanted_tickets_work_as_well(client: Any, path: str) -> None:
    url = ticket(client, path)

    assert [client.get(url).status_code for _ in range(2)] == [200, 401]
