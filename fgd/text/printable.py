"""Text of strangers on a terminal: what would steer it or reorder what is read is shown, not obeyed. Knows no rich."""

from __future__ import annotations

import re

# C0 with escape, DEL and C1; line and paragraph separators, and the overrides that turn text around (bidi); halves of
# characters, which cannot be written.
_STEERS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    """`text` with everything that steers a terminal written out as \\u001b, which a JSON text may hold as well.

    keep: what the text was laid out with by us, such as its line ends. Twice does no more than once.
    """
    return _STEERS.sub(lambda found: found[0] if found[0] in keep else f"\\u{ord(found[0]):04x}", text)
