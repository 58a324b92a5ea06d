"""What a job will cost, measured before it is started: `python -m fgd.plan spec.json`.

The spec is a JobSpec whose references are paths, as for `python -m fgd.train`. Prints one JSON object: the outline of
the job (levels, adapters, sizes, steps, warnings), and under "measured" what a few real steps and a small evaluation on
its data showed: parameters, peak memory, seconds per step, and from them hours and disk.

Exit codes: 0; 1 it cannot be trained so, 2 the spec is wrong or a path leads nowhere: {"error": {"code", "message",
"pointer"}} says why.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fgd.events import Event
from fgd.outline import outline
from fgd.process import answer
from fgd.spec import JobSpec
from fgd.spec_fields import FromPath
from fgd.train import read_spec


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    return answer.answered(arguments, lambda: plan(read_spec(arguments.spec, staged=arguments.parent_fd is not None)))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fgd.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spec", type=Path, help="a JobSpec as JSON whose references are paths")
    answer.add_options(parser)
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


if __name__ == "__main__":
    sys.exit(main())
