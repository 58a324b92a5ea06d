"""`make test-browser` first looks for a Chromium, and brings one if it can: Playwright's own, or Debian's for root.

A machine that reaches neither runs no browser tests; each then says that it was skipped, and why.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""Of programs that Playwright can drive."""
LONGEST_S = 300


def there() -> str | None:
    """The path of one on this machine; None leaves the choice to Playwright."""
    return os.environ.get("FGD_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def playwrights_own() -> bool:
    return _runs(sys.executable, "-m", "playwright", "install", "chromium", "--only-shell")


def debians() -> bool:
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = ("apt-get", "-qq", "-o", "Dpkg::Use-Pty=0")
    _runs(*apt, "update", env=environment)
    return _runs(*apt, "install", "-y", "--no-install-recommends", "chromium", env=environment)


def _runs(*command: str, env: dict[str, str] | None = None) -> bool:
    try:
        done = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=LONGEST_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def main() -> None:
    if there() is None:
        print("no Chromium here; bringing one ...")
        if not debians() and not playwrights_own():
            print("it could not be had: install chromium, or name one in FGD_CHROMIUM. The browser tests are skipped.")


if __name__ == "__main__":
    main()
