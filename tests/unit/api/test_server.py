"""The border every request passes, and what the server says of itself."""

from __future__ import annotations

import re
import socket
from functools import partial
from typing import Any
from urllib.parse import unquote

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from api.catalogue import catalogue
from api.core.errors import SchemaOutOfDate, SchemaTooNew
from api.core.rows import db
from api.core.rows.ids import new_id
from api.core.rows.tables import Job
from api.core.settings import Settings, UnsafeBind
from api.http.startup import listening, unsafe_of
from api.main import create_app

KEY = "k" * 20 + "0123456789ab"


@pytest.fixture
def locked(settings: Any, serving: Any) -> Any:
    """A server that wants a key."""
    with serving(settings.model_copy(update={"api_key": SecretStr(KEY)})) as client:
        yield client


def paths(app: Any) -> list[tuple[str, str]]:
    found = app.openapi()["paths"]
    return [(method.upper(), path) for path, operations in found.items() for method in operations]


# --- the key --------------------------------------------------------------------------------------------------


def test_every_route_but_healthz_wants_the_key(locked: Any) -> None:
    open_routes = []
    for method, path in [*paths(locked.app), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/nothing")]:
        answer = locked.request(method, re.sub(r"{\w+}", "x", path))
        if answer.status_code != 401:
            open_routes.append(path)
            continue
        assert answer.headers["www-authenticate"].startswith("Bearer")
        if method != "HEAD":
            assert answer.json()["code"] == "unauthorized"
    assert open_routes == ["/healthz"]


def test_no_way_of_writing_an_address_leads_past_the_key(locked: Any) -> None:
    pages = re.findall(r'(?:src|href)="([^"]+)"', locked.get("/").text)
    version = pages[0].split("/")[1]
    for path in [
        "//v1/jobs", "/./v1/jobs", "/web/../v1/jobs", f"/web/{version}/../../v1/jobs", "/web/%2e%2e/v1/jobs",
        "/web//v1/jobs", "/web/..%2fv1/jobs", "/healthz/../v1/jobs", "/healthz/v1/jobs", "/healthz;/v1/jobs",
        "/V1/jobs", "/v1/jobs/", "/v1/jobs;web", "/v1/jobs?/web/", "/v1/jobs#/web/", "/docs", "/docs/",
        "/docs/start.js", "/docs/assets/swagger-ui.css", "/openapi.json", "/web", "/web/", f"/web/{version}",
        "/web/x/app.js", "http://127.0.0.1/v1/jobs", "/\\web\\../v1/jobs", "/%2e/v1/jobs", "/v1%2fjobs", "/%76%31/jobs",
    ]:  # fmt: skip
        for method in ("GET", "HEAD", "POST", "OPTIONS", "get", "PROPFIND"):
            scope = {"type": "http", "method": method, "path": unquote(path).partition("?")[0]}
            status = locked.portal.call(partial(status_of, locked.app, scope))
            assert status in (400, 401, 404, 405), (method, path)


async def status_of(app: Any, scope: dict[str, Any]) -> int:
    """Of a request whose path is sent as it is: clients tidy it up."""
    sent: list[Any] = []
    whole = {
        "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "query_string": b"", "root_path": "",
        "headers": [(b"host", b"127.0.0.1")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000), **scope,
    }  # fmt: skip

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(whole | {"raw_path": whole["path"].encode()}, receive, send)
    return int(sent[0]["status"])


def test_a_prefix_that_a_proxy_leaves_is_taken_off(settings: Any, serving: Any) -> None:
    changes = {"api_key": SecretStr(KEY), "root_path": "/fgd"}
    with serving(settings.model_copy(update=changes)) as client:
        key = {"Authorization": f"Bearer {KEY}"}
        for prefix in ("", "/fgd"):  # another proxy takes it off
            assert client.get(f"{prefix}/healthz").status_code == 200
            assert client.get(f"{prefix}/v1/jobs").status_code == 401
            assert client.get(f"{prefix}/v1/jobs", headers=key).json()["items"] == []
        page = client.get("/fgd", follow_redirects=True)
        assert page.url.path == "/fgd/"
        assert client.get("/fgd/" + re.findall(r'src="([^"]+)"', page.text)[0]).status_code == 200
        assert client.get("/fgdv1/jobs", headers=key).status_code == 404


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # which is asked nothing
@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer {KEY}", 200),
        ("", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        (f"Bearer {KEY[:-1]}", 401),
        (f"Bearer {KEY}x", 401),
        (f"Basic {KEY}", 401),
        (KEY, 401),
        (b"Bearer \xff\xfe", 401),
    ],
)
def test_only_the_whole_key_as_bearer_opens(locked: Any, header: Any, status: int) -> None:
    assert locked.get("/v1/jobs", headers={"Authorization": header}).status_code == status


def test_a_key_in_the_address_is_refused_even_beside_a_right_one(locked: Any) -> None:
    answer = locked.get(f"/v1/jobs?api_key={KEY}", headers={"Authorization": f"Bearer {KEY}"})

    assert answer.status_code == 401
    assert answer.json()["code"] == "key_in_query"
    assert KEY not in answer.text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "example.org", ""])
def test_a_server_others_reach_does_not_start_without_a_key(settings: Any, host: str) -> None:
    with pytest.raises(UnsafeBind, match="FGD_API_KEY"):
        create_app(settings.model_copy(update={"host": host}))

    create_app(settings.model_copy(update={"host": host, "api_key": SecretStr(KEY)}))


# --- the browser's tricks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # which is asked nothing
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8000", "", "localhost@evil"])
def test_a_name_rebound_to_loopback_is_refused(client: Any, host: str) -> None:
    answer = client.get("/v1/jobs", headers={"Host": host})

    assert answer.status_code == 400
    assert answer.json()["code"] == "bad_host"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # which is asked nothing
@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "[::1]"])
def test_loopback_s_own_names_are_answered(client: Any, host: str) -> None:
    assert client.get("/v1/jobs", headers={"Host": host}).status_code == 200


def test_no_page_of_another_origin_may_read_or_change_anything(client: Any) -> None:
    origin = {"Origin": "https://evil.example"}
    preflight = client.options("/v1/jobs", headers={**origin, "Access-Control-Request-Method": "POST"})
    post = client.post("/v1/jobs", json={}, headers={"Sec-Fetch-Site": "cross-site"})

    assert preflight.status_code == 405
    assert post.status_code == 403
    assert not [name for name in client.get("/v1/jobs", headers=origin).headers if "access-control" in name]


OURS = "http://127.0.0.1:8000"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # which is asked nothing
@pytest.mark.parametrize(
    ("headers", "method", "status"),
    [
        ({}, "POST", 404),  # a program
        ({"Sec-Fetch-Site": "same-origin", "Origin": OURS}, "POST", 404),
        ({"Origin": OURS}, "POST", 404),
        ({"Origin": "http://127.0.0.1:3000"}, "POST", 403),
        ({"Origin": "https://evil.example"}, "POST", 403),
        ({"Origin": "null"}, "POST", 403),
        ({"Origin": ""}, "POST", 403),
        ({"Sec-Fetch-Site": "none", "Origin": "http://localhost:3000"}, "POST", 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:3000"}, "POST", 403),
        ({"Sec-Fetch-Site": "cross-site"}, "DELETE", 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, "POST", 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, "GET", 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, "GET", 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, "GET", 404),
    ],
)
def test_what_a_browser_asks_for_another_origin_is_refused(
    client: Any, headers: dict[str, str], method: str, status: int
) -> None:
    path = "/v1/jobs/job_1/cancel" if method == "POST" else "/v1/jobs/job_1"
    answer = client.request(method, path, headers=headers)
    assert answer.status_code == status, answer.text
    assert status == 404 or answer.json()["code"] == "cross_site"


def test_the_origin_of_a_server_behind_tls_is_its_host_header(settings: Any, serving: Any) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Host": "fgd.example", "Origin": "https://fgd.example"}
    with serving(settings.model_copy(update={"host": "0.0.0.0", "api_key": SecretStr(KEY)})) as client:
        assert client.post("/v1/jobs/job_1/cancel", headers=headers).status_code == 404
        assert client.post("/v1/jobs/job_1/cancel", headers={**headers, "Host": "other.example"}).status_code == 403


def test_no_other_page_may_embed_an_answer_whatever_it_is(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [client.get(path) for path in ("/healthz", "/docs", "/docs/assets/swagger-ui.css", "/v1/nothing")]
    answers.append(client.get("/v1/jobs", headers={"Host": "evil.example"}))
    monkeypatch.setattr("api.core.rows.lookup.columns_of", None)
    answers.append(client.get(f"/v1/jobs/job_{0:032}"))
    assert [answer.status_code for answer in answers] == [200, 200, 200, 404, 400, 500]
    for answer in answers:
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_there_is_no_way_in_but_http(client: Any) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("ws://127.0.0.1:8000/v1/jobs"):
        pass


# --- what it binds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # which is asked nothing
@pytest.mark.parametrize(("address", "status"), [("127.0.0.1", 200), ("::1", 200), ("10.0.0.5", 403), ("fe80::1", 403)])
def test_without_a_key_a_server_answers_only_where_loopback_leads(settings: Any, address: str, status: int) -> None:
    """Whatever FGD_HOST says: `uvicorn --host` says otherwise."""
    url = f"http://[{address}]:8000" if ":" in address else f"http://{address}:8000"
    with TestClient(create_app(settings), base_url=url) as client:
        answer = client.get("/healthz", headers={"Host": "127.0.0.1:8000"})
        assert answer.status_code == status
        assert status == 200 or answer.json()["code"] == "unsafe_bind"
    with TestClient(create_app(settings.model_copy(update={"api_key": SecretStr(KEY)})), base_url=url) as client:
        host = "127.0.0.1:8000"
        assert client.get("/v1/jobs", headers={"Authorization": f"Bearer {KEY}", "Host": host}).status_code == 200


def test_what_a_process_really_binds_is_looked_at(settings: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)):
        assert "127.0.0.1" in listening()
        assert "0.0.0.0" not in listening()
        with socket.create_server(("0.0.0.0", 0)):
            assert "0.0.0.0" in listening()
    assert unsafe_of(settings, ["127.0.0.1", "::1"]) is None
    assert "0.0.0.0" in str(unsafe_of(settings, ["127.0.0.1", "0.0.0.0"]))


# --- problems -------------------------------------------------------------------------------------------------


def test_unknown_paths_and_methods_are_problems_too(client: Any) -> None:
    missing, wrong = client.get("/v1/nothing"), client.put("/v1/jobs", json={})

    assert (missing.status_code, missing.json()["code"]) == (404, "route_not_found")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"]
    for answer in (missing, wrong):
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        assert answer.json()["type"].startswith("urn:fgd:problem:")


def test_an_unexpected_error_shows_no_traceback_but_an_id_that_the_log_has(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("api.core.rows.lookup.columns_of", explode)

    answer = client.get(f"/v1/jobs/{new_id('job')}")

    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert answer.json()["request_id"].startswith("req_")


def test_a_database_that_stays_locked_is_a_retryable_503(
    serving: Any, settings: Any, given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.core.rows.db.BUSY_MS", 50)
    id = given.job()
    with serving(settings) as client, db.transaction(given.engine) as s:
        s.get_one(Job, id, with_for_update=True)
        answer = client.post(f"/v1/jobs/{id}/cancel")

    assert answer.status_code == 503
    assert answer.json()["retryable"] is True


def test_what_changes_something_or_goes_wrong_is_logged_in_a_line_and_a_poll_is_not(
    client: Any, given: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "api.http.middleware"):
        assert client.get("/v1/jobs").status_code == 200
        assert caplog.records == []
        made = client.post("/v1/jobs?secret=1", json=given.body())
        client.get("/v1/jobs/no%0Asuch")

    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("POST /v1/jobs 201, ")
    assert lines[0].endswith(made.headers["x-request-id"])
    assert lines[1].startswith("GET /v1/jobs/no%0Asuch 404, ")
    assert "secret" not in lines[0]


# --- the schema -----------------------------------------------------------------------------------------------


def test_the_server_does_not_start_on_a_newer_database(settings: Any, engine: Any, serving: Any) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'from_the_future'")

    with pytest.raises(SchemaTooNew, match=r"newer version.*Upgrade this installation, or restore"), serving(settings):
        pass


def test_the_server_does_not_start_on_an_empty_database(settings: Any, serving: Any, empty_database: str) -> None:
    empty = settings.model_copy(update={"database_url": empty_database})

    with pytest.raises(SchemaOutOfDate, match="fgd serve"), serving(empty):
        pass


# --- what the server says of itself ---------------------------------------------------------------------------


def test_readyz_names_what_is_there(client: Any) -> None:
    answer = client.get("/readyz")

    assert answer.status_code == 200
    assert answer.json()["ready"] is True
    assert answer.json()["broker"]["ok"] is True


def test_a_dead_broker_degrades_readyz_and_delays_no_submit(serving: Any, settings: Any, given: Any) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with serving(settings.model_copy(update={"broker_url": url})) as client:
            ready = client.get("/readyz")
            submitted = client.post("/v1/jobs", json=given.body())

    assert ready.status_code == 200
    assert ready.json()["broker"]["ok"] is False
    assert submitted.status_code == 201


def test_readyz_fails_without_the_tables_or_a_writable_store(client: Any, given: Any) -> None:
    with given.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'from_the_future'")
    given.store.root.write_text("a file where the store should be")

    answer = client.get("/readyz")

    assert answer.status_code == 503
    assert (answer.json()["database"]["ok"], answer.json()["store"]["ok"]) == (False, False)


def test_healthz_and_version_answer(client: Any) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/version").json()["api"] == "v1"


def test_the_docs_page_asks_no_other_host_for_anything(client: Any) -> None:
    page = client.get("/docs")

    assert page.status_code == 200
    assert not re.search(r"(https?:)?//[a-z]", page.text)
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assets = re.findall(r'(?:src|href)="(docs/[^"]+)"', page.text)
    assert len(assets) == 3
    for asset in assets:
        assert client.get(f"/{asset}").status_code == 200


def test_the_document_shows_our_errors_and_only_ours(client: Any) -> None:
    document = client.get("/openapi.json").json()

    submit = document["paths"]["/v1/jobs"]["post"]["responses"]
    assert submit.keys() >= {"200", "201", "400", "409", "413", "415", "422", "500"}
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400 and status != "503":
                    assert list(answer["content"]) == ["application/problem+json"]
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert document["components"]["schemas"]["State"]["enum"][0] == "queued"


def test_every_reference_in_the_document_resolves(client: Any) -> None:
    text = client.get("/openapi.json").text
    schemas = client.get("/openapi.json").json()["components"]["schemas"]

    assert {name.split("/")[-1] for name in re.findall(r'"\$ref":"([^"]+)"', text)} <= schemas.keys()


def test_the_catalogue_tells_what_each_field_does_and_its_preset(client: Any) -> None:
    answer = client.get("/v1/catalogue")
    methods = {entry["kind"]: entry for entry in answer.json()["methods"]}

    assert "equation 8" in methods["fgd"]["json_schema"]["properties"]["alpha"]["description"]
    assert {"perplexity", "shares"} <= methods["fgd"]["json_schema"]["properties"].keys()
    assert "global term" in methods["fgd"]["json_schema"]["$defs"]["FGDShares"]["properties"]["global"]["description"]
    assert methods["fgd"]["presets"]["fcos"]["alpha"] == 1.6e-3
    assert [entry["kind"] for entry in answer.json()["detectors"]] == ["fcos", "retinanet", "faster_rcnn"]
    assert methods["fgd"]["presets"]["faster_rcnn"]["rho"] == 30.0
    assert (methods["pkd"]["golden"], methods["tadf"]["golden"]) == (True, False)
    assert methods["gid"]["source"].startswith("arXiv 2103.02340; daixinghome/Distill_GID_detectron2@")
    assert methods["crosskd"]["families"] == list(methods["crosskd"]["presets"]) == ["fcos", "retinanet"]
    assert methods["ld"]["needs"].endswith("both networks must offer anchors, distributions, logits")
    assert methods["ld"]["families"] == []
    assert {entry["kind"] for entry in answer.json()["optimizers"]} == {"adamw", "sgd"}
    assert {entry["kind"] for entry in answer.json()["formats"]} == {"auto", "coco", "voc", "yolo", "huggingface"}
    assert client.get("/v1/catalogue", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    assert catalogue()[0].model_dump(mode="json") == answer.json()


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("FGD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FGD_DATA_ROOTS", f"{tmp_path}/a:{tmp_path}/b")
    monkeypatch.setenv("FGD_TRAINER", '["python", "trainer.py"]')

    settings = Settings()

    assert settings.database_url == f"sqlite:///{tmp_path}/home/fgd.db"
    assert settings.blobs == tmp_path / "home" / "blobs"
    assert settings.data_roots == (tmp_path / "a", tmp_path / "b")
    assert settings.trainer == ("python", "trainer.py")


@pytest.mark.parametrize(
    "times",
    [
        {"lease_s": 10},
        {"kill_s": 20},
        {"freeze_s": 16},
        {"beat_s": 12},
        {"beat_s": 60, "freeze_s": 30, "kill_s": 16, "lease_s": 5},
    ],
)
def test_times_that_would_let_two_trainers_of_a_job_live_at_once_are_refused(times: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="each must be less than the next") as caught:
        Settings(**times)
    for name in ("FGD_BEAT_S", "FGD_FREEZE_S", "FGD_KILL_S", "FGD_LEASE_S"):
        value = times.get(
            name.removeprefix("FGD_").lower(), Settings.model_fields[name.removeprefix("FGD_").lower()].default
        )
        assert f"{name}={value:g}" in str(caught.value)


def test_times_may_be_others_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BEAT": "0.1", "FREEZE": "0.2", "KILL": "0.3", "LEASE": "0.4"}.items():
        monkeypatch.setenv(f"FGD_{name}_S", value)
    assert Settings().lease_s == 0.4
    monkeypatch.setenv("FGD_LEASE_S", "inf")
    with pytest.raises(ValueError, match="finite"):
        Settings()


def test_a_short_key_is_refused_and_a_long_one_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="at least 32"):
        Settings(api_key=SecretStr("short"))

    assert KEY not in repr(Settings(api_key=SecretStr(KEY), database_url=f"postgresql://u:{KEY}@h/d"))
