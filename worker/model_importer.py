"""Reads a stranger's weights in a process of its own, where nothing can be reached, and makes them a model of ours.

    python -m worker.model_importer FILE WANTED.json OUT [--checkpoint last|best] [--parent-fd N]

WANTED.json is the recipe of the network that FILE must fit. Exit 0 with OUT/student.safetensors, recipe.json and
report.json; 2 with OUT/error.txt, and report.json where there is a difference to tell; 75 where the host refuses and
another try may go well. The one module of the worker that loads torch; the supervisor starts it and never imports it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from fgd.process.lifeline import die_with_parent
from fgd.stored import stored_recipe
from worker.confinement import confine_files, confine_process
from worker.limits import IMPORT_MINUTES, be_killed_first, limit, memory_exceeded
from worker.reader_codes import NOTHING_THERE, TRY_AGAIN


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("wanted", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--checkpoint", choices=["last", "best"], help="of our own trainer: which weights of it")
    parser.add_argument("--take", choices=["ema", "raw"], default="ema", help="of a file that holds both")
    parser.add_argument("--minutes", type=float, default=IMPORT_MINUTES)
    parser.add_argument("--parent-fd", type=int)
    parser.add_argument("--events-fd", type=int, help="unused: an import has no steps")
    arguments = parser.parse_args()
    be_killed_first()
    if not confine_files(arguments.out, [arguments.file, arguments.wanted]):
        print("this kernel has no Landlock: only permissions guard this host's files", file=sys.stderr)
    die_with_parent(arguments.parent_fd)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from fgd.engine import import_weights  # before the confinement: loading torch needs more than reading a file
    from fgd.errors import UserError

    memory = limit(arguments.minutes)
    if not confine_process():
        print("this system cannot filter system calls: only weights_only protects this process", file=sys.stderr)
    try:
        recipe = stored_recipe(arguments.wanted.read_bytes())
        file, out, which, take = arguments.file, arguments.out, arguments.checkpoint, arguments.take
        report = import_weights.convert(file, recipe, out, which, take)
    except import_weights.Misfit as error:
        (arguments.out / "report.json").write_text(json.dumps(error.report))
        return refuse(arguments.out, error)
    except UserError as error:
        return refuse(arguments.out, error)
    except MemoryError:
        return refuse(arguments.out, MemoryError(memory_exceeded(memory)))
    except OSError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return TRY_AGAIN
    (arguments.out / "report.json").write_text(json.dumps(report))
    return 0


def refuse(out: Path, error: Exception) -> int:
    (out / "error.txt").write_text(str(error))
    return NOTHING_THERE


if __name__ == "__main__":
    sys.exit(main())
