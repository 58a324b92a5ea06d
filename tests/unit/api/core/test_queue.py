from __future__ import annotations

import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from kombu import Connection

from api.core import queue


def test_a_ring_carries_the_id_and_nothing_else() -> None:
    app = queue.make_app("memory://")

    assert queue.ring(app, "job_1")

    with Connection("memory://", transport_options={"global_keyprefix": "fgd."}) as connection:
        message = connection.SimpleQueue(queue.QUEUE).get(timeout=1)
    assert message.headers["task"] == queue.WAKE
    assert message.payload[0:2] == [[], {"id": "job_1"}]
    assert message.content_type == "application/json"


def test_many_rings_take_one_connection_and_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    app, connections = queue.make_app("memory://"), []
    assert queue.ring(app, "job_0")  # Celery makes itself ready once
    connect = app.connection_for_write
    monkeypatch.setattr(app, "connection_for_write", lambda **more: connections.append(1) or connect(**more))

    assert queue.ring_all(app, ["job_1", "job_2"])

    assert len(connections) == 1
    with Connection("memory://", transport_options={"global_keyprefix": "fgd."}) as connection:
        bells = connection.SimpleQueue(queue.QUEUE)
        messages = [bells.get(timeout=1) for _ in range(3)][1:]
    assert [message.payload[1] for message in messages] == [{"id": "job_1"}, {"id": "job_2"}]
    for message in messages:
        expires = datetime.fromisoformat(message.headers["expires"])
        assert 0 < (expires - datetime.now(UTC)).total_seconds() <= queue.EXPIRES_S


def test_nobody_to_ring_is_no_error() -> None:
    assert queue.ring(None, "job_1") is False
    assert queue.ring_all(queue.make_app("redis+socket:///no/such/socket"), []) is True


def test_a_dead_broker_costs_about_a_second() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for url in (
            "redis://127.0.0.1:1/0",
            "redis+socket:///no/such/socket",
            f"redis://127.0.0.1:{silent.getsockname()[1]}/0",
        ):
            start = time.monotonic()
            assert queue.ring(queue.make_app(url), "job_1") is False
            assert time.monotonic() - start < 10
            assert queue.reachable(queue.make_app(url)) is False


def test_a_broker_that_is_up_is_reachable() -> None:
    assert queue.reachable(queue.make_app("memory://"))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("task_acks_late", False),
        ("accept_content", ["json"]),
        ("task_ignore_result", True),
        ("result_backend", None),
        ("worker_prefetch_multiplier", 1),
        ("worker_disable_prefetch", True),
        ("worker_cancel_long_running_tasks_on_connection_loss", False),
        ("broker_connection_max_retries", None),
        ("worker_hijack_root_logger", False),
    ],
)
def test_the_queue_is_set_so_that_long_tasks_are_neither_lost_nor_doubled(setting: str, value: object) -> None:
    assert queue.make_app(None).conf[setting] == value


def test_the_server_and_the_core_load_no_torch_and_open_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, api.main, api.core.jobs.requests, api.core.submission, api.core.queue\n"
        "assert not {'torch', 'torchvision'} & set(sys.modules), 'heavy'\n"
        "import os; assert not os.listdir('.')"
    )

    root = Path(queue.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True
    )

    assert done.returncode == 0, done.stderr.decode()
