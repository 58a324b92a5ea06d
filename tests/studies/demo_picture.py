"""The tables that `make demo` ends with, as a picture for the README.

    make demo | tee demo.txt
    python tests/studies/demo_picture.py demo.txt docs/demo.svg

Plain text of one width in an SVG: it needs no font of its own, and every character keeps its column in any viewer.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from xml.sax.saxutils import escape

COLUMN_PX, LINE_PX, FONT_PX, MARGIN_PX = 8.4, 20, 14, 18
FIRST, LAST = "network", "Training took"
"""Words in the first and the last line of what is shown."""


def shown(text: str) -> list[str]:
    """The lines from the table's head to the times, without what the demo printed before and after."""
    lines = text.splitlines()
    begin = next(n for n, line in enumerate(lines) if FIRST in line)
    end = next(n for n, line in enumerate(lines) if LAST in line)
    return [line.rstrip() for line in lines[begin : end + 1]]


def svg(lines: list[str]) -> str:
    width = 2 * MARGIN_PX + COLUMN_PX * max(map(len, lines))
    height = 2 * MARGIN_PX + LINE_PX * len(lines)
    drawn = [element(n, line) for n, line in enumerate(lines) if line.strip()]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" '
            f'height="{height}" font-family="ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace" '
            f'font-size="{FONT_PX}" fill="#24292f">',
            f'<rect width="{width:.0f}" height="{height}" rx="6" fill="#f6f8fa" stroke="#d0d7de"/>',
            *drawn,
            "</svg>\n",
        ]
    )


def element(n: int, line: str) -> str:
    text, y = line.lstrip(), MARGIN_PX + LINE_PX * (n + 0.75)
    x = MARGIN_PX + COLUMN_PX * (len(line) - len(text))
    if not text.strip("─"):
        y -= LINE_PX / 4
        return f'<path d="M{x:.1f} {y:.1f}h{COLUMN_PX * len(text):.1f}" stroke="#d0d7de"/>'
    bold = ' font-weight="bold"' if text.startswith(("gain", FIRST, "AP (val)")) else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" textLength="{COLUMN_PX * len(text):.1f}" xml:space="preserve"{bold}>'
        f"{escape(text)}</text>"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="what the demo printed")
    parser.add_argument("picture", type=Path, help="the SVG to write")
    arguments = parser.parse_args()
    arguments.picture.write_text(svg(shown(arguments.output.read_text())))


if __name__ == "__main__":
    main()
