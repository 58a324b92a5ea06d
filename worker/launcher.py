"""One trainer's process group: start, event lines in, signals out, nothing left behind.

Knows processes, pipes and event lines. Knows nothing of rows, Celery or torch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import psutil

from fgd.events import MAX_LINE, Event, Note, from_line
from fgd.process import children, failpoints
from fgd.process.finish_file import ask_to_finish
from fgd.process.lifeline import DEADLINE, Deadline
from worker.memory import give_way

logger = logging.getLogger(__name__)

MARK = "FGD_RUN"
"""Environment variable that every process of a run inherits, also those that leave its process group."""
MAX_LOG = 50 * 2**20
"""Bytes of a run's log that are kept; the rest is read and dropped, for a full pipe would stop the trainer."""
MAX_TAIL = 64 * 2**10
MAX_COMPLAINTS = 100
NOT_UNDERSTOOD = Note(
    code="events_not_understood",
    message="the trainer wrote lines that are not events; they are only in the job's log",
    level="warning",
)
MAX_WAITING = 10_000
"""Events not yet taken; then the pipe fills and the trainer waits."""
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
"""All that a trainer sees of our environment, with the next: no database, broker, store or key."""
FOLDERS_PASSED_ON = ("TORCH_HOME", "XDG_CACHE_HOME")
"""Torch hub's cache of pretrained weights. A trainer runs in another folder than we, so they are made absolute."""
MAX_BATCH = 500
LAST_WORDS_S = 2.0
"""After its exit we wait so long for the end of its event pipe."""
GIVES_WAY = 500
"""Of 1000: where the host's memory ends, the kernel is to kill a trainer, and not the worker or the database."""
DEATH_S = 10.0
"""A SIGKILLed process that is still there after this hangs in the kernel."""


def scrubbed_env(
    mark: str, threads: int, gpu: str | None, weights: Path | None = None, teachers: Path | None = None
) -> dict[str, str]:
    """The whole environment of a trainer. gpu: index or UUID, several by commas; None hides every GPU. weights: the
    folder of pretrained ones. teachers: where it remembers what it found out about them."""
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    kept |= {name: os.path.abspath(os.environ[name]) for name in FOLDERS_PASSED_ON if os.environ.get(name)}
    kept |= {"FGD_WEIGHTS_DIR": os.path.abspath(weights)} if weights is not None else {}
    kept |= {"FGD_TEACHER_CACHE": os.path.abspath(teachers)} if teachers is not None else {}
    return (
        kept
        | failpoints.environment()
        | {
            MARK: mark,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "CUDA_VISIBLE_DEVICES": gpu or "",
            "PYTHONPATH": children.our_folder(),  # the same code as ours, from any cwd
            "PYTHONSAFEPATH": "1",  # the folder that it runs in holds no code
            "PYTHONUNBUFFERED": "1",
        }
    )


@dataclass(frozen=True)
class RunFile:
    """What a worker that starts after ours died must know to end our trainer and nothing else."""

    boot_id: str
    pid: int
    created: float
    mark: str
    supervisor_pid: int
    supervisor_created: float

    def ours_is_alive(self) -> bool:
        return _is_process(self.supervisor_pid, self.supervisor_created)


class Trainer:
    """A running group. Start it in a thread that outlives it: PDEATHSIG follows the thread.

    `read` is for one thread; the signals may come from any, at any time.
    """

    def __init__(
        self,
        argv: Sequence[str],
        folder: Path,
        run_file: Path,
        *,
        threads: int = 1,
        gpu: str | None = None,
        until: float = math.inf,
        weights: Path | None = None,
        teachers: Path | None = None,
    ) -> None:
        """Run `argv --events-fd N --parent-fd M` in `folder`, its --out is `folder`/out; stderr and stdout are the log.

        until: it ends itself when time.monotonic() is past this, unless `allow` has put it off.
        """
        self._out = folder / "out"
        self.mark = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._log = _Log()
        self._events: queue.Queue[Event | None] = queue.Queue(MAX_WAITING)
        self._events_ended = False
        self._exited_at: float | None = None
        self._closed = threading.Event()
        self._run_file = run_file
        self._deadline = Deadline(folder / "deadline", until)
        events_in, events_out = os.pipe()
        parent_in, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*argv, "--events-fd", str(events_out), "--parent-fd", str(parent_in)],
                cwd=folder,
                env=scrubbed_env(self.mark, threads, gpu, weights, teachers) | {DEADLINE: str(folder / "deadline")},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(events_out, parent_in),
                start_new_session=True,
            )
        except OSError:
            os.close(events_in)
            os.close(self._lifeline)
            self._deadline.close()
            raise
        finally:
            os.close(events_out)
            os.close(parent_in)
        self.pid = self._process.pid
        assert self._process.stdout is not None
        self._readers = [
            threading.Thread(target=self._read_events, args=(os.fdopen(events_in, "rb"),), daemon=True),
            threading.Thread(target=self._read_log, args=(self._process.stdout,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        try:
            self._write_run_file()
            self._forbid_cores()
            give_way(GIVES_WAY, self.pid)
        except OSError:  # a full disk
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # --- what it says ---

    def read(self, wait_s: float) -> tuple[list[Event], bytes]:
        """Events and log since the last call, and those of the next `wait_s`; returns at its end or at MAX_BATCH."""
        events: list[Event] = []
        until = time.monotonic() + wait_s
        while len(events) < MAX_BATCH and not self.over() and (left := until - time.monotonic()) > 0:
            if self._events_ended:
                time.sleep(min(left, 0.01))  # its pipe is closed; it is about to exit, or lives on
                continue
            with contextlib.suppress(queue.Empty):
                event = self._events.get(timeout=min(left, 0.2))
                self._events_ended = event is None
                events += [event] if event is not None else []
        return events, self._log.take()

    def tail(self) -> str:
        """The last of the log, for finding out why it ended."""
        return self._log.tail.decode(errors="replace")

    def over(self) -> bool:
        """It ended, and everything it said has been read (or someone who left its group holds the pipe open)."""
        if self.returncode() is None:
            return False
        self._exited_at = self._exited_at or time.monotonic()
        return self._events_ended or time.monotonic() - self._exited_at > LAST_WORDS_S

    def returncode(self) -> int | None:
        """None while it runs; negative: the signal that ended it. What is left of the group goes with its leader."""
        with self._lock:
            if self._process.returncode is None and _has_exited(self.pid):
                _kill_group(self.pid)  # before the leader is reaped: until then its number can be nobody else's
                self._process.wait()
            return self._process.returncode

    # --- what it is told ---

    def terminate(self) -> None:
        """Ask it to save and end. Only the leader hears it: its data loaders must live while it saves."""
        self._signal(os.kill, signal.SIGTERM)

    def finish_early(self) -> bool:
        """Ask it to end training and export what it has. False: its folder cannot be written to just now."""
        try:
            ask_to_finish(self._out)
        except OSError as error:
            logger.warning("the trainer could not be asked to finish: %s", error)
            return False
        return True

    def dump_stacks(self) -> None:
        """Ask for the stacks of its threads, which `fgd.train` writes into the log; any other program may end of it."""
        self._signal(os.kill, signal.SIGUSR1)

    def allow(self, until: float) -> None:
        """It may live until then: our lease was prolonged. If we are stopped, it ends by itself."""
        with self._lock:
            if not self._closed.is_set():
                self._deadline.put_off(until)

    def freeze(self) -> None:
        self._signal(os.killpg, signal.SIGSTOP)
        self._signal_those_outside(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_those_outside(signal.SIGCONT)
        self._signal(os.killpg, signal.SIGCONT)

    def kill(self) -> None:
        self._signal(os.killpg, signal.SIGKILL)

    def close(self) -> bool:
        """Kill what is left, everywhere, and forget it. False: something survived SIGKILL; the host needs a look."""
        self.kill()
        until = time.monotonic() + DEATH_S
        while self.returncode() is None and time.monotonic() < until:
            time.sleep(0.01)
        gone = kill_marked(self.mark) and self.returncode() is not None
        with self._lock:
            if not self._closed.is_set():
                self._deadline.close()
            self._closed.set()
        for reader in self._readers:
            reader.join(timeout=1.0)
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        if gone:
            self._run_file.unlink(missing_ok=True)
        return gone

    # --- inside ---

    def _signal(self, send: Callable[[int, int], None], number: signal.Signals) -> None:
        with self._lock:
            if self._process.returncode is None:  # not reaped: the number is still its own
                with contextlib.suppress(ProcessLookupError):
                    send(self.pid, number)

    def _signal_those_outside(self, number: signal.Signals) -> None:
        """To the processes of this run that lead groups of their own, as torchrun's ranks do."""
        for process in _marked(self.mark):
            with contextlib.suppress(psutil.Error, OSError):
                if os.getpgid(process.pid) != self.pid:
                    process.send_signal(number)

    def _write_run_file(self) -> None:
        run = RunFile(boot_id(), self.pid, _created(self.pid), self.mark, os.getpid(), _created(os.getpid()))
        self._run_file.parent.mkdir(parents=True, exist_ok=True)
        self._run_file.write_text(json.dumps(asdict(run)))

    def _forbid_cores(self) -> None:
        """A core holds users' data, and fills the disk."""
        if sys.platform == "linux":
            with contextlib.suppress(ProcessLookupError):  # it was quicker
                resource.prlimit(self.pid, resource.RLIMIT_CORE, (0, 0))

    def _read_events(self, stream: BinaryIO) -> None:
        complaints = 0
        with stream:
            for line in bounded_lines(stream):
                try:
                    self._put(from_line(line))
                except ValueError as error:
                    complaints += 1
                    if complaints == 1:
                        self._put(NOT_UNDERSTOOD)
                    if complaints <= MAX_COMPLAINTS:
                        self._log.add(f"[worker] not an event line: {line[:200]!r}: {str(error)[:200]}\n".encode())
        if complaints > MAX_COMPLAINTS:
            self._log.add(f"[worker] {complaints - MAX_COMPLAINTS} more lines were not event lines\n".encode())
        self._put(None)

    def _put(self, event: Event | None) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._events.put(event, timeout=1.0)
                return

    def _read_log(self, stream: BinaryIO) -> None:
        with stream:
            while chunk := os.read(stream.fileno(), 2**16):
                self._log.add(chunk)


class _Log:
    """Bytes in from one thread, out to another; the first MAX_LOG of them, and always the last few."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = bytearray()
        self._room = MAX_LOG
        self.tail = b""

    def add(self, chunk: bytes) -> None:
        with self._lock:
            self.tail = (self.tail + chunk)[-MAX_TAIL:]
            if len(chunk) < self._room:
                self._waiting += chunk
                self._room -= len(chunk)
            elif self._room:
                self._waiting += b"\n[worker] the log is longer than %d bytes; the rest is not kept\n" % MAX_LOG
                self._room = 0

    def take(self) -> bytes:
        with self._lock:
            taken = bytes(self._waiting)
            self._waiting.clear()
        return taken


def bounded_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines of a stream nobody vouches for; one longer than MAX_LINE comes cut, and is not an event then."""
    while line := stream.readline(MAX_LINE + 1):
        yield line
        while len(line) > MAX_LINE and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE + 1)


def kill_marked(mark: str, wait_s: float = DEATH_S) -> bool:
    """SIGKILL every process that inherited `mark`, wherever it went. False if one is still there after `wait_s`."""
    until = time.monotonic() + wait_s
    while marked := list(_marked(mark)):
        for process in marked:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def kill_stale(run_folder: Path) -> list[int]:
    """End the trainers of workers that died. Returns the process numbers of the groups that were still there."""
    killed = []
    for file in sorted(run_folder.glob("*.json")):
        try:
            run = RunFile(**json.loads(file.read_text()))
        except (ValueError, TypeError):
            file.unlink(missing_ok=True)  # torn while written: the pipe took care of that trainer
            continue
        if run.boot_id == boot_id():
            if run.ours_is_alive():
                continue
            if any(_marked(run.mark)) or _is_process(run.pid, run.created):
                killed.append(run.pid)
            if _is_process(run.pid, run.created):
                _kill_group(run.pid)
            kill_marked(run.mark)
        file.unlink(missing_ok=True)
    return killed


@cache
def boot_id() -> str:
    """The same for all processes since the machine started; process numbers mean nothing across it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(int(psutil.boot_time()))


def is_marked(mark: str) -> bool:
    """Whether a process that inherited `mark` is still there."""
    return any(True for _ in _marked(mark))


def _marked(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _is_process(pid: int, created: float) -> bool:
    try:
        return abs(_created(pid) - created) < 0.01 and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _created(pid: int) -> float:
    """When it started; on Linux in clock ticks since boot, which no change of the clock moves."""
    try:
        return float(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except FileNotFoundError:
        return psutil.Process(pid).create_time()


def _has_exited(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM where only zombies are left
        os.killpg(pid, signal.SIGKILL)
