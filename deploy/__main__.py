"""`python -m deploy serve|backup|restore|doctor`: what `fgd` turns into for these commands.

They run the service's own code, which the library must not import. Options, messages and exit codes are those of
`fgd`. What takes time to load is imported inside: Ctrl-C is heard from the beginning.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgd.process.private import keep_private
from fgd.process.secrets import hide_secrets

if TYPE_CHECKING:
    from api.core.settings import Settings


def main() -> None:
    given = parser().parse_args()
    keep_private()
    try:
        sys.exit(ended(given))
    except KeyboardInterrupt:
        sys.exit(130)


def parser() -> argparse.ArgumentParser:
    """Every option overrules an FGD_* variable or says what to do; `fgd COMMAND --help` tells more."""
    commands = argparse.ArgumentParser(prog="python -m deploy", description=__doc__)
    verbs = commands.add_subparsers(metavar="COMMAND", required=True)

    each = verbs.add_parser("serve", help="run the whole service on this machine")
    each.set_defaults(do=serve)
    each.add_argument("--host", help="address to listen on")
    each.add_argument("--port", type=int, help="port to listen on; 0: any free one")
    each.add_argument(
        "--data-root", type=Path, action="append", help="folder below which the service may read data sets"
    )
    each.add_argument("--parent-fd", type=int, help="end when the other end of this pipe closes")

    each = verbs.add_parser("backup", help="copy database and store into a folder")
    each.set_defaults(do=backup)
    each.add_argument("folder", type=Path, help="a new or empty folder")

    each = verbs.add_parser("restore", help="restore a backup into an empty database and store")
    each.set_defaults(do=restore)
    each.add_argument("folder", type=Path, help="a folder written by backup")
    each.add_argument("--keep-store", action="store_true", help="keep the store's files and add the missing ones")

    each = verbs.add_parser("doctor", help="compare database and store")
    each.set_defaults(do=doctor)
    each.add_argument(
        "--delete", action="store_true", help="delete the files that no row names; stop all workers first"
    )
    each.add_argument("--older-than-h", type=hours, default=24.0, help="only files at least this many hours old")

    for each in verbs.choices.values():
        each.add_argument("--home", type=Path, help="folder for everything the service writes")
    return commands


def hours(text: str) -> float:
    if not (found := float(text)) >= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is less than 1; a younger file may still get its row")
    return found


def ended(given: argparse.Namespace) -> int:
    """Do what was asked for; the exit code. Errors that were foreseen end in a message, not a traceback."""
    from fgd.cli.printing import print_error
    from fgd.errors import FGDError
    from fgd.process.exit_codes import FAILED, exit_code, message_of

    try:
        return int(given.do(given))
    except BrokenPipeError:  # `fgd doctor | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (FGDError, OSError) as error:
        print_error(message_of(error))
        return exit_code(error)


def settings(**given: Any) -> Settings:
    """FGD_* variables, overruled by the options that were given. Ends the program where one is wrong."""
    from pydantic import ValidationError

    from api.core.settings import Settings, complaint
    from fgd.cli.printing import print_error
    from fgd.process.exit_codes import REFUSED

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        print_error(complaint(error))
        sys.exit(REFUSED)


# --- the commands ---------------------------------------------------------------------------------------------


def serve(given: argparse.Namespace) -> int:
    from deploy import local

    roots = tuple(given.data_root) if given.data_root else None
    chosen = settings(host=given.host, port=given.port, home=given.home, data_roots=roots)
    hide_secrets()
    return local.serve(chosen, parent_fd=given.parent_fd)


def backup(given: argparse.Namespace) -> int:
    from deploy import backup
    from fgd.cli.printing import note, print_line
    from fgd.process.exit_codes import DONE, FAILED

    made = backup.backup(settings(home=given.home), given.folder, say=note)
    print_line(f"{given.folder}  {made.taken_at}  {len(made.blobs)} blobs, {len(made.objects)} checkpoints")
    for missing in made.missing:
        print_line(f"missing from the store, and therefore from the backup: {missing}")
    return FAILED if made.missing else DONE


def restore(given: argparse.Namespace) -> int:
    from deploy import backup
    from fgd.cli.printing import note, print_line
    from fgd.process.exit_codes import DONE, FAILED

    found = backup.restore(settings(home=given.home), given.folder, given.keep_store, say=note)
    for line in found.lines():
        print_line(line)
    return FAILED if found.missing else DONE


def doctor(given: argparse.Namespace) -> int:
    from deploy.doctor import examine
    from fgd.cli.printing import print_line
    from fgd.process.exit_codes import DONE, FAILED

    found = examine(settings(home=given.home), given.older_than_h * 3600.0, given.delete)
    for line in found.lines():
        print_line(line)
    if found.whole:
        print_line("database and store agree")
    elif given.delete:
        print_line(f"deleted {len(found.stray_blobs)} blobs and {len(found.stray_objects)} checkpoints")
    return FAILED if found.missing else DONE


if __name__ == "__main__":
    main()
