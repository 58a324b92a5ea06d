"""GET /v1/jobs: filters, and cursors that hold for the filters they were given out with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from api.core.jobs import requests
from api.core.lifecycle import Requested
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT, Job


def ids(client: Any, **query: Any) -> set[str]:
    answer = client.get("/v1/jobs", params=query)
    assert answer.status_code == 200, answer.text
    return {job["id"] for job in answer.json()["items"]}


def cancel(given: Any, id: str) -> None:
    with db.transaction(given.engine) as s:
        requests.request(s, DEFAULT_PROJECT, id, Requested.cancel)


def test_states_are_told_apart_and_several_may_be_asked_for(client: Any, given: Any) -> None:
    dataset = given.dataset()
    running = given.running(dataset=dataset)
    queued, cancelled = given.job(dataset), given.job(dataset)
    cancel(given, cancelled)

    assert ids(client, state="queued") == {queued}
    assert ids(client, state=["queued", "cancelled"]) == {queued, cancelled}
    assert ids(client, state=["queued", "cancelled", "running"]) == {queued, cancelled, running}
    assert ids(client, state="failed") == set()


def test_data_sets_and_models_are_found_by_name_and_state(client: Any) -> None:
    network = {"detector": {"kind": "fcos"}, "classes": ["a"]}
    for noun, more in (("datasets", {}), ("models", network)):
        names = ["red cells", "cells", "Cells 2", "50%_\u00fc"]
        for name in names:
            assert client.post(f"/v1/{noun}", json={"name": name, **more}).status_code in (201, 202)

        def found(noun: str = noun, **query: Any) -> list[str]:
            answer = client.get(f"/v1/{noun}", params=query)
            assert answer.status_code == 200, answer.text
            return [each["name"] for each in answer.json()["items"]]

        assert found(name="cells") == ["cells"]
        assert found(name="Cells*") == ["Cells 2"]
        assert found(name="*cells") == ["cells", "red cells"]
        assert found(name="*ells*") == ["Cells 2", "cells", "red cells"]
        assert found(name="*%_*") == found(name="50%_\u00fc") == ["50%_\u00fc"]
        assert found(name="*very long and nowhere") == found(name="") == []
        assert found(name="*") == found() == names[::-1]
        assert found(state="awaiting_upload", name="cells") == ["cells"]
        assert found(state="ready") == []
        assert client.get(f"/v1/{noun}", params={"nmae": "cells"}).status_code == 422

        first = client.get(f"/v1/{noun}", params={"name": "*ells*", "limit": 2})
        assert f"/v1/{noun}?limit=2&name=%2Aells%2A&cursor=" in first.headers["link"]
        cursor = first.json()["next"]
        assert found(name="*ells*", limit=2, cursor=cursor) == ["red cells"]
        assert client.get(f"/v1/{noun}", params={"cursor": cursor}).status_code == 400


def test_a_name_is_whole_or_a_beginning_an_end_or_a_part_and_has_no_other_wildcards(client: Any, given: Any) -> None:
    dataset = given.dataset()
    plain, longer, odd = (given.job(dataset, name=name) for name in ("cells", "cells 2", "50%_ü"))
    upper = given.job(dataset, name="Cells")

    assert ids(client, name="cells") == {plain}
    assert ids(client, name="cells*") == {plain, longer}
    assert ids(client, name="Cells") == {upper}
    assert ids(client, name="*ells") == {plain, upper}
    assert ids(client, name="*ells*") == {plain, longer, upper}
    assert ids(client, name="c_lls") == ids(client, name="%") == ids(client, name="c%*") == set()
    assert ids(client, name="50%_ü") == ids(client, name="50%_*") == {odd}
    assert ids(client, name="*") == {plain, longer, odd, upper}


def test_labels_must_all_fit_whatever_signs_they_have(client: Any, given: Any) -> None:
    dataset = given.dataset()
    mine = given.job(dataset, metadata={"owner": "me", "a.b-c_d": 'it\'s "x" & 1=1'})
    number = given.job(dataset, metadata={"owner": "1"})
    given.job(dataset)

    assert ids(client, **{"metadata.owner": "me"}) == {mine}
    assert ids(client, **{"metadata.owner": "me", "metadata.a.b-c_d": 'it\'s "x" & 1=1'}) == {mine}
    assert ids(client, **{"metadata.owner": "me", "metadata.a.b-c_d": "other"}) == set()
    assert ids(client, **{"metadata.owner": "1"}) == {number}
    assert ids(client, **{"metadata.none": ""}) == set()


def test_times_part_the_jobs_without_overlap_in_any_zone(client: Any, given: Any) -> None:
    dataset = given.dataset()
    older, newer = given.job(dataset), given.job(dataset)
    with db.transaction(given.engine) as s:
        s.execute(update(Job).where(Job.id == older).values(created_at=datetime(2026, 1, 1, 12, tzinfo=UTC)))
    at = given.look(older).created_at
    elsewhere = "2026-01-01T14:00:00+02:00"

    assert ids(client, created_after=at.isoformat()) == {older, newer}
    assert ids(client, created_before=at.isoformat()) == set()
    assert ids(client, created_before=elsewhere) == set()
    assert ids(client, created_after=elsewhere, created_before=(at + timedelta(seconds=1)).isoformat()) == {older}
    assert ids(client, created_after="2026-01-01T12:00:00.001Z") == {newer}


def test_pages_of_filtered_jobs_hold_each_once_and_their_links_keep_the_filters(client: Any, given: Any) -> None:
    dataset = given.dataset()
    wanted = [given.job(dataset, name="a b&c", metadata={"k": "ü=1"}) for _ in range(5)]
    for _ in range(3):
        given.job(dataset)

    page = client.get("/v1/jobs", params={"limit": 2, "name": "a*", "state": ["queued", "failed"], "metadata.k": "ü=1"})
    seen = [job["id"] for job in page.json()["items"]]
    while link := page.links.get("next"):
        page = client.get(link["url"])
        seen += [job["id"] for job in page.json()["items"]]

    assert seen == wanted[::-1]


def test_a_cursor_is_refused_with_other_filters(client: Any, given: Any) -> None:
    dataset = given.dataset()
    for _ in range(3):
        given.job(dataset, metadata={"k": "v"})
    plain = client.get("/v1/jobs?limit=1").json()["next"]
    filtered = client.get("/v1/jobs?limit=1&metadata.k=v&state=queued").json()["next"]

    for query in ({"cursor": plain, "state": "queued"}, {"cursor": filtered}, {"cursor": filtered, "metadata.k": "v"},
                  {"cursor": filtered, "metadata.k": "w", "state": "queued"}):  # fmt: skip
        answer = client.get("/v1/jobs", params=query)
        assert answer.status_code == 400, query
        assert answer.json()["code"] == "cursor_of_other_filters"
    assert client.get("/v1/jobs", params={"cursor": filtered, "state": "queued", "metadata.k": "v"}).is_success
    assert client.get("/v1/jobs", params={"cursor": plain, "limit": 7}).is_success


@pytest.mark.parametrize(
    ("query", "parameter", "code"),
    [
        ("state=sleeping", "state", "enum"),
        ("name=" + "x" * 201, "name", "string_too_long"),
        ("name=%00", "name", "string_pattern_mismatch"),
        ("created_after=yesterday", "created_after", "datetime_from_date_parsing"),
        ("created_after=2026-01-01T00:00:00", "created_after", "timezone_aware"),
        ("created_before=0001-01-01T00:00:00%2B23:00", "created_before", "value_error"),
        ("metadata=x", "metadata", "extra_forbidden"),
        ("metadata.=x", "metadata.", "extra_forbidden"),
        ("statee=queued", "statee", "extra_forbidden"),
        ("metadata.a=1&metadata.a=2", "metadata.a", "given_twice"),
        ("metadata.a%22b=1", 'metadata.a"b', "bad_label"),
        ("metadata.a=%00", "metadata.a", "bad_label"),
    ],
)
def test_a_filter_that_cannot_be_is_a_422_that_names_it(client: Any, query: str, parameter: str, code: str) -> None:
    answer = client.get(f"/v1/jobs?{query}")

    assert answer.status_code == 422
    assert (answer.json()["errors"][0]["parameter"], answer.json()["errors"][0]["code"]) == (parameter, code)


def test_a_queued_job_tells_its_place_in_the_queue(client: Any, given: Any) -> None:
    dataset = given.dataset()
    first, second = given.job(dataset), given.job(dataset)
    urgent = given.job(dataset, priority=5)

    places = {job["id"]: job["queue_position"] for job in client.get("/v1/jobs").json()["items"]}
    assert places == {urgent: 1, first: 2, second: 3}

    given.worker()
    assert given.claim().job_id == urgent
    assert client.get(f"/v1/jobs/{urgent}").json()["queue_position"] is None
    assert client.get(f"/v1/jobs/{second}").json()["queue_position"] == 2
