"""Which state of the code a study measured. Standard library only."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str:
    """Of the checkout, and whether it has changes; "unknown" where there is no git."""
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    except OSError:
        return "unknown"
