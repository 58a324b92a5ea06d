"""Reads a user's data set in a process of its own: what a hostile image can break is this process and no other.

    python -m worker.importer FOLDER OUT [--verify full|headers] [--parent-fd N]

Writes OUT/report.json always; OUT/index.json and OUT/archive.tar where the data set can be trained on. Exit 0 in both
cases; 2 with OUT/error.txt where there is no data set at all; 75 where the host refuses (a full disk, no file handles)
and another try may go well. Knows no rows, no store, no torch.
"""

from __future__ import annotations

import argparse
import resource
import sys
from pathlib import Path
from typing import Literal

from fgd.data import archive, coco
from fgd.errors import UserError
from fgd.lifeline import die_with_parent

CPU_S = 4 * 3600
MEMORY = 16 * 2**30
FILE = 64 * 2**30
OPEN_FILES = 1024
NOTHING_THERE = 2
TRY_AGAIN = 75
"""EX_TEMPFAIL of sysexits.h."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--verify", choices=["full", "headers"], default="full")
    parser.add_argument("--parent-fd", type=int)
    parser.add_argument("--events-fd", type=int, help="not used: an import has no steps")
    arguments = parser.parse_args()
    die_with_parent(arguments.parent_fd)
    confine()
    try:
        return read_and_pack(arguments.folder, arguments.out, arguments.verify)
    except OSError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return TRY_AGAIN


def read_and_pack(folder: Path, out: Path, verify: Literal["full", "headers"]) -> int:
    out.mkdir(parents=True, exist_ok=True)
    try:
        index, report, sources = coco.read(folder, verify=verify)
        (out / "report.json").write_text(report.model_dump_json())
        if report.ok:
            (out / "index.json").write_text(index.model_dump_json())
            archive.pack(index, sources, out / "archive.tar")
    except UserError as error:
        (out / "error.txt").write_text(str(error))
        return NOTHING_THERE
    return 0


def confine() -> None:
    """Bounds on time, memory, file size and open files; no core dumps of users' files."""
    for what, limit in (
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, FILE),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        bounded = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (bounded, bounded))


if __name__ == "__main__":
    sys.exit(main())
