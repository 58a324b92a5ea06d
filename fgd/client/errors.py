"""What can go wrong between a client and its service.

    FGDError
    +-- ClientError                base
        +-- WrongArgument          what the caller gave cannot be; nothing was sent
        +-- ApiError               the service answered, and the answer is a problem (RFC 9457)
        +-- Unreachable            nobody answered
        +-- ForeignAnswer          something answered that is not this service
        +-- DigestMismatch         the bytes that came down are not those that were promised

Knows no HTTP library.
"""

from __future__ import annotations

from dataclasses import dataclass

from fgd.errors import ArgumentError, FGDError
from fgd.text.printable import printable

BUSY = frozenset({429, 502, 503, 504})
"""Statuses that say "not now"."""


class ClientError(FGDError):
    pass


class WrongArgument(ClientError, ArgumentError):
    """An address, a key, a file or a folder that cannot be used. Nothing was sent."""


class ForeignAnswer(ClientError):
    """What answers at the address is not this service, or another version of it."""


@dataclass(frozen=True)
class FieldError:
    """One part of the request that the service refuses."""

    pointer: str
    """JSON pointer into the body; "" for the whole of it."""
    code: str
    detail: str
    parameter: str | None = None
    """The query parameter, path segment or header at fault, where it is not the body."""

    @property
    def where(self) -> str:
        return self.parameter or self.pointer or "the request"


class ApiError(ClientError):
    """A problem the service answered with. `code` is its stable word, `errors` name the fields at fault."""

    code: str  # type: ignore[misc]  # per problem here, per class elsewhere

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        errors: tuple[FieldError, ...] = (),
        request_id: str | None = None,
        retryable: bool = False,
        title: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(status, code, detail, errors, request_id, retryable, title, retry_after_s)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors
        self.request_id = request_id
        self.retryable = retryable
        self.title = title
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        said_twice = any(error.detail in self.detail for error in self.errors)
        lines = [f"{self.title if said_twice and self.title else self.detail} ({self.status} {self.code})"]
        lines += [f"  {error.where}: {error.detail}" for error in self.errors]
        return "\n".join(map(printable, lines))


class Unreachable(ClientError):
    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url = url
        self.reason = reason

    def __str__(self) -> str:
        return f"no service answers at {self.url} ({self.reason}); start one with `fgd serve`, or set FGD_URL"


class DigestMismatch(ClientError):
    def __init__(self, name: str, expected: str, got: str) -> None:
        super().__init__(name, expected, got)
        self.name = name

    def __str__(self) -> str:
        _, expected, got = self.args
        return f"{self.name}: sha256 {got}, but the service announced {expected}; nothing was kept, download it again"


def passing(error: ApiError | Unreachable) -> bool:
    """May the same request succeed a little later?"""
    if isinstance(error, Unreachable):
        return True
    # The next look says where an upload has to go on.
    return error.status in BUSY or error.retryable or error.code in ("upload_offset_mismatch", "upload_cut")
