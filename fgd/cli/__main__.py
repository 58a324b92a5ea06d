"""`fgd`, and `python -m fgd.cli`: where the command begins. Ctrl-C is heard while the rest is still being loaded."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from fgd.cli import main as command

        command.main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
