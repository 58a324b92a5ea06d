"""Reads a user's data set in a process of its own: what a hostile image can break is this process and no other.

    python -m worker.importer FOLDER|ZIP OUT [--format auto] [--verify full] [--val-fraction F]
                                          [--group-by none] [--below ROOT]

A zip is unpacked first, into OUT, and is read like a folder then. Writes OUT/report.json always; OUT/index.json and
OUT/archive.tar where the data set can be trained on. Exit 0 in both cases; 2 with OUT/error.txt where there is no data
set at all; 75 where the host refuses (a full disk, no file handles) and another try may go well. With --below the
folder must still lie below one of the roots, with no link on the way, and be the same one at the end. The process
writes nothing outside OUT (confinement.py). Knows no rows, no store, no torch.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from fgd.data import archive, format_list, formats, zips
from fgd.data.report import Defects
from fgd.data.splits import Carving
from fgd.errors import DatasetError, UserError
from fgd.process.lifeline import die_with_parent
from worker.confinement import confine_files, confine_process
from worker.limits import IMPORT_MINUTES, be_killed_first, limit, memory_exceeded
from worker.open_below import open_below
from worker.reader_codes import NOTHING_THERE, TRY_AGAIN

_TOLD = 5


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--format", choices=["auto", *format_list.FORMATS], default="auto")
    parser.add_argument("--val-fraction", type=float)
    parser.add_argument("--group-by", choices=["none", "prefix"], default="none")
    parser.add_argument("--verify", choices=["full", "headers"], default="full")
    parser.add_argument("--below", type=Path, action="append", default=[], metavar="ROOT")
    parser.add_argument("--minutes", type=float, default=IMPORT_MINUTES)
    parser.add_argument("--parent-fd", type=int)
    parser.add_argument("--events-fd", type=int, help="unused: an import has no steps")
    arguments = parser.parse_args()
    source, out = arguments.folder, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    try:
        opened = open_below(source, arguments.below) if arguments.below else None
    except DatasetError as error:
        (out / "error.txt").write_text(str(error))
        return NOTHING_THERE
    be_killed_first()
    if not confine_files(out, [source if opened is None else opened.descriptor]):
        print("this kernel has no Landlock: only permissions guard this host's files", file=sys.stderr)
    die_with_parent(arguments.parent_fd)
    memory = limit(arguments.minutes)
    if not confine_process():
        print("this system has no filter for system calls: nothing guards this host's network", file=sys.stderr)
    try:
        carving = Carving(arguments.val_fraction, arguments.group_by)
        check = opened.check if opened is not None else lambda: None
        return read_and_pack(source, out, arguments.format, arguments.verify, carving, check)
    except MemoryError:
        (arguments.out / "error.txt").write_text(memory_exceeded(memory))
        return NOTHING_THERE
    except OSError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return TRY_AGAIN


def read_and_pack(
    source: Path,
    out: Path,
    format: str,
    verify: Literal["full", "headers"],
    carving: Carving,
    check: Callable[[], None],
) -> int:
    """check: raises DatasetError if `source` is not what it was."""
    folder, defects, skipped = source, Defects(), tuple[str, ...]()
    try:
        if source.is_file():
            folder, skipped = unpacked(source, out / "unzipped", defects)
        index, report, sources = formats.read(folder, format, verify, carving, defects, out / "unpacked", skipped)
        check()
        (out / "report.json").write_text(report.model_dump_json())
        if report.ok:
            (out / "index.json").write_text(index.model_dump_json())
            archive.pack(index, sources, out / "archive.tar")
            check()
    except UserError as error:
        # Where a zip was unpacked to tells its sender nothing.
        (out / "error.txt").write_text(
            str(error).replace(str(folder.resolve()), "the zip" if folder != source else str(source))
        )
        return NOTHING_THERE
    finally:
        shutil.rmtree(out / "unpacked", ignore_errors=True)
        if folder != source:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


def unpacked(source: Path, folder: Path, defects: Defects) -> tuple[Path, tuple[str, ...]]:
    """The folder of a zip's files, and the names of those that are not in it. Raises DatasetError for a damaged
    or harmful one."""
    found = zips.unpack(source, folder)
    skipped = found.skipped
    if found.names.encoding:
        message = f"the zip does not say how its names are encoded; they are read as {found.names.encoding}"
        defects.add("zip_names_decoded", "", message, "kept")
    if found.names.backslashes:
        message = f"{found.names.backslashes} names in the zip have \\ between folders; it is read as /"
        defects.add("zip_backslashes", "", message, "kept")
    if skipped:
        told = ", ".join(skipped[:_TOLD]) + (", ..." if len(skipped) > _TOLD else "")
        message = (
            f"{len(skipped)} members were not unpacked: they are hidden, or of a kind that no data set needs: {told}"
        )
        defects.add("members_skipped", "", message, "kept")
    return folder, skipped


if __name__ == "__main__":
    sys.exit(main())
