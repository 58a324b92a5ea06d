"""How our own programs start as children: with the code that we run, and never with what lies in the current folder.

`python -m worker` alone would put the folder that somebody works in first on the path, and a folder may have an
`api/` or a `worker/` of its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import fgd


def command(module: str, *arguments: str) -> list[str]:
    """`python -m module arguments`; give the child `environment()` with it."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """Ours, and what makes the children of the child safe too."""
    return {**os.environ, "PYTHONPATH": python_path(), "PYTHONSAFEPATH": "1"}


def become(module: str, *arguments: str) -> NoReturn:
    """Replace this process by that program: signals, exit code and terminal are its own from here on."""
    sys.stdout.flush()
    os.execve(sys.executable, command(module, *arguments), environment())


def our_folder() -> str:
    """Where the code that we run lies."""
    return str(Path(fgd.__path__[0]).parent)


def python_path() -> str:
    """Our own code comes first, wherever a child runs."""
    ours, theirs = our_folder(), os.environ.get("PYTHONPATH")
    return f"{ours}{os.pathsep}{theirs}" if theirs else ours
