"""Entity tags (RFC 9110, 8.8.3 and 13.1): strong ones, of a row's version or of content."""

from __future__ import annotations

import re

_ANY_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e]*")')


def of_version(version: int) -> str:
    return f'"v{version}"'


def of_digest(sha256: str) -> str:
    return f'"sha256-{sha256}"'


def matches(header: str | None, tag: str) -> bool:
    """True if an If-None-Match names `tag`, or any; compared weakly, as that header wants."""
    return header is not None and (header.strip() == "*" or tag in named(header))


def is_meant(header: str | None, tag: str) -> bool:
    """False if an If-Match names other tags than `tag`; compared strongly, as that header wants. Without one any
    version is meant."""
    if header is None or header.strip() == "*":
        return True
    return tag in [strong for weak, strong in _ANY_TAG.findall(header) if not weak]


def named(header: str) -> list[str]:
    """The tags of an If-None-Match."""
    return [tag for _, tag in _ANY_TAG.findall(header)]
