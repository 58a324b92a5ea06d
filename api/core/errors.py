"""What the service's core raises on purpose. Knows no HTTP framework; `status` is the answer a route would give.

    ServiceError                      code, status, retryable
    +-- NotFound            404       no such thing in this project
    +-- Conflict            409       the thing is in a state that forbids this
    +-- Changed             412       it is another version by now than the one that was to be changed
    +-- Invalid             422       the request cannot be done; `errors` names the fields
    +-- Busy                429       as many as the server can hold are there already; later
    +-- Refused             4xx       anything else that is the caller's to change (status given)
    Fenced                            a write of an attempt that no longer owns its job: 0 rows were written
    Unfit                             the database cannot be used by this code: out of date, too new, or none
    DriverMissing                     a setting needs a package that is not installed

To add one: subclass, set `status`, keep every argument in `args` (errors survive pickling), say what to do.
"""

from __future__ import annotations

from typing import ClassVar

from fgd.text.pointers import Fault as Fault


class ServiceError(Exception):
    """`code` is a stable word for programs, `detail` a sentence for people."""

    status: ClassVar[int] = 500

    def __init__(self, code: str, detail: str, retryable: bool = False) -> None:
        super().__init__(code, detail, retryable)
        self.code = code
        self.detail = detail
        self.retryable = retryable

    def __str__(self) -> str:
        return self.detail


class NotFound(ServiceError):
    status = 404

    def __init__(self, what: str, id: str) -> None:
        Exception.__init__(self, what, id)
        self.code = f"{what}_not_found"
        self.detail = f"there is no {what} {id[:80]!r} here"
        self.retryable = False


class Conflict(ServiceError):
    """`pointer`: the place in the body that names the thing; None where the address names it."""

    status = 409

    def __init__(self, code: str, detail: str, retryable: bool = False, pointer: str | None = None) -> None:
        Exception.__init__(self, code, detail, retryable, pointer)
        self.code = code
        self.detail = detail
        self.retryable = retryable
        self.errors = () if pointer is None else (Fault(pointer, code, detail),)


class Changed(ServiceError):
    """It is no longer the version that the caller has seen."""

    status = 412

    def __init__(self, id: str, version: int) -> None:
        Exception.__init__(self, id, version)
        self.code = "precondition_failed"
        self.detail = f"{id} has changed since, to version {version}; look at it, and send the new ETag in If-Match"
        self.retryable = False


class Busy(ServiceError):
    status = 429

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail, True)

    def __reduce__(self) -> tuple[type[Busy], tuple[str, str]]:
        return type(self), (self.code, self.detail)


class Invalid(ServiceError):
    status = 422

    def __init__(self, *errors: Fault) -> None:
        Exception.__init__(self, *errors)
        self.code = errors[0].code if len(errors) == 1 else "invalid_request"
        self.detail = "; ".join(fault.detail for fault in errors)
        self.retryable = False
        self.errors = errors


class Refused(ServiceError):
    """A request that fails before it is understood: not JSON, too large, without a key."""

    def __init__(self, code: str, detail: str, status_code: int, headers: dict[str, str] | None = None) -> None:
        Exception.__init__(self, code, detail, status_code, headers)
        self.code = code
        self.detail = detail
        self.retryable = False
        self.status_code = status_code
        self.headers = headers or {}


class Fenced(Exception):
    """The attempt lost its lease, or its job ended: kill the trainer, write nothing more."""

    def __init__(self, id: str, attempt: int) -> None:
        super().__init__(id, attempt)
        self.id = id
        self.attempt = attempt

    def __str__(self) -> str:
        return f"attempt {self.attempt} no longer owns {self.id}; nothing was written"


class Unfit(Exception):
    """The database cannot be used; the message says what to do, in one line."""


class SchemaOutOfDate(Unfit):
    """The database is older than this code: `fgd serve` upgrades it, or call api.core.rows.db.upgrade."""


class SchemaTooNew(Unfit):
    """The database was written by a newer version of this code."""


class NotADatabase(Unfit):
    """The file is not SQLite's, or is damaged."""


class DriverMissing(Exception):
    """A setting names a database or a store whose client is an extra that is not installed; the message says which."""
