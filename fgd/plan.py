"""What a job will cost, or which student fits a latency, measured before a training: `python -m fgd.plan FILE.json`.

The file is a JobSpec whose references are paths, as for `python -m fgd.train`. Prints one JSON object: the outline of
the job (levels, adapters, sizes, steps, warnings), and under "measured" what a few real steps and a small evaluation on
its data showed: parameters, peak memory, seconds per step, and from them hours and disk.

Or it names no student but "latency_budget_ms" (fgd.budget.FindStudent), or is left out for --budget and --dataset: then
students are built, exported and timed, and those that fit are printed, each with a spec that is ready to be trained.

Exit codes: 0; 1 it cannot be trained so, 2 the spec is wrong or a path leads nowhere: {"error": {"code", "message",
"pointer"}} says why.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fgd.budget import BudgetTable, FindStudent, is_question, milliseconds
from fgd.errors import ArgumentError, DatasetError, SpecError
from fgd.events import Emit, Event, Phase
from fgd.outline import outline
from fgd.process import answer
from fgd.spec import JobSpec
from fgd.spec_fields import FromPath, TeacherFromPath
from fgd.text import documents
from fgd.text.pointers import faults_of_spec
from fgd.train import events_to, read_spec


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    return answer.answered(arguments, lambda: answered(arguments), print_students if arguments.table else None)


def print_students(told: dict[str, Any]) -> bool:
    """As a table; False: it is none."""
    if "rows" not in told:
        return False
    from fgd.text.budget_table import print_table

    print_table(BudgetTable.model_validate(told))
    return True


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fgd.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "spec", type=Path, nargs="?", help="a JobSpec or FindStudent, YAML or JSON, whose references are paths"
    )
    parser.add_argument("--budget", metavar="MS", help="find students that need at most this for an image: 15ms")
    parser.add_argument("--dataset", help="with --budget: folder of the data set")
    parser.add_argument("--teacher", help="with --budget: folder of the teacher")
    parser.add_argument("--runtime", choices=("onnxruntime", "torch"), default="onnxruntime")
    parser.add_argument("--threads", type=int, help="of the student; default: all cores")
    parser.add_argument("--size", type=int, nargs=2, metavar=("MIN", "MAX"), help="only this input size")
    parser.add_argument("--seconds", type=float, default=FindStudent.model_fields["seconds"].default, help="to search")
    parser.add_argument("--table", action="store_true", help="print the students as a table in place of JSON")
    parser.add_argument("--out", type=Path, help="file for the answer; default: standard output")
    parser.add_argument("--events-fd", type=int, help="file descriptor for event lines: how far a search is")
    parser.add_argument("--parent-fd", type=int, help="pipe that closes when the parent is gone; the process then ends")
    arguments = parser.parse_args(argv)
    if (arguments.spec is None) == (arguments.budget is None):
        parser.error("give either a file or --budget")
    if arguments.budget is not None and arguments.dataset is None:
        parser.error("--budget needs --dataset, the folder of a data set")
    return arguments


def answered(arguments: argparse.Namespace) -> dict[str, Any]:
    """Raises FGDError and whatever a rehearsal raises."""
    staged = arguments.parent_fd is not None
    if arguments.spec is None:
        question: FindStudent | None = question_of(arguments)
    else:
        question = read_question(arguments.spec)
    if question is None:
        return plan(read_spec(arguments.spec, staged=staged))
    emit = events_to(arguments.events_fd, None) if arguments.events_fd is not None else log_phase
    return find_student(question, emit).model_dump(mode="json")


def question_of(arguments: argparse.Namespace) -> FindStudent:
    """What the options ask for. Raises ArgumentError."""
    try:
        body = {
            "dataset": {"path": arguments.dataset},
            "latency_budget_ms": milliseconds(arguments.budget),
            "runtime": arguments.runtime,
            "threads": arguments.threads,
            "seconds": arguments.seconds,
            "teacher": {"path": arguments.teacher} if arguments.teacher else None,
            "size": dict(zip(("min_size", "max_size"), arguments.size, strict=True)) if arguments.size else None,
        }
        return FindStudent.model_validate(body)
    except ValidationError as error:
        options = {"latency_budget_ms": "budget"}
        told = (
            f"--{options.get(fault.pointer.split('/')[1], fault.pointer.split('/')[1])}: {fault.detail}"
            for fault in faults_of_spec(error.errors(), body)
        )
        raise ArgumentError("; ".join(told)) from error


def read_question(file: Path) -> FindStudent | None:
    """None: the file asks for no student, and is a job's. Raises SpecError."""
    try:
        body = documents.parse(file.read_bytes(), str(file))
        if not is_question(body):
            return None
        question = FindStudent.model_validate(body)
    except (OSError, documents.Unreadable):
        return None  # `read_spec` says it
    except ValidationError as error:
        told = (f"{fault.pointer or 'the file'}: {fault.detail}" for fault in faults_of_spec(error.errors(), body))
        raise SpecError(f"{file}: " + "; ".join(told)) from error
    return question


def find_student(question: FindStudent, emit: Emit) -> BudgetTable:
    """Raises FGDError if there is nothing to choose from."""
    from fgd.data.formats import open_index
    from fgd.engine.weights import load_detector
    from fgd.export.find_student import find

    for pointer, reference, kind in (
        ("/dataset", question.dataset, FromPath),
        ("/teacher", question.teacher, TeacherFromPath | None),
    ):
        if not isinstance(reference, kind):
            raise SpecError('the library knows only {"path": folder}; ids belong to the service', pointer)
        if isinstance(reference, FromPath) and not Path(reference.path).exists():
            raise SpecError(f"{reference.path}: no such folder", pointer)
    assert isinstance(question.dataset, FromPath)
    index, root = open_index(Path(question.dataset.path))
    images = index.splits.get("train", ())
    if not images:
        raise DatasetError(f"{root}: no training images, whose sizes and boxes say what a student must do")
    teacher = load_detector(Path(question.teacher.path)) if isinstance(question.teacher, FromPath) else None
    return find(question, images, index.classes, teacher, emit)


def plan(spec: JobSpec) -> dict[str, Any]:
    """Raises FGDError if the job cannot be trained; whatever torch raises if there is too little memory."""
    from fgd.data.formats import open_index
    from fgd.engine.rehearsal import rehearse
    from fgd.engine.weights import load_detector

    assert isinstance(spec.dataset, FromPath)
    index, _ = open_index(Path(spec.dataset.path))
    images: dict[str, int] = {name: len(split) for name, split in index.splits.items()}
    teachers = {
        name: load_detector(Path(ref.path)).recipe
        for name, ref in spec.teacher_refs().items()
        if isinstance(ref, FromPath)
    }
    known = outline(spec, images, teachers, index.classes)
    return known.model_dump(mode="json") | {"measured": rehearse(spec, log).model_dump(mode="json")}


def log_phase(event: Event) -> None:
    if isinstance(event, Phase):
        print(event.phase, file=sys.stderr)


def log(event: Event) -> None:
    print(event.model_dump_json(), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
