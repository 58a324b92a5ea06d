"""The application, which `python -m deploy.api` serves. Puts the parts together; knows no job.

Another server may run it (`uvicorn --factory api.main:create_app`), without the bounds of deploy/http_server.py.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import SecretStr
from sqlalchemy import Engine

from api import errors
from api.core import queue
from api.core.resampling import Resampler
from api.core.rows import db
from api.core.settings import Settings, check_bind
from api.core.store.names import BlobStore
from api.core.store.open import open_store, room_of
from api.core.sweeper import Sweeper, sweeping
from api.deps import Service
from api.http import docs, web
from api.http.middleware import Border, Heads
from api.http.startup import PlainStart, ending_if_unsafe
from api.live import Changes, Places, told_of_signals
from api.looks import Looks
from api.routes import (
    artifacts,
    catalogue,
    datasets,
    detections,
    evaluations,
    exports,
    focus,
    health,
    job_history,
    jobs,
    models,
    plans,
    predictions,
    reports,
    samples,
    studies,
    summaries,
    tickets,
    workers,
)
from api.tracking import Target, Tracker, tracking
from fgd.process.secrets import hide_secrets
from fgd.tracking.mlflow import Account

PARTS = (
    jobs,
    job_history,
    focus,
    detections,
    reports,
    studies,
    summaries,
    plans,
    datasets,
    samples,
    models,
    evaluations,
    exports,
    predictions,
    artifacts,
    tickets,
    catalogue,
    workers,
    health,
)
"""Whose routes the application has, in the order of its document."""

DESCRIPTION = """\
Compress object detectors by knowledge distillation: submit a job, watch it, download the student's weights.

Errors are `application/problem+json` with a stable `code` and JSON pointers into the body you sent.
"""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application. Raises UnsafeBind for an address that others reach without a key; it opens the database only
    when it starts, and then raises Unfit unless the tables are those of this version."""
    if settings is None:
        settings = Settings()
        hide_secrets()
    check_bind(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = db.make_engine(settings.database_url)
        try:
            db.check_schema(engine)
            bell = queue.make_app(settings.broker_url) if settings.broker_url else None
            store = open_store(settings)
            sweeper = Sweeper(engine, store, bell, settings.lease_s, settings.uploads)
            async with ending_if_unsafe(settings), Changes(engine, settings.changes_s) as changes:
                with (
                    Looks(engine) as looks,
                    told_of_signals(changes.end_waits),
                    sweeping(sweeper.sweep, settings.sweep_s) as sweeps,
                    Resampler(store, settings.home / "figures") as resampler,
                    tracking(_tracker(settings, engine, store, resampler)),
                ):
                    app.state.service = Service(
                        settings,
                        engine,
                        store,
                        bell,
                        sweeps,
                        looks,
                        changes,
                        room_of(settings),
                        streams=Places(settings.max_streams, "too_many_streams", "event streams"),
                        waiters=Places(settings.max_waiters, "too_many_waiters", "long polls"),
                        resampler=resampler,
                    )
                    yield
        finally:
            engine.dispose()

    app = FastAPI(
        title="Detector distillation",
        version="1",
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for part in PARTS:
        app.router.routes.extend(part.router.routes)  # include_router would match each path twice
    web.install(app)
    docs.install(app)
    errors.install(app)
    app.add_middleware(Heads)
    app.add_middleware(Border, settings=settings)
    app.add_middleware(PlainStart)
    app.openapi = lambda: _openapi(app, settings)  # type: ignore[method-assign]
    return app


def _tracker(settings: Settings, engine: Engine, store: BlobStore, resampler: Resampler) -> Tracker | None:
    """None: no MLflow server is named."""
    if settings.mlflow_tracking_uri is None:
        return None
    password, token = _text(settings.mlflow_password), _text(settings.mlflow_token)
    account = Account.of_environment().but(settings.mlflow_username, password, token)
    target = Target(settings.mlflow_tracking_uri, settings.mlflow_experiment, account, settings.public_url)
    return Tracker(engine, store, resampler, target, settings.lease_s)


def _text(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _can_be_wrong(operation: dict[str, Any]) -> bool:
    """Whether a request can be of the wrong shape: not where all it has is optional text, or an id in its address."""
    bare = {"type", "title", "anyOf", "description"}
    return "requestBody" in operation or any(
        not parameter["schema"].keys() <= (bare | {"pattern"} if parameter["in"] == "path" else bare)
        or {each["type"] for each in parameter["schema"].get("anyOf", [parameter["schema"]])} - {"string", "null"}
        or (parameter["required"] and parameter["in"] != "path")
        for parameter in operation.get("parameters", [])
    )


def _default_in_words(field: dict[str, Any]) -> None:
    """An object as a default makes generators of clients leave out the field, and the routes that take it."""
    if isinstance(default := field.get("default"), dict):
        del field["default"]
        said = f"Default: {json.dumps(default)}"
        field["description"] = f"{field['description']}\n{said}" if "description" in field else said


def _openapi(app: FastAPI, settings: Settings) -> dict[str, Any]:
    """FastAPI's document, with our one error shape in place of its own."""
    if app.openapi_schema:
        return app.openapi_schema
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        for field in schema.get("properties", {}).values():
            _default_in_words(field)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = errors.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs"))
    schemas["Problem"] = problem
    everywhere = errors.documented(401, 500) if settings.api_key else errors.documented(500)
    for operations in document["paths"].values():
        for operation in operations.values():
            answers = operation["responses"]
            if "application/json" in answers.get("422", {}).get("content", {}):
                answers.pop("422")  # FastAPI's own, for whatever has a parameter
                if _can_be_wrong(operation):
                    answers["422"] = errors.documented(422)[422]
            answers.update({str(status): answer for status, answer in everywhere.items()})
    if settings.api_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    app.openapi_schema = document
    return document
