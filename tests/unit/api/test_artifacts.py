from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from api.core.rows.ids import new_id

DATA = bytes(range(256)) * 5000


@pytest.fixture(params=["local", "s3"])
def store_settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Every test here that has a store runs on both kinds."""
    return {} if request.param == "local" else dict(request.getfixturevalue("s3").settings())


@pytest.fixture
def content(client: Any, given: Any) -> Any:
    """The address of an artifact's bytes, its ETag and its Repr-Digest."""
    job, digest = given.artifact(DATA)
    listed = client.get(f"/v1/jobs/{job}/artifacts").json()["items"]
    assert [(a["name"], a["size"], a["sha256"]) for a in listed] == [("student.safetensors", len(DATA), digest)]
    repr_digest = f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:"
    return f"/v1/artifacts/{listed[0]['id']}/content", f'"sha256-{digest}"', repr_digest


def test_the_whole_comes_with_size_digest_and_name(client: Any, content: Any) -> None:
    url, tag, digest = content

    answer = client.get(url, headers={"Accept-Encoding": "gzip"})

    assert answer.status_code == 200
    assert answer.content == DATA
    assert answer.headers["etag"] == tag
    assert answer.headers["repr-digest"] == digest
    assert answer.headers["content-length"] == str(len(DATA))
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-disposition"].startswith('attachment; filename="student.safetensors"')
    assert "content-encoding" not in answer.headers


def test_head_describes_without_bytes_and_ignores_ranges(client: Any, content: Any) -> None:
    url, tag, digest = content

    answer = client.head(url, headers={"Range": "bytes=0-9"})

    assert (answer.status_code, answer.content) == (200, b"")
    assert (answer.headers["etag"], answer.headers["repr-digest"]) == (tag, digest)
    assert answer.headers["content-length"] == str(len(DATA))


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=1279999-", 1279999, 1280000),
        ("bytes=-5", 1279995, 1280000),
        ("bytes=-9999999999", 0, 1280000),
        ("bytes=100-99999999999", 100, 1280000),
        ("BYTES=3-4", 3, 5),
    ],
)
def test_one_range_is_served_with_the_digest_of_the_whole(
    client: Any, content: Any, asked: str, start: int, stop: int
) -> None:
    url, tag, digest = content

    answer = client.get(url, headers={"Range": asked})

    assert answer.status_code == 206
    assert answer.content == DATA[start:stop]
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(DATA)}"
    assert (answer.headers["etag"], answer.headers["repr-digest"]) == (tag, digest)


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=0-1,5-6",
        "bytes=" + "0-1," * 5000 + "0-1",
        "bytes=9-5",
        "bytes=x-",
        "bytes=-",
        "bytes=--5",
        "bytes=1",
        "bytes=" + "9" * 400 + "-",
        "bytes=\u0663-",
        "items=0-1",
        "",
    ],
)
def test_several_or_malformed_ranges_get_the_whole(client: Any, content: Any, asked: str) -> None:
    answer = client.get(content[0], headers={"Range": asked.encode()})

    assert (answer.status_code, len(answer.content)) == (200, len(DATA))


@pytest.mark.parametrize("asked", ["bytes=1280000-", "bytes=99999999-999999999", "bytes=-0"])
def test_a_range_beyond_the_end_is_a_416_that_tells_the_size(client: Any, content: Any, asked: str) -> None:
    answer = client.get(content[0], headers={"Range": asked})

    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(DATA)}"
    assert answer.json()["code"] == "range_not_satisfiable"


def test_if_range_serves_the_range_only_of_the_same_content(client: Any, content: Any) -> None:
    url, tag, _ = content

    same = client.get(url, headers={"Range": "bytes=5-", "If-Range": tag})
    other = client.get(url, headers={"Range": "bytes=5-", "If-Range": '"sha256-0"'})
    weak = client.get(url, headers={"Range": "bytes=5-", "If-Range": f"W/{tag}"})
    beyond = client.get(url, headers={"Range": "bytes=99999999-", "If-Range": '"sha256-0"'})

    assert [answer.status_code for answer in (same, other, weak, beyond)] == [206, 200, 200, 200]


def test_if_none_match_answers_304_without_bytes(client: Any, content: Any) -> None:
    url, tag, _ = content

    for value in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        for answer in (
            client.get(url, headers={"If-None-Match": value}),
            client.head(url, headers={"If-None-Match": value}),
        ):
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    assert client.get(url, headers={"If-None-Match": '"x"'}).status_code == 200


def test_an_interrupted_download_is_put_together_again(client: Any, content: Any) -> None:
    url, tag, _ = content
    have = DATA[:70_001]

    rest = client.get(url, headers={"Range": f"bytes={len(have)}-", "If-Range": tag}).content

    assert have + rest == DATA


def test_an_empty_file_is_served(client: Any, given: Any) -> None:
    job, _ = given.artifact(b"")
    id = client.get(f"/v1/jobs/{job}/artifacts").json()["items"][0]["id"]

    answer = client.get(f"/v1/artifacts/{id}/content")

    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")
    assert client.get(f"/v1/artifacts/{id}/content", headers={"Range": "bytes=0-"}).status_code == 416


def test_a_name_cannot_forge_a_header(client: Any, given: Any) -> None:
    job, _ = given.artifact(b"x", name='we"ird\r\nX-Evil: 1;ü.bin')
    id = client.get(f"/v1/jobs/{job}/artifacts").json()["items"][0]["id"]

    answer = client.get(f"/v1/artifacts/{id}/content")

    assert answer.status_code == 200
    assert "x-evil" not in answer.headers
    assert "filename*=UTF-8''we%22ird%0D%0AX-Evil%3A%201%3B%C3%BC.bin" in answer.headers["content-disposition"]


def test_unknown_artifacts_and_lost_bytes_are_problems(client: Any, given: Any) -> None:
    job, digest = given.artifact(b"here today")
    id = client.get(f"/v1/jobs/{job}/artifacts").json()["items"][0]["id"]
    given.store.delete(digest)

    assert client.get(f"/v1/artifacts/{new_id('art')}/content").status_code == 404
    assert client.head(f"/v1/artifacts/{new_id('art')}/content").status_code == 404
    lost = client.get(f"/v1/artifacts/{id}/content")
    assert (lost.status_code, lost.json()["code"]) == (500, "blob_missing")


@pytest.mark.parametrize("store_settings", ["s3"], indirect=True)
def test_a_store_that_signs_may_serve_its_bytes_itself(serving: Any, settings: Any, content: Any) -> None:
    url, tag, _ = content
    with serving(settings.model_copy(update={"store_proxy": False})) as client:
        head = client.head(url)
        answer = client.get(url, follow_redirects=False)
        resumed = client.get(url, headers={"Range": "bytes=7-9", "If-Range": tag}, follow_redirects=False)
        unchanged = client.get(url, headers={"If-None-Match": tag}, follow_redirects=False)

    assert (head.status_code, head.headers["etag"]) == (200, tag)
    assert answer.status_code == 307
    assert answer.headers["cache-control"] == "no-store"
    fetched = httpx.get(answer.headers["location"])
    assert fetched.content == DATA
    assert fetched.headers["content-disposition"].startswith('attachment; filename="student.safetensors"')
    assert "X-Amz-Expires=900&" in answer.headers["location"]
    assert (resumed.status_code, resumed.content) == (206, DATA[7:10])
    assert unchanged.status_code == 304


@pytest.mark.parametrize("store_settings", ["s3"], indirect=True)
def test_a_store_that_is_away_is_a_retryable_503(serving: Any, settings: Any, content: Any) -> None:
    with serving(settings.model_copy(update={"store_endpoint": "http://127.0.0.1:9"})) as client:
        answer, ready = client.get(content[0]), client.get("/readyz")

    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (503, "store_away", True)
    assert (ready.status_code, ready.json()["store"]["ok"]) == (503, False)
