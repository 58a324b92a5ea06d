"""Files that commands are given."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgd.cli.printing import fail
from fgd.process.exit_codes import REFUSED


def read_json(source: str) -> Mapping[str, Any]:
    """A spec; "-" is standard input."""
    from fgd.text.strict_json import NotJSON, parse

    try:
        body = parse(sys.stdin.read() if source == "-" else Path(source).read_bytes())
    except OSError as error:
        fail(f"{source}: {error.strerror}", REFUSED)
    except UnicodeError:
        fail(f"{source}: not UTF-8", REFUSED)
    except NotJSON as error:
        fail(f"{source}: {error}", REFUSED)
    if not isinstance(body, dict):
        fail(f"{source}: expected a spec, a JSON object {{...}}", REFUSED)
    return body
