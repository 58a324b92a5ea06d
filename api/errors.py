"""Every error leaves as one application/problem+json (RFC 9457). Knows how; the tree is in `api/core/errors.py`.

core.errors.ServiceError     its own status, code and words      pydantic's 422     pointers into the user's body
Starlette's HTTPException    404, 405, ...                       the database busy  503, retryable
anything else                500 with the request's id; the traceback stays in the server's log
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, TimeoutError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from api.core.errors import Conflict, Fault, Invalid, NotFound, Refused, ServiceError
from api.core.store.names import StoreAway
from fgd.text.pointers import faults

log = logging.getLogger(__name__)

RETRY_AFTER_S = 5
EVERYWHERE = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}
"""Headers of every answer. The border adds them, but not to what failed outside of it."""


class ProblemError(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    pointer: str
    """JSON pointer into the body that was sent; "" for the whole body."""
    code: str
    detail: str
    parameter: str | None = None
    """The query parameter or header at fault, if it is not the body."""


class Problem(BaseModel):
    """Any error of this service."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    """A stable URI for the kind of problem."""
    title: str
    status: int
    detail: str
    instance: str
    """The requested path."""
    code: str
    """A stable word for programs."""
    errors: list[ProblemError] = Field(default_factory=list)
    """Everything that is wrong with the request, in detail."""
    request_id: str
    """Also in the header X-Request-Id and in the server's log."""
    retryable: bool
    """The same request may succeed later."""


class ProblemResponse(JSONResponse):
    media_type = "application/problem+json"


def problem(
    request: Request,
    status: int,
    code: str,
    detail: str,
    *,
    errors: tuple[Fault, ...] | list[Fault] = (),
    retryable: bool = False,
    headers: dict[str, str] | None = None,
) -> Response:
    body = Problem(
        type=f"urn:fgd:problem:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=request.url.path,
        code=code,
        errors=[ProblemError(**vars(fault)) for fault in errors],
        request_id=request.scope.get("fgd.request_id", ""),
        retryable=retryable,
    )
    headers = {"X-Request-Id": body.request_id, **EVERYWHERE, **(headers or {})}
    if retryable:
        headers.setdefault("Retry-After", str(RETRY_AFTER_S))
    return ProblemResponse(body.model_dump(mode="json"), status_code=status, headers=headers)


def install(app: FastAPI) -> None:
    """The one place where exceptions become answers."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OperationalError, _database_error)
    app.add_exception_handler(InterfaceError, _database_error)
    app.add_exception_handler(InternalError, _database_error)  # PostgreSQL that became a standby, or ended our idling
    app.add_exception_handler(TimeoutError, _database_error)  # all connections are in use
    app.add_exception_handler(StoreAway, _store_error)
    app.add_exception_handler(Exception, _unexpected)


Responses = dict[int | str, dict[str, Any]]


NOT_MODIFIED: Responses = {304: {"description": "Nothing has changed since the ETag in If-None-Match."}}


def documented(*statuses: int) -> Responses:
    """For `responses=`: these statuses answer with a Problem."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {ProblemResponse.media_type: {"schema": schema}},
        }
        for status in statuses
    }


def _service_error(request: Request, error: Exception) -> Response:
    match error:
        case Invalid():
            return problem(request, 422, error.code, error.detail, errors=error.errors)
        case Refused():
            return problem(request, error.status_code, error.code, error.detail, headers=error.headers)
        case Conflict():
            return problem(request, 409, error.code, error.detail, errors=error.errors, retryable=error.retryable)
        case ServiceError():
            if error.status >= 500:
                log.error("request %s: %s", request.scope.get("fgd.request_id"), error)
            return problem(request, error.status, error.code, error.detail, retryable=error.retryable)
    raise error


def _invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = faults(error.errors(), error.body)
    detail = "; ".join(f"{fault.pointer or fault.parameter or 'the body'}: {fault.detail}" for fault in found[:3])
    if len(found) > 3:
        detail += f"; and {len(found) - 3} more"
    return problem(request, 422, "invalid_request", detail, errors=found)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _service_error(request, NotFound("route", request.url.path))
    code = HTTPStatus(error.status_code).name.lower()
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request))
    return problem(request, error.status_code, code, str(error.detail), headers=headers)


def _methods(request: Request) -> list[str]:
    """All that some route answers at this path; of a folder of files, which has none of its own, GET."""
    found: set[str] = set()
    scope = {**request.scope, "root_path": request.scope.get("app_root_path", "")}  # not as the folder sees it
    for route in request.app.routes:
        if route.matches(scope)[0] != Match.NONE:
            found |= getattr(route, "methods", None) or {"GET"}
    return sorted(found | ({"HEAD"} if "GET" in found else set()))


def _database_error(request: Request, error: Exception) -> Response:
    log.warning("request %s: %s", request.scope.get("fgd.request_id"), error)
    return problem(request, 503, "database_busy", "the database did not answer in time; try again", retryable=True)


def _store_error(request: Request, error: Exception) -> Response:
    log.warning("request %s: %s", request.scope.get("fgd.request_id"), error)
    return problem(request, 503, "store_away", "the file store did not answer; try again", retryable=True)


def _unexpected(request: Request, error: Exception) -> Response:  # noqa: ARG001
    id = request.scope.get("fgd.request_id", "")
    detail = f"internal error, not a fault of your request; the server's log has it under {id}"
    return problem(request, 500, "internal_error", detail)
