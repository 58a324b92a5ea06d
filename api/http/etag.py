"""Entity tags (RFC 9110, 8.8.3 and 13.1): strong ones, of a row's version or of content."""

from __future__ import annotations

import re

_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e]*")')


def of_version(version: int) -> str:
    return f'"v{version}"'


def of_digest(sha256: str) -> str:
    return f'"sha256-{sha256}"'


def matches(header: str | None, tag: str) -> bool:
    """True if an If-None-Match names `tag`, or any; compared weakly, as that header wants."""
    return header is not None and (header.strip() == "*" or tag in named(header))


def named(header: str) -> list[str]:
    """The tags of an If-None-Match."""
    return _TAG.findall(header)
