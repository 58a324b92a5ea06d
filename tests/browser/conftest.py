"""A real server and a real Chromium. The server runs in a thread on rows that a test seeds; nothing is trained.

Chromium is Debian's, Playwright's own, or the one that FGD_CHROMIUM names; `make test-browser` brings one. Where there
is none these tests are skipped, and say so. They run by themselves: Playwright keeps an event loop in the main thread,
beside which other tests cannot begin one.
"""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from pydantic import SecretStr

from api.core.rows import db
from api.core.settings import Settings
from api.core.store.open import open_store
from api.main import create_app
from tests.browser.bring import there
from tests.browser.seeds import Seeds

HOST = "service.test"
"""Leads here as well: what a browser allows on localhost, it does not allow there over plain http."""
PATIENCE_MS = 30_000
"""What a busy machine needs; on an idle one everything is there in a second."""
FLAGS = ("--no-sandbox", f"--host-resolver-rules=MAP {HOST} 127.0.0.1")
KEY = "k" * 20 + "0123456789ab"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One browser for all tests."""
    if find_spec("playwright") is None:
        pytest.skip("no browser tests: Playwright is not installed (make test-browser)")
    from playwright.sync_api import Error, expect, sync_playwright

    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=there(), args=[*FLAGS, "--disable-gpu"])
        except Error as error:
            pytest.skip(f"no browser tests: no Chromium (make test-browser brings one): {str(error).splitlines()[0]}")
        yield browser
        browser.close()


class Server:
    """The application on a port of its own; it can be stopped and started again there."""

    def __init__(self, settings: Settings, root_path: str = "") -> None:
        self.settings, self.root_path = settings, root_path
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.socket.close()
        self.engine = db.make_engine(settings.database_url)
        self.seeds = Seeds(self.engine, open_store(settings))
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        self._app = create_app(self.settings)
        config = uvicorn.Config(
            self._app, host="127.0.0.1", port=self.port, log_level="error", root_path=self.root_path,
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._app.state.service.changes.end_waits()  # streams end, as they do at a signal
        self._thread.join(timeout=20)

    def close(self) -> None:
        self.stop()
        self.engine.dispose()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty database file, to be copied."""
    file = tmp_path_factory.mktemp("migrated") / "fgd.db"
    db.upgrade(f"sqlite:///{file}")
    return file


@pytest.fixture
def serving(migrated: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server: `serving(key=True)` wants KEY, `serving(root_path="/fgd")` lives below a prefix that a
    proxy takes off, `serving(left="/fgd")` below one that it leaves."""
    started: list[Server] = []

    def serve(key: bool = False, root_path: str = "", left: str = "", **changes: Any) -> Server:
        home = tmp_path / f"home{len(started)}"
        home.mkdir()
        shutil.copyfile(migrated, home / "fgd.db")
        times = {"sweep_s": 3600.0, "changes_s": 0.1}
        settings = Settings(home=home, root_path=left, api_key=SecretStr(KEY) if key else None, **times | changes)
        started.append(Server(settings, root_path))
        return started[-1]

    yield serve
    for server in started:
        server.close()


@pytest.fixture
def server(serving: Callable[..., Server]) -> Server:
    return serving()


@pytest.fixture
def seeds(server: Server) -> Seeds:
    return server.seeds


class Tab:
    """A page of the browser. What it complains of on its console fails the test, unless a test expects it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.expected: tuple[str, ...] = ()
        page.on(
            "console", lambda message: message.type in ("error", "warning") and self.complaints.append(message.text)
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def expect(self, *parts: str) -> None:
        """Complaints with one of these texts are what the test is about."""
        self.expected += parts

    def check(self) -> None:
        left = [each for each in self.complaints if not any(part in each for part in self.expected)]
        assert left == []


@pytest.fixture
def tabs(chromium: Any, serving: Callable[..., Server]) -> Iterator[Callable[..., Tab]]:
    """Opens tabs, each in a browser of its own: `tabs(color_scheme="dark")`, `tabs(viewport=...)`. They are closed
    before the servers are."""
    opened: list[tuple[Any, Tab]] = []

    def open_tab(**options: Any) -> Tab:
        context = chromium.new_context(
            **{"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce", **options}
        )
        context.set_default_timeout(PATIENCE_MS)
        opened.append((context, Tab(context.new_page())))
        return opened[-1][1]

    yield open_tab
    for context, _ in opened:
        context.close()
    for _, tab in opened:
        tab.check()


@pytest.fixture
def tab(tabs: Callable[..., Tab]) -> Tab:
    return tabs()


@pytest.fixture
def page(tab: Tab) -> Any:
    return tab.page
