"""What a job will cost, measured before it is started: `python -m fgd.plan spec.json`.

The spec is a JobSpec whose references are paths, as for `python -m fgd.train`. Prints one JSON object: the outline of
the job (levels, adapters, sizes, steps, warnings), and under "measured" what a few real steps and a small evaluation on
its data showed: parameters, peak memory, seconds per step, and from them hours and disk.

Exit codes: 0; 1 it cannot be trained so, 2 the spec is wrong or a path leads nowhere: {"error": {"code", "message",
"pointer"}} says why.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from fgd.errors import FGDError
from fgd.events import Event
from fgd.outline import outline
from fgd.process import landlock, lifeline
from fgd.process.error_causes import code_of
from fgd.process.exit_codes import exit_code
from fgd.spec import JobSpec
from fgd.spec_fields import FromPath
from fgd.train import read_spec


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.parent_fd is not None:
        landlock.keep_apart()  # first: it counts for threads that are started afterwards
        lifeline.die_with_parent(arguments.parent_fd)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in fgd.train; must be set before torch loads
    code, answer = 0, {}
    try:
        answer = plan(read_spec(arguments.spec, staged=arguments.parent_fd is not None))
    except Exception as error:
        code, answer = exit_code(error), {"error": told(error)}
    text = json.dumps(answer, indent=2) + "\n"
    if arguments.out is None:
        print(text, end="")
    else:
        arguments.out.write_text(text)
    return code


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fgd.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spec", type=Path, help="a JobSpec as JSON whose references are paths")
    parser.add_argument("--out", type=Path, help="file for the answer; default: standard output")
    parser.add_argument("--events-fd", type=int, help="not used: a plan has no events")
    parser.add_argument("--parent-fd", type=int, help="pipe that closes when the parent is gone; the process then ends")
    return parser.parse_args(argv)


def plan(spec: JobSpec) -> dict[str, Any]:
    """Raises FGDError if the job cannot be trained; whatever torch raises if there is too little memory."""
    from fgd.data.formats import open_index
    from fgd.engine.rehearsal import rehearse
    from fgd.engine.weights import load_detector

    assert isinstance(spec.dataset, FromPath)
    index, _ = open_index(Path(spec.dataset.path))
    images: dict[str, int] = {name: len(split) for name, split in index.splits.items()}
    teacher, teacher_classes = None, tuple[str, ...]()
    if isinstance(spec.teacher, FromPath):
        recipe = load_detector(Path(spec.teacher.path)).recipe
        teacher, teacher_classes = recipe.detector, recipe.classes
    known = outline(spec, images, teacher, index.classes, teacher_classes)
    return known.model_dump(mode="json") | {"measured": rehearse(spec, log).model_dump(mode="json")}


def log(event: Event) -> None:
    print(event.model_dump_json(), file=sys.stderr)


def told(error: Exception) -> dict[str, str]:
    if isinstance(error, FGDError):
        message = getattr(error, "message", None) or str(error)
        return {"code": error.code, "message": message, "pointer": getattr(error, "pointer", "")}
    traceback.print_exc()
    return {"code": code_of(error), "message": f"{type(error).__name__}: {error}"[:4000], "pointer": ""}


if __name__ == "__main__":
    sys.exit(main())
