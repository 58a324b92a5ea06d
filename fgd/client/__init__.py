"""A client of the service: `Client` asks, waits and downloads. Knows no torch and nothing of the service's code."""

from fgd.client.answers import (
    Artifact,
    Attempt,
    Checkpoint,
    Dataset,
    Failure,
    Job,
    LogChunk,
    MetricPoint,
    Model,
    Plan,
    PlanError,
    Progress,
    Running,
    Split,
    StoredEvent,
    Worker,
)
from fgd.client.client import Client
from fgd.client.errors import (
    ApiError,
    ClientError,
    DigestMismatch,
    FieldError,
    ForeignAnswer,
    Unreachable,
    WrongArgument,
)
from fgd.client.transport import DEFAULT_URL

__all__ = [
    "DEFAULT_URL",
    "ApiError",
    "Artifact",
    "Attempt",
    "Checkpoint",
    "Client",
    "ClientError",
    "Dataset",
    "DigestMismatch",
    "Failure",
    "FieldError",
    "ForeignAnswer",
    "Job",
    "LogChunk",
    "MetricPoint",
    "Model",
    "Plan",
    "PlanError",
    "Progress",
    "Running",
    "Split",
    "StoredEvent",
    "Unreachable",
    "Worker",
    "WrongArgument",
]
