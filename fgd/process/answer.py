"""What a program says that answers with one JSON object: to a file for its parent, or on standard output.

An error is {"error": {"code", "message", "pointer"}}. Knows no torch.
"""

from __future__ import annotations

import argparse
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fgd.errors import FGDError
from fgd.process import landlock, lifeline
from fgd.process.error_causes import code_of
from fgd.process.exit_codes import exit_code


def add_options(parser: argparse.ArgumentParser) -> None:
    """Of every such program."""
    parser.add_argument("--out", type=Path, help="file for the answer; default: standard output")
    parser.add_argument("--events-fd", type=int, help="not used: there are no events")
    parser.add_argument("--parent-fd", type=int, help="pipe that closes when the parent is gone; the process then ends")


def answered(
    arguments: argparse.Namespace,
    work: Callable[[], dict[str, Any]],
    shown: Callable[[dict[str, Any]], bool] | None = None,
) -> int:
    """Do it and say what came of it. Returns the exit code. The process ends with its parent, where it has one.

    shown: prints an answer for people in place of JSON; False if it cannot.
    """
    if arguments.parent_fd is not None:
        landlock.keep_apart()  # first: it counts for threads that are started afterwards
        lifeline.die_with_parent(arguments.parent_fd)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in fgd.train; must be set before torch loads
    code, answer = 0, {}
    try:
        answer = work()
    except Exception as error:
        code, answer = exit_code(error), {"error": told(error)}
    if shown is not None and shown(answer):
        return code
    text = json.dumps(answer, indent=2) + "\n"
    if arguments.out is None:
        print(text, end="")
    else:
        arguments.out.write_text(text)
    return code


def told(error: Exception) -> dict[str, str]:
    if isinstance(error, FGDError):
        message = getattr(error, "message", None) or str(error)
        return {"code": error.code, "message": message, "pointer": getattr(error, "pointer", "")}
    traceback.print_exc()
    return {"code": code_of(error), "message": f"{type(error).__name__}: {error}"[:4000], "pointer": ""}
