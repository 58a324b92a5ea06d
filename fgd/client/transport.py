"""Requests to one service, each sent until there is an answer worth having. Knows HTTP. Knows no jobs.

Every request may be repeated safely (what makes something carries an Idempotency-Key), so each is: a connection that
breaks, a busy or a restarting service cost time, not work.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from fgd.client.answers import Answer
from fgd.client.errors import ApiError, FieldError, ForeignAnswer, Unreachable, WrongArgument
from fgd.client.patience import Patience

DEFAULT_URL = "http://127.0.0.1:8000"

A = TypeVar("A", bound=Answer)


class Transport:
    """The way to one service. `Client` says what the parameters are."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        timeout_s: float,
        attempts: int,
        backoff_s: float,
        transport: httpx.BaseTransport | None,
    ) -> None:
        address = checked_address(url)
        self.url = url.rstrip("/")
        self.attempts = attempts
        self.backoff_s = backoff_s
        self.http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {checked_key(api_key)}"} if api_key else {},
            timeout=httpx.Timeout(timeout_s, connect=5.0),
            # A proxy set for the internet must not catch what is meant for this machine.
            trust_env=address.host not in ("127.0.0.1", "localhost", "::1"),
            transport=transport,
        )

    def get(self, path: str, **query: Any) -> httpx.Response:
        return self.request("GET", path, params={key: value for key, value in query.items() if value is not None})

    def json(self, path: str, **query: Any) -> dict[str, Any]:
        response = self.get(path, **query)
        try:
            answer = response.json()
        except ValueError as error:
            raise foreign(response, error) from error
        if not isinstance(answer, dict):
            raise foreign(response, ValueError("not an object"))
        return answer

    def items(self, kind: type[A], path: str, **query: Any) -> list[A]:
        """A list that comes as one page."""
        return [check(kind, item) for item in self.json(path, **query).get("items", [])]

    def pages(self, kind: type[A], path: str, most: int, **filters: Any) -> list[A]:
        """The first `most` of a list that comes page by page."""
        found: list[A] = []
        cursor: str | None = None
        while len(found) < most:
            page = self.json(path, limit=min(200, most - len(found)), cursor=cursor, **filters)
            found += [check(kind, item) for item in page.get("items", [])]
            if (cursor := page.get("next")) is None:
                break
        return found

    def post(self, path: str, body: str, idempotency_key: str | None = None) -> httpx.Response:
        headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self.request("POST", path, content=body, headers=headers)

    def patch(self, path: str, changes: Mapping[str, Any]) -> httpx.Response:
        """What is None stays as it is."""
        body = json.dumps({field: value for field, value in changes.items() if value is not None})
        return self.request("PATCH", path, content=body, headers={"Content-Type": "application/json"})

    def request(self, method: str, path: str, *, attempts: int | None = None, **how: Any) -> httpx.Response:
        """Send until there is an answer worth having; ApiError or Unreachable otherwise."""
        patience, content = self.patience(attempts), how.pop("content", None)
        while True:
            try:
                response = self.http.request(method, path, content=content() if callable(content) else content, **how)
            except httpx.TransportError as error:
                time.sleep(patience.bear(self.unreachable(error)))
                continue
            if response.is_success or response.status_code == httpx.codes.NOT_MODIFIED:
                return response
            time.sleep(patience.bear(problem_of(response)))

    def patience(self, attempts: int | None = None) -> Patience:
        return Patience(self.backoff_s, attempts or self.attempts)

    def unreachable(self, error: httpx.TransportError) -> Unreachable:
        found = Unreachable(self.url, str(error) or type(error).__name__)
        found.__cause__ = error
        return found


# --- what the caller gives ------------------------------------------------------------------------------------


def checked_address(url: str) -> httpx.URL:
    """Raises WrongArgument, which says what is wrong with it."""
    try:
        address = httpx.URL(url)
        host = address.raw_host.decode("ascii") if address.host else ""  # decoding the name may fail as well
    except (httpx.InvalidURL, UnicodeError) as error:  # UnicodeError: of the package that encodes host names
        raise _no_address(url, str(error)) from error
    if address.scheme not in ("http", "https"):
        raise _no_address(url, "it must start with http:// or https://")
    if not host or "%" in host or not all(0 < len(part) < 64 for part in host.rstrip(".").split(".")):
        raise _no_address(url, "it names no host")
    if address.port is not None and not 0 < address.port < 65536:
        raise _no_address(url, f"{address.port} is not a port")
    if address.query or address.fragment:
        raise _no_address(url, "it has a part behind ? or #")
    return address


def _no_address(url: str, why: str) -> WrongArgument:
    return WrongArgument(f"{url[:200]!r} is not the address of a service: {why}; one looks like {DEFAULT_URL}")


def checked_key(api_key: str) -> str:
    """Raises WrongArgument, without a word of the key itself."""
    if not (api_key.isascii() and api_key.isprintable() and api_key == api_key.strip()):
        raise WrongArgument("the API key has a space at one end, or a character that is not allowed in a header")
    return api_key


# --- answers --------------------------------------------------------------------------------------------------


def route(*parts: str) -> str:
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def check(kind: type[A], item: Any) -> A:
    try:
        return kind.model_validate(item)
    except ValidationError as error:
        raise ForeignAnswer(f"the service's answer is not a {kind.__name__}: {error}") from error


def read(kind: type[A], response: httpx.Response) -> A:
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        raise foreign(response, error) from error


def foreign(response: httpx.Response, error: Exception) -> ForeignAnswer:
    return ForeignAnswer(f"{response.url} does not answer like this service; check the address ({error})")


def problem_of(response: httpx.Response) -> ApiError:
    """The problem+json of an answer; a proxy's HTML page, too, becomes a readable error."""
    fallback = f"{response.request.method} {response.request.url.path} was answered {response.reason_phrase or 'oddly'}"
    retry_after = response.headers.get("retry-after", "")
    retry_after_s = float(retry_after) if retry_after.isdecimal() else None
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        return ApiError(response.status_code, f"http_{response.status_code}", fallback, retry_after_s=retry_after_s)
    errors = body.get("errors")
    return ApiError(
        response.status_code,
        str(body.get("code") or f"http_{response.status_code}"),
        str(body.get("detail") or body.get("title") or fallback),
        tuple(
            FieldError(
                str(error.get("pointer", "")),
                str(error.get("code", "")),
                str(error.get("detail", "")),
                str(error["parameter"]) if error.get("parameter") else None,
            )
            for error in (errors if isinstance(errors, list) else [])
            if isinstance(error, dict)
        ),
        str(body["request_id"]) if body.get("request_id") else None,
        body.get("retryable") is True,
        str(body.get("title") or ""),
        retry_after_s,
    )
