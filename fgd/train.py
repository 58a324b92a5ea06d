"""Train one student: `python -m fgd.train spec.json`.

The spec is a JobSpec whose references are paths, such as {"path": "cells"} for the data set.
On a terminal it draws progress; otherwise, and with --events-fd, it writes one JSON event a line (fgd/events.py).

Run the same command again to continue from the last checkpoint in the folder of --out. A folder with the training of
another spec is refused; --overwrite starts over.

A file named `finish` in the folder of --out ends the training after the current step; the best weights are the result.

Exit codes: 0 finished; 1 failed, 2 the command line or the spec is wrong: the last event says why; 75 stopped by
SIGTERM or SIGINT after saving a checkpoint: the same command continues from it.
"""

from __future__ import annotations

import argparse
import faulthandler
import fcntl
import json
import os
import signal
import sys
import traceback
from io import FileIO
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from fgd.errors import ArgumentError, CheckpointForeign, FGDError, SpecError, Stopped
from fgd.event_log import EventLog
from fgd.events import EXIT_STOPPED, RANK_EVENTS, RANK_EXIT, Emit, Event, Failed, Note, to_lines
from fgd.process import landlock, lifeline
from fgd.process.error_causes import code_of
from fgd.process.exit_codes import exit_code, message_of
from fgd.spec import JobSpec, teacher_pointer
from fgd.spec_fields import FromPath, TeacherFromPath
from fgd.stored import stored_spec
from fgd.text import documents
from fgd.text.pointers import faults_of_spec
from fgd.text.printable import printable


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    rank = os.environ.get("RANK") if RANK_EVENTS in os.environ else None
    if rank is not None:
        lifeline.die_with_parent(None)
    elif arguments.parent_fd is not None:
        landlock.keep_apart()  # first: it counts for threads that are started afterwards
        lifeline.die_with_parent(arguments.parent_fd)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    stop = StopFlag()
    log = EventLog(sys.stderr) if rank is None and arguments.events_fd is not None else None
    emit = events_to(arguments.events_fd, log) if rank is None else events_of_rank(int(rank))
    code = train(arguments, emit, stop, log, is_rank=rank is not None)
    if log is not None and code == EXIT_STOPPED:
        log.write("told to end, and ended; another attempt would continue from the last checkpoint")
    if rank == "0":  # torchrun tells no more than that somebody failed
        Path(os.environ[RANK_EXIT]).write_text(str(code))
    return code


def train(arguments: argparse.Namespace, emit: Emit, stop: StopFlag, log: EventLog | None, *, is_rank: bool) -> int:
    # Threads that spin while they wait starve everything else on the host, and each other: seen 3 times slower on two
    # shared cores. Must be set before torch loads its OpenMP.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    led = is_rank or arguments.parent_fd is not None  # by a process that knows where this one begins
    try:
        spec = read_spec(arguments.spec, staged=led)
        if log is not None:
            log.begin(spec)
        resume = arguments.resume if led else beginning(spec, arguments, emit)
        if spec.resources.devices > 1 and not is_rank:
            from fgd.engine.launch import launch

            begin = ["--resume", str(resume)] if resume else []
            begin += [f"--dataset-name={arguments.dataset_name}"] if arguments.dataset_name else []
            argv = [str(arguments.spec), "--out", str(arguments.out), *begin]
            return launch(argv, spec.resources.devices, emit, stop)
        from fgd.engine.device import keep_freed_memory
        from fgd.engine.loop import run  # torch takes seconds; a bad spec should be told at once
        from fgd.export.latency import measure_budget

        keep_freed_memory()
        run(
            spec,
            arguments.out,
            resume=resume,
            emit=emit,
            stop=stop,
            measure=measure_budget,
            dataset_name=arguments.dataset_name,
        )
    except Stopped:
        return EXIT_STOPPED
    except CheckpointForeign as error:
        return report(error if led else ArgumentError(f"{error}: name another --out, or give --overwrite"), emit)
    except Exception as error:
        return report(error, emit)
    return 0


def beginning(spec: JobSpec, arguments: argparse.Namespace, emit: Emit) -> Path | None:
    """The checkpoint that a training started by hand goes on from. Raises SpecError,
    ArgumentError."""
    from fgd.engine.beginning import last_checkpoint, remember

    out, resume = arguments.out, arguments.resume
    if resume is not None and not resume.is_file():
        raise ArgumentError(f"--resume: {resume}: no such checkpoint")
    if resume is None and not arguments.overwrite:
        resume = last_checkpoint(spec, out, emit)
    try:
        remember(spec, out)
    except OSError as error:
        raise ArgumentError(f"--out: {message_of(error)}") from error
    return Path(resume) if resume is not None else None


def events_of_rank(rank: int) -> Emit:
    """The first one speaks. Of the others only what the first cannot know: an image that it never read, an end."""
    stream = FileIO(os.environ[RANK_EVENTS], "wb")  # for as long as the process lives

    def emit(event: Event) -> None:
        if rank == 0 or isinstance(event, Failed) or (isinstance(event, Note) and event.code == "image_undecodable"):
            fcntl.flock(stream, fcntl.LOCK_EX)  # what is longer than a pipe's page would be mixed with another rank's
            write_all(stream, to_lines(event))
            fcntl.flock(stream, fcntl.LOCK_UN)

    return emit


def write_all(stream: FileIO, data: bytes) -> None:
    """A signal may cut a write to a pipe short."""
    while data:
        data = data[stream.write(data) :]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fgd.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spec", type=Path, help="a JobSpec, YAML or JSON, whose references are paths")
    parser.add_argument(
        "--out", type=Path, help="folder for checkpoints/ and result/; default: runs/<name of the spec>"
    )
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--resume", type=Path, help="checkpoint to continue from; default: the last one in --out")
    begin.add_argument("--overwrite", action="store_true", help="start over, and delete what is in --out")
    parser.add_argument("--dataset-name", help="what the model card calls the data set; default: its folder's name")
    parser.add_argument("--events-fd", type=int, help="file descriptor for event lines")
    parser.add_argument("--parent-fd", type=int, help="pipe that closes when the parent is gone; the process then ends")
    arguments = parser.parse_args(argv)
    arguments.out = arguments.out or Path("runs") / arguments.spec.stem
    return arguments


def read_spec(path: Path, *, staged: bool = False) -> JobSpec:
    """staged: a worker wrote it, which may be of an earlier version than this process. Raises SpecError."""
    try:
        body = documents.parse(path.read_bytes(), str(path))
        spec = stored_spec(body) if staged else JobSpec.model_validate_json(json.dumps(body))
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}") from error
    except documents.Unreadable as error:
        raise SpecError(str(error)) from error
    except ValidationError as error:
        told = (f"{fault.pointer or 'the spec'}: {fault.detail}" for fault in faults_of_spec(error.errors(), body))
        raise SpecError(f"{path}: " + "; ".join(told)) from error
    for pointer, reference, kind in (
        *((teacher_pointer(name), ref, TeacherFromPath) for name, ref in spec.teacher_refs().items()),
        ("/dataset", spec.dataset, FromPath),
        ("/student/inherit", spec.student.inherit, FromPath | None),
        ("/student/weights", spec.student.weights, FromPath | str),
    ):
        if not isinstance(reference, kind):
            raise SpecError('the library knows only {"path": folder}; ids belong to the service', pointer)
        if isinstance(reference, FromPath) and not staged and not Path(reference.path).exists():
            raise SpecError(f"{path}: {reference.path}: no such folder", f"{pointer}/path")
    return spec


def report(error: Exception, emit: Emit) -> int:
    if isinstance(error, FGDError):
        emit(Failed(code=error.code, message=str(error), data=error.data))
        print(printable(f"{error.code}: {error}", keep="\n"), file=sys.stderr)
        return exit_code(error)
    traceback.print_exc()
    emit(Failed(code=code_of(error), message=f"{type(error).__name__}: {error}"[:4000]))
    return 1


class StopFlag:
    """Set by SIGTERM or SIGINT; the loop asks between steps. A second SIGINT stops at once."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self.ask)
        signal.signal(signal.SIGINT, self.ask)

    def ask(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __call__(self) -> bool:
        return self.asked


def events_to(fd: int | None, log: EventLog | None) -> Emit:
    """On a terminal a bar; without one, lines on standard output; or lines into `fd`, and in words into the log."""
    if fd is None and sys.stdout.isatty():
        from fgd.engine.progress import draw

        return draw()
    stream = FileIO(sys.stdout.fileno() if fd is None else fd, "wb", closefd=False)

    def emit(event: Event) -> None:
        write_all(stream, to_lines(event))
        if log is not None:
            log.add(event)

    return emit


if __name__ == "__main__":
    sys.exit(main())
