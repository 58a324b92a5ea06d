"""Starts the service as a child of this process, on a free port, and ends it again. Knows no torch."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from fgd.client import Client
from fgd.errors import FGDError
from fgd.process import children


class ServiceDied(FGDError):
    """The service ended by itself, or never came up; the message holds the end of its log."""


class Service:
    """`fgd serve` on a free port, as a child that ends with this process, however that ends."""

    START_S = 90.0
    STOP_S = 9.5
    """Then it is killed: Ctrl-C stops everything within ten seconds. `deploy.local` needs nine at most."""

    def __init__(self, home: Path, data_roots: Sequence[Path]) -> None:
        self.log = home / "serve.log"
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        # Settings of another service in this shell must not reach this one.
        others = ("DATABASE_URL", "BROKER_URL", "BLOBS", "API_KEY", "DATA_ROOTS", "SLOTS", "MLFLOW_TRACKING_URI")
        foreign = {f"FGD_{name}" for name in others}
        foreign |= {name for name in os.environ if name.startswith("FGD_STORE_")}
        self._lifeline, self._held = os.pipe()
        command = children.command("deploy", "serve", "--parent-fd", str(self._lifeline))
        command += ["--host=127.0.0.1", f"--port={port}", f"--home={home}"]
        command += [f"--data-root={root}" for root in data_roots]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(self._lifeline,),
                env={name: value for name, value in children.environment().items() if name not in foreign}
                | {"PYTHONUNBUFFERED": "1"},
                # Ctrl-C on a terminal must reach this process only: it ends the service in order.
                start_new_session=True,
            )

    def wait_ready(self, client: Client) -> None:
        deadline = time.monotonic() + self.START_S
        while not client.ready():
            self.check()
            if time.monotonic() > deadline:
                raise ServiceDied(f"the service did not start within {self.START_S:.0f} s:\n{self._tail()}")
            time.sleep(0.2)

    def check(self) -> None:
        """Raise ServiceDied if the service has ended by itself."""
        if self._process.poll() is not None:
            raise ServiceDied(f"the service ended (exit code {self._process.returncode}):\n{self._tail()}")

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(self.STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._held)
        os.close(self._lifeline)

    def _tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-15:]
        return "\n".join([*(f"  {line}" for line in lines), f"full log: {self.log}"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def service_at(url: str | None, home: Path, data_roots: Sequence[Path]) -> Iterator[tuple[str, Service | None]]:
    """The address of the service: the given one, or an embedded one that lives as long as the block."""
    if url is not None:
        yield url, None
        return
    service = Service(home, data_roots)
    try:
        yield service.url, service
    finally:
        with deaf():
            service.stop()


ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def deaf() -> Iterator[None]:
    """Impatient further Ctrl-Cs must not leave half a service behind."""
    with handling(signal.SIG_IGN):
        yield


@contextmanager
def handling(handler: Callable[[int, FrameType | None], Any] | int) -> Iterator[None]:
    """Answer every signal that ends a program with `handler`. Main thread only."""
    before = {number: signal.signal(number, handler) for number in ENDINGS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
