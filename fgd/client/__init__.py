"""A client of the service: `Client` asks, waits and downloads. Knows no torch and nothing of the service's code."""

from fgd.client.answers import (
    Artifact,
    Attempt,
    Dataset,
    Failure,
    Job,
    Kept,
    LogChunk,
    Model,
    Plan,
    PlanError,
    Point,
    Progress,
    Running,
    Split,
    StoredEvent,
    Worker,
)
from fgd.client.client import Client
from fgd.client.errors import ApiError, ClientError, DigestMismatch, FieldError, Unreachable
from fgd.client.transport import DEFAULT_URL

__all__ = [
    "DEFAULT_URL",
    "ApiError",
    "Artifact",
    "Attempt",
    "Client",
    "ClientError",
    "Dataset",
    "DigestMismatch",
    "Failure",
    "FieldError",
    "Job",
    "Kept",
    "LogChunk",
    "Model",
    "Plan",
    "PlanError",
    "Point",
    "Progress",
    "Running",
    "Split",
    "StoredEvent",
    "Unreachable",
    "Worker",
]
