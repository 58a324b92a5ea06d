"""The dashboard's files: who may read them, how they are kept, and that none makes markup or code of text."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import SecretStr

from api.http import web

KEY = "k" * 20 + "0123456789ab"
SOURCES = {path.relative_to(web.FILES).as_posix(): path.read_text() for path in web.FILES.rglob("*") if path.is_file()}
SCRIPTS = {name: text for name, text in SOURCES.items() if name.endswith(".js")}


def test_the_page_and_its_files_need_no_key_and_nothing_else_goes_without(settings: Any, serving: Any) -> None:
    with serving(settings.model_copy(update={"api_key": SecretStr(KEY)})) as client:
        page = client.get("/")
        addresses = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert {client.get(f"/{address}").status_code for address in addresses} == {200}
        assert len(addresses) >= 4
        for path in ("/webs", "/docs", "/v1/summaries", "/web", "/web%2f..%2fv1/jobs"):
            assert client.get(path).status_code in (401, 404), path
        assert client.get("/v1/summaries").status_code == 401


def test_the_page_lets_a_browser_run_only_its_own_files(client: Any) -> None:
    page = client.get("/")

    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert (policy["default-src"], policy["script-src"], policy["style-src"]) == ("'none'", "'self'", "'self'")
    assert (policy["frame-ancestors"], policy["base-uri"], policy["trusted-types"]) == ("'none'",) * 3
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<script(?![^>]+src=)|<style|\son\w+=|\sstyle=|https?:", page.text)


@pytest.mark.parametrize(
    ("headers", "sent"),
    [({}, True), ({"Host": "service.test"}, False), ({"Host": "service.test", "X-Forwarded-Proto": "https"}, True)],
)
def test_only_where_a_browser_heeds_it_the_page_asks_for_a_process_of_its_own(
    settings: Any, serving: Any, headers: dict[str, str], sent: bool
) -> None:
    with serving(settings.model_copy(update={"host": "0.0.0.0", "api_key": SecretStr(KEY)})) as client:
        assert ("cross-origin-opener-policy" in client.get("/", headers=headers).headers) == sent


def test_files_are_kept_for_good_and_the_page_is_asked_for_again(client: Any) -> None:
    page = client.get("/")
    file = client.get("/" + re.findall(r'src="([^"]+)"', page.text)[0])

    assert page.headers["cache-control"] == "no-cache"
    assert "immutable" in file.headers["cache-control"]
    for answer in (page, file):
        again = client.get(answer.request.url, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_files_are_compressed_for_who_takes_it(client: Any) -> None:
    small, plain = (client.get("/", headers={"Accept-Encoding": coding}) for coding in ("gzip, br", "identity"))

    assert small.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert small.content == plain.content  # the client unpacks it
    assert int(small.headers["content-length"]) < len(plain.content)


@pytest.mark.parametrize("name", ["app.js/", "../main.py", "%2e%2e/main.py", "index.html", "nothing.js", "pages"])
def test_there_are_no_other_files(client: Any, name: str) -> None:
    assert client.get(f"/web/{web.files().version}/{name}").status_code == 404
    assert client.get("/web/000000000000/app.js").status_code == 404


def test_the_page_names_its_files_relative_to_itself() -> None:
    page = web.files().page.plain.decode()

    for address in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert address.startswith(f"web/{web.files().version}/"), address
    for name in web.FIRST:
        assert f"{name}.js" in SCRIPTS, name


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_no_script_makes_markup_or_code_of_text(name: str) -> None:
    forbidden = (
        r"\.(inner|outer)HTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|setHTML"
        r"|\beval\(|new Function|setTimeout\(\s*[\"'`]|javascript:|setAttribute\(\s*[\"'](on|style)"
        r"|localStorage\.setItem\(KEY"
    )
    assert re.findall(forbidden, SCRIPTS[name]) == []


def imported(script: str) -> list[str]:
    """What its statements import from, and what it imports when it is needed."""
    statement = r"""^(?:import|export)\b[^;]*?\bfrom\s*["']([^"'\n]+)["']"""
    later = r"""\bimport\s*\(?\s*["']([^"'\n]+)["']"""
    return [target for pattern in (statement, later) for target in re.findall(pattern, script, flags=re.M)]


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_scripts_ask_no_other_host_and_import_only_what_is_there(name: str) -> None:
    folder = name.rpartition("/")[0]
    for target in imported(SCRIPTS[name]):
        assert target.startswith("."), target
        path = web.FILES / folder / target
        assert path.is_file(), f"{name} imports {target}"
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", SCRIPTS[name])


def test_every_file_is_used() -> None:
    text = "\n".join(SOURCES.values())
    for name in SCRIPTS.keys() - {"app.js"}:
        assert f"/{name.rpartition('/')[2]}" in text, name
